"""Parsers that another package brings: the example of the documentation, installed, and some that do not work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.echo_gateway import RAW
from tests.support.gateway import Gateway
from tests.support.mock_worker import MockWorker
from tests.support.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "docs/examples/parser_plug_in"
FAILING = """
class Failing:
    def __init__(self, functions):
        pass

    def push(self, text):
        raise RuntimeError("not today")
"""
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
CALL = '[[get_weather {"city": "Köln"}]]'
TEXT = f"hm[answer]Let me look. {CALL}"
PARSERS = {
    "good": ["--tool-call-parser=brackets", "--reasoning-parser=until-answer"],
    "unknown": ["--tool-call-parser=bracket"],
    "no-import": ["--tool-call-parser=no-import"],
    "no-factory": ["--tool-call-parser=no-factory"],
    "failing": ["--tool-call-parser=failing"],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages."""
    directory = tmp_path_factory.mktemp("site")
    source = shutil.copytree(EXAMPLE, directory / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, f"--target={directory}", str(source)], check=True)
    (directory / "failing_parsers.py").write_text(FAILING)
    about = directory / "failing_parsers-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-parsers\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[dynamo_frontend.tool_parsers]\n"
        "failing = failing_parsers:Failing\n"
        "no-factory = failing_parsers:__name__\n"
        "no-import = failing_parsers_are_gone:Failing\n"
    )
    return directory


@pytest.fixture(scope="module")
def gateway(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With a model for each entry of `PARSERS`, all of which say what they are asked."""
    environment = {
        "DYN_FILE_KV": str(tmp_path_factory.mktemp("store")),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])),
    }
    gateway = Gateway("--discovery-backend=file", mock_workers=0, environment=environment)
    with ExitStack() as stack:
        stack.enter_context(gateway)
        for model, parsers in PARSERS.items():
            flags = ["--engine=echo", f"--model-name={model}", "--discovery-backend=file", *parsers]
            stack.enter_context(MockWorker(*flags, environment=environment))
        wait_until(lambda: gateway.models() == set(PARSERS), "all models are listed")
        yield gateway


def ask(gateway: Gateway, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": TEXT}], "tools": TOOLS, "max_tokens": 200}
    answer = httpx.post(f"{gateway.base_url}/v1/chat/completions", json={**body, **RAW, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_an_installed_parser_reads_answers(gateway: Gateway) -> None:
    choice = ask(gateway, "good").json()["choices"][0]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Let me look. ")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    ]
    assert choice["finish_reason"] == "tool_calls"


def test_an_installed_parser_reads_streams(gateway: Gateway) -> None:
    stream = ask(gateway, "good", stream=True).text
    assert stream.count('"reasoning_content":') >= 1
    assert stream.count('"name":"get_weather"') == 1
    assert '"finish_reason":"tool_calls"' in stream


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("unknown", "there is no tool-call parser 'bracket'; did you mean 'brackets'?"),
        ("no-import", "'no-import' (failing_parsers_are_gone:Failing) cannot be loaded: No module named"),
        ("no-factory", "'no-factory' (failing_parsers:__name__) is not a factory of parsers"),
    ],
)
def test_a_parser_that_cannot_be_had(gateway: Gateway, model: str, complaint: str) -> None:
    """Answers are passed on as they are, and the log says why."""
    message = ask(gateway, model).json()["choices"][0]["message"]
    assert (message["content"], message.get("tool_calls")) == (TEXT, None)
    assert complaint in gateway.log


@pytest.mark.parametrize("stream", [False, True])
def test_a_parser_that_fails_takes_no_answer_down(gateway: Gateway, stream: bool) -> None:
    before = _num_failures(gateway)
    answer = ask(gateway, "failing", stream=stream)
    assert answer.text.endswith("data: [DONE]\n\n") if stream else _content(answer) == TEXT
    wait_until(lambda: _num_failures(gateway) == before + 1, "the failure is counted")
    assert gateway.log.count("RuntimeError: not today") == 1  # of all answers of this model


def _content(answer: httpx.Response) -> Any:
    return answer.json()["choices"][0]["message"]["content"]


def _num_failures(gateway: Gateway) -> float:
    lines = httpx.get(f"{gateway.base_url}/metrics", timeout=60).text.splitlines()
    name = 'dynamo_frontend_parser_failures_total{model="failing"}'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
