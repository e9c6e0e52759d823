"""A bucket of the file store on disk: names, atomic writes, expiry. Blocking, for one thread."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import string
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

logger = logging.getLogger("dynamo.discovery")

TEMP_PREFIX = ".tmp_"
MAX_VALUE_SIZE = 16 * 1024 * 1024  # bytes; larger files are not read

_PLAIN = frozenset((string.ascii_letters + string.digits).encode())


def file_name_of(key: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in key.encode())


def key_of_file_name(name: str) -> str:
    return unquote(name)


@dataclass
class _File:
    identity: tuple[int, int, int]  # inode, size, mtime: inodes come back, so a heartbeat costs a read
    value: bytes | None  # None when it is too large to read


class Directory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, _File] = {}

    def write(self, key: str, value: bytes) -> None:
        """Readers see the old file or the new one, never half of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(value)
            temporary.rename(self._file_of(key))
        finally:
            temporary.unlink(missing_ok=True)

    def touch(self, key: str) -> bool:
        """False when the file is gone."""
        try:
            os.utime(self._file_of(key))
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        self._file_of(key).unlink(missing_ok=True)

    def entries(self, ttl_s: float) -> dict[str, bytes]:
        """What is there; removes what has expired."""
        files: dict[str, _File] = {}
        for entry, status in self._alive(ttl_s):
            with suppress(FileNotFoundError):
                files[entry.name] = self._read(entry, status)
        self._files = files
        return {key_of_file_name(name): file.value for name, file in files.items() if file.value is not None}

    def expire(self, ttl_s: float) -> None:
        """Remove what has expired."""
        for _ in self._alive(ttl_s):
            pass

    def _alive(self, ttl_s: float) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        self.path.mkdir(parents=True, exist_ok=True)
        now = time.time()
        with os.scandir(self.path) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed or replaced while we look; the next look tells
                    continue
                if not stat.S_ISREG(status.st_mode):
                    continue
                if status.st_mtime < now - ttl_s:
                    self._remove_expired(Path(entry.path), now - status.st_mtime)
                elif not entry.name.startswith(TEMP_PREFIX):
                    yield entry, status

    def _file_of(self, key: str) -> Path:
        return self.path / file_name_of(key)

    def _remove_expired(self, path: Path, age_s: float) -> None:
        with suppress(PermissionError):  # an expired entry counts as gone even where we may not remove it
            path.unlink(missing_ok=True)
            logger.info("%s: removed, its owner has not refreshed it for %.0f s", path, age_s)

    def _read(self, entry: os.DirEntry[str], status: os.stat_result) -> _File:
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._files.get(entry.name)
        if known is not None and known.identity == identity:
            return known
        if status.st_size > MAX_VALUE_SIZE:
            logger.warning("%s: ignored, %d bytes are over the limit of %d", entry.path, status.st_size, MAX_VALUE_SIZE)
            return _File(identity, None)
        return _File(identity, Path(entry.path).read_bytes())
