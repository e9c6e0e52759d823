"""Where a router keeps what it knows of KV blocks, so that it comes back warm: a file, or an object in NATS.

stored   "KVSNAP01" | xxh3-64 of the rest, u64 LE | saved at, Unix seconds, f64 LE | the snapshot
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import struct
import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import xxhash
from msgspec import Struct
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError
from nats.js.object_store import ObjectStore

from dynamo.shared.nats import NatsConnection

log = logging.getLogger("dynamo.router")

MAX_BYTES = 1 << 30
TIMEOUT_S = 30.0  # for NATS, which may be away
DEFAULT_BUCKET = "dynamo-router"

_MAGIC = b"KVSNAP01"
_CHECKSUM = struct.Struct("<Q")
_SAVED_AT = struct.Struct("<d")
_DATA_AT = len(_MAGIC) + _CHECKSUM.size + _SAVED_AT.size


class Snapshot(Struct, frozen=True):
    """`saved_at` in Unix seconds; `source` says where it was found."""

    data: bytes
    saved_at: float
    source: str

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.saved_at)


class SnapshotError(Exception):
    """It cannot be saved; the message says where and why."""


class SnapshotStore(Protocol):
    async def save(self, data: bytes) -> None:
        """Replace the last one, at once and as a whole. Raises SnapshotError."""

    async def load(self) -> Snapshot | None:
        """The last one; None, with a line in the log unless there never was one, when it cannot be used."""


def make_snapshot_store(place: str, nats: NatsConnection) -> SnapshotStore:
    """`nats://BUCKET/NAME` is an object in NATS, anything else the path of a file. Raises ValueError."""
    if not place.startswith("nats:"):
        return FileSnapshots(Path(place.removeprefix("file://")))
    parts = urlsplit(place)
    if not (name := parts.path.strip("/")):
        raise ValueError(f"snapshot {place!r}: expected a path, or nats://BUCKET/NAME")
    return ObjectSnapshots(nats, parts.netloc or DEFAULT_BUCKET, name)


class FileSnapshots:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def save(self, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as error:
            raise SnapshotError(f"cannot save the snapshot {self._path}: {error}") from error

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(_sealed(data))
                os.fsync(file.fileno())
            temporary.rename(self._path)
        finally:
            temporary.unlink(missing_ok=True)

    async def load(self) -> Snapshot | None:
        try:
            return await asyncio.to_thread(self._read)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _warn(str(self._path), error)
            return None

    def _read(self) -> Snapshot:
        if self._path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return _opened(self._path.read_bytes(), str(self._path))


class ObjectSnapshots:
    def __init__(self, nats: NatsConnection, bucket: str, name: str) -> None:
        self._nats = nats
        self._bucket = bucket
        self._name = name

    @property
    def _place(self) -> str:
        return f"nats://{self._bucket}/{self._name}"

    async def save(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                store = await self._open()
                await store.put(self._name, _sealed(data))
        except (NatsError, OSError) as error:  # TimeoutError is an OSError
            raise SnapshotError(f"cannot save the snapshot {self._place}: {error!r}") from error

    async def load(self) -> Snapshot | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                store = await self._open()
                return _opened((await store.get(self._name)).data or b"", self._place)
        except NotFoundError:
            return None
        except (NatsError, OSError, ValueError) as error:
            _warn(self._place, error)
            return None

    async def _open(self) -> ObjectStore:
        jetstream = (await self._nats.client()).jetstream()
        with contextlib.suppress(NotFoundError):
            return await jetstream.object_store(self._bucket)
        return await jetstream.create_object_store(self._bucket)


def _sealed(data: bytes) -> bytes:
    if len(data) > MAX_BYTES - _DATA_AT:
        raise SnapshotError(f"the snapshot has {len(data)} bytes; at most {MAX_BYTES - _DATA_AT} are kept")
    dated = _SAVED_AT.pack(time.time()) + data
    return _MAGIC + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(dated)) + dated


def _opened(stored: bytes, source: str) -> Snapshot:
    """Raises ValueError."""
    if len(stored) < _DATA_AT or not stored.startswith(_MAGIC):
        raise ValueError("it is no snapshot of this version")
    (checksum,) = _CHECKSUM.unpack_from(stored, len(_MAGIC))
    dated = memoryview(stored)[len(_MAGIC) + _CHECKSUM.size :]
    if xxhash.xxh3_64_intdigest(dated) != checksum:
        raise ValueError("it is damaged")
    (saved_at,) = _SAVED_AT.unpack_from(dated)
    return Snapshot(bytes(dated[_SAVED_AT.size :]), saved_at, source)


def _warn(source: str, error: Exception) -> None:
    log.warning("cannot use the snapshot %s, starting without: %s", source, error or repr(error))
