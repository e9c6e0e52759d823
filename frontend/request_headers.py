"""What becomes of each header of a request; docs/headers.md is written from this table, and what requests are read by
must be in it."""

from __future__ import annotations

from dynamo.frontend import routing_headers, trace_headers
from dynamo.frontend.answer_extras import ROUTE_RECEIPT
from dynamo.frontend.openai_compatibility import Row, forwarded, honoured, no_effect

_SESSION = "its native session is that of the request, unless `x-dynamo-session-id` names one"

HEADERS: dict[tuple[str, ...], Row] = {
    ("content-type",): honoured("`application/json`; anything else is refused with a 415."),
    ("x-request-id",): honoured(
        "The answer and the log carry it; 1 to 256 visible ASCII characters, else one is made."
    ),
    (routing_headers.ANSWER_ID,): honoured("A UUID: the answer's id is made of it. Deprecated."),
    (trace_headers.TRACE_PARENT,): forwarded(
        "W3C trace context; workers are told it as it is. An invalid one is ignored."
    ),
    (trace_headers.TRACE_STATE,): forwarded(
        f"With a valid `{trace_headers.TRACE_PARENT}`, up to {trace_headers.MAX_TRACE_STATE} characters."
    ),
    routing_headers.WORKER: honoured("Id of the worker that is to answer; of several such headers the first counts."),
    routing_headers.DP_RANK: honoured("Data-parallel rank that is to answer."),
    routing_headers.PREFILL_WORKER: forwarded("Id of the worker that is to prefill."),
    routing_headers.PREFILL_DP_RANK: forwarded("Data-parallel rank that is to prefill."),
    routing_headers.PRIORITY: honoured("Higher is earlier; -2^31 to 2^31-1."),
    routing_headers.STRICT_PRIORITY: honoured("Higher goes before all lower ones; 0 to 2^32-1."),
    (routing_headers.TENANT,): forwarded(
        "The cache salt, before those of the body: only a tenant's own share a cache."
    ),
    (f"{routing_headers.METADATA_PREFIX}*",): forwarded(
        "Metadata of the request; `x-dynamo-meta-policy-class` chooses the queue. `--metadata-header-prefix` changes "
        "the prefix."
    ),
    (routing_headers.SESSION, routing_headers.PARENT_SESSION): honoured(
        f"The session it belongs to, up to {routing_headers.MAX_SESSION_ID} characters, and the one that began that."
    ),
    (routing_headers.SESSION_FINAL,): honoured(
        "Whether the session ends with it: true, 1, yes, on, or their opposites."
    ),
    ("x-claude-code-session-id", "x-claude-code-agent-id", "x-claude-code-parent-agent-id"): honoured(
        f"Claude Code: {_SESSION}."
    ),
    ("thread-id", "x-codex-parent-thread-id"): honoured(f"Codex: {_SESSION}."),
    ("x-session-id", "x-parent-session-id"): honoured(f"Other agents: {_SESSION}."),
    (ROUTE_RECEIPT,): honoured("`true`: the answer says in `x-dynamo-route` why it went where it went."),
    ("authorization",): no_effect("Only the admin routes ask for a key, if `--admin-api-key` sets one."),
    ("x-api-key", "anthropic-version", "anthropic-beta"): no_effect("What Anthropic's clients send is not needed."),
}
