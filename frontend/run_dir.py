"""The private folder of a supervisor: the router's socket, metric files, the store of `--discovery-backend mem`."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from pathlib import Path

PREFIX = "dynamo-frontend-"
SHARED_MEMORY = Path("/dev/shm")


class RunDir:
    """Mode 0700, in memory where there is such a place. Locked while its owner lives, however that ends."""

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or _best_parent()
        _remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = os.open(self.path / "unlocked", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(self.path / "unlocked", self.path / "lock")  # whoever finds a lock finds it held
        self.metrics.mkdir()
        self.store.mkdir()

    @property
    def replica(self) -> str:
        """Tells this run apart from every other one, here and on other hosts."""
        return f"{socket.gethostname()}/{self.path.name.removeprefix(PREFIX)}"

    @property
    def router_endpoint(self) -> str:
        return f"ipc://{self.path}/router.sock"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def store(self) -> Path:
        return self.path / "store"

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _best_parent() -> Path:
    is_usable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    return SHARED_MEMORY if is_usable else Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    """What a killed supervisor of ours left: its lock went with it."""
    for folder in parent.glob(PREFIX + "*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            continue  # gone meanwhile, or its owner is just making it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
