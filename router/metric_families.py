"""What the router exports as `dynamo_router_<name>`: help, labels, and where the numbers are.

Nothing is counted here. The parts of the router count in plain numbers, and these tables know where they lie.
"""

from __future__ import annotations

from msgspec.structs import asdict

from dynamo.router.metric_parts import (
    Metric,
    TallyMetric,
    core,
    counts_of,
    feeds,
    index,
    nats,
    number_of,
    per_rank,
    picked,
    predicted,
    replicas,
    restored,
    sources,
    stream,
    warm_start,
)
from dynamo.router.policy_config import ROLES

GAUGES = {
    # ---- who is there
    "workers": Metric("Workers that requests can be placed on.", number_of(core, lambda each: len(each.table.workers))),
    "inhibited_workers": Metric(
        "Workers not asked for now, for they failed.", number_of(core, lambda each: len(each.table.inhibited_until))
    ),
    "rejected_workers": Metric(
        "Workers kept out, for their card differs.",
        lambda parts: [((s.key,), s.num_rejected) for s in parts.core.table.sets.values() if s.num_rejected],
        ("set",),
    ),
    "acceptors": Metric("Acceptors connected.", number_of(core, lambda each: len(each.acceptors))),
    "table_version": Metric("Version of the model table.", number_of(core, lambda each: each.table.version)),
    "malformed_entries": Metric(
        "Discovery entries that cannot be read.", number_of(core, lambda each: len(each.registrar.malformed))
    ),
    # ---- what they have to do
    "active_requests": Metric(
        "Requests placed and not over.",
        lambda parts: [((f"{i:x}",), n) for i, n in parts.core.acceptors.num_active.items()],
        ("worker",),
    ),
    "tracked_requests": Metric(
        "Running requests that count as load.", number_of(core, lambda each: len(each.fleet.sequences))
    ),
    "active_prefill_tokens": Metric(
        "Prompt tokens that running requests have yet to compute.",
        per_rank(lambda core, slot: core.fleet.sequences.prefill_tokens[slot]),
        ("worker", "dp_rank"),
    ),
    "active_blocks": Metric(
        "KV blocks that running requests are taken to use.",
        per_rank(lambda core, slot: core.fleet.sequences.blocks[slot]),
        ("worker", "dp_rank"),
    ),
    "queued_requests": Metric(
        "Requests that wait for a worker with room.",
        lambda parts: [((name,), depth.requests) for name, depth in parts.core.queue.depths().items()],
        ("policy_class",),
    ),
    "queued_tokens": Metric(
        "Prompt tokens of requests that wait for a worker with room.",
        lambda parts: [((name,), depth.raw_isl_tokens) for name, depth in parts.core.queue.depths().items()],
        ("policy_class",),
    ),
    "sessions": Metric("Sessions bound to a worker.", number_of(lambda parts: parts.core.affinity, len)),
    # ---- what they hold
    "index_blocks": Metric("Blocks in the prefix index.", number_of(index, lambda each: each.num_blocks)),
    "index_holdings": Metric(
        "Blocks in the prefix index, times the ranks that hold them.", number_of(index, lambda each: each.num_holdings)
    ),
    "index_holes": Metric(
        "Blocks that a rank has removed and whose followers it has kept.", number_of(index, lambda each: each.num_holes)
    ),
    "index_orphans": Metric("Blocks that wait for their parent.", number_of(index, lambda each: each.num_orphans)),
    "index_max_blocks": Metric(
        "Holdings and holes that the prefix index has room for.", number_of(index, lambda each: each.max_blocks)
    ),
    "predicted_blocks": Metric(
        "Blocks in the index of predictions, times the ranks.", number_of(predicted, lambda each: each.num_blocks)
    ),
    "predicted_max_blocks": Metric(
        "Blocks that the index of predictions has room for.", number_of(predicted, lambda each: each.max_blocks)
    ),
    # ---- how that is known
    "event_channels": Metric(
        "Channels of the event plane listened to.",
        lambda parts: [((name,), traffic.num_channels) for name, traffic in feeds(parts)],
        ("feed",),
    ),
    "kv_event_sources": Metric(
        "Ranks that tell what they hold, as discovery lists them.", number_of(sources, lambda each: each.num_sources)
    ),
    "kv_events_buffered": Metric(
        "Events that wait for others before them.", number_of(sources, lambda each: each.counts.buffered)
    ),
    "kv_event_queries": Metric(
        "Questions to workers for what was missed, not answered yet.",
        number_of(sources, lambda each: each.counts.in_flight),
    ),
    "kv_stream_pending_messages": Metric(
        "Messages that JetStream has for this replica.", number_of(stream, lambda each: each.num_pending)
    ),
    "kv_stream_read": Metric("1 while KV events come from JetStream.", number_of(stream, lambda each: each.is_reading)),
    "nats_connected": Metric(
        "1 while NATS, where it is used, is there.", number_of(nats, lambda each: each.is_connected)
    ),
    "replica_peers": Metric(
        "Other routers that are heard, replicas and Dynamo's.", number_of(replicas, lambda each: each.num_peers)
    ),
    "replica_requests": Metric(
        "Requests that other routers run.", number_of(replicas, lambda each: each.num_remote_requests)
    ),
    "snapshot_restored_blocks": Metric(
        "Blocks that this router started with.", restored(lambda each: each.restored_blocks), ("source",)
    ),
    "snapshot_restored_age_seconds": Metric(
        "How old the snapshot was that this router started with.",
        restored(lambda each: each.restored_age_s),
        ("source",),
    ),
    "snapshot_bytes": Metric("Size of the snapshot saved last.", number_of(warm_start, lambda each: each.num_bytes)),
    "snapshot_saved_timestamp_seconds": Metric(
        "When the last snapshot was saved, Unix time.", number_of(warm_start, lambda each: each.saved_at)
    ),
}

