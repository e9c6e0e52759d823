"""Where a choice ends, what of it may be shown, and what counts."""

from __future__ import annotations

import pytest

from dynamo.frontend.detokenizer import TokenTable
from dynamo.frontend.postprocess import Choice, StopRules, StopStrings, make_choice
from dynamo.frontend.token_logprobs import LogprobReader
from dynamo.shared.errors import BackendFailure
from dynamo.shared.protocol import EngineOutput, TopLogprob

# One token per byte value, then two special ones.
EOS, END = 256, 257
PIECES = [bytes((i,)) for i in range(256)] + [b"<eos>", b"<end>"]


def vocabulary() -> TokenTable:
    offsets = bytearray((0).to_bytes(4, "little"))
    for i in range(len(PIECES)):
        offsets += len(b"".join(PIECES[: i + 1])).to_bytes(4, "little")
    return TokenTable(b"".join(PIECES), bytes(offsets), (EOS, END))


def choice(rules: StopRules, with_logprobs: bool = False, num_tops: int = 2, names_ids: bool = False) -> Choice:
    logprobs = LogprobReader(vocabulary(), num_tops, names_ids=names_ids) if with_logprobs else None
    return make_choice(vocabulary(), rules, skip_special_tokens=False, logprobs=logprobs)


def ids(text: str) -> list[int]:
    return list(text.encode())


def feed(made: Choice, *items: EngineOutput | list[int]) -> str:
    text = ""
    for item in items:
        text += made.push(item if isinstance(item, EngineOutput) else EngineOutput(token_ids=item))
        if made.finish_reason:
            break
    return text + made.flush()


BOTH_FORMS = pytest.mark.parametrize("exact", [False, True], ids=["plain", "exact"])


@BOTH_FORMS
def test_a_hidden_id_ends_the_choice_unseen_and_counts(exact: bool) -> None:
    made = choice(StopRules(hidden_ids=frozenset({EOS})), exact)
    assert feed(made, [*ids("ab"), EOS, *ids("cd")]) == "ab"
    assert (made.finish_reason, made.stop_reason, made.num_tokens) == ("stop", None, 3)


@BOTH_FORMS
def test_a_visible_id_is_shown(exact: bool) -> None:
    made = choice(StopRules(visible_ids=frozenset({END})), exact)
    assert feed(made, [*ids("ab"), END, *ids("cd")]) == "ab<end>"
    assert (made.finish_reason, made.stop_reason) == ("stop", None)


@BOTH_FORMS
def test_a_named_id_is_the_reason_whether_or_not_it_is_shown(exact: bool) -> None:
    made = choice(StopRules(hidden_ids=frozenset({EOS, END}), named_ids=frozenset({END})), exact)
    assert feed(made, [*ids("ab"), END]) == "ab"
    assert (made.finish_reason, made.stop_reason) == ("stop", END)


@BOTH_FORMS
def test_the_worker_gives_a_reason_where_we_know_none(exact: bool) -> None:
    made = choice(StopRules(hidden_ids=frozenset({EOS})), exact)
    assert feed(made, EngineOutput(token_ids=[*ids("ab"), EOS], finish_reason="stop", stop_reason=EOS)) == "ab"
    assert (made.finish_reason, made.stop_reason) == ("stop", EOS)


@BOTH_FORMS
def test_nothing_stops_before_min_tokens(exact: bool) -> None:
    made = choice(StopRules(hidden_ids=frozenset({EOS}), min_tokens=3), exact)
    assert feed(made, [EOS, *ids("abc"), EOS]) == "<eos>abc"
    assert made.num_tokens == 5


@BOTH_FORMS
def test_more_than_max_tokens_is_cut_off(exact: bool) -> None:
    made = choice(StopRules(max_tokens=3), exact)
    assert feed(made, ids("ab"), ids("cdef")) == "abc"
    assert (made.finish_reason, made.num_tokens) == ("length", 3)


@BOTH_FORMS
def test_exactly_max_tokens_waits_for_the_workers_own_word(exact: bool) -> None:
    made = choice(StopRules(max_tokens=2), exact)
    assert made.push(EngineOutput(token_ids=ids("ab"))) == "ab"
    assert made.finish_reason is None
    made.push(EngineOutput(finish_reason="length"))
    assert made.finish_reason == "length"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("eos", "stop"),
        ("stop", "stop"),
        ("length", "length"),
        ("cancelled", "stop"),
        ("content_filter", "content_filter"),
    ],
)
def test_the_workers_finish_reasons_become_openais(word: str, reason: str) -> None:
    made = choice(StopRules())
    made.push(EngineOutput(token_ids=ids("a"), finish_reason=word))
    assert made.finish_reason == reason


