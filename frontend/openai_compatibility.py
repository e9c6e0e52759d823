"""What becomes of each field of a request. docs/openai-compatibility.md is written from these tables, the refusals are
made by them, and a test sends every field and looks for what its row claims.

A field is *honoured* here, *forwarded* to the worker, whose engine decides what it can do, or *refused* with a 400 that
names it, because the answer would be one to another question. *No effect* is left for what changes no token.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from msgspec import Struct

from dynamo.frontend.openai_requests import ChatCompletionRequest, CompletionBody, NvExt

OPENAI_API = "November 2026, as the package openai 3.54.0 has it"

Fate: TypeAlias = Literal["honoured", "forwarded", "refused", "no effect"]


class Row(Struct, frozen=True):
    """`about` is one line for the reader; of a refused field it is what the 400 advises. `neutral` are values of a
    refused field that ask for nothing."""

    fate: Fate
    about: str
    neutral: tuple[Any, ...] = ()


class Api(Struct, frozen=True, eq=False):
    """`body` has exactly the fields of `rows`."""

    title: str
    body: type[Struct]
    rows: dict[str, Row]

    @property
    def refused(self) -> dict[str, Row]:
        return {name: row for name, row in self.rows.items() if row.fate == "refused"}


def honoured(about: str) -> Row:
    return Row("honoured", about)


def forwarded(about: str) -> Row:
    return Row("forwarded", about)


def refused(advice: str, *neutral: Any) -> Row:
    return Row("refused", advice, neutral)


def no_effect(about: str) -> Row:
    return Row("no effect", about)


_IN_BOTH: dict[str, Row] = {
    "model": honoured("Any name that `/v1/models` lists; an adapter is a model of its own."),
    "stream": honoured("Server-sent events; without it the answer comes in one piece."),
    "stream_options": honoured(
        "`include_usage`, and vLLM's `continuous_usage_stats`; only with `stream`. `include_obfuscation` has no effect."
    ),
    "max_tokens": honoured(
        "1 to 2^20; left out, or more than the context has room for, the answer may go on to the context's end."
    ),
    "min_tokens": honoured("Nothing stops the answer before so many tokens."),
    "stop": honoured("A string, up to 32 strings, or token ids. The text ends before it."),
    "stop_token_ids": honoured("Token ids that end the answer, in addition to those of the model."),
    "ignore_eos": honoured("Nothing but `max_tokens` ends the answer."),
    "include_stop_str_in_output": honoured("What stopped the answer is its end."),
    "n": honoured("1 to 128, prompts included; each choice is a generation of its own. Not with `temperature` 0."),
    "best_of": forwarded("At least `n`."),
    "temperature": forwarded("0 to 2."),
    "top_p": forwarded("Above 0, up to 1."),
    "top_k": forwarded("From -1; 0 and -1 look at every token."),
    "min_p": forwarded("0 to 1."),
    "frequency_penalty": forwarded("-2 to 2."),
    "presence_penalty": forwarded("-2 to 2."),
    "repetition_penalty": forwarded("Above 0, up to 2."),
    "logit_bias": forwarded(
        "-100 bans a token, 100 leaves only such tokens; what lies between has no effect, for workers of 1.6.1 have no "
        "field for it."
    ),
    "seed": forwarded("Choice i of several gets `seed` + i."),
    "allowed_token_ids": forwarded("Only these tokens."),
    "bad_words": forwarded("Up to 256 strings, as the token ids they have at the start of a text and after a space."),
    "bad_words_token_ids": forwarded("Sequences of token ids that must not occur."),
    "use_beam_search": refused("No worker of Dynamo searches by beams.", False),
    "length_penalty": refused("It weighs beams, and no worker of Dynamo searches by beams.", 1.0),
    "structured_outputs": forwarded("vLLM's one object for all guides; a schema is checked here."),
    "guided_json": forwarded("A JSON schema, checked here."),
    "guided_regex": forwarded("A regular expression."),
    "guided_grammar": forwarded("A grammar in the form the engine takes."),
    "guided_choice": forwarded("The output is one of these."),
    "guided_decoding_backend": forwarded("The library the engine follows a guide with."),
    "guided_whitespace_pattern": forwarded("The whitespace between the parts of guided JSON."),
    "prompt_logprobs": forwarded("What the worker tells of its prompt is `prompt_logprobs` of the answer."),
    "skip_special_tokens": honoured(
        "Off by default: special tokens that are generated are shown. Always off where the model's parsers read them."
    ),
    "detokenize": forwarded("Text is made here, whatever it says."),
    "return_tokens_as_token_ids": honoured("Tokens among logprobs are written as `token_id:7`."),
    "return_token_ids": honoured("`prompt_token_ids` and `token_ids` next to the text, as vLLM has them."),
    "add_special_tokens": honoured("Off for a chat, whose template writes its own; on for a text."),
    "truncate_prompt_tokens": honoured("The last so many tokens of the prompt; -1 keeps what fits into the context."),
    "priority": forwarded(
        "Lower is earlier, as in vLLM. Dynamo's own priorities, `nvext.agent_hints.priority` and the header "
        "`x-dynamo-request-priority`, are the other way round, and win."
    ),
    "request_id": honoured("The `id` of the answer ends with it; workers and logs know the request by another one."),
    "lora_request": refused("Name the adapter as the `model`."),
    "cache_salt": forwarded("Only requests with the same salt share what is cached; `x-tenant-id` wins."),
    "user": no_effect("Must not be empty."),
    "metadata": no_effect("Kept for stored completions, and nothing is stored."),
    "nvext": honoured("Dynamo's own extension, below. `--disable-frontend-nvext` leaves only its `cache_salt`."),
}

_CHAT: dict[str, Row] = {
    "messages": honoured(
        "Roles developer, system, user, assistant, tool and function. Pictures, sound and video are refused for a "
        "model that reads text only."
    ),
    "max_completion_tokens": honoured("Wins over `max_tokens`."),
    "logprobs": honoured("What the worker tells of its tokens; null where it tells nothing."),
    "top_logprobs": honoured("0 to 20 alternatives of each token; of no effect without `logprobs`."),
    "tools": honoured(
        "Up to 1536 functions; the template shows them to the model, calls are found in its output. Where one is "
        "`strict`, its objects need `additionalProperties: false` and all properties in `required`."
    ),
    "tool_choice": honoured(
        "`none`, `auto`, `required`, a function, or `allowed_tools`, which are then all that is offered. A call that "
        "must be made guides the output."
    ),
    "parallel_tool_calls": forwarded("Off allows one call where `tool_choice` demands any; else the model decides."),
    "response_format": forwarded("Text, JSON, a JSON schema, and vLLM's `grammar` and `structural_tag`."),
    "echo": honoured("The answer begins with the last message, if that is the assistant's own."),
    "chat_template": honoured(
        "With `--trust-request-chat-template`; else refused, for a template is a program that comes from the client."
    ),
    "chat_template_args": honoured("More variables for the template; also named `chat_template_kwargs`."),
    "chat_template_kwargs": honoured("The same as `chat_template_args`; only one of the two may be given."),
    "add_generation_prompt": honoured("On by default: the prompt ends where the model's turn begins."),
    "continue_final_message": honoured("The last message is left open, for the model to continue."),
    "documents": honoured("A variable for the template."),
    "thinking": honoured("For the template, as `thinking`, `enable_thinking` and `thinking_mode`."),
    "reasoning_effort": honoured("For the template; it also switches thinking on, or off where it is none."),
    "thinking_token_budget": forwarded("Tokens of reasoning at most; wins over `nvext.max_thinking_tokens`."),
    "media_io_kwargs": forwarded("How the worker is to read pictures, sound and video."),
    "mm_processor_kwargs": forwarded("How the worker is to prepare them for the model."),
    "modalities": honoured("Text; audio is refused."),
    "audio": refused("Answers are text."),
    "prediction": no_effect("It makes nothing faster here."),
    "store": no_effect("Nothing is stored."),
    "service_tier": no_effect("There is one tier. For urgency there is `priority`."),
    "prompt_cache_key": no_effect("The router finds cached prefixes by itself."),
    "prompt_cache_options": no_effect("Workers cache prefixes as they are configured to."),
    "prompt_cache_retention": no_effect("Workers keep prefixes for as long as they have room."),
    "safety_identifier": no_effect("Nobody is reported."),
    "verbosity": honoured("A variable for the template."),
    "moderation": refused("Nothing is moderated here."),
    "web_search_options": refused("No model here searches the web; offer it a tool for that."),
    "functions": refused("Use `tools`, which took its place."),
    "function_call": refused("Use `tool_choice`, which took its place."),
}

_COMPLETIONS: dict[str, Row] = {
    "prompt": honoured("A string, strings, token ids, or arrays of token ids; one answer or more to each."),
    "logprobs": honoured("0 to 5 alternatives of each token, as the worker tells them."),
    "echo": honoured("The prompt before the answer; with `logprobs` those of the prompt too, if the worker tells any."),
    "no_stop_trim": honoured("What stopped the answer is its end, end-of-text tokens too; a field of Dynamo."),
    "suffix": refused("Write the prompt with the model's own tokens for filling in the middle.", ""),
    "prompt_embeds": refused("Send text or token ids."),
}

_NVEXT: dict[str, Row] = {
    "greed_sampling": honoured("The likeliest token at each step; `temperature`, `top_p`, `top_k`, `min_p` are void."),
    "use_raw_prompt": honoured("Of a chat: the content of its only user message is the prompt, without a template."),
    "annotations": honoured(
        "`request_id`, `token_ids` and `formatted_prompt` come as events before the first chunk; `query_instance_id` "
        "asks where the request would go and generates nothing. Workers are told of all."
    ),
    "backend_instance_id": honoured("The worker to ask."),
    "prefill_worker_id": forwarded("The worker for the prompt, where prefill is apart."),
    "decode_worker_id": honoured("The worker to ask; wins over `backend_instance_id`."),
    "dp_rank": honoured("The rank of that worker."),
    "prefill_dp_rank": forwarded("The rank of the worker for the prompt."),
    "token_data": honoured("The prompt as token ids; template and tokenizer are not asked."),
    "max_thinking_tokens": forwarded("Tokens of reasoning at most."),
    "cache_salt": forwarded("Wins over the field of that name outside of `nvext`; `x-tenant-id` wins over both."),
    "extra_fields": honoured(
        "What the answer's `nvext` tells: `worker_id`, `timing`, `stop_reason`, `completion_token_ids`, `engine_data`, "
        "`routed_experts`, `prompt_token_ids`, `prompt_logprobs`; and of ours `route_receipt`, `token_ids`, "
        "`formatted_prompt` and `request_id`."
    ),
    "agent_hints": honoured(
        "`priority`, `strict_priority` and `osl`, the expected output length, for the router's queue and its costs. "
        "`latency_sensitivity` is the older `priority`; `speculative_prefill` has no effect."
    ),
    "metadata_upload": forwarded("Where the worker is to put bulky metadata."),
    "request_timestamp_ms": forwarded("When the request of a replayed trace arrived."),
    "routing_constraints": honoured("Taints that a worker must have, and taints that speak for or against one."),
    "allowed_worker_ids": honoured("One of these workers."),
    "router_config_override": honoured("The router's weights for this request."),
    "router": forwarded("Latency targets."),
}

CHAT = Api("Chat completions: `POST /v1/chat/completions`", ChatCompletionRequest, _IN_BOTH | _CHAT)
COMPLETIONS = Api("Text completions: `POST /v1/completions`", CompletionBody, _IN_BOTH | _COMPLETIONS)
NVEXT = Api("`nvext` of both", NvExt, _NVEXT)
APIS = (CHAT, COMPLETIONS, NVEXT)
