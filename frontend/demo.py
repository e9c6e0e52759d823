"""`make run`: the whole product on one machine with mock workers, and one answer streamed so that you see it work."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.main import DEMO_MODEL, run

FLAGS = ["--http-host", "127.0.0.1", "--workers", "2", "--mock-workers", "2", "--discovery-backend", "mem"]
QUESTION = "What does a gateway in front of language models do?"
PATIENCE_S = 60.0

NEXT_STEPS = """
Try next:

  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="unused")
  answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
  print(answer.choices[0].message.content)

(from a Python that has the openai package: pip install openai)

Ctrl-C stops everything."""


def main() -> None:
    """Flags of dynamo-frontend may be given and win over those of the demo."""
    os.environ.setdefault("DYN_LOG", "warn")
    config, provenance = FrontendConfig.load([*FLAGS, *sys.argv[1:]], prog="python -m dynamo.frontend.demo")
    print(
        f"Starting a router, {config.workers} acceptors and {config.mock_workers} mock workers, "
        "which have no model: they make up words.",
        flush=True,
    )
    sys.exit(run(config, provenance, on_listening=_show_in_background))


def _show_in_background(url: str) -> None:
    threading.Thread(target=_show, args=(url,), daemon=True).start()


def _show(url: str) -> None:
    started = time.monotonic()
    try:
        _wait_for_model(url)
        print(f"Ready after {time.monotonic() - started:.1f} s at {url}\n\n> {QUESTION}\n", flush=True)
        for text in _stream_answer(url):
            print(text, end="", flush=True)
        print("\n" + NEXT_STEPS.format(url=url, model=DEMO_MODEL), flush=True)
    except (OSError, http.client.HTTPException, TimeoutError, ValueError) as error:
        print(f"\nThe demo request failed: {error}. Run it again with DYN_LOG=info to see why.", file=sys.stderr)


def _wait_for_model(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while DEMO_MODEL not in _model_ids(url):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no worker of model {DEMO_MODEL!r} came up in {PATIENCE_S:g} s")
        time.sleep(0.05)


def _model_ids(url: str) -> list[str]:
    with _request(url, "GET", "/v1/models") as response:
        return [model["id"] for model in json.load(response)["data"]]


def _stream_answer(url: str) -> Iterator[str]:
    body = {
        "model": DEMO_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "max_tokens": 60,
    }
    with _request(url, "POST", "/v1/chat/completions", json.dumps(body)) as response:
        if response.status != 200:
            raise ValueError(f"status {response.status}: {response.read(1000).decode(errors='replace')}")
        for line in response:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices")
                yield (choices[0]["delta"].get("content") or "") if choices else ""


def _request(url: str, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_S)
    connection.request(method, path, body, {"content-type": "application/json", "connection": "close"})
    return connection.getresponse()


if __name__ == "__main__":
    main()
