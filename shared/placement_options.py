"""Options of placement that a frontend takes for its router, and a router that runs alone for itself."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.shared.config import Config, option


def dashed(text: str) -> str:
    """The spelling of a router mode: underscores are accepted too."""
    return text.strip().replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class PlacementOptions(Config):
    namespace: str | None = option(
        None, env="DYN_NAMESPACE", help="Serve only the models of this namespace; unset serves those of all."
    )
    namespace_prefix: str | None = option(
        None, env="DYN_NAMESPACE_PREFIX", help="Serve the namespaces that start with this; wins over --namespace."
    )
    router_min_initial_workers: int = option(
        0, env="DYN_ROUTER_MIN_INITIAL_WORKERS", minimum=0, help="Place nothing until this many workers were there."
    )
    inhibited_duration_s: float = option(
        5,
        env="DYN_RUNTIME_INHIBITED_DURATION_SECS",
        minimum=0,
        help="Seconds for which a worker that failed is not asked again; 0 asks it at once.",
    )
