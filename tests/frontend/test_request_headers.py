"""The table of headers has every header that requests are read by."""

from __future__ import annotations

from dynamo.frontend import answer_extras, routing_headers, trace_headers
from dynamo.frontend.request_headers import HEADERS

NAMES = [name for names in HEADERS for name in names]
OF_ALL_REQUESTS = {
    "content-type",
    "x-request-id",
    "authorization",
    "x-api-key",
    "anthropic-version",
    "anthropic-beta",
    "x-dynamo-meta-*",
}


def test_each_header_has_one_row() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(name == name.lower() for name in NAMES)


def test_every_header_that_is_read_has_a_row() -> None:
    read = {
        *routing_headers.WORKER,
        *routing_headers.DP_RANK,
        *routing_headers.PREFILL_WORKER,
        *routing_headers.PREFILL_DP_RANK,
        *routing_headers.PRIORITY,
        *routing_headers.STRICT_PRIORITY,
        *routing_headers.NATIVE_SESSION,
        routing_headers.TENANT,
        routing_headers.ANSWER_ID,
        routing_headers.SESSION,
        routing_headers.PARENT_SESSION,
        routing_headers.SESSION_FINAL,
        trace_headers.TRACE_PARENT,
        trace_headers.TRACE_STATE,
        answer_extras.ROUTE_RECEIPT,
    }
    assert read | OF_ALL_REQUESTS == set(NAMES)
