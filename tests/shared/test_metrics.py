"""One scrape over several processes."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dynamo.shared.metrics import MAX_LABEL_SETS, Distribution, Registry, render


def scrape(directory: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render(directory).decode())
        for sample in family.samples
    }


def test_counters_of_two_processes_add_up(tmp_path: Path) -> None:
    for process, amount in (("acceptor-0", 2), ("acceptor-1", 3)):
        registry = Registry(tmp_path, process)
        registry.counter("requests", "Requests.", ("model",)).labels("m").inc(amount)
        registry.save()
    assert scrape(tmp_path)["requests_total", (("model", "m"),)] == 5


def test_gauges_add_up_or_agree_on_the_highest(tmp_path: Path) -> None:
    for process, amount in (("acceptor-0", 2), ("acceptor-1", 3)):
        registry = Registry(tmp_path, process)
        registry.gauge("active", "Active.").labels().set(amount)
        registry.gauge("ready", "Ready.", merge="max").labels().set(amount)
        registry.save()
    samples = scrape(tmp_path)
    assert (samples["active", ()], samples["ready", ()]) == (5, 3)


def test_histograms_are_cumulative_and_add_up(tmp_path: Path) -> None:
    for process, seconds in (("a", 0.5), ("b", 1.0), ("c", 9.0)):
        registry = Registry(tmp_path, process)
        registry.histogram("seconds", "Seconds.", (1.0, 2.0)).labels().observe(seconds)
        registry.save()
    samples = scrape(tmp_path)
    buckets = [samples["seconds_bucket", (("le", le),)] for le in ("1", "2", "+Inf")]
    assert buckets == [2, 2, 3]
    assert samples["seconds_sum", ()] == 10.5


def test_a_counter_may_have_a_name_that_does_not_say_so(tmp_path: Path) -> None:
    for _life in range(2):
        registry = Registry(tmp_path, "router")
        counter = registry.untyped("events_applied", "Events.", ("kind",))
        registry.take_over()
        counter.labels("stored").inc(2)
        registry.save()
    assert b"# TYPE events_applied untyped" in render(tmp_path)
    assert scrape(tmp_path) == {("events_applied", (("kind", "stored"),)): 4}


def test_a_histogram_takes_in_another() -> None:
    one, other = Distribution((1.0, 2.0)), Distribution((1.0, 2.0))
    one.observe(0.5)
    other.observe(1.5, 2)
    other.observe(9)
    one.absorb(other)
    assert (one.counts, one.sum) == ([1, 2, 1], 12.5)


def test_bounds_of_buckets_are_exact(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "router")
    registry.histogram("share", "Share.", (3 * 0.05, 1.0, 1e6)).labels()
    registry.save()
    assert {dict(labels)["le"] for (name, labels) in scrape(tmp_path) if name == "share_bucket"} == {
        "0.15000000000000002",
        "1",
        "1000000",
        "+Inf",
    }


def test_a_replacement_continues_the_counters_but_not_the_gauges(tmp_path: Path) -> None:
    for _life in range(2):
        registry = Registry(tmp_path, "acceptor-0")
        counter, gauge = registry.counter("requests", "Requests."), registry.gauge("active", "Active.")
        histogram = registry.histogram("seconds", "Seconds.", (1.0,))
        registry.take_over()
        counter.labels().inc()
        gauge.labels().inc()
        histogram.labels().observe(0.5)
        registry.save()
    samples = scrape(tmp_path)
    assert (samples["requests_total", ()], samples["active", ()], samples["seconds_count", ()]) == (2, 1, 2)


def test_label_sets_are_bounded(tmp_path: Path) -> None:
    registry = Registry(tmp_path, "acceptor-0")
    counter = registry.counter("requests", "Requests.", ("model",))
    for i in range(MAX_LABEL_SETS + 10):
        counter.labels(f"model-{i}").inc()
    registry.save()
    samples = scrape(tmp_path)
    assert len(samples) == MAX_LABEL_SETS + 1
    assert samples["requests_total", (("model", "other"),)] == 10


def test_a_torn_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "acceptor-0.metrics").write_bytes(b"\x93torn")
    assert render(tmp_path) == b""
