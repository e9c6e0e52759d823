"""Flags and variables as users and the documents of Dynamo 1.6.1 write them."""

import json

import pytest

from dynamo.frontend.config import FrontendConfig
from dynamo.shared.config import ConfigError


def load(*argv: str, **environ: str) -> FrontendConfig:
    return FrontendConfig.load(argv, environ, prog="dynamo-frontend")[0]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, **environ: str) -> str:
    with pytest.raises(SystemExit) as exited:
        load(*argv, **environ)
    assert exited.value.code == 2
    return capsys.readouterr().err


def test_defaults_are_those_of_the_anchor() -> None:
    config = load()
    assert (config.http_host, config.http_port) == ("0.0.0.0", 8000)
    assert (config.discovery_backend, config.request_plane, config.router_mode) == ("etcd", "tcp", "round-robin")
    assert config.tcp_max_message_size == 32 * 1024 * 1024
    assert config.body_limit_bytes == 45 * 1024 * 1024


@pytest.mark.parametrize("mode", ["round-robin", "round_robin"])
def test_both_spellings_of_a_mode(mode: str) -> None:
    assert load("--router-mode", mode).router_mode == "round-robin"
    assert load(DYN_ROUTER_MODE=mode).router_mode == "round-robin"


@pytest.mark.parametrize("flag", ["--discovery-backend", "--store-kv", "--store_kv"])
def test_both_names_of_the_store(flag: str) -> None:
    assert load(flag, "file").discovery_backend == "file"


def test_a_flag_beats_a_variable_beats_the_default() -> None:
    assert load(DYN_HTTP_PORT="9000").http_port == 9000
    assert load("--http-port", "9001", DYN_HTTP_PORT="9000").http_port == 9001
    assert load(DYN_HTTP_PORT="").http_port == 8000


def test_a_command_for_kv_routing_is_accepted() -> None:
    config, provenance = FrontendConfig.load(
        ["--router-mode", "kv", "--kv-overlap-score-weight", "1.5", "--router-temperature=0.2", "--no-kv-events"],
        {"DYN_ROUTER_REPLICA_SYNC": "true"},
        prog="dynamo-frontend",
    )
    assert (config.weight_scale, config.weight_credit, config.router_temperature) == (1.5, 1.0, 0.2)
    assert not config.router_kv_events
    assert config.router_mode == "kv"
    assert FrontendConfig.inert_ones(provenance) == []


def test_options_without_effect_are_named() -> None:
    _, provenance = FrontendConfig.load(
        ["--enforce-disagg", "--router-event-threads", "8"], {"DYN_USE_REMOTE_INDEXER": "1"}, prog="dynamo-frontend"
    )
    assert FrontendConfig.inert_ones(provenance) == ["router_event_threads", "use_remote_indexer", "enforce_disagg"]


def test_options_of_mode_kv_are_named_for_who_sets_them_without_it() -> None:
    _, provenance = FrontendConfig.load(["--router-temperature", "0.5"], {}, prog="dynamo-frontend")
    assert FrontendConfig.kv_only_ones(provenance) == ["router_temperature"]


def test_the_older_weight_of_zero_drops_the_credit_too() -> None:
    config = load("--kv-overlap-score-weight", "0")
    assert (config.weight_scale, config.weight_credit) == (0.0, 0.0)


def test_none_switches_a_threshold_off() -> None:
    assert load("--active-decode-blocks-threshold", "None").active_decode_blocks_threshold is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--http-port", "70000"], ["--http-port", "DYN_HTTP_PORT", "from 0 to 65535"]),
        (["--workers", "0"], ["--workers", "from 1"]),
        (["--workers", "two"], ["--workers", "'two'"]),
        (["--body-limit-mb", "nan"], ["--body-limit-mb"]),
        (["--graceful-shutdown-timeout-s", "inf"], ["--graceful-shutdown-timeout-s"]),
        (["--tls-cert-path", "cert.pem"], ["--tls-cert-path", "--tls-key-path", "together"]),
        (["--router-mode", "fastest"], ["--router-mode", "round-robin"]),
        (["--router-mode", "device-aware-weighted"], ["--router-mode", "not in this version", "least-loaded"]),
        (["--discovery-backend", "kubernetes"], ["kubernetes", "not in this version", "etcd, file or mem"]),
        (["--request-plane", "nats"], ["--request-plane", "use tcp"]),
        (["--tcp-response-stream-port", "65535", "--workers", "2"], ["--tcp-response-stream-port", "--workers"]),
        (["--http-prot", "1"], ["--http-prot"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    message = refusal(capsys, *argv)
    assert all(word in message for word in words), message


def test_a_bad_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DYN_HTTP_PORT='http'" in refusal(capsys, DYN_HTTP_PORT="http")


def test_help_names_flag_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--http-port" in text
    assert "[DYN_HTTP_PORT, default 8000]" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        load("--version")
    assert exited.value.code == 0
    assert capsys.readouterr().out.startswith("dynamo-frontend ")


def test_a_child_makes_the_same_object_from_json() -> None:
    config = load("--workers", "3", "--namespace", "demo")
    assert FrontendConfig(**json.loads(json.dumps(config.as_dict()))) == config


def test_the_object_refuses_values_that_no_flag_could_give() -> None:
    with pytest.raises(ConfigError, match="--workers"):
        FrontendConfig(workers=0)


def test_dump_says_where_each_value_came_from() -> None:
    config, provenance = FrontendConfig.load(["--workers", "2"], {"DYN_HTTP_PORT": "81"}, prog="dynamo-frontend")
    dump = json.loads(config.as_json(provenance))
    assert dump["workers"] == {"value": 2, "from": "flag", "option": "--workers (DYN_FRONTEND_WORKERS)"}
    assert dump["http_port"]["from"] == "DYN_HTTP_PORT"
    assert dump["http_host"]["from"] == "default"


def test_metadata_headers_start_with_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert load(DYN_METADATA_HEADER="X-Our-Meta-").metadata_header_prefix == "x-our-meta-"
    for prefix in ("", "x meta", "x-meta:"):
        assert "not the start of a header's name" in refusal(capsys, f"--metadata-header-prefix={prefix}")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "warn"),
        ({"DYN_UNKNOWN_FIELDS": "reject"}, "reject"),
        ({"DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS": "true"}, "ignore"),
        ({"DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS": "false"}, "reject"),
        ({"DYN_UNKNOWN_FIELDS": "warn", "DYN_IGNORE_OPENAI_FE_UNSUPPORTED_FIELDS": "true"}, "warn"),
    ],
)
def test_unknown_fields_have_dynamos_variable_too(environ: dict[str, str], expected: str) -> None:
    assert load(**environ).unknown_fields == expected
