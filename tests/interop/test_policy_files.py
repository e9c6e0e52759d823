"""Whether Dynamo 1.6.1 takes the policy files that we take, and refuses those that we refuse."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from dynamo.router.policy_config import parse_policy_file
from tests.interop.anchor import ANCHOR_PYTHON
from tests.router.policy_files import ACCEPTED, REFUSED, REFUSED_BY_DYNAMO, REFUSED_BY_US

# Reads paths, and writes for each what is wrong with the file there, or null.
JUDGE = """
import json, sys
from dynamo._core import KvRouterConfig
verdicts = []
for path in json.load(sys.stdin):
    try:
        KvRouterConfig(router_policy_config=path)
        verdicts.append(None)
    except ValueError as error:
        verdicts.append(str(error))
json.dump(verdicts, sys.stdout)
"""


def judge(texts: list[str], directory: Path) -> list[str | None]:
    paths = [directory / f"{index}.yaml" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    command = [ANCHOR_PYTHON, "-c", JUDGE]
    done = subprocess.run(command, input=json.dumps([str(path) for path in paths]), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verdicts: list[str | None] = json.loads(done.stdout)
    return verdicts


def test_dynamo_takes_what_we_take(tmp_path: Path) -> None:
    texts = [*ACCEPTED, *(text for text, _message in REFUSED_BY_US)]
    assert judge(texts, tmp_path) == [None] * len(texts)


def test_dynamo_refuses_what_we_refuse(tmp_path: Path) -> None:
    texts = [*(text for text, _message in REFUSED), *REFUSED_BY_DYNAMO]
    taken = [text for text, verdict in zip(texts, judge(texts, tmp_path), strict=True) if verdict is None]
    assert taken == []


def test_keys_of_ours_are_the_only_ones_that_dynamo_does_not_know(tmp_path: Path) -> None:
    for text, verdict in zip(REFUSED_BY_DYNAMO, judge(REFUSED_BY_DYNAMO, tmp_path), strict=True):
        parse_policy_file(text, "policy.yaml")
        assert verdict is not None
        assert "unknown field `max_" in verdict
