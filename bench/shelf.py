"""Results of the routing benches on disk, a file per case, so that a run that was cut short goes on where it ended."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.figures import Figure
from bench.trace import Cut
from bench.trace_fleet import Mockers
from bench.trace_replay import Replay


class Settings(Struct, frozen=True):
    """What results must have in common to stand in one table. The trace is replayed `trace_speedup` times as fast."""

    commit: str
    cut: Cut
    mockers: Mockers
    trace_speedup: float
    is_quick: bool


class Result(Struct, frozen=True):
    """Figures of the router alone, or the replay of an arm."""

    settings: Settings
    figures: list[Figure] = []
    replay: Replay | None = None


_decode = msgspec.json.Decoder(Result).decode


class Shelf:
    def __init__(self, directory: Path, settings: Settings) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._settings = settings

    def get(self, case: str) -> Result | None:
        """None where the case was not measured yet, or with other settings."""
        try:
            result = _decode(self._file(case).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None
        return result if result.settings == self._settings else None

    def put(self, case: str, *, figures: list[Figure] | None = None, replay: Replay | None = None) -> None:
        self._file(case).write_bytes(msgspec.json.encode(Result(self._settings, figures or [], replay)))

    def forget(self, case: str) -> None:
        self._file(case).unlink(missing_ok=True)

    def _file(self, case: str) -> Path:
        return self._directory / f"{re.sub('[^a-z0-9]+', '-', case.lower())}.json"
