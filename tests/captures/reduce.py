"""Reduce captures of a running 1.6.1 to what a replay needs: the request, and what can be compared of its answer.

    python -m tests.captures.reduce DIRECTORY_WITH_JSONL_FILES

writes cases.jsonl beside this module. Captures without a request or a status (timings, a client that gave up) are no
cases.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.captures.comparable import comparable_answer

GROUPS = ("infra", "good", "bad", "other", "noworker", "edge")  # in the order in which they were taken
JSON = {"content-type": "application/json"}  # sent with every body; some groups do not say so
LEFT_OUT = "<left out>"  # stands for a body that is published elsewhere
CASES = Path(__file__).parent / "cases.jsonl"


def main() -> None:
    source = Path(sys.argv[1])
    cases = [case for group in GROUPS for case in cases_of(group, source / f"{group}.jsonl")]
    CASES.write_text("".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n" for case in cases))
    print(f"{len(cases)} cases")


def cases_of(group: str, path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        capture = json.loads(line)
        request = capture.get("request")
        if request is None or "status" not in capture:
            continue
        yield {
            "group": group,
            "case": capture["case"],
            "method": request["method"],
            "path": request["path"],
            "headers": {name.lower(): value for name, value in request.get("headers", JSON).items()},
            "body": request.get("body"),
            "status": capture["status"],
            "answer": answer_of(capture),
        }


def answer_of(capture: dict[str, Any]) -> dict[str, Any]:
    answer = comparable_answer(capture["headers"], capture["body"])
    if capture["body"] == LEFT_OUT:
        del answer["body"]
    return answer


if __name__ == "__main__":
    main()
