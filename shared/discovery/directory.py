"""A bucket of the file store on disk: names, atomic writes, expiry. Blocking, for one thread. Source: wire.md §1.3."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import string
import time
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
    identity: tuple[int, int]  # inode and size: every replacement is a new inode, a heartbeat is not
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

    def scan(self, ttl_s: float) -> dict[str, bytes]:
        """What is there; removes what has expired."""
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.time() - ttl_s
        files: dict[str, _File] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # removed or replaced while we look; the next scan tells
                    status = entry.stat(follow_symlinks=False)
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    if status.st_mtime < deadline:
                        self._expire(Path(entry.path), time.time() - status.st_mtime)
                    elif not entry.name.startswith(TEMP_PREFIX):
                        files[entry.name] = self._read(entry, status)
        self._files = files
        return {key_of_file_name(name): file.value for name, file in files.items() if file.value is not None}

    def _file_of(self, key: str) -> Path:
        return self.path / file_name_of(key)

    def _expire(self, path: Path, age_s: float) -> None:
        with suppress(PermissionError):  # an expired entry counts as gone even where we may not remove it
            path.unlink(missing_ok=True)
            logger.info("%s: removed, its owner has not refreshed it for %.0f s", path, age_s)

    def _read(self, entry: os.DirEntry[str], status: os.stat_result) -> _File:
        identity = (status.st_ino, status.st_size)
        known = self._files.get(entry.name)
        if known is not None and known.identity == identity:
            return known
        if status.st_size > MAX_VALUE_SIZE:
            logger.warning("%s: ignored, %d bytes are over the limit of %d", entry.path, status.st_size, MAX_VALUE_SIZE)
            return _File(identity, None)
        return _File(identity, Path(entry.path).read_bytes())
