"""Questions about the router itself: what would it choose and why, and when does it take a worker for overloaded?"""

from __future__ import annotations

from copy import copy

from msgspec.structs import replace

from dynamo.router.admission import Admission
from dynamo.router.fleet import Fleet
from dynamo.router.overload import OverloadMonitor
from dynamo.router.placing import ELIGIBLE, NO_HINTS, Placing
from dynamo.router.selectors import Choice, Question
from dynamo.router.table import LiveSet, ModelTable
from dynamo.shared.messages import Candidate, Explained, Place, Placed, Receipt, Refused, SetThresholds, ThresholdsAre


class Inquiries:
    def __init__(
        self, table: ModelTable, fleet: Fleet, placing: Placing, admission: Admission, overload: OverloadMonitor
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._placing = placing
        self._admission = admission
        self._overload = overload

    # ---- why this worker?

    def explain(self, place: Place, now: float) -> Explained | Refused:
        hints = replace(place.hints or NO_HINTS, wants_receipt=True)
        question = self._placing.question(replace(place, hints=hints), now, is_dry=True)
        if isinstance(question, Refused):
            sets = self._table.serving(place.model)
            return (
                self._explained(place, sets[0], question.code) if sets and question.code == "overloaded" else question
            )
        compared = question.live.selector.look(question)
        if self._admission.must_wait(question, self._admission.class_of(question)):
            return self._explained(place, question.live, "queued", compared)
        choice = copy(question.live.selector).select(question)  # nobody's turn is used up
        if choice is None:
            return self._explained(place, question.live, "the request must name its worker", compared)
        answer = placed(question, choice, receipt_of(question, choice, 0.0))
        return self._explained(place, question.live, "placed", compared, answer)

    def _explained(
        self,
        place: Place,
        live: LiveSet,
        outcome: str,
        compared: list[Candidate] | None = None,
        choice: Placed | None = None,
    ) -> Explained:
        """Workers that were not compared follow those that were, each with the reason, unless that is not its own but
        the request's session or rank."""
        rows = list(compared or ())
        seen = {row.instance_id for row in rows}
        for instance_id, verdict in self._placing.verdicts(place, live).items():
            if instance_id not in seen:
                why = "not compared" if rows and verdict == ELIGIBLE else verdict
                rows.append(replace(self._fleet.as_candidate(instance_id), verdict=why))
        num_blocks = -(-place.num_tokens // live.block_size)
        return Explained(place.request_id, outcome, live.key, live.block_size, num_blocks, choice, rows)

    # ---- busy thresholds

    def thresholds(self, request_id: int, name: str | None) -> ThresholdsAre | Refused:
        """Those of one model, by its name or an alias, or of all."""
        if name is None:
            models = sorted({live.model for live in self._table.sets.values()})
            return ThresholdsAre(request_id, [self._overload.thresholds(each) for each in models])
        model = self._model_of(name)
        if model is None:
            return Refused(request_id, "model_not_found", f"The model {name!r} is not registered with this gateway.")
        return ThresholdsAre(request_id, [self._overload.thresholds(model)])

    def set_thresholds(self, message: SetThresholds) -> ThresholdsAre | Refused:
        wanted = message.thresholds
        model = self._model_of(wanted.model)
        if model is not None:
            try:
                self._overload.set_thresholds(replace(wanted, model=model), replaces=message.replaces)
            except ValueError as error:
                return Refused(message.request_id, "invalid_value", str(error))
        return self.thresholds(message.request_id, wanted.model)

    def _model_of(self, name: str) -> str | None:
        sets = self._table.serving(name)
        if sets is None:
            return None
        return sets[0].model if sets else name


def placed(question: Question, choice: Choice, receipt: Receipt | None) -> Placed:
    place = question.place
    return Placed(
        place.request_id, choice.instance_id, question.live.key, choice.dp_rank, choice.overlap_blocks, receipt
    )


def receipt_of(question: Question, choice: Choice, waited_s: float) -> Receipt:
    receipt = choice.receipt or Receipt("", len(question.candidates))
    return replace(receipt, reason=reason_of(question, choice), queue_wait_ms=waited_s * 1000)


def reason_of(question: Question, choice: Choice) -> str:
    """A pin goes before a session, and a session before what a mode would choose."""
    if question.place.instance_id is not None:
        return "pinned"
    if question.favoured is not None and question.favoured.instance_id == choice.instance_id:
        return "affinity"
    return choice.reason
