"""Attach models to endpoints. The call is that of `dynamo.llm.register_model`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from dynamo.shared.discovery import CARDS
from dynamo.shared.protocol import Registration
from dynamo.shared.runtime import Endpoint
from dynamo.worker.card import Card, LoraInfo, ModelDirectoryError, ModelFiles, read_model_files, slugify
from dynamo.worker.model_types import ModelInput, ModelRuntimeConfig, ModelType, WorkerType

# Their frontends need no tokenizer, so nothing is read from disk.
MINIMAL_CARD_TYPES = ModelType.TensorBased | ModelType.Images | ModelType.Videos | ModelType.Realtime

__all__ = ["ModelDirectoryError", "register_llm", "register_model", "unregister_llm", "unregister_model"]


async def register_model(
    model_input: ModelInput,
    model_type: ModelType,
    endpoint: Endpoint,
    model_path: str,
    model_name: str | None = None,
    *,
    worker_type: WorkerType,
    kv_cache_block_size: int | None = None,
    router_config: Any = None,
    runtime_config: ModelRuntimeConfig | None = None,
    tensor_model_config: dict[str, Any] | None = None,
    user_data: dict[str, Any] | None = None,
    custom_template_path: str | None = None,
    media_decoder: Any = None,
    media_fetcher: Any = None,
    lora_name: str | None = None,
    base_model_path: str | None = None,
    needs: list[list[WorkerType]] | None = None,
    self_host_metadata: bool | None = None,
    ignore_weights: bool = False,
    max_gpu_lora_count: int | None = None,
    model_aliases: list[str] | None = None,
    skip_model_assets: bool = False,
    migration_limit: int = 0,
) -> None:
    """Advertise the model in the local directory `model_path` at `endpoint`.

    `needs` lists alternatives, each a set of worker types that must be there too. `lora_name` and `base_model_path`
    come together. `ignore_weights` is accepted: weights are never read here.

    Raises ValueError for a combination that no frontend could serve, ModelDirectoryError when the directory lacks
    what a card needs.
    """
    _reject_unsupported(media_decoder=media_decoder, media_fetcher=media_fetcher, self_host_metadata=self_host_metadata)
    _check_role(model_type, worker_type, needs)
    if (lora_name is None) != (base_model_path is None):
        raise ValueError("lora_name and base_model_path must be given together")
    source_path = base_model_path or model_path
    runtime_config = runtime_config or ModelRuntimeConfig()
    display_name = lora_name or model_name or Path(model_path).name
    card = Card(
        display_name=display_name,
        slug=slugify(display_name),
        source_path=source_path,
        kv_cache_block_size=kv_cache_block_size or 16,
        migration_limit=migration_limit,
        model_type=model_type,
        model_input=model_input,
        worker_type=worker_type,
        needs=needs or [],
        lora=LoraInfo(lora_name, max_gpu_lora_count) if lora_name else None,
        aliases=model_aliases or None,
        user_data=user_data,
        router_config=router_config,
        tensor_model_config=tensor_model_config,
        runtime_config=runtime_config,
    )
    if not skip_model_assets and not model_type & MINIMAL_CARD_TYPES:
        template = Path(custom_template_path) if custom_template_path else None
        has_tokenizer = model_input is ModelInput.Tokens
        files = await asyncio.to_thread(read_model_files, Path(source_path), template, has_tokenizer=has_tokenizer)
        _add_files(card, files)
    card.context_length = runtime_config.context_length or card.architectural_max_context_length or 0
    await _publish(endpoint, card, slugify(lora_name) if lora_name else None)


register_llm = register_model


async def unregister_model(endpoint: Endpoint, lora_name: str | None = None) -> None:
    """Withdraw the model, or one adapter of it, from discovery. The endpoint goes on serving."""
    await endpoint.runtime.withdraw(CARDS, endpoint.key(slugify(lora_name) if lora_name else None))


unregister_llm = unregister_model


def _reject_unsupported(**options: Any) -> None:
    for name, value in options.items():
        if value:
            raise ValueError(f"{name} is not supported by this SDK; leave it out")


def _check_role(model_type: ModelType, worker_type: WorkerType, needs: list[list[WorkerType]] | None) -> None:
    if worker_type is not WorkerType.Prefill:
        return
    if model_type not in (ModelType.Empty, ModelType.Prefill):
        raise ValueError("a prefill worker has no API of its own: use ModelType.Empty or ModelType.Prefill")
    if not needs:
        raise ValueError("a prefill worker serves nobody alone: say in needs which workers must be there too")


def _add_files(card: Card, files: ModelFiles) -> None:
    for name in files.__struct_fields__:
        setattr(card, name, getattr(files, name))


async def _publish(endpoint: Endpoint, card: Card, suffix: str | None) -> None:
    runtime = endpoint.runtime
    await runtime.open()
    registration = Registration(
        endpoint.namespace,
        endpoint.component,
        endpoint.name,
        endpoint.connection_id(),
        card.encode(),
        model_suffix=suffix,
    )
    await runtime.publish(CARDS, endpoint.key(suffix), msgspec.json.encode(registration))
