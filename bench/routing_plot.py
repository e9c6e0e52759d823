"""The trace's arms as a picture: what was served from cache, how long the first token took, how the load was spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot, which otherwise looks for a display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.routing_report import Replays
from bench.trace_fleet import MODES, SYSTEMS, Arm
from bench.trace_replay import Replay

SOURCE = "Trace: Mooncake (FAST '25), conversation_trace.jsonl, github.com/kvcache-ai/Mooncake, Apache-2.0"
COLOURS = {"ours": "#2a7f62", "anchor": "#8d99ae"}
LABELS = {"ours": "ours", "anchor": "ai-dynamo 1.6.1"}
BAR_WIDTH = 0.38


def draw(replays: Replays, num_workers: int, reusable_share: float, file: Path) -> None:
    """Bars are means over rounds, dots single rounds."""
    groups = [
        (mode, count)
        for count in sorted({arm.num_replicas for arm in replays})
        for mode in MODES
        if any(Arm(system, mode, count) in replays for system in SYSTEMS)
    ]
    figure, axes = plt.subplots(1, 4, figsize=(20, 5.2), layout="constrained")
    _bars(axes[0], replays, groups, "prompt tokens from cache, %", lambda each: 100 * each.cached_share)
    axes[0].axhline(100 * reusable_share, color="black", linewidth=0.8, linestyle=":")
    axes[0].text(-0.5, 100 * reusable_share, " one cache without limits", va="bottom", fontsize=8)
    _bars(axes[1], replays, groups, "TTFT p50, ms", lambda each: each.ttft_ms(0.5))
    _bars(axes[2], replays, groups, "TTFT p99, ms", lambda each: each.ttft_ms(0.99))
    _bars(
        axes[3], replays, groups, "prompt tokens, busiest/average worker", lambda each: each.token_spread(num_workers)
    )
    axes[3].axhline(1, color="black", linewidth=0.8, linestyle=":")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(SOURCE, fontsize=8)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _bars(
    axes: Axes,
    replays: Replays,
    groups: Sequence[tuple[str, int]],
    title: str,
    read: Callable[[Replay], float],
) -> None:
    for offset, system in zip((-0.5, 0.5), SYSTEMS, strict=True):
        for at, (mode, count) in enumerate(groups):
            values = [read(each) for each in replays.get(Arm(system, mode, count), ())]
            if values:
                where = at + offset * BAR_WIDTH
                label = LABELS[system] if at == 0 else None
                axes.bar(where, statistics.mean(values), BAR_WIDTH, color=COLOURS[system], label=label)
                axes.plot([where] * len(values), values, "k.", markersize=4)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(
        range(len(groups)), [f"{mode}\n{count} replica{'s' * (count > 1)}" for mode, count in groups], fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)
