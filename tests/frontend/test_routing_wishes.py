"""What headers and `nvext` make of a request's routing; expectations were seen on the wire of 1.6.1 unless a name says
otherwise."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from dynamo.frontend.openai import decode_chat, decode_completion
from dynamo.frontend.routing_headers import NO_ROUTING_HEADERS, RoutingHeaderReader, RoutingHeaders
from dynamo.frontend.routing_wishes import RoutingWishes, routing_wishes
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.messages import RoutingHints
from dynamo.shared.protocol import RouterConfigOverride, RoutingConstraints

USER = [{"role": "user", "content": "hi"}]
TOOL_CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}


class Sent(dict[str, str]):
    """Headers of a request, as a server hands them out."""

    def headers_starting(self, prefixes: tuple[bytes, ...]) -> dict[str, str]:
        return {name: value for name, value in self.items() if name.encode().startswith(prefixes)}


def read(headers: dict[str, str], reader: RoutingHeaderReader | None = None) -> RoutingHeaders:
    return (reader or RoutingHeaderReader()).read(Sent(headers))


def wishes(headers: dict[str, str], **fields: Any) -> RoutingWishes:
    body = {"model": "m", "messages": USER, **fields}
    return routing_wishes(decode_chat(json.dumps(body).encode()), read(headers))


def routing(headers: dict[str, str], **fields: Any) -> Any:
    return msgspec.to_builtins(wishes(headers, **fields).routing)


@pytest.mark.parametrize(
    ("headers", "fields", "expected"),
    [
        ({}, {}, {}),
        ({"content-type": "application/json", "x-request-id": "5"}, {}, {}),
        ({"x-dynamo-request-priority": "5"}, {}, {"priority_jump": 5.0, "priority": 5}),
        ({"x-dynamo-request-priority": " +5 "}, {}, {"priority_jump": 5.0, "priority": 5}),
        ({"x-dynamo-request-priority": "-5"}, {}, {"priority_jump": 0.0, "priority": -5}),
        (
            {"x-dynamo-request-priority": "5"},
            {"nvext": {"agent_hints": {"priority": 7, "strict_priority": 9}}},
            {"priority_jump": 5.0, "priority": 5, "strict_priority": 9},
        ),
        (
            {"x-dynamo-request-strict-priority": "3"},
            {"nvext": {"agent_hints": {"priority": 7, "strict_priority": 9, "osl": 5}}},
            {"expected_output_tokens": 5, "priority_jump": 7.0, "priority": 7, "strict_priority": 3},
        ),
        ({}, {"nvext": {"agent_hints": {"priority": -2}}}, {"priority": -2, "priority_jump": 0.0}),
        ({}, {"nvext": {"agent_hints": {"latency_sensitivity": -0.5}}}, {"priority_jump": -0.5}),
        (
            {},
            {"nvext": {"agent_hints": {"latency_sensitivity": 2.5, "priority": 1}}},
            {"priority_jump": 1.0, "priority": 1},
        ),
        ({"x-dynamo-worker-instance-id": "9"}, {}, {"backend_instance_id": 9, "decode_worker_id": 9}),
        (
            {"x-worker-instance-id": "9"},
            {"nvext": {"backend_instance_id": 7, "decode_worker_id": 7}},
            {"backend_instance_id": 9, "decode_worker_id": 9},
        ),
        (
            {"x-dynamo-worker-instance-id": "7", "x-worker-instance-id": "9"},
            {},
            {"backend_instance_id": 7, "decode_worker_id": 7},
        ),
        ({}, {"nvext": {"backend_instance_id": 2**64 - 1}}, {"backend_instance_id": 2**64 - 1}),
        ({}, {"nvext": {"prefill_dp_rank": 0, "dp_rank": 1}}, {"prefill_dp_rank": 0, "dp_rank": 1}),
        ({"x-dynamo-dp-rank": "0", "x-dp-rank": "1", "x-data-parallel-rank": "2"}, {}, {"dp_rank": 0}),
        ({"x-dp-rank": "1", "x-data-parallel-rank": "2"}, {"nvext": {"dp_rank": 3}}, {"dp_rank": 1}),
        ({"x-data-parallel-rank": "2"}, {}, {"dp_rank": 2}),
        (
            {"x-dynamo-prefill-instance-id": "5", "x-prefill-instance-id": "6", "x-prefill-dp-rank": "2"},
            {},
            {"prefill_worker_id": 5, "prefill_dp_rank": 2},
        ),
        ({"x-tenant-id": " a b "}, {"cache_salt": "c", "nvext": {"cache_salt": "d"}}, {"cache_salt": "a b"}),
        ({"x-tenant-id": ""}, {"cache_salt": "c", "nvext": {"cache_salt": "d"}}, {"cache_salt": "d"}),
        ({}, {"cache_salt": "c"}, {"cache_salt": "c"}),
        ({}, {"cache_salt": "", "nvext": {"cache_salt": ""}}, {}),
        ({}, {"nvext": {"routing_constraints": {"required_taints": []}}}, {"routing_constraints": {}}),
        (
            {},
            {"nvext": {"routing_constraints": {"preferred_taints": {"a": 0.5}}}},
            {"routing_constraints": {"preferred_taints": {"a": 0.5}}},
        ),
    ],
)
def test_what_a_worker_is_told_of_its_routing(
    headers: dict[str, str], fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert routing(headers, **fields) == expected


SESSION = {"input_trigger": "user_message"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-dynamo-session-id": " a b "}, {"session_id": "a b"}),
        (
            {"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "p", "x-dynamo-session-final": "TRUE"},
            {"session_id": "s", "parent_session_id": "p", "session_final": True},
        ),
        ({"x-dynamo-session-id": "s", "x-dynamo-session-final": "off"}, {"session_id": "s", "session_final": False}),
        (
            {"x-session-id": "s", "x-parent-session-id": "p"},
            {
                "session_id": "s",
                "parent_session_id": "p",
                "agent_headers": {"x-parent-session-id": ["p"], "x-session-id": ["s"]},
            },
        ),
        (
            {"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "pa"},
            {
                "session_id": "a",
                "parent_session_id": "pa",
                "agent_headers": {
                    "x-claude-code-agent-id": ["a"],
                    "x-claude-code-parent-agent-id": ["pa"],
                    "x-claude-code-session-id": ["c"],
                },
            },
        ),
        (
            {"x-claude-code-session-id": "c", "x-claude-code-agent-id": "a"},
            {
                "session_id": "a",
                "parent_session_id": "c",
                "agent_headers": {"x-claude-code-agent-id": ["a"], "x-claude-code-session-id": ["c"]},
            },
        ),
        (
            {"thread-id": "t", "x-codex-parent-thread-id": "pt"},
            {
                "session_id": "t",
                "parent_session_id": "pt",
                "agent_headers": {"thread-id": ["t"], "x-codex-parent-thread-id": ["pt"]},
            },
        ),
        (
            {"x-claude-code-session-id": "c", "thread-id": "t", "x-session-id": "s", "x-dynamo-session-id": "d"},
            {
                "session_id": "d",
                "agent_headers": {"thread-id": ["t"], "x-claude-code-session-id": ["c"], "x-session-id": ["s"]},
            },
        ),
        (
            {"thread-id": "t", "x-session-id": "s", "x-dynamo-parent-session-id": "p"},
            {"session_id": "t", "agent_headers": {"thread-id": ["t"], "x-session-id": ["s"]}},
        ),
    ],
)
def test_sessions(headers: dict[str, str], expected: dict[str, Any]) -> None:
    found = wishes(headers)
    assert msgspec.to_builtins(found.agent_context) == expected | SESSION
    assert found.hints == RoutingHints(
        session_id=expected["session_id"], is_session_final=expected.get("session_final", False)
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"x-dynamo-session-id": " "},
        {"x-dynamo-session-final": "true"},
        {"x-dynamo-parent-session-id": "p"},
        {"x-parent-session-id": "p"},
        {"x-claude-code-agent-id": "a"},
    ],
)
def test_headers_that_name_no_session(headers: dict[str, str]) -> None:
    found = wishes(headers)
    assert (found.agent_context, found.hints) == (None, None)


@pytest.mark.parametrize(
    ("messages", "trigger"),
    [
        (USER, "user_message"),
        ([*USER, {"role": "assistant", "content": "c"}], "other"),
        (
            [
                *USER,
                {"role": "assistant", "tool_calls": [TOOL_CALL]},
                {"role": "tool", "tool_call_id": "x", "content": "b"},
            ],
            "tool_result",
        ),
    ],
)
def test_what_triggered_a_turn(messages: list[Any], trigger: str) -> None:
    context = wishes({"x-session-id": "s"}, messages=messages).agent_context
    assert context is not None
    assert context.input_trigger == trigger


def test_a_completion_was_triggered_by_nothing_known() -> None:
    request = decode_completion(b'{"model": "m", "prompt": "hi"}')
    context = routing_wishes(request, read({"thread-id": "t"})).agent_context
    assert context is not None
    assert context.input_trigger == "other"


def test_metadata_and_the_policy_class_among_it() -> None:
    found = wishes({"x-dynamo-meta-policy-class": "gold", "x-dynamo-meta-foo-bar": "x"})
    assert found.metadata == {"policy-class": "gold", "foo-bar": "x"}
    assert found.hints == RoutingHints(policy_class="gold")
    assert read({"x-our-meta-a": "b"}, RoutingHeaderReader("x-our-meta-")).metadata == {"a": "b"}


def test_what_the_router_is_told() -> None:
    weights = {"router_temperature": 0.5, "assume_kv_reuse": False}
    found = wishes(
        {"x-dynamo-request-strict-priority": "3"},
        nvext={
            "agent_hints": {"priority": 2, "osl": 5},
            "routing_constraints": {"required_taints": ["a"]},
            "allowed_worker_ids": [1, 2**64 - 1],
            "router_config_override": weights,
        },
    )
    assert msgspec.to_builtins(found.router_config) == weights
    assert found.hints is not None
    expected = RoutingHints(
        priority_jump=2.0,
        strict_priority=3,
        expected_output_tokens=5,
        allowed_worker_ids=[1, 2**64 - 1],
        constraints=RoutingConstraints(["a"]),
        router_config=RouterConfigOverride(router_temperature=0.5, assume_kv_reuse=False),
    )
    assert msgspec.msgpack.encode(found.hints) == msgspec.msgpack.encode(expected)


def test_nothing_is_said_of_an_ordinary_request() -> None:
    found = wishes({"accept": "*/*"}, nvext={"annotations": ["x"]})
    assert (found.hints, found.agent_context, found.router_config, found.metadata) == (None, None, None, {})
    assert read({"accept": "*/*"}) is NO_ROUTING_HEADERS


@pytest.mark.parametrize(
    ("headers", "nvext", "instance_id", "pinned_by"),
    [
        ({"x-worker-instance-id": "9"}, {"decode_worker_id": 7}, 9, "x-worker-instance-id"),
        ({}, {"decode_worker_id": 7, "backend_instance_id": 9}, 7, "nvext.decode_worker_id"),
        ({}, {"backend_instance_id": 9, "dp_rank": 1}, 9, "nvext.backend_instance_id"),
        ({}, {"dp_rank": 1}, None, "nvext.dp_rank"),
        ({"x-dp-rank": "1"}, {"dp_rank": 1}, None, "x-dp-rank"),
        ({}, {}, None, "nvext.backend_instance_id"),
    ],
)
def test_a_pin_knows_where_it_comes_from(
    headers: dict[str, str], nvext: dict[str, Any], instance_id: int | None, pinned_by: str
) -> None:
    found = wishes(headers, nvext=nvext)
    assert (found.instance_id, found.pinned_by) == (instance_id, pinned_by)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-dynamo-request-priority", "abc"),
        ("x-dynamo-request-priority", "2147483648"),
        ("x-dynamo-request-priority", "5.5"),
        ("x-dynamo-request-strict-priority", "-3"),
        ("x-dynamo-worker-instance-id", "36331bc48926273d"),
        ("x-worker-instance-id", str(2**64)),
        ("x-dp-rank", ""),
        ("x-prefill-dp-rank", "1_0"),
        ("x-dynamo-session-id", "s" * 257),
    ],
)
def test_a_header_that_cannot_be_read_is_refused_where_1_6_1_ignores_it(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as refused:
        read({name: value})
    assert refused.value.param == name


def test_a_session_that_is_final_maybe_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="true, 1, yes"):
        read({"x-dynamo-session-id": "s", "x-dynamo-session-final": "maybe"})


@pytest.mark.parametrize(
    ("nvext", "param"),
    [
        ({"allowed_worker_ids": []}, "nvext.allowed_worker_ids"),
        ({"allowed_worker_ids": [2**64]}, "nvext.allowed_worker_ids[0]"),
        ({"routing_constraints": {"x": 1}}, "nvext.routing_constraints.x"),
        ({"routing_constraints": {"required_taints": "a"}}, "nvext.routing_constraints.required_taints"),
        ({"router_config_override": {"router_temperature": -1}}, "nvext.router_config_override.router_temperature"),
        ({"router_config_override": {"weight": 1}}, "nvext.router_config_override.weight"),
    ],
)
def test_a_field_out_of_range_is_named(nvext: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wishes({}, nvext=nvext)
    assert refused.value.param == param


def test_a_priority_of_vllm_is_turned_round_and_gives_way_to_dynamos_own() -> None:
    assert routing({}, priority=-5) == {"priority": 5, "priority_jump": 5.0}
    assert routing({}, priority=5) == {"priority": -5, "priority_jump": 0.0}
    assert routing({}, priority=-5, nvext={"agent_hints": {"priority": 1}})["priority"] == 1
    assert routing({"x-dynamo-request-priority": "2"}, priority=-5)["priority"] == 2


def test_without_hints_a_request_keeps_tenant_session_and_metadata() -> None:
    given = {
        "x-dynamo-worker-instance-id": "7",
        "x-dp-rank": "1",
        "x-dynamo-request-priority": "4",
        "x-tenant-id": "t",
        "x-dynamo-session-id": "s",
        "x-dynamo-meta-foo": "bar",
    }
    headers = read(given, RoutingHeaderReader(takes_hints=False))
    assert (headers.worker_id, headers.dp_rank, headers.priority) == (None, None, None)
    assert (headers.tenant, headers.metadata) == ("t", {"foo": "bar"})
    assert headers.session is not None
