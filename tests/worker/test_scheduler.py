from __future__ import annotations

from itertools import repeat

import pytest

from dynamo.worker.latency import LatencyModel
from dynamo.worker.made_up_text import made_up_tokens
from dynamo.worker.scheduler import Scheduler, SchedulerConfig, SchedulerFull, Sequence, SequenceTooLong
from tests.worker.events import Record

NO_TIME = LatencyModel(speedup_ratio=0)


def scheduler(record: Record | None = None, **config: int | bool) -> Scheduler:
    return Scheduler(SchedulerConfig(**{"block_size": 4, "num_blocks": 64, **config}), NO_TIME, record)  # type: ignore[arg-type]


def sequence(first_token: int = 100, num_prompt: int = 10, max_tokens: int = 3, **kwargs: object) -> Sequence:
    prompt = list(range(first_token, first_token + num_prompt))
    return Sequence(prompt, repeat(7), max_tokens, **kwargs)  # type: ignore[arg-type]


def run(core: Scheduler) -> int:
    """Until all is done; returns how many steps that took."""
    num_steps = 0
    while core.has_work:
        core.step()
        num_steps += 1
        assert core.pool.num_used <= core.pool.num_blocks
    assert core.pool.num_used == 0
    return num_steps


def test_one_sequence() -> None:
    core, one = scheduler(), sequence()
    core.submit(one)
    assert core.step().advanced == [one]
    assert one.output == [7]
    assert (core.num_running, core.num_waiting) == (1, 0)
    assert run(core) == 2
    assert (one.output, one.finish_reason) == ([7, 7, 7], "length")


def test_decodes_are_batched() -> None:
    core = scheduler()
    many = [sequence(first_token=100 * number, max_tokens=5) for number in range(8)]
    for one in many:
        core.submit(one)
    assert run(core) == 5
    assert all(len(one.output) == 5 for one in many)


def test_a_long_prompt_is_computed_in_chunks_beside_running_ones() -> None:
    core = scheduler(max_num_batched_tokens=8)
    short, long = sequence(100, 4, max_tokens=20), sequence(500, 30, max_tokens=1)
    core.submit(short)
    core.step()
    core.submit(long)
    advanced = [core.step().advanced for _ in range(5)]
    assert [long in step for step in advanced] == [False, False, False, False, True]  # 7 of 30 tokens a step
    assert all(short in step for step in advanced)


def test_without_chunks_a_prompt_over_the_budget_runs_alone() -> None:
    core = scheduler(max_num_batched_tokens=8, enable_chunked_prefill=False)
    short, long = sequence(100, 4, max_tokens=2), sequence(500, 30, max_tokens=1)
    core.submit(short)
    core.submit(long)
    assert core.step().advanced == [short]
    core.step()
    assert core.step().advanced == [long]


def test_no_more_sequences_than_allowed() -> None:
    core = scheduler(max_num_seqs=2)
    for number in range(5):
        core.submit(sequence(100 * number))
    core.step()
    assert (core.num_running, core.num_waiting) == (2, 3)
    run(core)


def test_a_known_prefix_is_not_computed_again() -> None:
    core = scheduler()
    first, second, longer = sequence(num_prompt=10), sequence(num_prompt=10), sequence(num_prompt=16)
    for one in (first, second, longer):
        core.submit(one)
        run(core)
    assert [one.num_cached_tokens for one in (first, second, longer)] == [0, 8, 8]


def test_the_last_prompt_token_is_always_computed() -> None:
    core = scheduler()
    for _ in range(2):
        one = sequence(num_prompt=8)
        core.submit(one)
        run(core)
    assert one.num_cached_tokens == 4


def test_output_is_cached_as_well() -> None:
    core = scheduler()
    core.submit(sequence(num_prompt=8, max_tokens=9))
    run(core)
    follow_up = Sequence([*range(100, 108), *[7] * 8, 1], repeat(7), 1)
    core.submit(follow_up)
    run(core)
    assert follow_up.num_cached_tokens == 16


def test_other_adapters_share_nothing() -> None:
    core = scheduler()
    core.submit(sequence(hash_seed=1))
    run(core)
    other = sequence(hash_seed=2)
    core.submit(other)
    run(core)
    assert other.num_cached_tokens == 0


def test_prefix_caching_can_be_off() -> None:
    core = scheduler(enable_prefix_caching=False)
    for _ in range(2):
        one = sequence()
        core.submit(one)
        run(core)
    assert one.num_cached_tokens == 0


