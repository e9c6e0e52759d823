"""Lines as a user sees them, written by a real process to its stderr."""

import json
import os
import subprocess
import sys

import pytest

from dynamo.shared.config import ConfigError
from dynamo.shared.log import LogOptions, parse_filter

PROGRAM = """
import logging
from dynamo.shared.log import configure_logging
configure_logging("acceptor-3")
log = logging.getLogger("dynamo.demo")
log.debug("not by default")
log.info("request done\\nFAKE LINE", extra={"status": 200, "x_request_id": "r1"})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("bug")
"""


def lines_of(**variables: str) -> list[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DYN_LOG")} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_readable_lines_name_level_process_target_and_pairs() -> None:
    first = lines_of()[0]
    assert " INFO acceptor-3 dynamo.demo: request done" in first
    assert first.endswith("status=200 x_request_id=r1")


def test_a_newline_in_a_message_stays_on_its_line() -> None:
    assert r"request done\nFAKE LINE" in lines_of()[0]


@pytest.mark.parametrize("switch", [{"DYN_LOGGING_JSONL": "true"}, {"DYN_LOGGING_CONSOLE_FORMAT": "jsonl"}])
def test_jsonl_lines_carry_the_same_fields(switch: dict[str, str]) -> None:
    done, bug = map(json.loads, lines_of(**switch))
    assert done["time"].endswith("Z")
    assert done | {"time": ""} == {
        "time": "",
        "level": "INFO",
        "target": "dynamo.demo",
        "message": "request done\nFAKE LINE",
        "process": "acceptor-3",
        "status": 200,
        "x_request_id": "r1",
    }
    assert bug["level"] == "ERROR"
    assert "ZeroDivisionError" in bug["exception"]


def test_a_target_can_be_louder_than_the_rest() -> None:
    assert any("not by default" in line for line in lines_of(DYN_LOG="error,dynamo.demo=debug"))
    assert not any("not by default" in line for line in lines_of(DYN_LOG="error,dynamo.other=debug"))


def test_filter_accepts_both_separators() -> None:
    assert parse_filter("warn, dynamo::router=trace") == {"": 30, "dynamo.router": 5}


@pytest.mark.parametrize("text", ["loud", "info,dynamo=", "=debug"])
def test_a_bad_filter_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match="DYN_LOG"):
        LogOptions(filter=text)
