"""Servers shared by the tests of a session: starting one takes seconds, and requests leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.echo_gateway import EchoGateway
from tests.support.gateway import Gateway


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    with Gateway() as gateway:
        yield gateway


@pytest.fixture(scope="session")
def gateway_without_workers() -> Iterator[Gateway]:
    with Gateway(mock_workers=0) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def echo_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoGateway]:
    with EchoGateway(tmp_path_factory.mktemp("store")) as gateway:
        yield gateway