# Numbers that the parts count since their process has started.
COUNTERS = {
    "turned_away_acceptors": Metric(
        "Acceptors refused, for there were too many.", number_of(core, lambda each: each.num_turned_away)
    ),
    "left_out_entries": Metric(
        "Discovery entries refused by the full table.", number_of(core, lambda each: each.registrar.num_left_out)
    ),
    "malformed_messages": Metric(
        "Messages of acceptors that cannot be read.",
        number_of(lambda parts: parts.channel, lambda each: each.num_malformed),
    ),
    "endpoint_requests": Metric(
        "Requests to the router's own endpoints.",
        counts_of(lambda parts: parts.endpoints, lambda each: each.num_requests),
        ("endpoint",),
    ),
    "index_evicted_blocks": Metric(
        "Blocks that the full prefix index forgot.", number_of(index, lambda each: each.num_evicted)
    ),
    "index_unknown_parents": Metric(
        "Stored events without a known parent.", number_of(index, lambda each: each.num_unknown_parents)
    ),
    "index_conflicts": Metric(
        "Stored events that contradict what other ranks hold.", number_of(index, lambda each: each.num_conflicts)
    ),
    "index_unknown_removals": Metric(
        "Removed blocks that were not in the index.", number_of(index, lambda each: each.num_unknown_removals)
    ),
    "predicted_expired_blocks": Metric(
        "Predicted blocks that were believed for long enough.", number_of(predicted, lambda each: each.num_expired)
    ),
    "predicted_evicted_blocks": Metric(
        "Predicted blocks forgotten for want of room.", number_of(predicted, lambda each: each.num_evicted)
    ),
    "event_messages": Metric(
        "Messages of the event plane: received, missed (as their numbers tell), malformed, and ours that were dropped.",
        lambda parts: [
            ((name, outcome), number) for name, traffic in feeds(parts) for outcome, number in traffic.messages.items()
        ],
        ("feed", "outcome"),
    ),
    "event_channels_refused": Metric(
        "Channels not listened to: unusable, or left out for there were too many.",
        lambda parts: [
            ((name, reason), number) for name, traffic in feeds(parts) for reason, number in traffic.refusals.items()
        ],
        ("feed", "reason"),
    ),
    "kv_event_sources_left_out": Metric(
        "Sources of KV events beyond the number that is followed.",
        number_of(lambda parts: parts.intake.feed, lambda each: each.num_left_out),
    ),
    "kv_events_ignored": Metric(
        "KV events not applied: known already (stale), of a publisher that does not speak for its rank (foreign), of a "
        "rank that no worker has (unplaced), without room to wait for what was missing before them (dropped).",
        counts_of(sources, lambda each: picked(each.counts, "stale", "foreign", "unplaced", "dropped")),
        ("reason",),
    ),
    "kv_event_gaps": Metric(
        "Times that events of a rank were missing.", number_of(sources, lambda each: each.counts.gaps)
    ),
    "kv_event_restarts": Metric(
        "Times that a rank began to count its events anew.", number_of(sources, lambda each: each.counts.restarts)
    ),
    "kv_event_recoveries": Metric(
        "Questions to workers for what is missing (recoveries) and whether anything is (checks), answers with all that "
        "a rank holds (dumps) and with what it said since (replays), attempts that failed (retries) and the last "
        "of them (given_up).",
        counts_of(
            sources, lambda each: picked(each.counts, "recoveries", "checks", "dumps", "replays", "retries", "given_up")
        ),
        ("step",),
    ),
    "nats_connects": Metric("Times that NATS was there (again).", number_of(nats, lambda each: each.num_connects)),
    "nats_dropped_messages": Metric(
        "Messages to NATS that there was no room for while it was away.", number_of(nats, lambda each: each.num_dropped)
    ),
    "nats_unread_messages": Metric(
        "Messages from NATS that came faster than they were read.", number_of(nats, lambda each: each.num_unread)
    ),
    "replica_sync": Metric(
        "What happened between replicas. For want of room, news was dropped_outgoing, truncated, untold or ignored, "
        "and peers_turned_away; messages were malformed, late or missing (gaps); requests expired, replicas fell "
        "silent, and snapshots were asked for, sent and received.",
        counts_of(replicas, lambda each: asdict(each.counts)),
        ("event",),
    ),
    "snapshots": Metric(
        "Snapshots of the index, saved and failed.",
        counts_of(warm_start, lambda each: {"saved": each.num_saved, "failed": each.num_failed}),
        ("outcome",),
    ),
}

