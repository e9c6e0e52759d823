"""What a router says, in words."""

from __future__ import annotations

from dynamo.shared.messages import (
    Candidate,
    Explained,
    Placed,
    Queued,
    Refused,
    RouterMessage,
    Settings,
    TableDelta,
    Thresholds,
    ThresholdsAre,
    Welcome,
    WorkerSet,
)

USUAL_SET = "ns/backend/generate/m/aggregated"  # goes without saying


def describe(answer: RouterMessage) -> str:
    match answer:
        case Placed():
            worker_set = "" if answer.worker_set == USUAL_SET else f" of {answer.worker_set}"
            return f"placed {answer.request_id} on {_where(answer)}{worker_set}{_overlap(answer)}"
        case Queued():
            return f"queued {answer.request_id}"
        case ThresholdsAre():
            return "; ".join(map(describe_thresholds, answer.thresholds)) or "no thresholds"
        case Settings():
            wanted = [name for name in answer.__struct_fields__ if getattr(answer, name)]
            return f"settings: {', '.join(wanted) or 'nothing'}"
        case Explained():
            return describe_explained(answer)
        case Refused():
            return f"refused {answer.request_id}: {answer.code}, retry after {answer.retry_after_s} s: {answer.message}"
        case Welcome():
            names = names_of([worker.instance_id for worker in answer.workers])
            return f"welcome to table {answer.version} ({answer.router_mode}): {names}"
        case TableDelta(version=0):
            return "say hello"
    raise AssertionError(answer)


def _where(placed: Placed) -> str:
    rank = f" rank {placed.dp_rank}" if placed.dp_rank else ""
    return f"w{placed.instance_id}{rank}"


def _overlap(placed: Placed) -> str:
    text = f", {placed.overlap_blocks} blocks cached" if placed.overlap_blocks else ""
    if (receipt := placed.receipt) is None:
        return text
    text += f" ({receipt.reason}, {receipt.num_candidates} candidates"
    if receipt.cost is not None:
        text += f", cost {receipt.cost:g}"
    if receipt.runner_up_cost is not None:
        text += f", next w{receipt.runner_up} at {receipt.runner_up_cost:g}"
    return f"{text}, waited {receipt.queue_wait_ms:g} ms)"


def describe_explained(explained: Explained) -> str:
    choice = "nobody" if explained.choice is None else _where(explained.choice)
    rows = [f"  {describe_candidate(row)}" for row in explained.candidates]
    return "\n".join([f"{explained.outcome}: {choice} for {explained.request_blocks} blocks", *rows])


def describe_candidate(row: Candidate) -> str:
    cost = "no cost" if row.cost is None else f"cost {row.cost:g}"
    return (
        f"w{row.instance_id} rank {row.dp_rank}: {row.verdict}, {cost}, "
        f"cached {row.device_blocks}+{row.host_blocks}+{row.disk_blocks}+{row.external_blocks}, "
        f"{row.prefill_tokens} tokens to prefill, {row.decode_blocks:g}+{row.new_blocks} blocks, "
        f"{row.num_requests} requests"
    )


def describe_thresholds(thresholds: Thresholds) -> str:
    return (
        f"{thresholds.model}: decode {thresholds.active_decode_blocks_threshold}, "
        f"prefill {thresholds.active_prefill_tokens_threshold}, "
        f"frac {thresholds.active_prefill_tokens_threshold_frac}"
    )


def describe_delta(delta: TableDelta) -> list[str]:
    lines = [f"table {delta.version}:"]
    lines += [f"  + w{worker.instance_id} at {worker.address}" for worker in delta.workers_up]
    lines += [f"  - w{instance_id}" for instance_id in delta.workers_down]
    lines += [f"  set {describe_set(worker_set)}" for worker_set in sorted(delta.sets_up, key=lambda each: each.key)]
    lines += [f"  gone {key}" for key in sorted(delta.sets_down)]
    return lines


def describe_set(worker_set: WorkerSet) -> str:
    rejected = f", {worker_set.rejected} rejected" if worker_set.rejected else ""
    return f"{worker_set.key}: {names_of(worker_set.members)}{rejected}"


def names_of(ids: list[int]) -> str:
    return " ".join(f"w{instance_id}" for instance_id in ids) or "nobody"
