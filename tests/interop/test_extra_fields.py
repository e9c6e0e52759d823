"""Dry runs and `nvext.extra_fields` have the shapes of the real frontend, standing beside ours at the same workers."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.interop.anchor import AS_THEIRS, AnchorFrontend, Mocker, file_store
from tests.support.gateway import Gateway
from tests.support.waiting import wait_until

TEXT = "Tell me about the sea and its many inhabitants, please. " * 8
CHAT = {"messages": [{"role": "user", "content": TEXT}]}
NOT_OURS = {"router_queue_depth"}  # of nvext.timing: the acceptor does not learn it


class Frontends(NamedTuple):
    theirs: str
    ours: str


@pytest.fixture(scope="module", params=["kv", "round-robin"])
def frontends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    store = file_store(tmp_path_factory.mktemp("store"))
    mode = f"--router-mode={request.param}"
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Mocker(store, "--speedup-ratio=100"))
        theirs = stack.enter_context(AnchorFrontend(store, mode))
        ours = Gateway(mode, store.flag, AS_THEIRS, mock_workers=0, environment=store.environment)
        stack.enter_context(ours)
        wait_until(lambda: Mocker.model in theirs.models(), "the model at the real frontend")
        wait_until(lambda: len(ours.instances()) == 2, "the workers at ours")
        yield Frontends(theirs.base_url, ours.base_url)


def ask(base_url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer, or its chunks."""
    data = json.dumps({"model": Mocker.model, "max_tokens": 3} | body).encode()
    asked = urllib.request.Request(base_url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text = answer.read().decode()
    if not body.get("stream"):
        return [json.loads(text)]
    assert text.rstrip().endswith("data: [DONE]")
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def shape(value: Any) -> Any:
    """Types instead of values, but for token ids, which must be the same."""
    match value:
        case dict():
            return {
                name: inner if name == "token_ids" else shape(inner)
                for name, inner in value.items()
                if name not in NOT_OURS
            }
        case list():
            return [shape(inner) for inner in value]
        case None:
            return None
    return type(value).__name__


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fields", [["worker_id"], ["timing"], ["timing", "worker_id", "unheard_of"]], ids=str)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_extra_fields(frontends: Frontends, path: str, fields: list[str], is_stream: bool) -> None:
    prompt = CHAT if "chat" in path else {"prompt": TEXT}
    body = {"stream": is_stream, "nvext": {"extra_fields": fields}} | prompt
    theirs, ours = (shape(ask(base_url, path, body)) for base_url in frontends)
    assert (ours[0], ours[-1]) == (theirs[0], theirs[-1])
    assert [chunk for chunk in ours if chunk not in theirs] == []  # one of ours may hold several tokens


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_dry_runs(frontends: Frontends, path: str, is_stream: bool) -> None:
    """Outside of mode kv the real one generates all the same; ours is dry there too."""
    prompt = CHAT if "chat" in path else {"prompt": TEXT}
    body = {"stream": is_stream, "nvext": {"annotations": ["query_instance_id:"]}} | prompt
    theirs, ours = (ask(base_url, path, body) for base_url in frontends)
    assert len(ours) == 1
    assert "usage" not in ours[0] or ours[0]["usage"] is None
    if "token_ids" in theirs[0]["nvext"]:
        assert shape(ours) == shape(theirs)
    else:
        assert set(ours[0]["nvext"]["worker_id"]) == set(theirs[0]["nvext"]["worker_id"])
