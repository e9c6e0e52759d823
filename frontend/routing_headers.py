"""Request headers that say where a request wants to go, read once: pins, priorities, tenant, session, metadata; and
how its answer is to be called.

A header wins over the field of the body that means the same, as in Dynamo 1.6.1; one that cannot be read is refused,
where 1.6.1 ignores it.
"""

from __future__ import annotations

import re
from typing import Protocol

from msgspec import Struct

from dynamo.frontend.openai_requests import U32_MAX, U64_MAX
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.protocol import AgentContext

METADATA_PREFIX = "x-dynamo-meta-"
MAX_SESSION_ID = 256  # characters: the router remembers many of them

WORKER = ("x-dynamo-worker-instance-id", "x-worker-instance-id")
DP_RANK = ("x-dynamo-dp-rank", "x-dp-rank", "x-data-parallel-rank")
PREFILL_WORKER = ("x-dynamo-prefill-instance-id", "x-prefill-instance-id")
PREFILL_DP_RANK = ("x-dynamo-prefill-dp-rank", "x-prefill-dp-rank")
PRIORITY = ("x-dynamo-request-priority",)
STRICT_PRIORITY = ("x-dynamo-request-strict-priority",)
TENANT = "x-tenant-id"
ANSWER_ID = "x-dynamo-request-id"  # deprecated
SESSION = "x-dynamo-session-id"
PARENT_SESSION = "x-dynamo-parent-session-id"
SESSION_FINAL = "x-dynamo-session-final"
# Those of agents that know nothing of Dynamo; workers are told them as they came.
NATIVE_SESSION = (
    "thread-id",
    "x-claude-code-agent-id",
    "x-claude-code-parent-agent-id",
    "x-claude-code-session-id",
    "x-codex-parent-thread-id",
    "x-parent-session-id",
    "x-session-id",
)

# What a body says in `nvext`.
_HINTS = frozenset((*WORKER, *DP_RANK, *PREFILL_WORKER, *PREFILL_DP_RANK, *PRIORITY, *STRICT_PRIORITY))
_OTHER_PREFIXES = ("x-worker-", "x-dp-", "x-data-parallel-", "x-prefill-", TENANT, *NATIVE_SESSION)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_YES, _NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class RoutingHeaders(Struct, frozen=True):
    """`worker_from` and `dp_rank_from` are the names of the headers that pin, to be named in a refusal."""

    worker_id: int | None = None
    worker_from: str = ""
    dp_rank: int | None = None
    dp_rank_from: str = ""
    prefill_worker_id: int | None = None
    prefill_dp_rank: int | None = None
    priority: int | None = None
    strict_priority: int | None = None
    tenant: str = ""
    session: AgentContext | None = None
    metadata: dict[str, str] = {}
    answer_id: str = ""


NO_ROUTING_HEADERS = RoutingHeaders()


class HasHeaders(Protocol):
    def headers_starting(self, prefixes: tuple[bytes, ...]) -> dict[str, str]: ...


class RoutingHeaderReader:
    """`metadata_prefix` is in lower case. Without `takes_hints` a request can name no worker and has no priority."""

    def __init__(self, metadata_prefix: str = METADATA_PREFIX, *, takes_hints: bool = True) -> None:
        self._metadata_prefix = metadata_prefix
        self._takes_hints = takes_hints
        self._prefixes = tuple(p.encode() for p in {"x-dynamo-", metadata_prefix, *_OTHER_PREFIXES})

    def read(self, request: HasHeaders) -> RoutingHeaders:
        """Raises InvalidRequest naming the header."""
        given = request.headers_starting(self._prefixes)
        return self._read(given) if given else NO_ROUTING_HEADERS

    def _read(self, given: dict[str, str]) -> RoutingHeaders:
        if not self._takes_hints:
            given = {name: value for name, value in given.items() if name not in _HINTS}
        worker_id, worker_from = _first_integer(given, WORKER, 0, U64_MAX)
        dp_rank, dp_rank_from = _first_integer(given, DP_RANK, 0, U32_MAX)
        prefix = self._metadata_prefix
        return RoutingHeaders(
            worker_id=worker_id,
            worker_from=worker_from,
            dp_rank=dp_rank,
            dp_rank_from=dp_rank_from,
            prefill_worker_id=_first_integer(given, PREFILL_WORKER, 0, U64_MAX)[0],
            prefill_dp_rank=_first_integer(given, PREFILL_DP_RANK, 0, U32_MAX)[0],
            priority=_first_integer(given, PRIORITY, -(2**31), 2**31 - 1)[0],
            strict_priority=_first_integer(given, STRICT_PRIORITY, 0, U32_MAX)[0],
            tenant=given.get(TENANT, "").strip(),
            session=_session(given),
            answer_id=_uuid(given, ANSWER_ID),
            metadata={name[len(prefix) :]: value for name, value in given.items() if name.startswith(prefix)},
        )


def _first_integer(given: dict[str, str], names: tuple[str, ...], lowest: int, highest: int) -> tuple[int | None, str]:
    """The number in the first of these headers that was sent, and that header's name."""
    for name in names:
        if (text := given.get(name)) is not None:
            return _integer(name, text.strip(), lowest, highest), name
    return None, ""


def _integer(name: str, text: str, lowest: int, highest: int) -> int:
    if not _INTEGER.fullmatch(text) or not lowest <= int(text) <= highest:
        raise InvalidRequest(
            f"The header {name} is {text[:40]!r}; it must be a whole number from {lowest} to {highest}.", name
        )
    return int(text)


def _uuid(given: dict[str, str], name: str) -> str:
    text = given.get(name, "").strip()
    if text and not _UUID.fullmatch(text):
        raise InvalidRequest(f"The header {name} is {text[:40]!r}; it must be a UUID.", name)
    return text.lower()


def _session(given: dict[str, str]) -> AgentContext | None:
    session_id, parent_id = _session_ids(given)
    if not session_id:
        return None
    return AgentContext(
        session_id=session_id,
        parent_session_id=parent_id or None,
        session_final=_session_final(given),
        agent_headers={name: [given[name]] for name in NATIVE_SESSION if name in given},
    )


def _session_ids(given: dict[str, str]) -> tuple[str, str]:
    """Session and parent, from the first family of headers that names a session; "" where there is none."""
    if session := _id(given, SESSION):
        return session, _id(given, PARENT_SESSION)
    if session := _id(given, "x-claude-code-session-id"):
        agent = _id(given, "x-claude-code-agent-id")
        return (agent, _id(given, "x-claude-code-parent-agent-id") or session) if agent else (session, "")
    if thread := _id(given, "thread-id"):
        return thread, _id(given, "x-codex-parent-thread-id")
    return _id(given, "x-session-id"), _id(given, "x-parent-session-id")


def _id(given: dict[str, str], name: str) -> str:
    session_id = given.get(name, "").strip()
    if len(session_id) > MAX_SESSION_ID:
        raise InvalidRequest(
            f"The header {name} has {len(session_id)} characters; at most {MAX_SESSION_ID} are allowed.", name
        )
    return session_id


def _session_final(given: dict[str, str]) -> bool | None:
    if (text := given.get(SESSION_FINAL)) is None:
        return None
    word = text.strip().lower()
    if word not in _YES and word not in _NO:
        raise InvalidRequest(
            f"The header {SESSION_FINAL} is {text[:40]!r}; it must be one of {', '.join(_YES + _NO)}.", SESSION_FINAL
        )
    return word in _YES