def test_old_prefixes_make_room() -> None:
    record = Record()
    core = scheduler(record, num_blocks=4)
    first = sequence(100, 10, max_tokens=1)
    core.submit(first)
    run(core)
    core.submit(sequence(500, 12, max_tokens=1))
    run(core)
    again = sequence(100, 10, max_tokens=1)
    core.submit(again)
    run(core)
    assert again.num_cached_tokens == 4  # its second block had to go
    assert core.pool.num_cached == len(record.present)


def test_blocks_of_its_own_that_a_preempted_sequence_finds_again_were_not_cached() -> None:
    core = scheduler(num_blocks=6, max_num_batched_tokens=8)
    first, second = sequence(100, 8, max_tokens=16), sequence(500, 16, max_tokens=1)
    core.submit(first)
    core.step()
    core.submit(second)
    core.step()
    assert second.num_computed == 7
    core.step()
    assert (second.num_computed, core.num_waiting) == (0, 1)
    run(core)
    assert second.num_cached_tokens == 0


def test_the_newest_is_preempted_and_all_finish() -> None:
    core = scheduler(num_blocks=8, enable_prefix_caching=False)
    old, new = sequence(100, 8, max_tokens=16), sequence(500, 8, max_tokens=16)
    core.submit(old)
    core.submit(new)
    order = []
    while core.has_work:
        order += [one for one in core.step().advanced if one.finish_reason]
    assert order == [old, new]
    assert len(old.output) == len(new.output) == 16


def test_events_tell_what_is_in_the_cache() -> None:
    record = Record()
    core = scheduler(record, num_blocks=12, max_num_batched_tokens=16)
    for number in range(40):
        core.submit(Sequence([number % 7] * (5 + number % 11), made_up_tokens(range(50), number, 0), 1 + number % 13))
    run(core)
    assert len(record.present) == core.pool.num_cached
    assert record.events[0][1] is None


def test_what_never_fits_is_refused() -> None:
    core = scheduler(num_blocks=4)
    with pytest.raises(SequenceTooLong, match="16 tokens"):
        core.submit(sequence(num_prompt=14, max_tokens=3))
    core.submit(sequence(num_prompt=14, max_tokens=2))
    run(core)


def test_the_queue_is_bounded() -> None:
    core = scheduler(max_num_waiting=2)
    core.submit(sequence())
    core.submit(sequence())
    with pytest.raises(SchedulerFull):
        core.submit(sequence())


def test_abort_wherever_it_is() -> None:
    core = scheduler(max_num_seqs=1)
    running, waiting = sequence(100, max_tokens=50), sequence(500)
    core.submit(running)
    core.submit(waiting)
    core.step()
    core.abort(waiting)
    core.abort(running)
    core.abort(running)
    assert not core.has_work
    assert core.pool.num_used == 0


def test_reasons_to_finish() -> None:
    cases = [
        (sequence(max_tokens=9, eos_token_ids=frozenset({7})), 1, "eos"),
        (sequence(max_tokens=9, stop_token_ids=frozenset({7})), 1, "stop"),
        (sequence(max_tokens=9, min_tokens=4, eos_token_ids=frozenset({7})), 4, "eos"),
        (sequence(max_tokens=2, min_tokens=4, eos_token_ids=frozenset({7})), 2, "length"),
    ]
    for one, num_output, reason in cases:
        core = scheduler()
        core.submit(one)
        run(core)
        assert (len(one.output), one.finish_reason) == (num_output, reason)


def test_an_empty_prompt() -> None:
    core, one = scheduler(), sequence(num_prompt=0)
    core.submit(one)
    run(core)
    assert len(one.output) == 3


def test_time_grows_with_work_and_shrinks_with_the_ratio() -> None:
    model = LatencyModel(speedup_ratio=2)
    assert 0 < model.step_s(100, 0, 0) < model.step_s(1000, 0, 0)
    assert 0 < model.step_s(0, 8, 0.1) < model.step_s(0, 8, 0.9)
    assert model.step_s(100, 0, 0) == LatencyModel(speedup_ratio=1).step_s(100, 0, 0) / 2
    assert LatencyModel(1, decode_speedup_ratio=4).step_s(0, 1, 0) == LatencyModel(4).step_s(0, 1, 0)
    assert NO_TIME.step_s(10**6, 256, 1) == 0
