"""Tell an operator once that something is lost, why, and once that it is back."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger("dynamo.discovery")


class Outage:
    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._is_on = False

    def begin(self, reason: object) -> None:
        if not self._is_on:
            logger.warning("%s: unavailable, will keep trying: %s", self._subject, reason)
        self._is_on = True

    def end(self) -> None:
        if self._is_on:
            logger.warning("%s: available again", self._subject)
        self._is_on = False


def report_failure(task: asyncio.Task[None]) -> None:
    """Done callback of a background task: it is cancelled in the end, and ends otherwise only through a bug."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s stopped", task.get_name(), exc_info=error)
