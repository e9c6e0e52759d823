"""What a worker tells of the probabilities of its tokens, in the words of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamo.frontend.detokenizer import Vocabulary
from dynamo.frontend.openai_answers import Alternative, TokenLogprob
from dynamo.shared.protocol import EngineOutput, TopLogprob

LOWEST = -9999.0  # instead of minus infinity, for which JSON has no word


class LogprobReader:
    """`num_tops` alternatives are shown of each token. `names_ids` writes `token_id:7` instead of a token's text."""

    __slots__ = ("_names_ids", "_num_tops", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, num_tops: int, *, names_ids: bool = False) -> None:
        self._vocabulary = vocabulary
        self._num_tops = num_tops
        self._names_ids = names_ids

    def of_token(self, output: EngineOutput, position: int) -> TokenLogprob | None:
        """None where the worker tells nothing of the token at this position."""
        if output.log_probs is None or position >= len(output.log_probs):
            return None
        tops = output.top_logprobs[position] if output.top_logprobs and position < len(output.top_logprobs) else ()
        return self._entry(output.token_ids[position], output.log_probs[position], tops)

    def of_prompt(self, token_ids: Sequence[int], told: Sequence[Any] | None) -> list[TokenLogprob]:
        """One entry for each token of a prompt. `told` has an object for each, of what is known by token id, or null,
        as for the first; logprobs are null as long as nothing is told."""
        entries = [self._entry(token_id, None, ()) for token_id in token_ids]
        if told is not None:
            self.fill_in(entries, told)
        return entries

    def fill_in(self, entries: Sequence[TokenLogprob], told: Sequence[Any]) -> None:
        """What is told of a prompt whose `entries` are written already."""
        for entry, known in zip(entries, told, strict=False):
            if isinstance(known, dict) and isinstance(own := known.get(str(entry.token_id)), dict):
                entry.logprob = _bounded(own.get("logprob"))
                entry.top_logprobs = self._alternatives([_top(*item) for item in known.items()])

    def _entry(self, token_id: int, logprob: float | None, tops: Sequence[TopLogprob]) -> TokenLogprob:
        raw = self._name(token_id)
        return TokenLogprob(
            raw.decode("utf-8", "replace"), _bounded(logprob), list(raw), self._alternatives(tops), token_id
        )

    def _alternatives(self, tops: Sequence[TopLogprob]) -> list[Alternative]:
        return [self._alternative(top) for top in tops[: self._num_tops]] if self._num_tops else []

    def _alternative(self, top: TopLogprob) -> Alternative:
        """A worker that does not detokenize sends no text for its alternatives."""
        has_text = top.token is not None and not self._names_ids
        raw = top.token.encode() if has_text and top.token is not None else self._name(top.token_id)
        return Alternative(raw.decode("utf-8", "replace"), max(top.logprob, LOWEST), list(raw))

    def _name(self, token_id: int) -> bytes:
        return b"token_id:%d" % token_id if self._names_ids else self._vocabulary.token_bytes(token_id)


def _bounded(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LOWEST)


def _top(token_id: str, known: Any) -> TopLogprob:
    """From an entry of what is told of a prompt."""
    fields = known if isinstance(known, dict) else {}
    logprob = fields.get("logprob")
    return TopLogprob(
        int(token_id) if token_id.isdecimal() else 0,
        fields.get("decoded_token"),
        LOWEST if logprob is None else logprob,
    )
