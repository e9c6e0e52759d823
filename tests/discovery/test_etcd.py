"""Discovery against a real etcd that dies, forgets and comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.shared.config import ConfigError
from dynamo.shared.discovery import INSTANCES, DiscoveryError
from dynamo.shared.discovery.etcd import EtcdDiscovery
from dynamo.shared.discovery.etcd_client import EtcdClient, Refused
from dynamo.shared.discovery.etcd_config import EtcdConfig
from tests.discovery.watching import watching
from tests.support.etcd import EtcdServer
from tests.support.server import free_port


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@asynccontextmanager
async def opened(endpoints: str, **options: Any) -> AsyncIterator[EtcdDiscovery]:
    discovery = EtcdDiscovery(EtcdConfig(endpoints=endpoints, **options))
    await discovery.open()
    try:
        yield discovery
    finally:
        await discovery.close()


async def test_entries_are_plain_keys_under_the_lease(etcd: EtcdServer) -> None:
    async with opened(etcd.url) as discovery:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        assert etcd.ctl("get", "v1/instances/ns/c/e/1") == "v1/instances/ns/c/e/1\none\n"
        lease = etcd.ctl("lease", "timetolive", f"{discovery.lease_id:x}", "--keys")
        assert "granted with TTL(30s)" in lease
        assert "attached keys([v1/instances/ns/c/e/1])" in lease
    assert etcd.ctl("lease", "list").split() == ["found", "0", "leases"]


async def test_a_restart_with_data_changes_nothing(etcd: EtcdServer) -> None:
    async with opened(etcd.url) as ours, opened(etcd.url) as theirs, watching(theirs, INSTANCES) as watcher:
        await ours.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
        heard = len(watcher.batches)
        etcd.restart()
        await ours.publish(INSTANCES, "ns/c/e/2", b"two")
        await watcher.until(lambda: "ns/c/e/2" in watcher.entries)
        assert [change.key for batch in watcher.batches[heard:] for change in batch] == ["ns/c/e/2"]
        assert f"{ours.lease_id:x}" in etcd.ctl("lease", "list")


async def test_an_empty_etcd_is_filled_again_under_the_same_lease(
    etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(etcd.url) as ours, opened(etcd.url) as theirs, watching(theirs, INSTANCES) as watcher:
        await ours.publish(INSTANCES, "ns/c/e/1", b"one")
        await ours.publish(INSTANCES, "ns/c/e/2", b"two")
        await watcher.until(lambda: len(watcher.entries) == 2)
        lease_id = ours.lease_id
        with caplog.at_level(logging.WARNING, logger="dynamo.discovery"):
            etcd.kill()
            etcd.lose_data()
            etcd.start()
            async with opened(etcd.url) as fresh, watching(fresh, INSTANCES) as seen_anew:
                await seen_anew.until_entries({"ns/c/e/1": b"one", "ns/c/e/2": b"two"})
        await watcher.until_entries({"ns/c/e/1": b"one", "ns/c/e/2": b"two"})
        assert ours.lease_id == lease_id
        attached = etcd.ctl("lease", "timetolive", f"{lease_id:x}", "--keys")
        assert "v1/instances/ns/c/e/1" in attached
        assert "v1/instances/ns/c/e/2" in attached
        messages = [record.getMessage() for record in caplog.records]
        assert len([text for text in messages if f"lease {lease_id:x}: unavailable" in text]) == 1
        assert len([text for text in messages if f"lease {lease_id:x} was gone" in text]) == 1


async def test_a_revoked_lease_is_granted_again(etcd: EtcdServer) -> None:
    async with opened(etcd.url, lease_ttl_s=3) as discovery, watching(discovery, INSTANCES) as watcher:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
        etcd.ctl("lease", "revoke", f"{discovery.lease_id:x}")
        await watcher.until_entries({})
        await watcher.until_entries({"ns/c/e/1": b"one"})
        etcd.ctl("lease", "revoke", f"{discovery.lease_id:x}")
        await discovery.publish(INSTANCES, "ns/c/e/2", b"two")
        await watcher.until_entries({"ns/c/e/1": b"one", "ns/c/e/2": b"two"})


async def test_changes_made_while_the_watch_was_cut_arrive_as_one_difference(etcd: EtcdServer) -> None:
    async with opened(etcd.url) as discovery, watching(discovery, INSTANCES) as watcher:
        for number in range(3):
            etcd.ctl("put", f"v1/instances/{number}", "old")
        await watcher.until(lambda: len(watcher.entries) == 3)
        heard = len(watcher.batches)
        # A second server on the same data, at another port, is where the store changes while ours is away.
        etcd.kill()
        with EtcdServer() as elsewhere:
            elsewhere.kill()
            elsewhere.lose_data()
            etcd.data.rename(elsewhere.data)
            elsewhere.start()
            elsewhere.ctl("del", "v1/instances/0")
            elsewhere.ctl("put", "v1/instances/1", "new")
            elsewhere.ctl("put", "v1/instances/3", "added")
            revision = elsewhere.ctl("get", "v1/instances/3", "--write-out=fields")
            elsewhere.ctl("compact", revision.split('"Revision" : ')[1].split()[0])
            elsewhere.kill()
            elsewhere.data.rename(etcd.data)
        etcd.start()
        await watcher.until_entries({"1": b"new", "2": b"old", "3": b"added"})
        (difference,) = watcher.batches[heard:]
        assert sorted(change.key for change in difference) == ["0", "1", "3"]


async def test_a_compacted_revision_ends_the_watch_with_its_reason(etcd: EtcdServer) -> None:
    for value in "abc":
        etcd.ctl("put", "v1/instances/1", value)
    etcd.ctl("compact", "4")
    client = EtcdClient(EtcdConfig(endpoints=etcd.url))
    with pytest.raises(DiscoveryError, match="revisions before 4 were compacted"):
        async for _batch in client.watch("v1/instances/", 2):
            pass
    await client.close()


async def test_the_next_member_is_asked_when_one_is_down(etcd: EtcdServer) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with opened(f"{dead}, {etcd.url}") as discovery, watching(discovery, INSTANCES) as watcher:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})


async def test_start_waits_for_etcd(etcd: EtcdServer) -> None:
    etcd.kill()
    discovery = EtcdDiscovery(EtcdConfig(endpoints=etcd.url))
    opening = asyncio.create_task(discovery.open())
    await asyncio.to_thread(etcd.start)
    await asyncio.wait_for(opening, 60)
    await discovery.close()


async def test_start_gives_up_in_time() -> None:
    config = EtcdConfig(endpoints=f"http://127.0.0.1:{free_port()}", connect_timeout_s=0.5)
    with pytest.raises(DiscoveryError, match=r"0\.5 s: .*ETCD_ENDPOINTS"):
        await EtcdDiscovery(config).open()


async def test_users_and_passwords(etcd: EtcdServer) -> None:
    etcd.ctl("user", "add", "root:secret")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("auth", "enable")
    with pytest.raises(Refused, match="ETCD_AUTH_USERNAME"):
        await EtcdDiscovery(EtcdConfig(endpoints=etcd.url, username="root", password="wrong")).open()
    async with opened(etcd.url) as nobody:
        with pytest.raises(Refused, match="ETCD_AUTH_USERNAME"):
            await nobody.publish(INSTANCES, "ns/c/e/1", b"one")
    as_root = opened(etcd.url, username="root", password="secret")
    async with as_root as discovery, watching(discovery, INSTANCES) as watcher:
        await discovery.publish(INSTANCES, "ns/c/e/1", b"one")
        await watcher.until_entries({"ns/c/e/1": b"one"})
        etcd.restart()  # and the token is forgotten
        await discovery.publish(INSTANCES, "ns/c/e/1", b"two")
        await watcher.until_entries({"ns/c/e/1": b"two"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"endpoints": " , "}, "ETCD_ENDPOINTS"),
        ({"endpoints": "ftp://etcd:2379"}, "ftp://etcd:2379"),
        ({"endpoints": "http://etcd:port"}, "http://etcd:port"),
        ({"username": "root"}, "ETCD_AUTH_PASSWORD"),
        ({"client_cert": "cert.pem"}, "ETCD_AUTH_CLIENT_KEY"),
        ({"lease_ttl_s": 0}, "ETCD_LEASE_TTL"),
    ],
)
def test_values_that_do_not_fit_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EtcdConfig(**options)


def test_the_variables_are_dynamos() -> None:
    environment = {
        "ETCD_ENDPOINTS": "etcd-0:2379,https://etcd-1:2379",
        "ETCD_LEASE_TTL": "10",
        "ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS": "5",
    }
    config, provenance = EtcdConfig.load([], environment, prog="etcd")
    assert config.urls == ["etcd-0:2379", "https://etcd-1:2379"]
    assert (config.lease_ttl_s, config.connect_timeout_s) == (10, 5.0)
    assert provenance["username"] == "default"
