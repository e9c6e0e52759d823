"""What discovery holds of workers, made up of a few words."""

from __future__ import annotations

import msgspec

BLOCK_SIZE = 4


def instance_value(instance_id: int, endpoint: str) -> bytes:
    namespace, component, name = endpoint.split("/")
    return msgspec.json.encode(
        {
            "type": "Endpoint",
            "namespace": namespace,
            "component": component,
            "endpoint": name,
            "instance_id": instance_id,
            "transport": {"tcp": f"127.0.0.1:{9000 + instance_id}/{instance_id:x}/{endpoint}"},
            "request_plane_codec": "msgpack",
        }
    )


def card_value(instance_id: int, endpoint: str, options: dict[str, str]) -> bytes:
    namespace, component, name = endpoint.split("/")
    card = {
        "display_name": options["model"],
        "slug": options["model"],
        "worker_type": options.get("type", "aggregated"),
        "needs": [each.split("+") for each in options["needs"].split("|")] if "needs" in options else [],
        "aliases": options["aliases"].split(",") if "aliases" in options else [],
        "runtime_config": _runtime_config(options),
        "kv_cache_block_size": int(options.get("block_size", BLOCK_SIZE)),
    }
    if "weights" in options:
        card["router_config"] = {"kv_router_config": numbers_of(options["weights"])}
    registration = {
        "type": "Model",
        "namespace": namespace,
        "component": component,
        "endpoint": name,
        "instance_id": instance_id,
        "card_json": card,
    }
    return msgspec.json.encode(registration | ({"model_suffix": options["lora"]} if "lora" in options else {}))


def _runtime_config(options: dict[str, str]) -> dict[str, object]:
    return {
        "context_length": int(options.get("context", 4096)),
        "data_parallel_size": int(options.get("ranks", 1)),
        "total_kv_blocks": int(options.get("blocks", 1000)),
        "max_num_batched_tokens": int(options.get("batch", 1000)),
        "taints": options["taints"].split(",") if "taints" in options else [],
    }


def numbers_of(text: str) -> dict[str, float]:
    """`name:1.5,other:2` as a dict."""
    return {name: float(value) for name, value in (pair.split(":") for pair in text.split(","))}
