"""Discovery's entries into the model table: read, checked, bounded."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dynamo.router.entries import read_registered, read_worker
from dynamo.router.rules import Rules
from dynamo.router.table import ModelTable
from dynamo.shared.card import CardError, Registered
from dynamo.shared.discovery import INSTANCES, Change, Put

log = logging.getLogger("dynamo.router")


class Registrar:
    """`malformed` says of a discovery key what is wrong with its value; `num_left_out` entries had no room."""

    def __init__(self, rules: Rules, table: ModelTable) -> None:
        self._rules = rules
        self._table = table
        self.malformed: dict[str, str] = {}
        self.num_left_out = 0

    def apply(self, bucket: str, changes: Iterable[Change]) -> set[int]:
        """A batch of `v1/instances` or `v1/mdc`. Returns the instances that it may have touched."""
        for change in changes:
            if not self._rules.serves_namespace(change.key.partition("/")[0]):
                continue
            try:
                self._apply(bucket, change)
            except CardError as error:
                self._note_malformed(bucket, change.key, str(error))
        return self._table.settle()

    def _apply(self, bucket: str, change: Change) -> None:
        key = change.key
        if not isinstance(change, Put):
            self._drop(bucket, key)
            return
        is_known = self._table.has_instance(key) if bucket == INSTANCES else self._table.has_card(key)
        if not is_known and len(self._table) >= self._rules.max_table_entries:
            self._leave_out(key)
            return
        if bucket == INSTANCES:
            self._table.put_instance(key, read_worker(key, change.value))
        else:
            registered = read_registered(key, change.value)
            self._check_block_size(registered)
            self._table.put_card(key, registered)
        self.malformed.pop(f"{bucket}/{key}", None)

    def _check_block_size(self, registered: Registered) -> None:
        """A worker whose blocks are of another size would never match a prompt, and nobody would know why."""
        wanted, found = self._rules.kv_cache_block_size, registered.card.kv_cache_block_size
        if wanted is not None and found != wanted:
            raise CardError(
                f"its KV blocks hold {found} tokens, --kv-cache-block-size says {wanted}; give both the same"
            )

    def _drop(self, bucket: str, key: str) -> None:
        self.malformed.pop(f"{bucket}/{key}", None)
        if bucket == INSTANCES:
            self._table.drop_instance(key)
        else:
            self._table.drop_card(key)

    def _note_malformed(self, bucket: str, key: str, reason: str) -> None:
        """A value that cannot be read counts as none, so what the key meant before is gone too."""
        entry = f"{bucket}/{key}"
        is_news = self.malformed.get(entry) != reason
        self._drop(bucket, key)
        if len(self.malformed) < self._rules.max_table_entries:
            self.malformed[entry] = reason
        if is_news:
            log.warning("ignoring %s: %s", entry, reason)

    def _leave_out(self, key: str) -> None:
        self.num_left_out += 1
        if self.num_left_out == 1:
            log.error(
                "the table is full (%d entries), leaving out %s and whatever comes after it; "
                "raise --max-table-entries or scope the router with --namespace",
                self._rules.max_table_entries,
                key,
            )
