"""Faults of a chat in the words of the API that it was asked for by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dynamo.shared.errors import InvalidRequest


class FieldNames:
    """`renamed` are regular expressions of a chat's paths with what they become; `prompt` is the field that its
    messages were made of, which is all that is told of where in them a fault is."""

    def __init__(self, prompt: str, *renamed: tuple[str, str]) -> None:
        self._prompt = prompt
        self._renamed = [(re.compile(rf"(?<![\w.]){path}"), name) for path, name in renamed]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raises the InvalidRequest that is raised within, told of the client's own fields."""
        try:
            yield
        except InvalidRequest as error:
            param = error.param
            if param is not None:
                param = self._prompt if param.partition("[")[0] == "messages" else self._in_words(param)
            raise InvalidRequest(self._in_words(str(error)), param, error.code) from None

    def _in_words(self, text: str) -> str:
        for path, name in self._renamed:
            text = path.sub(name, text)
        return text
