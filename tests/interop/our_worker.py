"""A worker process of ours, as the real frontend finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.interop.anchor import Store
from tests.support.server import die_with_parent

STOP_TIMEOUT_S = 60


@contextmanager
def our_worker(store: Store, model: str, *flags: str) -> Iterator[None]:
    """Registered when it is yielded."""
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamo.worker", store.flag, "--model-name", model, "--ready-fd", str(write_fd), *flags],
        env=os.environ | store.environment,
        pass_fds=[write_fd],
        preexec_fn=die_with_parent,
    )
    os.close(write_fd)
    try:
        with os.fdopen(read_fd, "rb") as ready:
            assert ready.read() == b"ready\n"
        yield
    finally:
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0
