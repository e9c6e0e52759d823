"""The little of the etcd v3 API that discovery needs, over gRPC, with fail-over between members.

aetcd gives the generated stubs. Its own client knows one member and no TLS, and its watcher waits for ever when etcd
refuses a watch because of a compaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from aetcd import rpc  # type: ignore[import-untyped]

from dynamo.shared.discovery import Change, Deleted, DiscoveryError, Put
from dynamo.shared.discovery.etcd_config import EtcdConfig, address_of

CALL_TIMEOUT_S = 5.0
MAX_RESPONSE_SIZE = 256 * 1024 * 1024  # bytes; one response holds a whole bucket
MIN_PING_INTERVAL_S = 5  # etcd closes connections of clients that ping more often

_Metadata = tuple[tuple[str, str], ...]
_Method = Callable[..., Any]


class LeaseNotFound(DiscoveryError):
    """The lease expired, or etcd lost its data."""


class Refused(DiscoveryError):
    """etcd answered and will answer the same again: credentials, permissions, TLS."""


@dataclass(frozen=True)
class _Member:
    url: str
    channel: Any
    auth: Any
    kv: Any
    lease: Any
    watch: Any


class EtcdClient:
    """Every method raises DiscoveryError, and then asks the next member the next time."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self._members = [_member(url, config) for url in config.urls]
        self._current = 0
        self._token: str | None = None

    async def close(self) -> None:
        for member in self._members:
            await member.channel.close()

    async def grant(self, ttl_s: int, lease_id: int = 0) -> int:
        """The id of a lease: a new one that etcd chooses, or `lease_id`, whether it existed or not."""
        request = rpc.LeaseGrantRequest(TTL=ttl_s, ID=lease_id)
        try:
            granted = await self._call(lambda member: member.lease.LeaseGrant, request)
        except _LeaseExists:
            return lease_id
        return int(granted.ID)

    async def keep_alive(self, lease_id: int, interval_s: float) -> AsyncGenerator[int]:
        """Renews every `interval_s`; yields the lease's TTL after each, 0 when it is gone."""
        request = rpc.LeaseKeepAliveRequest(ID=lease_id)
        stream = self._stream(lambda member: member.lease.LeaseKeepAlive, request, interval_s)
        async with aclosing(stream) as replies:
            async for reply in replies:
                yield int(reply.TTL)

    async def revoke(self, lease_id: int) -> None:
        await self._call(lambda member: member.lease.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease_id))

    async def put(self, key: str, value: bytes, lease_id: int) -> None:
        await self._call(lambda member: member.kv.Put, rpc.PutRequest(key=key.encode(), value=value, lease=lease_id))

    async def delete(self, key: str) -> None:
        await self._call(lambda member: member.kv.DeleteRange, rpc.DeleteRangeRequest(key=key.encode()))

    async def range(self, prefix: str) -> tuple[dict[str, bytes], int]:
        """Everything below `prefix`, by key less the prefix, and the revision it was read at."""
        request = rpc.RangeRequest(key=prefix.encode(), range_end=_end_of(prefix))
        found = await self._call(lambda member: member.kv.Range, request)
        return {kv.key.decode()[len(prefix) :]: kv.value for kv in found.kvs}, int(found.header.revision)

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[list[Change]]:
        """Changes below `prefix` from `revision` on; the first batch is empty and says that etcd accepted the watch."""
        request = rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=prefix.encode(), range_end=_end_of(prefix), start_revision=revision
            )
        )
        # A member cut off from its leader would leave the watch open and silent.
        leader = (("hasleader", "true"),)
        stream = self._stream(lambda member: member.watch.Watch, request, metadata=leader)
        async with aclosing(stream) as responses:
            async for response in responses:
                if response.canceled:
                    raise DiscoveryError(f"etcd ended the watch of {prefix}: {_reason_of(response)}")
                yield [_change_of(event, prefix) for event in response.events]

    async def _call(self, method_of: Callable[[_Member], _Method], request: Any) -> Any:
        try:
            return await self._call_once(method_of, request)
        except _StaleToken:
            return await self._call_once(method_of, request)

    async def _call_once(self, method_of: Callable[[_Member], _Method], request: Any) -> Any:
        member = self._members[self._current]
        with self._translated_errors(member):
            metadata = await self._metadata(member)
            return await method_of(member)(request, timeout=CALL_TIMEOUT_S, metadata=metadata)

    async def _stream(
        self,
        method_of: Callable[[_Member], _Method],
        request: Any,
        interval_s: float | None = None,
        metadata: _Metadata = (),
    ) -> AsyncGenerator[Any]:
        member = self._members[self._current]
        finished = asyncio.Event()
        with self._translated_errors(member):
            metadata = (*await self._metadata(member), *metadata)
            call = method_of(member)(_repeated(request, interval_s, finished), metadata=metadata)
            try:
                async for response in call:
                    yield response
            finally:
                finished.set()
                call.cancel()
        raise DiscoveryError(f"etcd at {member.url} closed the stream")

    async def _metadata(self, member: _Member) -> _Metadata:
        if self._config.username is None:
            return ()
        if self._token is None:
            request = rpc.AuthenticateRequest(name=self._config.username, password=self._config.password)
            self._token = (await member.auth.Authenticate(request, timeout=CALL_TIMEOUT_S)).token
        return (("token", self._token),)

    @contextmanager
    def _translated_errors(self, member: _Member) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self._fail_over(member)
            raise _translated(error, member) from None
        except asyncio.CancelledError:
            # gRPC raises this too when it was the server that cancelled the call.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail_over(member)
            raise DiscoveryError(f"etcd at {member.url} cancelled the call") from None

    def _fail_over(self, failed: _Member) -> None:
        """Whatever went wrong, the next member is as good to ask, and a new token as good as the old."""
        self._token = None
        if self._members[self._current] is failed:
            self._current = (self._current + 1) % len(self._members)


