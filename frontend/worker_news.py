"""What workers tell besides text and its end, for requests that ask for it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from dynamo.shared.protocol import EngineOutput


class WorkerNews(Struct):
    """Of a delta, or of a whole choice. `token_ids` are those generated, of `engine_data` the last counts;
    `prompt_logprobs` has an object for each token of the prompt, by token id, or null. `prompt_token_ids` come with the
    first delta."""

    token_ids: list[int]
    prompt_token_ids: list[int] | None = None
    engine_data: dict[str, Any] | None = None
    prompt_logprobs: list[Any] | None = None
    routed_experts: Any = None

    def note(self, output: EngineOutput) -> None:
        self.token_ids += output.token_ids
        if isinstance(data := output.engine_data, dict):
            self.engine_data = data
            if isinstance(logprobs := data.get("prompt_logprobs"), list):
                self.prompt_logprobs = logprobs
            self.routed_experts = data.get("routed_experts") or self.routed_experts

    def add(self, later: WorkerNews) -> None:
        self.token_ids += later.token_ids
        self.engine_data = later.engine_data or self.engine_data
        self.prompt_logprobs = later.prompt_logprobs or self.prompt_logprobs
        self.routed_experts = later.routed_experts or self.routed_experts
