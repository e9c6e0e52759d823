"""What the real Dynamo 1.6.1 makes of a model's text, by the parsers its worker names.

    python -m tests.interop.parser_oracle --tool hermes --reasoning qwen3 --text '<think>a</think>b'
    python -m tests.interop.parser_oracle < cases.jsonl

Each line of JSON has the fields of `Case`, and each line of the answer those of `Answer`. It runs with
DYNAMO_ORACLE_PYTHON naming the interpreter that has ai-dynamo 1.6.1, in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import httpx
import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from tests.interop.anchor import ANCHOR_PYTHON, MODEL_PATH, AnchorFrontend, AnchorProcess, Store, file_store
from tests.interop.network_namespace import enter_network_namespace
from tests.support.waiting import wait_until

END = 16377  # of the demo model
TEMPLATE = """{% for message in messages %}{{ message.content }}\n{% endfor %}{{ prompt_end | default('') }}"""
Pair = tuple[str | None, str | None]


def function(name: str, **parameters: Any) -> dict[str, Any]:
    """A tool by the JSON schemas of its parameters."""
    schema = {"type": "object", "properties": parameters}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TEXT, INTEGER, NUMBER, BOOLEAN = ({"type": name} for name in ("string", "integer", "number", "boolean"))
TOOLS = (
    function("get_weather", city=TEXT, unit=TEXT, days=INTEGER),
    function("get_time", timezone=TEXT),
    function("search", query=TEXT, limit=INTEGER, exact=BOOLEAN, tags={"type": "array", "items": TEXT}, score=NUMBER),
    function("run", code=TEXT, options={"type": "object"}),
    function("ping"),
)


class Case(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A text that a worker writes: `chunks` as given, or `text` token by token. `prompt_end` ends the prompt; `tools`
    and `body` are the request's, no tools where they are empty."""

    text: str = ""
    tool: str | None = None
    reasoning: str | None = None
    chunks: tuple[str, ...] = ()
    prompt_end: str = ""
    tools: tuple[dict[str, Any], ...] = TOOLS
    body: dict[str, Any] = {}
    finish_reason: str = "stop"

    @property
    def pair(self) -> Pair:
        return self.tool, self.reasoning


