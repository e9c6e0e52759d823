"""Past responses, so that a later request can go on from one by its id: opt-in, bounded, shared by all acceptors.

A SQLite file in the run directory, or where the operator says; what is oldest goes first. Calls block for a fraction
of a millisecond, as the file is in the page cache and never synced: what a crash of the machine takes is a cache.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from msgspec import Struct

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, messages BLOB, response BLOB, size INTEGER
);
CREATE TABLE IF NOT EXISTS total (size INTEGER);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON responses BEGIN UPDATE total SET size = size + new.size; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON responses BEGIN UPDATE total SET size = size - old.size; END;
"""
_BUSY_TIMEOUT_S = 0.2  # the event loop waits as long for a file that others write

log = logging.getLogger("dynamo.http")


class StoredResponse(Struct, frozen=True):
    """`messages` is the conversation up to and with the answer, `response` its body; both JSON."""

    messages: bytes
    response: bytes


class ResponseStore:
    """`max_bytes` bounds what all responses take together, indexes apart; a single one may take a quarter of it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """Raises OSError or sqlite3.Error where the file cannot be made or is no store."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        self._database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;" + _SCHEMA)

    def put(self, id: str, stored: StoredResponse) -> bool:
        """False: it is not kept, as it is too large, or as the file cannot be written, which is logged."""
        size = len(stored.messages) + len(stored.response)
        if size > self._max_bytes // 4:
            return False
        try:
            self._insert(id, stored, size)
        except (
            sqlite3.Error
        ) as error:  # a full disk, or others that write all the time: the answer is told all the same
            log.warning("the response %s is not stored: %s", id, error)
            return False
        return True

    def _insert(self, id: str, stored: StoredResponse, size: int) -> None:
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "INSERT INTO responses (id, messages, response, size) VALUES (?, ?, ?, ?)",
                (id, stored.messages, stored.response, size),
            )
            while self.num_bytes > self._max_bytes:
                database.execute("DELETE FROM responses WHERE number = (SELECT min(number) FROM responses)")

    def get(self, id: str) -> StoredResponse | None:
        row = self._database.execute("SELECT messages, response FROM responses WHERE id = ?", (id,)).fetchone()
        return None if row is None else StoredResponse(*row)

    def delete(self, id: str) -> bool:
        """False: there is none."""
        return self._database.execute("DELETE FROM responses WHERE id = ?", (id,)).rowcount > 0

    @property
    def num_bytes(self) -> int:
        (size,) = self._database.execute("SELECT size FROM total").fetchone()
        return int(size)

    def close(self) -> None:
        self._database.close()
