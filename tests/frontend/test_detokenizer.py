from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dynamo.frontend.detokenizer import Detokenizer, HfVocabulary, TokenTable
from tests.frontend.vocabularies import deepseek, deepseek_hf, qwen, write_byte_fallback, write_word_piece

TEXT = "Größe 中文字符 👩‍💻🇫🇷 done\n"


def run(detokenizer: Detokenizer, token_ids: Sequence[int], sizes: Sequence[int]) -> str:
    """Push `token_ids` in chunks of the given sizes, repeated as often as needed."""
    parts, at, turn = [], 0, 0
    while at < len(token_ids):
        size = sizes[turn % len(sizes)]
        parts.append(detokenizer.push(token_ids[at : at + size]))
        at, turn = at + size, turn + 1
    return "".join(parts) + detokenizer.flush()


chunk_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=8)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 130_000), max_size=60), chunk_sizes, st.booleans())
def test_deepseek_text_equals_decoding_everything_at_once(token_ids: list[int], sizes: list[int], skip: bool) -> None:
    _, vocabulary = deepseek()
    expected = deepseek_hf().decode(token_ids, skip_special_tokens=skip)
    assert run(vocabulary.detokenizer(skip), token_ids, sizes) == expected


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 151_900), max_size=60), chunk_sizes)
def test_qwen_text_is_its_bytes_decoded_with_replacement(token_ids: list[int], sizes: list[int]) -> None:
    _, vocabulary = qwen()
    expected = b"".join(vocabulary.token_bytes(i) for i in token_ids).decode("utf-8", "replace")
    assert run(vocabulary.detokenizer(), token_ids, sizes) == expected


def test_half_a_character_is_held_until_it_is_whole() -> None:
    table = TokenTable(b"a\xe4\xb8\xad", bytes_of_u32(0, 1, 3, 4), [])
    detokenizer = table.detokenizer()
    assert [detokenizer.push([i]) for i in (0, 1, 2)] == ["a", "", "中"]
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_one_replacement() -> None:
    detokenizer = TokenTable(b"\xe4\xb8", bytes_of_u32(0, 2), []).detokenizer()
    assert detokenizer.push([0]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_ids_outside_the_vocabulary_are_nothing() -> None:
    table = TokenTable(b"ab", bytes_of_u32(0, 1, 2), [])
    assert table.detokenizer().push([0, 2, -1, 1 << 40, 1]) == "ab"
    assert table.token_bytes(-1) == b""


def test_skipped_special_tokens_join_what_they_separated() -> None:
    table = TokenTable(b"\xe4<s>\xb8\xad", bytes_of_u32(0, 1, 4, 6), [1])
    assert table.detokenizer(skip_special_tokens=True).push([0, 1, 2]) == "中"


@pytest.fixture(params=[write_byte_fallback, write_word_piece])
def hf(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(request.param(tmp_path)))


@pytest.mark.parametrize("sizes", [[1], [2], [3, 1], [100]])
@pytest.mark.parametrize("skip", [False, True])
def test_hf_text_equals_decoding_everything_at_once(hf: Tokenizer, sizes: list[int], skip: bool) -> None:
    token_ids = [1, *hf.encode("The gateway asks a worker. " + TEXT).ids, 1, *hf.encode(TEXT).ids]
    detokenizer = HfVocabulary(hf).detokenizer(skip)
    assert run(detokenizer, token_ids, sizes) == hf.decode(token_ids, skip_special_tokens=skip)


def test_hf_continues_after_the_prompt_with_its_space(tmp_path: Path) -> None:
    hf = Tokenizer.from_file(str(write_byte_fallback(tmp_path)))
    prompt, more = hf.encode("The gateway").ids, hf.encode("renders").ids
    vocabulary = HfVocabulary(hf)
    assert run(vocabulary.detokenizer(), more, [1]) == "renders"
    assert run(vocabulary.detokenizer(context=prompt), more, [1]) == " renders"


def test_hf_gives_up_waiting_for_a_character_that_never_comes(tmp_path: Path) -> None:
    hf = Tokenizer.from_file(str(write_byte_fallback(tmp_path)))
    detokenizer = HfVocabulary(hf).detokenizer()
    lead_byte = hf.encode("\u4e2d").ids[-3:-2]
    assert [detokenizer.push(lead_byte) for _ in range(4)] == ["", "", "", "\ufffd" * 4]


def bytes_of_u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)
