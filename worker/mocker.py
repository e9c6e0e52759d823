"""The mocker engine: answers as a GPU worker would, without GPU or model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from collections.abc import Sequence as SequenceOf
from itertools import chain, islice, repeat
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from xxhash import xxh3_64_intdigest

from dynamo.shared.hashing import hash_seed, pack_tokens
from dynamo.shared.protocol import Routing, SamplingOptions, StopConditions
from dynamo.shared.request_plane.context import Context
from dynamo.shared.request_plane.exceptions import EngineShutdown, InvalidArgument, WorkerUnavailable
from dynamo.worker.made_up_text import made_up_tokens
from dynamo.worker.scheduler import Scheduler, SchedulerFull, Sequence, SequenceTooLong

logger = logging.getLogger(__name__)

STEPS_PER_TICK = 16  # when steps take no time: tokens that a stream may get before others have their turn
SHORTEST_TEXT, LONGEST_TEXT = 16, 256  # tokens before the eos of a request without max_tokens

TokenId = Annotated[int, Meta(ge=0, lt=2**32)]


class GenerateRequest(Struct):
    """The part of a PreprocessedRequest that matters here."""

    token_ids: list[TokenId]
    stop_conditions: StopConditions | None = None
    sampling_options: SamplingOptions | None = None
    eos_token_ids: list[int] | None = None
    routing: Routing | None = None


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int | None]


class GenerateItem(Struct, omit_defaults=True):
    """New tokens. The first item and the last, which has no tokens, carry the usage, as those of Dynamo's mocker do."""

    token_ids: list[int]
    finish_reason: str | None = None
    completion_usage: Usage | None = None


