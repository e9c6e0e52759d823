"""Logs on stderr, readable or as JSON lines, filtered by level and target as in `info,dynamo.router=debug`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamo.shared.config import Config, ConfigError, option

TRACE = 5
OFF = logging.CRITICAL + 10
LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": OFF,
}
_LEVEL_NAMES = {TRACE: "TRACE", logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True, kw_only=True)
class LogOptions(Config):
    """Variables only: children inherit them."""

    filter: str = option(
        "info",
        env="DYN_LOG",
        help="Level (trace, debug, info, warn, error, off), then target=level pairs, with commas.",
    )
    is_jsonl: bool = option(False, env="DYN_LOGGING_JSONL", help="One JSON object a line.")
    console_format: str = option(
        "readable",
        env="DYN_LOGGING_CONSOLE_FORMAT",
        choices=("readable", "jsonl"),
        help="The same choice by name; either variable switches JSON lines on.",
    )
    uses_local_time: bool = option(False, env="DYN_LOG_USE_LOCAL_TZ", help="Local time instead of UTC.")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_filter(self.filter)


def parse_filter(text: str) -> dict[str, int]:
    """`info,dynamo.router=debug` -> {"": 20, "dynamo.router": 10}; targets may be written with `::` too."""
    levels = {"": logging.INFO}
    for part in filter(None, (part.strip() for part in text.split(","))):
        target, equals, name = part.rpartition("=")
        level = LEVELS.get(name.strip().lower())
        if level is None or (equals and not target):
            raise ConfigError(f"DYN_LOG={text!r}: {part!r} is neither a level ({', '.join(LEVELS)}) nor target=level")
        levels[target.strip().replace("::", ".")] = level
    return levels


def configure_logging(process: str, environ: Mapping[str, str] = os.environ) -> None:
    """Set up the root logger of this process; `process` is its name in every line, as in `acceptor-3`."""
    options, _ = LogOptions.load([], environ, prog=process)
    is_jsonl = options.is_jsonl or options.console_format == "jsonl"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonlFormatter if is_jsonl else ReadableFormatter)(process, options.uses_local_time))
    logging.basicConfig(handlers=[handler], force=True)
    for target, level in parse_filter(options.filter).items():
        logging.getLogger(target or None).setLevel(level)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # nothing here prints them


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra={...}`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


class _Formatter(logging.Formatter):
    def __init__(self, process: str, uses_local_time: bool) -> None:
        super().__init__()
        self._process = process
        self._clock = time.localtime if uses_local_time else time.gmtime

    def time_of(self, record: logging.LogRecord) -> str:
        moment = self._clock(record.created)
        offset = time.strftime("%z", moment) if self._clock is time.localtime else "Z"
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.created % 1 * 1e6):06d}{offset}"

    def level_of(self, record: logging.LogRecord) -> str:
        return _LEVEL_NAMES.get(record.levelno, record.levelname)


class JsonlFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.time_of(record),
            "level": self.level_of(record),
            "target": record.name,
            "message": record.getMessage(),
            "process": self._process,
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class ReadableFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={value}" for key, value in _extras(record).items())
        head = f"{self.time_of(record)} {self.level_of(record):>5} {self._process} {record.name}: "
        line = head + _on_one_line(record.getMessage() + pairs)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _on_one_line(text: str) -> str:
    """Clients' words reach the log: a newline or an escape sequence in them must not look like a line of ours."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
