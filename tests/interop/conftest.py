"""`make interop` brings the real Dynamo 1.6.1; without it, or where its sockets cannot be confined, all is skipped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.anchor import ANCHOR_PYTHON, Store, file_store
from tests.interop.network_namespace import enter_network_namespace
from tests.support.etcd import EtcdServer

VERSION = "1.6.1"


@pytest.fixture(scope="session", autouse=True)
def anchor_on_loopback() -> None:
    if (found := _installed_version()) != VERSION:
        pytest.skip(
            f"DYNAMO_ORACLE_PYTHON={ANCHOR_PYTHON!r} has {found}, and ai-dynamo {VERSION} is needed; "
            "`make interop` installs it"
        )
    try:
        enter_network_namespace()
    except OSError as error:
        pytest.skip(
            f"no network namespace ({error}), and the real mocker would listen on every interface; "
            "run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone, or AppArmor's)"
        )


@pytest.fixture(scope="module", params=["file", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(request.param, tmp_path_factory.mktemp("store")) as store:
        yield store


@contextmanager
def open_store(backend: str, directory: Path) -> Iterator[Store]:
    if backend == "file":
        yield file_store(directory)
        return
    with EtcdServer() as etcd:
        yield Store("etcd", {"ETCD_ENDPOINTS": etcd.url})


def _installed_version() -> str:
    code = "from importlib.metadata import version; print(version('ai-dynamo'))"
    try:
        done = subprocess.run([ANCHOR_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no ai-dynamo"
    return done.stdout.strip()
