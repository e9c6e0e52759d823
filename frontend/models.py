"""The models this acceptor can serve: one `Model` per distinct card in the table, loaded beside the event loop.

A card that cannot be loaded is logged once, with the reason, and shown by `/v1/models/{id}/ready`; no other model
notices.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor

import msgspec
from msgspec import Struct

from dynamo.frontend.model import Model, ModelLoadError
from dynamo.frontend.model_table import ModelTable
from dynamo.shared.errors import ModelNotFound, ModelNotReady, NoModelOfKind, RequestError, WrongKindOfModel
from dynamo.shared.messages import WorkerSet
from dynamo.shared.protocol import ModelDeploymentCard

log = logging.getLogger("dynamo.models")

LOAD_WAIT_S = 30.0  # how long a request waits for a model that is being loaded

Load = Callable[[ModelDeploymentCard, str], Model]
"""(card, mdcsum) -> Model; runs in the executor. Raises ModelLoadError."""


class Loading(Struct):
    """A card on its way: `task` ends with the model or raises ModelLoadError. `created` is in Unix seconds."""

    card: ModelDeploymentCard
    kinds: frozenset[str]  # the card's model types
    task: asyncio.Future[Model]
    model: Model | None = None
    error: str | None = None

    def settle(self, worker_set: WorkerSet, seconds: float) -> None:
        """The task is done."""
        if self.task.cancelled():
            return
        error = self.task.exception()
        if error is None:
            self.model = self.task.result()
            log.info("model %r of %s is loaded (%.2f s)", worker_set.model, worker_set.key, seconds)
            return
        self.error = str(error)
        is_expected = isinstance(error, ModelLoadError)
        log.error(
            "model %r of %s cannot be served: %s",
            worker_set.model,
            worker_set.key,
            error,
            exc_info=None if is_expected else error,
        )


class ModelRegistry:
    """Follows the table: call `update` after each change of it."""

    def __init__(self, table: ModelTable, load: Load, executor: Executor, created: int = 0) -> None:
        """`created`: what all models say of themselves, so that every acceptor says the same."""
        self.created = created
        self._table = table
        self._load = load
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._by_mdcsum: dict[str, Loading] = {}
        self._sets_by_name: dict[str, list[WorkerSet]] = {}

    def update(self) -> None:
        """Load what is new, drop what nobody serves any more, index names."""
        sets = self._table.worker_sets.values()
        mdcsums = {s.mdcsum for s in sets}
        for gone in [mdcsum for mdcsum in self._by_mdcsum if mdcsum not in mdcsums]:
            self._by_mdcsum.pop(gone).task.cancel()
        for worker_set in sets:
            if worker_set.mdcsum not in self._by_mdcsum:
                self._begin_loading(worker_set)
        self._sets_by_name = self._index()

    async def get(self, name: str, kind: str | None) -> Model:
        """The model that serves `name` for `kind`, as "Chat", "Completions" or "Embedding", or for any kind.

        Raises ModelNotFound, WrongKindOfModel or NoModelOfKind, and ModelNotReady when no card of it can be served or
        none is loaded in time.
        """
        sets = self._sets_by_name.get(name, [])
        if kind is not None:
            sets = [s for s in sets if kind in self._by_mdcsum[s.mdcsum].kinds]
        if not sets:
            raise self._not_served(name, kind)
        if len(sets) == 1 and (model := self._by_mdcsum[sets[0].mdcsum].model) is not None:
            return model
        return self._draw(sets) or await self._wait_for_any(name, sets)

    def _not_served(self, name: str, kind: str | None) -> RequestError:
        if kind is None:
            return ModelNotFound(name)
        if others := self._sets_by_name.get(name):
            return WrongKindOfModel(name, kind, frozenset().union(*(self._by_mdcsum[s.mdcsum].kinds for s in others)))
        if any(kind in loading.kinds for loading in self._by_mdcsum.values()):
            return ModelNotFound(name)
        return NoModelOfKind(kind)

    def _draw(self, sets: list[WorkerSet]) -> Model | None:
        """One of the loaded models, in proportion to the workers that serve it: versions may differ by namespace."""
        loaded = [(model, len(s.members)) for s in sets if (model := self._by_mdcsum[s.mdcsum].model) is not None]
        if not loaded:
            return None
        return random.choices([m for m, _ in loaded], [max(1, members) for _, members in loaded])[0]

    async def until_loaded(self) -> None:
        """Until every card known by now is loaded or has failed, within LOAD_WAIT_S."""
        if pending := [entry.task for entry in self._by_mdcsum.values() if not entry.task.done()]:
            await asyncio.wait(pending, timeout=LOAD_WAIT_S)

    def ready_models(self) -> list[tuple[str, Model]]:
        """(name, model), aliases too, of all that can be asked now; sorted by name."""
        found = []
        for name, sets in sorted(self._sets_by_name.items()):
            for worker_set in sets:
                loading = self._by_mdcsum[worker_set.mdcsum]
                if loading.model is not None and self._table.routable(worker_set):
                    found.append((name, loading.model))
                    break
        return found

    def loaded(self) -> list[Model]:
        return [model for entry in self._by_mdcsum.values() if (model := entry.model) is not None]

    def names(self) -> list[str]:
        """All that clients may address, servable or not."""
        return list(self._sets_by_name)

    def knows(self, name: str) -> bool:
        return name in self._sets_by_name

    def readiness(self, name: str) -> dict[str, object]:
        """Body of `/v1/models/{id}/ready`. Raises ModelNotFound."""
        sets = self._all_sets(name)
        if not sets:
            raise ModelNotFound(name)
        namespaces = {s.namespace for s in sets}
        by_namespace = {
            ns: self._namespace_readiness([s for s in sets if s.namespace == ns]) for ns in sorted(namespaces)
        }
        return {
            "model": name,
            "ready": any(report["ready"] for report in by_namespace.values()),
            "namespaces": by_namespace,
        }

    def _all_sets(self, name: str) -> list[WorkerSet]:
        """Prefill sets too, which nobody can address alone."""
        return [s for s in self._table.worker_sets.values() if name in self._names(s)]

    def _namespace_readiness(self, sets: list[WorkerSet]) -> dict[str, object]:
        present = {s.worker_type for s in sets if self._table.routable(s)}
        cards = {s.worker_type: self._by_mdcsum[s.mdcsum] for s in sets}
        missing = {
            need
            for loading in cards.values()
            if loading.card.needs and not any(present.issuperset(group) for group in loading.card.needs)
            for group in loading.card.needs
            for need in group
            if need not in present
        }
        errors = {s.worker_type: error for s in sets if (error := self._by_mdcsum[s.mdcsum].error)}
        servable = any(
            loading.model is not None and worker_type in present and worker_type != "prefill"
            for worker_type, loading in cards.items()
        )
        return {
            "ready": servable and not missing,
            "worker_types": {
                s.worker_type: {"workers": len(self._table.routable(s)), "needs": cards[s.worker_type].card.needs}
                for s in sets
            },
            "present": sorted(present),
            "missing_worker_types": sorted(missing),
            "config_conflicts": sum(s.rejected for s in sets),
            "errors": errors,
        }

    def _begin_loading(self, worker_set: WorkerSet) -> None:
        card = msgspec.json.decode(worker_set.card, type=ModelDeploymentCard)
        started = time.monotonic()
        task = self._loop.run_in_executor(self._executor, self._load, card, worker_set.mdcsum)
        loading = self._by_mdcsum[worker_set.mdcsum] = Loading(card, card.model_types, task)
        task.add_done_callback(lambda _task: loading.settle(worker_set, time.monotonic() - started))

    def _index(self) -> dict[str, list[WorkerSet]]:
        index: dict[str, list[WorkerSet]] = {}
        for worker_set in self._table.worker_sets.values():
            if worker_set.worker_type != "prefill":
                for name in self._names(worker_set):
                    index.setdefault(name, []).append(worker_set)
        return index

    def _names(self, worker_set: WorkerSet) -> list[str]:
        return [worker_set.model, *self._by_mdcsum[worker_set.mdcsum].card.aliases]

    async def _wait_for_any(self, name: str, sets: list[WorkerSet]) -> Model:
        loading = [self._by_mdcsum[s.mdcsum] for s in sets]
        pending = [entry.task for entry in loading if not entry.task.done()]
        if pending:
            await asyncio.wait(pending, timeout=LOAD_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        for entry in loading:
            if entry.model is not None:
                return entry.model
        reason = next((entry.error for entry in loading if entry.error), f"it is not loaded after {LOAD_WAIT_S:g} s")
        log.debug("model %r asked for in vain: %s", name, reason)
        raise ModelNotReady(f"The model {name!r} is registered but cannot be served; /v1/models/{name}/ready says why.")