async def _repeated(request: Any, interval_s: float | None, finished: asyncio.Event) -> AsyncIterator[Any]:
    """Our half of a stream: `request` once, or every `interval_s`, and open until `finished`."""
    while not finished.is_set():
        yield request
        with suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await finished.wait()


class _LeaseExists(DiscoveryError):
    pass


class _StaleToken(DiscoveryError):
    """Tokens expire, change with the users, and are forgotten by a member that restarts."""


def _translated(error: grpc.aio.AioRpcError, member: _Member) -> DiscoveryError:
    code, details = error.code(), error.details() or ""
    text = f"etcd at {member.url}: {details or code.name}"
    match code:
        case grpc.StatusCode.NOT_FOUND if "lease" in details:
            return LeaseNotFound(text)
        case grpc.StatusCode.FAILED_PRECONDITION if "lease already exists" in details:
            return _LeaseExists(text)
        case grpc.StatusCode.INVALID_ARGUMENT if "authentication failed" in details or "user name is empty" in details:
            return Refused(f"{text}; check ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD")
        case grpc.StatusCode.UNAUTHENTICATED:
            return _StaleToken(text)
        case grpc.StatusCode.INVALID_ARGUMENT if "auth store is old" in details:
            return _StaleToken(text)
        case grpc.StatusCode.PERMISSION_DENIED:
            return Refused(f"{text}; the etcd user needs read and write access to the prefix v1/")
    return DiscoveryError(text)


def _member(url: str, config: EtcdConfig) -> _Member:
    scheme, address = address_of(url)
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", MAX_RESPONSE_SIZE),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.min_reconnect_backoff_ms", 5000),  # also how long one connect may take
        ("grpc.keepalive_time_ms", 1000 * max(config.ping_interval_s, MIN_PING_INTERVAL_S)),
        ("grpc.keepalive_timeout_ms", 1000 * config.ping_timeout_s),
        ("grpc.http2.ping_timeout_ms", 1000 * config.ping_timeout_s),  # of pings gRPC sends for reasons of its own
    ]
    if scheme == "https":
        channel = grpc.aio.secure_channel(address, _tls(config), options=options)
    else:
        channel = grpc.aio.insecure_channel(address, options=options)
    return _Member(
        url, channel, rpc.AuthStub(channel), rpc.KVStub(channel), rpc.LeaseStub(channel), rpc.WatchStub(channel)
    )


def _tls(config: EtcdConfig) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(config.ca),
        private_key=_pem(config.client_key),
        certificate_chain=_pem(config.client_cert),
    )


def _pem(value: str | None) -> bytes | None:
    if value is None or value.startswith("-----BEGIN"):
        return value.encode() if value else None
    try:
        return Path(value).read_bytes()
    except OSError as error:
        raise DiscoveryError(f"cannot read a PEM file named by ETCD_AUTH_*: {error}") from error


def _end_of(prefix: str) -> bytes:
    """First key after all that start with `prefix`."""
    encoded = prefix.encode()
    return encoded[:-1] + bytes([encoded[-1] + 1])


def _reason_of(response: Any) -> str:
    if response.compact_revision:
        return f"revisions before {response.compact_revision} were compacted"
    return str(response.cancel_reason or "no reason given")


def _change_of(event: Any, prefix: str) -> Change:
    key = event.kv.key.decode()[len(prefix) :]
    return Deleted(key) if event.type == rpc.Event.DELETE else Put(key, event.kv.value)
