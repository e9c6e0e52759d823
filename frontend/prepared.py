"""What the pipeline places and sends, whatever a model's workers take: tokens, text, inputs to embed.

Errand      one call of a worker
└ Prepared  one that is answered with text: one choice of an answer, before `choices` all choices of a prompt
"""

from __future__ import annotations

from typing import Any, Protocol, Self

from dynamo.frontend.kept_output import KeptOutput
from dynamo.frontend.metrics import RequestRecord
from dynamo.frontend.model import Model
from dynamo.frontend.postprocess import Delta
from dynamo.frontend.router_client import Placement
from dynamo.frontend.routing_wishes import RoutingWishes
from dynamo.shared.request_plane.stream import Consumer, ItemDecoders


class Sink(Protocol):
    """Where the deltas of a request go, whichever choice they are of."""

    def push(self, delta: Delta) -> bool:
        """True: the client takes less than the workers give, `drain` before the next push."""

    async def drain(self) -> None: ...


class WorkerAnswer(Consumer[Any], Protocol):
    """Takes what the workers of one errand answer, in turn; nothing is told of the end before `finish`."""

    is_ended_by_worker: bool  # it said its last word, only the formalities are missing

    def follow(self, placement: Placement) -> None:
        """The worker at this place begins with the answer, or goes on with it."""

    def cut_off(self) -> bool:
        """The worker has failed: whether nothing is missing but its last word, so that the answer ends here."""

    def finish(self) -> None:
        """It is complete, its placement freed and its worker let go. Raises WorkerError if it is no answer at all."""


class Errand(Protocol):
    """`block_hashes` are packed sequence hashes of the prompt's full blocks, empty where nobody wants or knows them."""

    model: Model
    wishes: RoutingWishes
    block_hashes: bytes

    @property
    def num_tokens(self) -> int:
        """Of the prompt; a guess where only the worker can tell."""

    @property
    def is_guided(self) -> bool:
        """The output follows a grammar, whose state in the engine cannot be rebuilt."""

    @property
    def items(self) -> ItemDecoders[Any]:
        """What reads the worker's answer."""

    def hash_blocks(self, block_size: int) -> None: ...

    def continued(self, output: bytes) -> Self:
        """What is left to ask for once `output`, packed token ids, was generated."""

    def wire_request(self, codec: str, dp_rank: int | None = None) -> Any:
        """The body for a worker that speaks `codec`, and for the rank that it was placed on."""


class Prepared(Errand, Protocol):
    """`token_ids` are packed u32 LE, empty where only the worker knows them. `formatted_prompt` is the text that a
    template made, empty unless the request asks for it."""

    token_ids: bytes
    formatted_prompt: str

    def choices(self) -> list[Self]:
        """One per choice of its prompt, each with a seed of its own if one was given."""

    def answer(self, index: int, record: RequestRecord, sink: Sink, kept: KeptOutput) -> WorkerAnswer:
        """Of the choice `index`. What may be continued by another worker is kept."""