class MockerEngine:
    """`generate` is the handler to serve. The scheduler runs in a task for as long as it has work.

    `words` are the token ids to make text of, `max_num_tokens` the longest sequence of prompt and output. `on_load` is
    told how many blocks are in use, whenever that may have changed.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        words: SequenceOf[int],
        max_num_tokens: int,
        seed: int = 0,
        on_load: Callable[[int], None] | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._on_load = on_load or (lambda _: None)
        self._words = words
        self._max_num_tokens = max_num_tokens
        self._seed = seed
        self._mailboxes: dict[Sequence, Mailbox] = {}
        self._run_task: asyncio.Task[None] | None = None

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[GenerateItem]:
        """Raises InvalidArgument for a request that could never be served, WorkerUnavailable when too many wait."""
        sequence = self._sequence_of(request)
        mailbox = self._submit(sequence)
        stopped = context.async_killed_or_stopped()
        stopped.add_done_callback(mailbox.close)
        try:
            async for item in _items(sequence, mailbox):
                yield item
        finally:
            stopped.cancel()
            del self._mailboxes[sequence]
            self._scheduler.abort(sequence)
            self._on_load(self._scheduler.pool.num_used)

    @property
    def num_requests(self) -> int:
        return len(self._mailboxes)

    def clear_kv_blocks(self) -> bool:
        """False, and nothing happens, while requests are running."""
        return self._scheduler.pool.clear()

    def _sequence_of(self, request: dict[str, Any]) -> Sequence:
        try:
            body = msgspec.convert(request, GenerateRequest)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"not a generate request: {error}") from None
        stop = body.stop_conditions or StopConditions()
        routing = body.routing or Routing()
        eos_token_ids = [] if stop.ignore_eos else [*(body.eos_token_ids or ()), *(stop.stop_token_ids_hidden or ())]
        min_tokens = stop.min_tokens or 0
        return Sequence(
            body.token_ids,
            self._text_of(body, eos_token_ids, min_tokens),
            self._max_tokens_of(body, stop.max_tokens),
            min_tokens,
            frozenset(eos_token_ids),
            frozenset((*(stop.stop_token_ids or ()), *(stop.stop_token_ids_visible or ()))),
            hash_seed(routing.lora_name, routing.cache_salt),
        )

    def _max_tokens_of(self, body: GenerateRequest, max_tokens: int | None) -> int:
        room = self._max_num_tokens - len(body.token_ids)
        if room < 1:
            raise InvalidArgument(
                f"the prompt has {len(body.token_ids)} tokens; with one of output at most {self._max_num_tokens} fit"
            )
        if max_tokens is not None and max_tokens < 1:
            raise InvalidArgument(f"max_tokens is {max_tokens}; at least 1 is needed")
        return room if max_tokens is None else min(max_tokens, room)

    def _text_of(self, body: GenerateRequest, eos_token_ids: list[int], min_tokens: int) -> Iterator[int]:
        """Endless where max_tokens ends it, else of a length that the prompt decides, then eos."""
        digest = xxh3_64_intdigest(pack_tokens(body.token_ids), self._seed)
        seed = body.sampling_options.seed if body.sampling_options else None
        text = made_up_tokens(self._words, digest, seed or 0)
        if not eos_token_ids or (body.stop_conditions and body.stop_conditions.max_tokens is not None):
            return text
        length = max(min_tokens, SHORTEST_TEXT + digest % (LONGEST_TEXT - SHORTEST_TEXT))
        return chain(islice(text, length), repeat(eos_token_ids[0]))

    def _submit(self, sequence: Sequence) -> Mailbox:
        try:
            self._scheduler.submit(sequence)
        except SequenceTooLong as error:
            raise InvalidArgument(str(error)) from None
        except SchedulerFull as error:
            raise WorkerUnavailable(str(error)) from None
        mailbox = self._mailboxes[sequence] = Mailbox()
        if self._run_task is None or self._run_task.done():
            self._run_task = asyncio.create_task(self._run())
        return mailbox

    async def _run(self) -> None:
        try:
            await self._run_steps()
        except Exception:  # top of the engine: nobody else would hear of it
            logger.exception("the engine failed; its %d requests end", len(self._mailboxes))
            for mailbox in self._mailboxes.values():
                mailbox.fail()

    async def _run_steps(self) -> None:
        clock = asyncio.get_running_loop().time
        due, num_steps = clock(), 0
        while self._scheduler.has_work:
            step = self._scheduler.step()
            self._on_load(self._scheduler.pool.num_used)
            if step.duration_s:
                due = max(due, clock() - step.duration_s) + step.duration_s  # late once is not late for ever
                await asyncio.sleep(due - clock())
            for sequence in step.advanced:
                if mailbox := self._mailboxes.get(sequence):  # gone if it was aborted during the step
                    mailbox.put(sequence.output[-1])
            num_steps += 1
            if not step.duration_s and num_steps % STEPS_PER_TICK == 0:
                await asyncio.sleep(0)


class Mailbox:
    """Tokens of one sequence on their way from the scheduler to its stream; bounded by the sequence's max_tokens."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._waiter: asyncio.Future[None] | None = None
        self._has_failed = False
        self.is_closed = False

    def put(self, token_id: int) -> None:
        self._tokens.append(token_id)
        self._wake()

    def close(self, _: object = None) -> None:
        self.is_closed = True
        self._wake()

    def fail(self) -> None:
        self._has_failed = True
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[int]:
        """All that has come; waits for some. Empty once closed."""
        if not self._tokens and not self.is_closed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._has_failed:
            raise EngineShutdown("the engine failed while it was serving this request")
        tokens, self._tokens = self._tokens, []
        return [] if self.is_closed else tokens


async def _items(sequence: Sequence, mailbox: Mailbox) -> AsyncIterator[GenerateItem]:
    num_sent = 0
    while tokens := await mailbox.take():
        for token_id in tokens:
            num_sent += 1
            yield GenerateItem([token_id], completion_usage=_usage(sequence, 1) if num_sent == 1 else None)
        if sequence.finish_reason and num_sent == len(sequence.output):
            yield GenerateItem([], sequence.finish_reason, _usage(sequence, num_sent))
            return


def _usage(sequence: Sequence, num_output: int) -> Usage:
    num_prompt = len(sequence.prompt)
    details = {"audio_tokens": None, "cached_tokens": sequence.num_cached_tokens}
    return Usage(num_prompt, num_output, num_prompt + num_output, details)
