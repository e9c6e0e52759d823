"""The few lines of inotify(7) that a directory watch needs."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# A name appeared or went away. Not IN_ATTRIB, not IN_CLOSE_WRITE: those also report every heartbeat of every publisher.
_MASK = 0x00000040 | 0x00000080 | 0x00000100 | 0x00000200  # IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
_READ_SIZE = 64 * 1024


class Inotify:
    """Raises OSError where the system has no inotify, or no instance left (fs.inotify.max_user_instances)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "inotify_init1"):
            raise OSError("this system has no inotify")
        self._fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Readable when something happened in a watched directory."""
        return self._fd

    def add(self, directory: Path) -> None:
        """Adding a directory again changes nothing, unless it was replaced by a new one since."""
        self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK))

    def drain(self) -> None:
        """Forget what happened; the caller looks at the directories themselves."""
        try:
            while os.read(self._fd, _READ_SIZE):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self._fd)

    def _checked(self, result: int) -> int:
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result
