"""The acceptor's end of placement: asks the router, and places by itself while there is none.

`place` is a context: however it is left, the reservation is freed. While the router is away (killed, restarting,
hung) a request goes to the less busy of two workers drawn at random, by this acceptor's own count, and is announced
to the router as soon as it is back. So no request fails because the router did.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
from collections.abc import Callable
from types import TracebackType

from dynamo.frontend.model_table import ModelTable
from dynamo.frontend.placement import Held, PlacementWish, Question
from dynamo.frontend.router_questions import Answer, RouterQuestions
from dynamo.shared.channel import DealerChannel
from dynamo.shared.errors import (
    DynamoError,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    ModelNotReady,
    Overloaded,
    RouterAway,
)
from dynamo.shared.messages import (
    AcceptorMessage,
    Explain,
    Explained,
    Free,
    GetThresholds,
    Goodbye,
    Heartbeat,
    Hello,
    OutputGrown,
    Placed,
    PrefillCompleted,
    Queued,
    Refused,
    RouterMessage,
    SetThresholds,
    Settings,
    TableDelta,
    Thresholds,
    ThresholdsAre,
    Welcome,
    WorkerFailed,
)

log = logging.getLogger("dynamo.router_client")

HEARTBEAT_INTERVAL_S = 1.0
PLACE_TIMEOUT_S = 2.0  # a router that takes longer to answer or to queue counts as hung: place locally
MAX_SILENCE_S = 10.0  # so does one that is not heard at all, with what it has queued
MAX_HELLO_HASHES = 16 << 20  # bytes
NEVER = 1 << 62


class Placement:
    """`async with client.place(wish) as placed:` gives a `Placed`; leaving frees it."""

    __slots__ = ("_client", "_request_id", "_wish")

    def __init__(self, client: RouterClient, wish: PlacementWish) -> None:
        self._client = client
        self._wish = wish
        self._request_id = 0

    async def __aenter__(self) -> Placed:
        self._request_id = self._client.next_request_id()
        try:
            return await self._client.ask(self._request_id, self._wish)
        except BaseException:
            self._client.free(self._request_id)
            raise

    def reached(self, num_tokens: int) -> int:
        """Prompt and output have this many tokens now. Returns at how many this is to be called again."""
        return self._client.note_progress(self._request_id, num_tokens)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.free(self._request_id)


class RouterClient:
    """One per acceptor. `on_table` is called after each change of `table`, with the instances that left."""

    def __init__(self, endpoint: str, acceptor: str, on_table: Callable[[list[int]], None], inhibited_s: float) -> None:
        self.table = ModelTable()
        self.is_connected = False  # the router has welcomed us
        self.num_local_placements = 0
        self.num_timeouts = 0
        self.router_mode = ""
        self.settings = Settings()
        self._acceptor = acceptor
        self._incarnation = int.from_bytes(os.urandom(6), "big")
        self._on_table = on_table
        self._inhibited_s = inhibited_s
        self._loop = asyncio.get_running_loop()
        self._serial = 0
        self._asked: dict[int, Question] = {}
        self._active: dict[int, Held] = {}
        self._num_active: dict[int, int] = {}  # per instance, of this acceptor
        self._inhibited_until: dict[int, float] = {}
        self._heard_at = self._loop.time()
        self._first_table = self._loop.create_future()
        self._channel = DealerChannel(
            endpoint, on_messages=self._on_messages, on_connect=self._hello, on_disconnect=self._on_disconnect
        )
        self._questions = RouterQuestions(self._channel.send)
        self._timer = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._beat)

    def place(self, wish: PlacementWish) -> Placement:
        return Placement(self, wish)

    async def first_table(self) -> None:
        """Until the router has welcomed this acceptor once."""
        await asyncio.shield(self._first_table)

    @property
    def num_active(self) -> int:
        return len(self._active)

    def report_failure(self, instance_id: int, reason: str) -> None:
        """Take the instance out of everybody's choice for a while."""
        self._inhibited_until[instance_id] = self._loop.time() + self._inhibited_s
        self._channel.send(WorkerFailed(instance_id, reason))

    # ---- what only the router knows: each raises RouterAway without it, and ModelNotFound for an unknown model

    async def explain(self, wish: PlacementWish) -> Explained:
        """What the router would answer to `wish`, and why. Nothing is placed; raises what a placement would."""
        request_id = self.next_request_id()
        answer = await self._ask(request_id, Explain(wish.message(request_id)), wish.model, wish.pinned_by)
        assert isinstance(answer, Explained)
        return answer

    async def thresholds(self, model: str | None = None) -> list[Thresholds]:
        """One model's busy thresholds, or everybody's."""
        request_id = self.next_request_id()
        answer = await self._ask(request_id, GetThresholds(request_id, model), model or "")
        assert isinstance(answer, ThresholdsAre)
        return answer.thresholds

    async def set_thresholds(self, thresholds: Thresholds, *, replaces: bool) -> list[Thresholds]:
        """What they are then. `replaces`: None switches a test off, where it otherwise leaves it as it is."""
        request_id = self.next_request_id()
        question = SetThresholds(request_id, thresholds, replaces)
        answer = await self._ask(request_id, question, thresholds.model)
        assert isinstance(answer, ThresholdsAre)
        return answer.thresholds

    async def _ask(self, request_id: int, question: AcceptorMessage, model: str, pinned_by: str = "") -> Answer:
        if not self.is_connected:
            raise RouterAway("The router is away, and only it can answer this; try again.")
        answer = await self._questions.ask(request_id, question)
        if isinstance(answer, Refused):
            raise _refusal(answer, model, pinned_by)
        return answer

    def close(self) -> None:
        self._timer.cancel()
        self._channel.send(Goodbye())
        self._channel.close()

    # ---- for Placement

    def next_request_id(self) -> int:
        self._serial += 1
        return self._serial

    async def ask(self, request_id: int, wish: PlacementWish) -> Placed:
        placed = await self._ask_router(request_id, wish) if self.is_connected else None
        if placed is None:
            placed = self._place_locally(request_id, wish)
        self._active[request_id] = Held(placed.instance_id, placed.dp_rank, wish)
        self._num_active[placed.instance_id] = self._num_active.get(placed.instance_id, 0) + 1
        return placed

    def free(self, request_id: int) -> None:
        """The request is over. Also sent for one whose answer we did not wait for: the router may have placed it."""
        self._asked.pop(request_id, None)
        held = self._active.pop(request_id, None)
        if held is not None:
            instance_id = held.instance_id
            left = self._num_active[instance_id] - 1
            if left:
                self._num_active[instance_id] = left
            else:
                del self._num_active[instance_id]
        self._channel.send_soon(Free(request_id))

    def note_progress(self, request_id: int, num_tokens: int) -> int:
        """Tell the router what it wants to hear of this; returns at how many tokens there may be more to tell."""
        held, settings = self._active[request_id], self.settings
        if not held.is_prefill_completed:
            held.is_prefill_completed = True
            if settings.tracks_prefill:
                self._channel.send_soon(PrefillCompleted(request_id))
        block_size = held.wish.block_size
        if not settings.tracks_output_blocks or not block_size:
            return NEVER
        num_prompt_blocks = -(-held.wish.num_tokens // block_size)
        num_blocks = -(-num_tokens // block_size)
        num_grown = num_blocks - num_prompt_blocks - held.num_output_blocks
        if num_grown > 0:
            held.num_output_blocks += num_grown
            self._channel.send_soon(OutputGrown(request_id, num_grown))
        return num_blocks * block_size + 1

    async def _ask_router(self, request_id: int, wish: PlacementWish) -> Placed | None:
        """None: the router is gone, hung, or not taking messages."""
        if not self._channel.send(wish.message(request_id)):
            return None
        question = Question(self._loop.create_future(), wish, self._loop.time() + PLACE_TIMEOUT_S)
        self._asked[request_id] = question
        try:
            return await question.placed
        except _RouterAway:
            return None

    def _ask_again(self) -> None:
        for request_id, question in self._asked.items():
            question.deadline = self._loop.time() + PLACE_TIMEOUT_S
            self._channel.send(question.wish.message(request_id))

    # ---- placing without a router

    def _place_locally(self, request_id: int, wish: PlacementWish) -> Placed:
        candidates = self._local_candidates(wish)
        chosen = min(
            random.sample(candidates, min(2, len(candidates))), key=lambda pair: self._num_active.get(pair[0], 0)
        )
        self.num_local_placements += 1
        return Placed(request_id, chosen[0], chosen[1], wish.dp_rank)

    def can_place_elsewhere(self, wish: PlacementWish) -> bool:
        """Whether there is a worker for it that has not been tried."""
        return any(instance_id not in wish.excluded for instance_id, _key in self._allowed(wish))

    def _local_candidates(self, wish: PlacementWish) -> list[tuple[int, str]]:
        """(instance id, worker set) pairs: those not tried and not inhibited, else those not tried, else any."""
        if not any(s.model == wish.model and s.worker_type != "prefill" for s in self.table.worker_sets.values()):
            raise ModelNotFound(wish.model)
        if wish.instance_id is None and self.router_mode == "direct":
            raise InvalidRequest("In router mode direct a request must name its worker.", wish.pinned_by)
        pairs = self._allowed(wish)
        if wish.instance_id is not None and not pairs:
            raise InvalidRequest(
                f"The model {wish.model!r} has no worker with the instance id {wish.instance_id}.", wish.pinned_by
            )
        now = self._loop.time()
        untried = [pair for pair in pairs if pair[0] not in wish.excluded]
        healthy = [pair for pair in untried if self._inhibited_until.get(pair[0], 0.0) <= now]
        if not (found := healthy or untried or pairs):
            raise ModelNotReady(f"No worker of the model {wish.model!r} can be reached right now.")
        return found

    def _allowed(self, wish: PlacementWish) -> list[tuple[int, str]]:
        return [
            (instance_id, s.key)
            for s in self.table.worker_sets.values()
            if s.model == wish.model and s.worker_type != "prefill" and wish.mdcsum in ("", s.mdcsum)
            for instance_id in self.table.routable(s)
            if wish.allows(instance_id)
        ]

    # ---- the channel

    def _hello(self) -> None:
        """With block hashes as far as they fit; what is left out counts as tokens only."""
        active, room = [], MAX_HELLO_HASHES
        for request_id, held in self._active.items():
            room -= len(held.wish.block_hashes)
            active.append(held.announced(request_id, with_hashes=room >= 0))
        self._channel.send(Hello(self._acceptor, self._incarnation, active))

    def _on_disconnect(self) -> None:
        if self.is_connected:
            log.warning("the router is gone; placing by this acceptor's own counts until it is back")
        self.is_connected = False
        self._questions.give_up()
        asked, self._asked = self._asked, {}
        for question in asked.values():
            if not question.placed.done():
                question.placed.set_exception(_RouterAway)

    def _on_messages(self, messages: list[RouterMessage]) -> None:
        self._heard_at = self._loop.time()
        for message in messages:
            match message:
                case Placed():
                    if (asked := self._asked.pop(message.request_id, None)) is not None and not asked.placed.done():
                        asked.placed.set_result(message)
                case Refused():
                    self._on_refused(message)
                case Queued():
                    if (asked := self._asked.get(message.request_id)) is not None:
                        asked.deadline = math.inf
                case Settings():
                    self.settings = message
                case Explained() | ThresholdsAre():
                    self._questions.answer(message)
                case TableDelta():
                    self._on_delta(message)
                case Welcome():
                    self._on_welcome(message)

    def _on_refused(self, refused: Refused) -> None:
        if (asked := self._asked.pop(refused.request_id, None)) is None:
            self._questions.answer(refused)
        elif not asked.placed.done():
            asked.placed.set_exception(_refusal(refused, asked.wish.model, asked.wish.pinned_by))

    def _on_welcome(self, welcome: Welcome) -> None:
        before = set(self.table.workers)
        self.table.replace(welcome)
        self.router_mode = welcome.router_mode
        self.settings = welcome.settings
        if not self.is_connected:
            log.info("the router answers; %d workers, %d worker sets", len(welcome.workers), len(welcome.worker_sets))
        self.is_connected = True
        if not self._first_table.done():
            self._first_table.set_result(None)
        self._on_table(sorted(before - set(self.table.workers)))

    def _on_delta(self, delta: TableDelta) -> None:
        if self.table.apply(delta):
            for worker in delta.workers_up:
                self._inhibited_until.pop(worker.instance_id, None)
            self._on_table(delta.workers_down)
        elif self.is_connected:
            self._hello()
            if not delta.version:  # the router took us for dead, and has dropped what we wait for
                self._ask_again()

    def _beat(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._beat)
        self._channel.send(Heartbeat())
        now = self._loop.time()
        self._inhibited_until = {i: until for i, until in self._inhibited_until.items() if until > now}
        is_silent = now - self._heard_at > MAX_SILENCE_S
        overdue = [request_id for request_id, asked in self._asked.items() if asked.deadline < now or is_silent]
        for request_id in overdue:
            placed = self._asked.pop(request_id).placed
            self.num_timeouts += 1
            if not placed.done():
                placed.set_exception(_RouterAway)


class _RouterAway(Exception):
    """Stands in for an answer that will not come."""


def _refusal(refused: Refused, model: str, pinned_by: str) -> DynamoError:
    """The router's refusal as the error the client is told."""
    error: DynamoError
    match refused.code:
        case "model_not_found":
            return ModelNotFound(model)
        case "overloaded" | "queue_full":
            error = Overloaded(refused.message)
        case "invalid_value":
            return InvalidRequest(refused.message, pinned_by)
        case "internal_error":
            return InternalError()
        case _:
            error = ModelNotReady(refused.message)
    error.retry_after_s = refused.retry_after_s
    return error