def test_an_error_as_finish_reason_is_raised() -> None:
    with pytest.raises(BackendFailure) as caught:
        choice(StopRules()).push(EngineOutput(finish_reason={"error": "out of memory"}))
    assert "out of memory" in caught.value.log_message
    assert "out of memory" not in caught.value.message


@BOTH_FORMS
def test_half_a_character_is_held_back(exact: bool) -> None:
    made = choice(StopRules(), exact)
    first, second = ids("é")
    assert made.push(EngineOutput(token_ids=[first])) == ""
    assert made.push(EngineOutput(token_ids=[second])) == "é"


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert feed(choice(StopRules()), ids("é")[:1]) == "\ufffd"


@pytest.mark.parametrize("chop", range(1, 8))
def test_a_stop_string_never_leaks_however_it_is_chopped(chop: int) -> None:
    made = choice(StopRules(strings=("STOP", "HALT")))
    text = ids("say HAL and STOP here")
    assert feed(made, *[text[i : i + chop] for i in range(0, len(text), chop)]) == "say HAL and "
    assert (made.finish_reason, made.stop_reason) == ("stop", "STOP")
    assert made.num_tokens == len("say HAL and STOP")


def test_a_stop_string_is_shown_if_asked_for() -> None:
    made = choice(StopRules(strings=("STOP",), include_stop_string=True))
    assert feed(made, ids("one STOP two")) == "one STOP"


def test_a_beginning_that_was_none_is_shown_at_the_end() -> None:
    made = choice(StopRules(strings=("STOP",)))
    assert made.push(EngineOutput(token_ids=ids("a ST"))) == "a "
    made.push(EngineOutput(finish_reason="stop"))
    assert made.flush() == "ST"


def test_a_stop_string_before_min_tokens_is_text() -> None:
    made = choice(StopRules(strings=("ab",), min_tokens=3))
    assert feed(made, ids("abxab!")) == "abx"


def test_of_two_stop_strings_the_one_completed_first_counts() -> None:
    stops = StopStrings(("bcd", "cd", "c"), include=False)
    assert stops.push("abcd") == "ab"
    assert stops.matched == "c"


def test_logprobs_carry_the_tokens_own_text() -> None:
    made = choice(StopRules(), with_logprobs=True)
    tops = [[TopLogprob(token_id=ids("a")[0], logprob=-0.1), TopLogprob(token="é", logprob=-2.0)]]
    made.push(EngineOutput(token_ids=ids("a"), log_probs=[-0.1], top_logprobs=tops))
    logprobs = made.take_logprobs()
    assert logprobs is not None
    assert [(each.token, each.logprob, each.bytes) for each in logprobs] == [("a", -0.1, [97])]
    assert [(other.token, other.bytes) for other in logprobs[0].top_logprobs] == [("a", [97]), ("é", [195, 169])]
    assert made.take_logprobs() is None


@pytest.mark.parametrize(("num_tops", "expected"), [(0, []), (1, ["token_id:97"]), (5, ["token_id:97", "token_id:98"])])
def test_so_many_alternatives_are_shown_as_were_asked_for(num_tops: int, expected: list[str]) -> None:
    made = choice(StopRules(), with_logprobs=True, num_tops=num_tops, names_ids=True)
    tops = [[TopLogprob(97, "a", -0.1), TopLogprob(98, "b", float("-inf"))]]
    made.push(EngineOutput(token_ids=[97], log_probs=[-0.1], top_logprobs=tops))
    (entry,) = made.take_logprobs() or []
    assert (entry.token, entry.token_id, bytes(entry.bytes or ())) == ("token_id:97", 97, b"token_id:97")
    assert [other.token for other in entry.top_logprobs] == expected
    assert all(other.logprob >= -9999 for other in entry.top_logprobs)


def test_no_logprobs_come_of_a_worker_that_tells_none() -> None:
    made = choice(StopRules(), with_logprobs=True)
    made.push(EngineOutput(token_ids=ids("a")))
    assert made.take_logprobs() is None