class Message(Struct, omit_defaults=True):
    """An assistant's message. Calls are (name, arguments), without their ids."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = []
    finish_reason: str | None = None


class Answer(Struct, omit_defaults=True):
    """The unary message and the one that the stream adds up to, the stream's deltas as they came, and the status and
    body of an error."""

    unary: Message | None = None
    streamed: Message | None = None
    deltas: list[dict[str, Any]] = []
    call_ids: list[str] = []
    error: Any = None


def model_name(pair: Pair) -> str:
    return "-and-".join(name or "none" for name in pair)


class ParserWorker(AnchorProcess):
    """parser_worker.py with one model for each pair of parsers."""

    program = "parser-worker"
    script = ("-P", str(Path(__file__).parent / "parser_worker.py"))

    def __init__(self, store: Store, model_path: Path, pairs: Iterable[Pair]) -> None:
        super().__init__(store)
        self._model_path = model_path
        self._tokenizer = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
        self._seeds = count(1)
        self.models = {model_name(pair): pair for pair in pairs}
        (self.directory / "models.json").write_text(json.dumps(self.models))

    def arguments(self) -> list[str]:
        return [self.store.backend, str(self._model_path), str(self.directory)]

    def is_ready(self, output: str) -> bool:
        return "serving" in output

    def plan(self, case: Case) -> int:
        """The seed of the requests that get this text."""
        seed = next(self._seeds)
        (self.directory / f"{seed}.json").write_text(json.dumps(self._frames(case)))
        return seed

    def close(self) -> None:
        """At once: with many models it takes a minute to shut down."""
        self.kill()
        super().close()

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "calls.jsonl").read_text().splitlines()]

    def _frames(self, case: Case) -> list[dict[str, Any]]:
        chunks = [self._encode(chunk) for chunk in case.chunks] or [[token] for token in self._encode(case.text)]
        return [{"token_ids": ids} for ids in chunks] + [{"token_ids": [END], "finish_reason": case.finish_reason}]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class ParserOracle:
    """The real frontend with some `flags`, and a worker with a model for each of `pairs`; other frontends may join
    their `store`."""

    def __init__(self, pairs: Iterable[Pair], *flags: str) -> None:
        self._pairs = dict.fromkeys(pairs)
        self._flags = flags
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        directory = Path(self._stack.enter_context(TemporaryDirectory(prefix="parser-oracle-")))
        self.store = file_store(directory / "store")
        self.worker = self._stack.enter_context(
            ParserWorker(self.store, _model_directory(directory / "model"), self._pairs)
        )
        real = self._stack.enter_context(AnchorFrontend(self.store, *self._flags))
        self.base_url = real.base_url
        wait_until(lambda: real.models() == set(self.worker.models), "the models of all parsers")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def ask(self, case: Case, base_url: str | None = None) -> Answer:
        """What the real frontend answers, or that of `base_url`."""
        url = f"{base_url or self.base_url}/v1/chat/completions"
        body = {
            "model": model_name(case.pair),
            "messages": [{"role": "user", "content": "Hello"}],
            "seed": self.worker.plan(case),
            "max_tokens": 20_000,
            "chat_template_kwargs": {"prompt_end": case.prompt_end},
            **({"tools": case.tools} if case.tools else {}),
            **case.body,
        }
        unary = httpx.post(url, json=body, timeout=60)
        stream = httpx.post(url, json={**body, "stream": True}, timeout=60)
        if unary.status_code != 200 or stream.status_code != 200:
            return Answer(error=[(each.status_code, each.text) for each in (unary, stream)])
        return _answer(unary.json()["choices"][0], _deltas(stream.text))


def _model_directory(directory: Path) -> Path:
    """The demo model with a template whose end a request gives."""
    shutil.copytree(MODEL_PATH, directory, ignore=shutil.ignore_patterns("__pycache__"))
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    return directory


def _deltas(stream: str) -> list[dict[str, Any]]:
    """The choices of all chunks, without index and role; an error in the stream as it came."""
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(each) for each in data if each != "[DONE]"]
    return [choice for chunk in chunks for choice in chunk.get("choices", [{"delta": {}, **chunk}])]


def _answer(choice: dict[str, Any], deltas: list[dict[str, Any]]) -> Answer:
    message = choice["message"]
    calls = message.get("tool_calls") or []
    unary = Message(
        message.get("content") or "",
        message.get("reasoning_content") or "",
        [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        choice["finish_reason"],
    )
    return Answer(
        unary,
        _added_up(deltas),
        [news for each in deltas if (news := _shortened(each))],
        [call["id"] for call in calls],
    )


def _added_up(choices: Sequence[dict[str, Any]]) -> Message:
    message = Message(calls=[])
    for choice in choices:
        delta = choice["delta"]
        message.content += delta.get("content") or ""
        message.reasoning += delta.get("reasoning_content") or ""
        message.finish_reason = choice.get("finish_reason") or message.finish_reason
        for call in delta.get("tool_calls") or []:
            if call["index"] == len(message.calls):
                message.calls.append(("", ""))
            name, arguments = message.calls[call["index"]]
            news = call["function"]
            message.calls[call["index"]] = (name + (news.get("name") or ""), arguments + (news.get("arguments") or ""))
    return message


def _shortened(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice of a chunk without what says nothing."""
    flat = {**choice, **choice["delta"]}
    return {key: value for key, value in flat.items() if value and key not in ("delta", "role", "index", "logprobs")}


def _cases() -> list[Case]:
    parser = argparse.ArgumentParser(prog="tests.interop.parser_oracle", description=__doc__)
    parser.add_argument("--tool")
    parser.add_argument("--reasoning")
    parser.add_argument("--text")
    parser.add_argument("--prompt-end", default="")
    arguments = parser.parse_args()
    if not ANCHOR_PYTHON:
        parser.error("DYNAMO_ORACLE_PYTHON must name the interpreter that has ai-dynamo 1.6.1")
    if arguments.text is None:
        return [msgspec.json.decode(line, type=Case) for line in sys.stdin if line.strip()]
    return [Case(arguments.text, arguments.tool, arguments.reasoning, prompt_end=arguments.prompt_end)]


def main() -> None:
    cases = _cases()
    enter_network_namespace()
    with ParserOracle(case.pair for case in cases) as oracle:
        for case in cases:
            print(msgspec.json.encode(oracle.ask(case)).decode(), flush=True)


if __name__ == "__main__":
    main()
