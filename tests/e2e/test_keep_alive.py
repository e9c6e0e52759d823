"""Comments keep a silent stream open, and do not disturb its answer."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from tests.support.fleet import LONG_PROMPT, fleet


def test_a_silent_stream_carries_comments_and_still_ends_whole(tmp_path: Path) -> None:
    with fleet(tmp_path, "--sse-keep-alive-interval-ms=100", num_workers=1) as running:
        connection = http.client.HTTPConnection(*running.address, timeout=30)
        body = {"model": running.model, "stream": True, "prompt": LONG_PROMPT}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        lines = iter(answer.readline, b"")
        assert next(line for line in lines if line.startswith(b":")) == b": keep-alive\n"
        running.workers[0].open_gate()
        rest = b"".join(lines)
        assert b'"finish_reason":"stop"' in rest or b'"finish_reason":"length"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        connection.close()