# Numbers that the parts give away once: what has come since the last look.
INCREMENTS = {
    "placements": Metric(
        "Placement requests by outcome.", counts_of(core, lambda each: each.take_outcomes()), ("outcome",)
    ),
    "queue_rejections": Metric(
        "Requests refused by a full queue or after too long a wait.",
        lambda parts: parts.core.queue.take_rejections().items(),
        ("policy_class", "reason"),
    ),
    "session_events": Metric(
        "Sessions bound, ended, expired, evicted, refused, and moved for a reason.",
        counts_of(lambda parts: parts.core.affinity, lambda each: each.take_counts()),
        ("event",),
    ),
    "policy_outcomes": Metric(
        "What became of questions to the routing policy of a worker type: used, or why not; and whether it agreed with "
        "the built-in selection.",
        lambda parts: [
            ((role, outcome), number)
            for role in ROLES
            if (policy := parts.core.fleet.policy_for(role)) is not None
            for outcome, number in policy.take_outcomes().items()
        ],
        ("worker_type", "outcome"),
    ),
    "decisions": Metric(
        "Decisions for the log.",
        counts_of(lambda parts: parts.decisions, lambda each: each.take_counts()),
        ("outcome",),
    ),
}

# Of the placements since the last look, set by set.
TALLIES = {
    "placement_reasons": TallyMetric(
        "Placements by what decided: cost or mode, policy, affinity or a pin.",
        lambda tally: [((tally.model, reason), number) for reason, number in tally.reasons.items()],
        ("model", "reason"),
    ),
    "prompt_blocks": TallyMetric(
        "KV blocks of prompts placed in mode kv.",
        lambda tally: [((tally.model,), tally.num_prompt_blocks)],
        ("model",),
    ),
    "overlap_blocks": TallyMetric(
        "KV blocks of prompts that the chosen rank was expected to have on its device.",
        lambda tally: [((tally.model,), tally.num_overlap_blocks)],
        ("model",),
    ),
    "best_overlap_blocks": TallyMetric(
        "KV blocks of prompts that the best rank was expected to have on its device, of those that could be chosen.",
        lambda tally: [((tally.model,), tally.num_best_overlap_blocks)],
        ("model",),
    ),
}
