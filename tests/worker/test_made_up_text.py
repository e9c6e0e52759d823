from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dynamo.worker.made_up_text import ANY_VOCABULARY, made_up_tokens, words_of


def test_the_same_text_on_every_machine() -> None:
    assert list(islice(made_up_tokens(range(1000), 42, 0), 5)) == [871, 494, 958, 162, 450]


def test_prompt_and_seed_decide() -> None:
    texts = {tuple(islice(made_up_tokens(range(1000), *key), 100)) for key in [(1, 0), (2, 0), (1, 1)]}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("vocab", "words"),
    [
        ({"Ġhello": 3, "Ġworld": 1, "he": 0, "Ġé": 2, "<s>": 4}, [1, 3]),
        ([["<unk>", 0.0], ["▁one", -1.0], ["1", -2.0]], [1]),
        ({"[CLS]": 0, "hello": 1, "##lo": 2}, [1]),
        ({"0": 0}, ANY_VOCABULARY),
    ],
)
def test_words_of_a_vocabulary(tmp_path: Path, vocab: Any, words: Any) -> None:
    content = {"model": {"vocab": vocab}, "added_tokens": [{"id": 4, "content": "<s>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert words_of(tmp_path) == words


def test_special_tokens_are_no_words(tmp_path: Path) -> None:
    content = {"model": {"vocab": {"Ġa": 0, "Ġb": 1}}, "added_tokens": [{"id": 1, "content": " b"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert words_of(tmp_path) == [0]


def test_a_model_without_tokenizer_json(tmp_path: Path) -> None:
    assert words_of(tmp_path) == ANY_VOCABULARY
