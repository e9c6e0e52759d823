"""The shape of a policy file: its keys and their types, read strictly, with the place of whatever is wrong."""

from __future__ import annotations

import re
from math import isfinite
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import UNSET, Meta, Struct, UnsetType, field

S = TypeVar("S", bound=Struct)
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Weight = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Problem(Exception):
    """`where` is a path in the document, as in policy_classes[0].quantum."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}" if where else what)


class Settings(Struct, kw_only=True):
    """The section `router`, in Dynamo's names."""

    host_cache_hit_weight: Fraction | UnsetType = UNSET
    disk_cache_hit_weight: Fraction | UnsetType = UNSET
    use_kv_events: bool | UnsetType = UNSET
    router_replica_sync: bool | UnsetType = UNSET
    router_track_active_blocks: bool | UnsetType = UNSET
    router_track_output_blocks: bool | UnsetType = UNSET
    router_assume_kv_reuse: bool | UnsetType = UNSET
    router_track_prefill_tokens: bool | UnsetType = UNSET
    router_tracking_hash: Literal["public-xxh3-v1", "keyed-xxh3-v1"] | UnsetType = UNSET
    router_tracking_key_file: str | UnsetType | None = UNSET
    router_tracking_key_id: str | UnsetType | None = UNSET
    router_prefill_load_model: Literal["none", "ais"] | UnsetType = UNSET
    router_ttl_secs: Weight | UnsetType = UNSET
    router_approximate_cache_policy: Literal["ttl", "lru"] | UnsetType = UNSET
    router_event_threads: Positive | UnsetType = UNSET
    use_remote_indexer: bool | UnsetType = UNSET
    serve_indexer: bool | UnsetType = UNSET
    enable_session_prefix_index: bool | UnsetType = UNSET
    shared_cache_type: Literal["none", "hicache"] | UnsetType = UNSET
    router_predicted_ttl_secs: Weight | UnsetType | None = UNSET


OPTION_OF_SETTING = {
    "host_cache_hit_weight": "router_host_cache_hit_weight",
    "disk_cache_hit_weight": "router_disk_cache_hit_weight",
    "use_kv_events": "router_kv_events",
    "router_ttl_secs": "router_ttl_s",
    "router_predicted_ttl_secs": "router_predicted_ttl_s",
}  # the others are called the same


class ClassEntry(Struct, kw_only=True):
    name: str
    quantum: Positive
    policy_family: str | None = None
    cache_bucket: str | None = None
    queue_policy: str = "fcfs"
    prefill_busy_threshold: Count | None = None
    prefill_busy_threshold_frac: Weight | None = None
    request_queue_limit_per_worker: Count | None = None
    raw_isl_token_queue_limit_per_worker: Count | None = None
    cached_token_queue_limit_per_worker: Count | None = None
    max_queued_requests: Count | UnsetType = UNSET
    max_queued_tokens: Count | UnsetType = UNSET
    max_running_requests: Positive | UnsetType | None = UNSET
    max_wait_s: Weight | UnsetType = field(name="max_wait_secs", default=UNSET)


class BucketEntry(Struct, kw_only=True):
    min_tokens: Count
    bucket: str


class ProfileEntry(Struct, kw_only=True):
    default_policy_family: str
    uncached_isl_buckets: list[Any]
    policy_classes: list[Any]


class CostParameters(Struct, kw_only=True):
    """Of the built-in selection; None leaves what the flags say."""

    overlap_score_credit: Weight | None = None
    overlap_score_credit_decay: Weight | None = None
    prefill_load_scale: Weight | None = None
    decode_active_request_weight: Weight | None = None
    host_cache_hit_weight: Weight | None = None
    disk_cache_hit_weight: Weight | None = None
    shared_cache_multiplier: Weight | None = None
    router_temperature: Weight | None = None


class InstanceEntry(Struct, kw_only=True):
    name: str
    type: str
    parameters: dict[str, Any] = {}


class SelectionEntry(Struct, kw_only=True):
    aggregated: str | None = None
    prefill: str | None = None
    decode: str | None = None
    encode: str | None = None
    instances: list[Any] = []


class Document(Struct, kw_only=True):
    router: dict[Any, Any] | None = None
    default_policy_family: str | None = None
    uncached_isl_buckets: list[Any] | None = None
    policy_classes: list[Any] | None = None
    models: dict[Any, Any] = {}
    worker_selection: dict[Any, Any] | None = None
    request_classifier: Any = None


def read_mapping(kind: type[S], content: object, where: str) -> S:
    """One mapping of the document; what it holds in lists or mappings is read by itself."""
    if not isinstance(content, dict):
        raise Problem(where, f"must be a mapping, not {type(content).__name__}")
    known = kind.__struct_encode_fields__
    if unknown := [key for key in content if key not in known]:
        raise Problem(where, f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    try:
        value = msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        reason, _at, path = str(error).partition(" - at `$")
        raise Problem((where + path.rstrip("`")).lstrip("."), reason) from None
    for name, each in msgspec.structs.asdict(value).items():
        if isinstance(each, float) and not isfinite(each):
            raise Problem(f"{where}.{name}".lstrip("."), "must be finite")
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2, as Dynamo reads it: yes, no, on and off are words, 1e3 is a number, and a key comes once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _value in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> object:
    return yaml.load(text, Loader=_Loader)
