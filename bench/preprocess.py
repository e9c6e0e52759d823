"""What a long conversation in many scripts costs before it is tokenized: decoding with all checks, and its template.

    python -m bench.preprocess [TEMPLATE.jinja ...]

One conversation of 100 kB: 61 messages of Chinese, Russian and emoji. The best of several rounds, since all else is the
machine's. Without arguments, the templates are those that the tests know.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

from dynamo.frontend.chat_template import ChatTemplate
from dynamo.frontend.openai import decode_chat

TEMPLATES = Path(__file__).parents[1] / "tests" / "frontend" / "templates"
NUM_BYTES = 100_000
NUM_TURNS = 30
CALLS, ROUNDS = 20, 7
LINES = ("Привет, как дела? 这是一个很长的问题。👩‍👩‍👧 ", "Ответ: 内容如下 🌍🚀 и ещё немного. ")


def main() -> None:
    body = conversation()
    num_messages = len(decode_chat(body).messages)
    print(f"{len(body):,} bytes, {num_messages} messages, ms\n{'decoded and checked':<44}{decoded_in(body):>6.2f}")
    given = [Path(name) for name in sys.argv[1:]]
    for path in given or sorted([*TEMPLATES.glob("*.jinja"), *TEMPLATES.glob("by_hand/*.jinja")]):
        print(f"... and rendered, {path.stem:<25} {rendered_in(body, path):>6.2f}")


def decoded_in(body: bytes) -> float:
    return milliseconds(lambda: decode_chat(body))


def rendered_in(body: bytes, path: Path) -> float:
    """Decoded anew each time: a str that was rendered before is rendered faster."""
    template = ChatTemplate({"default": path.read_text()}, {"bos_token": "<s>", "eos_token": "</s>"})
    return milliseconds(lambda: template.render(decode_chat(body).messages))


def conversation() -> bytes:
    turn = NUM_BYTES // (2 * NUM_TURNS)
    question, answer = (line * (turn // len(line.encode())) for line in LINES)
    pair = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages = [*(pair * NUM_TURNS), {"role": "user", "content": "Спасибо!"}]
    return json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()


def milliseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1000


if __name__ == "__main__":
    main()
