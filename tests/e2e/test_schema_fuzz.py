"""Requests made up from our own OpenAPI document, as it allows and as it does not: no route fails, and answers are what
the document says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from dynamo.frontend.operations import OPERATIONS
from tests.support.gateway import Gateway

NUM_EXAMPLES = {GenerationMode.POSITIVE: 20, GenerationMode.NEGATIVE: 8}
CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
DELIBERATE = frozenset({501})  # of the API, and not served here


@pytest.fixture(scope="module")
def operations(gateway: Gateway) -> dict[str, Any]:
    """By method and path. Half of the bodies name the model that is served, so that they get past the door."""
    document = httpx.get(f"{gateway.base_url}/openapi.json", timeout=60).json()
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}) and schema["title"].endswith(("Request", "Prompt")):
            schema["properties"]["model"] = {"enum": [gateway.model, "nobody"]}
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if name in schema.get("properties", {}):
                schema["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 4}
    results = list(schemathesis.openapi.from_dict(document).get_all_operations())
    found = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(found) == len(results)
    return {operation.label: operation for operation in found}


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if "{response_id}" not in name])
def test_no_request_breaks_the_gateway(
    gateway: Gateway, operations: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    if mode is GenerationMode.NEGATIVE and not OPERATIONS[name].body:
        return  # everything is allowed

    @seed(1)
    @settings(
        max_examples=NUM_EXAMPLES[mode],
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[name].as_strategy(mode))
    def ask(case: Any) -> None:
        answer = case.call(base_url=gateway.base_url, timeout=60)
        assert answer.status_code < 500 or answer.status_code in DELIBERATE, (case.body, answer.text)
        case.validate_response(answer, checks=CONFORMANCE)

    ask()
    assert "Traceback" not in gateway.log
