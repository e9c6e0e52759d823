"""Policy files for which we and Dynamo 1.6.1 give the same verdict, and those few for which not."""

from __future__ import annotations


def profile(*classes: str, family: str = "a", buckets: str = "[{min_tokens: 0, bucket: all}]") -> str:
    lines = [f"default_policy_family: {family}", f"uncached_isl_buckets: {buckets}", "policy_classes:"]
    return "\n".join([*lines, *(f"  - {{{each}}}" for each in classes)]) + "\n"


def one(extra: str = "", name: str = "c", quantum: str = "1") -> str:
    return profile(f"name: {name}, policy_family: a, cache_bucket: all, quantum: {quantum}{extra and ', ' + extra}")


def selection(instance: str, selected: str = "aggregated: x, ") -> str:
    return f"worker_selection: {{{selected}instances: [{instance}]}}\n"


ONE = "name: c, policy_family: a, cache_bucket: all, quantum: 1"
COST = "type: dynamo-default-cost-fn"

ACCEPTED = [
    one(),
    one("prefill_busy_threshold_frac: 0"),
    one("prefill_busy_threshold_frac: 1.5e1"),
    one("prefill_busy_threshold: null, prefill_busy_threshold_frac: ~"),
    one("queue_policy: wspt"),
    one("request_queue_limit_per_worker: 0"),
    one(name="a"),
    one(name="no"),  # a word in YAML 1.2
    profile(ONE, "name: x, quantum: 1"),
    profile(ONE, "name: d, policy_family: b, cache_bucket: all, quantum: 3"),
    "models: {m: {default_policy_family: a, uncached_isl_buckets: [{min_tokens: 0, bucket: all}], "
    f"policy_classes: [{{{ONE}}}]}}}}\n",
    "router: {}\n",
    "router: {host_cache_hit_weight: 1, router_predicted_ttl_secs: 5, router_tracking_key_id: null}\n",
    "worker_selection: {aggregated: default}\n",
    "worker_selection: {encode: default, prefill: null}\n",
    selection(f"{{name: x, {COST}}}"),
    selection(f"{{name: x, {COST}, parameters: {{overlap_score_credit: null, host_cache_hit_weight: 2}}}}"),
    selection(f"{{name: x, {COST}}}", selected=""),
]

