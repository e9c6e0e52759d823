"""The acceptor's copy of the router's table: which workers there are and what they serve."""

from __future__ import annotations

from dynamo.shared.messages import TableDelta, Welcome, Worker, WorkerSet


class ModelTable:
    """Kept across the router's death. `apply` returns False on a gap in versions: ask for the whole table again."""

    def __init__(self) -> None:
        self.version = -1
        self.workers: dict[int, Worker] = {}
        self.worker_sets: dict[str, WorkerSet] = {}

    def replace(self, welcome: Welcome) -> None:
        self.version = welcome.version
        self.workers = {worker.instance_id: worker for worker in welcome.workers}
        self.worker_sets = {worker_set.key: worker_set for worker_set in welcome.worker_sets}

    def apply(self, delta: TableDelta) -> bool:
        if delta.version != self.version + 1:
            return False
        self.version = delta.version
        for worker in delta.workers_up:
            self.workers[worker.instance_id] = worker
        for instance_id in delta.workers_down:
            self.workers.pop(instance_id, None)
        for worker_set in delta.sets_up:
            self.worker_sets[worker_set.key] = worker_set
        for key in delta.sets_down:
            self.worker_sets.pop(key, None)
        return True

    def routable(self, worker_set: WorkerSet) -> list[int]:
        """Members whose endpoint is served right now."""
        return [instance_id for instance_id in worker_set.members if instance_id in self.workers]
