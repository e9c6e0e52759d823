"""A real etcd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.server import Server, free_port


class EtcdServer(Server):
    program = "etcd"

    def __init__(self) -> None:
        super().__init__()
        self._client_port = free_port()
        self._peer_port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._client_port}"

    def arguments(self) -> list[str]:
        peer_url = f"http://127.0.0.1:{self._peer_port}"
        return [
            f"--data-dir={self.data}",
            "--name=test",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=test={peer_url}",
            "--unsafe-no-fsync",
        ]

    def is_ready(self, output: str) -> bool:
        return "ready to serve client requests" in output

    def lose_data(self) -> None:
        """Call between `kill` and `start`."""
        shutil.rmtree(self.data)

    def ctl(self, *arguments: str) -> str:
        """What etcdctl prints; raises when it fails."""
        etcdctl = Path(sys.executable).parent / "etcdctl"
        environment = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": self.url}
        done = subprocess.run([str(etcdctl), *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    @property
    def data(self) -> Path:
        return self.directory / "data"