# The text, and how our message goes on behind the name of the file.
REFUSED = [
    ("nonsense: 1", "unknown key 'nonsense'; known are router, default_policy_family, "),
    ("[]", "must be a mapping, not list"),
    ("", "it says nothing; give it at least one of router, "),
    ("models: {}", "it says nothing"),
    ("router: null", "it says nothing"),
    ("a: [", "not YAML: "),
    (one("quantum: 2"), "not YAML: 'quantum' is there twice"),
    (one("prefill_busy_threshold: -1"), "policy_classes[0].prefill_busy_threshold: Expected `int` >= 0"),
    (one("prefill_busy_threshold: 1.5"), "policy_classes[0].prefill_busy_threshold: Expected `int | null`"),
    (one("prefill_busy_threshold: '5'"), "policy_classes[0].prefill_busy_threshold: Expected `int | null`"),
    (one("prefill_busy_threshold_frac: -1"), "policy_classes[0].prefill_busy_threshold_frac: Expected `float` >= 0"),
    (one("prefill_busy_threshold_frac: .inf"), "policy_classes[0].prefill_busy_threshold_frac: must be finite"),
    (one("prefill_busy_threshold_frac: .nan"), "policy_classes[0].prefill_busy_threshold_frac: "),
    (one("queue_policy: lcfs"), "policy_classes[0].queue_policy: must be fcfs or wspt, not 'lcfs'"),
    (one("queue_policy: WSPT"), "policy_classes[0].queue_policy: must be fcfs or wspt, not 'WSPT'"),
    (one("queue_policy: null"), "policy_classes[0].queue_policy: Expected `str`, got `null`"),
    (one("concurrency: 3"), "policy_classes[0]: unknown key 'concurrency'; known are name, quantum, "),
    (one(quantum="0"), "policy_classes[0].quantum: Expected `int` >= 1"),
    (one(name="''"), "policy_classes[0].name: '' is not a name"),
    (one(name="a b"), "policy_classes[0].name: 'a b' is not a name"),
    (one(name="é"), "policy_classes[0].name: 'é' is not a name"),
    (profile("quantum: 1"), "policy_classes[0]: Object missing required field `name`"),
    (profile(ONE, "name: a, quantum: 1"), "policy_classes: 'a' is both an explicit class and a family"),
    (profile(ONE, "name: c, quantum: 1"), "policy_classes[1].name: 'c' is there before"),
    (
        profile(ONE, "name: d, policy_family: a, cache_bucket: all, quantum: 1"),
        "policy_classes[1]: family 'a' has a class for bucket 'all' before",
    ),
    (
        profile(ONE, "name: d, policy_family: b, cache_bucket: none, quantum: 1"),
        "policy_classes[1].cache_bucket: no bucket is called 'none'; there are all",
    ),
    (
        profile(ONE, "name: d, policy_family: b, quantum: 1"),
        "policy_classes[1]: give both policy_family and cache_bucket",
    ),
    (
        profile(ONE, "name: d, cache_bucket: all, quantum: 1"),
        "policy_classes[1]: give both policy_family and cache_bucket",
    ),
    (profile(ONE, family="z"), "default_policy_family: no class has the family 'z'; there are a"),
    (profile(ONE, buckets="[]"), "uncached_isl_buckets: the first bucket must start at min_tokens: 0"),
    (profile(ONE, buckets="[{min_tokens: 1, bucket: all}]"), "uncached_isl_buckets: the first bucket must start at"),
    (
        profile(ONE, buckets="[{min_tokens: 0, bucket: all}, {min_tokens: 5, bucket: all}]"),
        "uncached_isl_buckets[1].bucket: 'all' is there before",
    ),
    (
        profile(ONE, buckets="[{min_tokens: 0, bucket: all}, {min_tokens: 0, bucket: big}]"),
        "uncached_isl_buckets: min_tokens must grow from one bucket to the next",
    ),
    (
        profile(ONE, buckets="[{min_tokens: 0, bucket: all}, {min_tokens: 5, bucket: big}]"),
        "policy_classes: family 'a' has no class for bucket big",
    ),
    ("default_policy_family: a", "default_policy_family is there without uncached_isl_buckets, policy_classes"),
    (
        "default_policy_family: a\nuncached_isl_buckets: [{min_tokens: 0, bucket: all}]\npolicy_classes: []",
        "policy_classes: must not be empty",
    ),
    ("models: null", "models: Expected `object`, got `null`"),
    ("models: {m: {}}", "models.m: Object missing required field `default_policy_family`"),
    ("models: {m: 1}", "models.m: must be a mapping, not int"),
    (
        "models: {m: {default_policy_family: a, uncached_isl_buckets: [{min_tokens: 0, bucket: all}], "
        "policy_classes: [5]}}",
        "models.m.policy_classes[0]: must be a mapping, not int",
    ),
    ("router: {nope: 1}", "router: unknown key 'nope'; known are host_cache_hit_weight, "),
    ("router: {router_ttl_secs: x}", "router.router_ttl_secs: Expected `float`, got `str`"),
    ("router: {router_ttl_secs: -1}", "router.router_ttl_secs: Expected `float` >= 0"),
    ("router: {use_kv_events: 'true'}", "router.use_kv_events: Expected `bool`, got `str`"),
    ("router: {use_kv_events: yes}", "router.use_kv_events: Expected `bool`, got `str`"),
    ("router: {use_kv_events: null}", "router.use_kv_events: Expected `bool`, got `null`"),
    ("router: {router_event_threads: 0}", "router.router_event_threads: Expected `int` >= 1"),
    ("router: {host_cache_hit_weight: 2}", "router.host_cache_hit_weight: Expected `float` <= 1"),
    ("router: {durable_kv_events: true}", "router: unknown key 'durable_kv_events'"),
    ("router: {router_tracking_hash: md5}", "router.router_tracking_hash: Invalid enum value 'md5'"),
    ("worker_selection: {}", "worker_selection: it says nothing; give it instances, or one of aggregated, "),
    ("worker_selection: {foo: default}", "worker_selection: unknown key 'foo'; known are aggregated, "),
    ("worker_selection: {aggregated: x}", "worker_selection.aggregated: no instance is called 'x'; there are default"),
    (selection("{name: x}"), "worker_selection.instances[0]: Object missing required field `type`"),
    (
        selection("{name: x, type: 'my module:score'}"),
        "worker_selection.instances[0].type: 'my module:score' is not a name",
    ),
    (
        selection("{name: default, type: y}", selected=""),
        "worker_selection.instances[0].name: 'default' is the built-in",
    ),
    (selection("{name: x, type: y}, {name: x, type: y}"), "worker_selection.instances[1].name: 'x' is there before"),
    (selection("{name: x, type: y, parameters: 3}"), "worker_selection.instances[0].parameters: Expected `object`"),
    ("request_classifier: {}", "request_classifier: classifiers are parts of Dynamo's own binary"),
    ("request_classifier: {type: default}", "request_classifier: classifiers are parts of Dynamo's own binary"),
]

# Dynamo reads these, and then fails to start, for there is nothing of that name.
REFUSED_BY_US = [
    ("request_classifier: {type: x}", "request_classifier: classifiers are parts of Dynamo's own binary"),
    (
        selection(f"{{name: x, {COST}, parameters: {{nope: 2}}}}"),
        "worker_selection.instances[0].parameters: unknown key 'nope'; known are overlap_score_credit, ",
    ),
    (
        selection(f"{{name: x, {COST}, parameters: {{router_temperature: -1}}}}"),
        "worker_selection.instances[0].parameters.router_temperature: Expected `float` >= 0",
    ),
]
# Keys of ours.
REFUSED_BY_DYNAMO = [
    one("max_running_requests: 8, max_wait_secs: 1.5"),
    one("max_queued_requests: 0, max_queued_tokens: 7"),
]
