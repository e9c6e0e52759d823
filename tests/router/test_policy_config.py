"""What policy files mean, and what is said of those that mean nothing. `tests/interop` asks Dynamo about the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynamo.router.policy_config import PolicyFile, PolicyProfile, parse_policy_file, read_policy_file
from dynamo.router.queue import PolicyClass
from dynamo.shared.config import ConfigError
from tests.router.policy_files import ACCEPTED, REFUSED, REFUSED_BY_US

FALLBACK = PolicyProfile.single(PolicyClass(prefill_busy_threshold_frac=0.5))
EXAMPLE = """
router:
  use_kv_events: false
  router_ttl_secs: 1e2
  host_cache_hit_weight: 0.5
default_policy_family: standard
uncached_isl_buckets:
  - {min_tokens: 0, bucket: cached}
  - {min_tokens: 3072, bucket: uncached}
policy_classes:
  - {name: cached, policy_family: standard, cache_bucket: cached, queue_policy: wspt, quantum: 2048}
  - {name: uncached, policy_family: standard, cache_bucket: uncached, quantum: 512, prefill_busy_threshold: 1536}
  - {name: premium-cached, policy_family: premium, cache_bucket: cached, quantum: 9000}
  - name: premium-uncached
    policy_family: premium
    cache_bucket: uncached
    quantum: 9000
    request_queue_limit_per_worker: 3
    raw_isl_token_queue_limit_per_worker: 4
    cached_token_queue_limit_per_worker: 5
    max_queued_requests: 6
    max_queued_tokens: 7
    max_running_requests: 8
    max_wait_secs: 9
  - {name: batch, quantum: 64, prefill_busy_threshold_frac: 0}
models:
  big:
    default_policy_family: all
    uncached_isl_buckets: [{min_tokens: 0, bucket: all}]
    policy_classes: [{name: batch, policy_family: all, cache_bucket: all, quantum: 1}]
worker_selection:
  decode: mine
  prefill: default
  aggregated: tuned
  instances:
    - {name: mine, type: my-policy, parameters: {patience: 3}}
    - {name: tuned, type: dynamo-default-cost-fn, parameters: {router_temperature: 1, overlap_score_credit: null}}
"""


def example(base: PolicyClass | None = None) -> PolicyFile:
    return parse_policy_file(EXAMPLE, "policy.yaml", base)


@pytest.mark.parametrize(
    ("requested", "uncached_tokens", "expected"),
    [
        ("", 0, "cached"),
        ("", 3071, "cached"),
        ("", 3072, "uncached"),
        ("standard", 10**9, "uncached"),
        ("premium", 10, "premium-cached"),
        ("premium", 4000, "premium-uncached"),
        ("batch", 0, "batch"),
        ("batch", 4000, "batch"),
        ("premium-cached", 4000, "uncached"),  # a class of a family is no name that a request could use
        ("whatever", 4000, "uncached"),
    ],
)
def test_family_and_uncached_tokens_decide_the_class(requested: str, uncached_tokens: int, expected: str) -> None:
    assert example().profile("any model", FALLBACK).classify(requested, uncached_tokens).name == expected


def test_a_model_may_have_classes_of_its_own() -> None:
    file = example()
    assert file.profile("big", FALLBACK).classify("batch", 0).name == "big/batch"
    names = [each.name for each in file.classes(FALLBACK)]
    assert names == ["cached", "uncached", "premium-cached", "premium-uncached", "batch", "big/batch"]


def test_models_without_classes_have_the_one_that_the_flags_describe() -> None:
    file = parse_policy_file("worker_selection: {aggregated: default}", "policy.yaml")
    assert file.profile("any model", FALLBACK).classify("premium", 9).prefill_busy_threshold_frac == 0.5
    assert file.classes(FALLBACK) == FALLBACK.classes


def test_a_class_has_what_the_file_says_and_of_the_rest_what_the_flags_say() -> None:
    flags = PolicyClass(max_wait_s=77, max_queued_requests=88, prefill_busy_threshold_frac=0.5, queue_policy="wspt")
    profile = example(flags).profile("", FALLBACK)
    assert profile.classify("premium", 4000) == PolicyClass(
        name="premium-uncached",
        quantum=9000,
        request_queue_limit_per_worker=3,
        raw_isl_token_queue_limit_per_worker=4,
        cached_token_queue_limit_per_worker=5,
        max_queued_requests=6,
        max_queued_tokens=7,
        max_running_requests=8,
        max_wait_s=9,
    )
    assert profile.classify("batch", 0) == PolicyClass(
        name="batch", quantum=64, prefill_busy_threshold_frac=0, max_wait_s=77, max_queued_requests=88
    )
    assert profile.classify("", 0).queue_policy == "wspt"
    assert profile.classify("", 4000).queue_policy == "fcfs"


def test_settings_are_called_as_our_options_are() -> None:
    assert example().settings == {"router_kv_events": False, "router_ttl_s": 100.0, "router_host_cache_hit_weight": 0.5}


def test_selection_is_per_kind_of_worker() -> None:
    file = example()
    mine, tuned = file.selection("decode"), file.selection("aggregated")
    assert mine is not None
    assert (mine.type, mine.parameters, mine.is_built_in) == ("my-policy", {"patience": 3}, False)
    assert tuned is not None
    assert (tuned.parameters, tuned.is_built_in) == ({"router_temperature": 1.0}, True)
    assert file.selection("prefill") is None
    assert file.selection("encode") is None
    assert file.selection("encode", override="mine") == mine
    assert file.selection("decode", override="default") is None
    with pytest.raises(
        ConfigError, match=r"no worker_selection instance is called 'other'; there are default, mine, tuned"
    ):
        file.selection("decode", override="other")


@pytest.mark.parametrize("text", ACCEPTED)
def test_files_that_are_well_formed(text: str) -> None:
    parse_policy_file(text, "policy.yaml")


@pytest.mark.parametrize(("text", "message"), [*REFUSED, *REFUSED_BY_US])
def test_whatever_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_policy_file(text, "policy.yaml")
    assert str(refusal.value).startswith(f"policy.yaml: {message}")


def test_a_file_is_read_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(EXAMPLE)
    assert read_policy_file(path).models.keys() == {"big"}
    path.write_text("router: {nope: 1}")
    with pytest.raises(ConfigError, match=rf"{path}: router: unknown key 'nope'; known are host_cache_hit_weight, "):
        read_policy_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy_file(path)
    with pytest.raises(ConfigError, match=r"--router-policy-config .*missing\.yaml: cannot be read"):
        read_policy_file(tmp_path / "missing.yaml")


def test_documented_files_are_well_formed() -> None:
    text = (Path(__file__).parents[2] / "docs" / "routing_policies.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    files = [parse_policy_file(example, "routing_policies.md") for example in examples]
    assert [file.settings for file in files] == [{"router_ttl_s": 90.0}, {}]
    assert files[0].profile("m", FALLBACK).classify("premium", 5000).name == "premium-long"
    assert [each.type for file in files for each in file.instances.values()] == [
        "dynamo-default-cost-fn",
        "cache-unless-busy",
    ]
