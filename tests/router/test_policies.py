"""Policies of the operator's own: how they are found, followed, and left alone when they do not behave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike

from dynamo.router.cost import Candidates
from dynamo.router.policies import MAX_FAILURES_IN_A_ROW, SUSPENSION_S, PolicyRequest, PolicyRunner, Score, load_policy
from dynamo.shared.config import ConfigError

REQUEST = PolicyRequest(model="m", num_tokens=100, block_size=16, num_blocks=7, label="r-1")
EXAMPLES = "docs.examples.routing_policy"


def ranks(
    num_requests: tuple[int, ...] = (0, 0, 0),
    device_blocks: tuple[int, ...] = (0, 0, 0),
    prefill_tokens: tuple[int, ...] = (0, 0, 0),
) -> Candidates:
    zeros = np.zeros(len(num_requests), np.int64)
    return Candidates(
        slots=np.arange(len(num_requests)),
        instance_ids=np.arange(10, 10 + len(num_requests), dtype=np.uint64),
        dp_ranks=zeros,
        device_blocks=np.array(device_blocks),
        host_blocks=zeros,
        disk_blocks=zeros,
        external_blocks=zeros,
        prefill_tokens=np.array(prefill_tokens),
        decode_blocks=zeros.astype(np.float64),
        new_blocks=zeros,
        num_requests=np.array(num_requests),
    )


class Clock:
    """Stands still unless a policy takes its time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answering(answer: object) -> Score:
    def score(request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        return answer  # type: ignore[return-value]  # of every kind

    return score


def raising(error: BaseException) -> Score:
    def score(request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        raise error

    return score


def runner(score: Score, clock: Callable[[], float] | None = None, *, shadow: bool = False) -> PolicyRunner:
    return PolicyRunner(score, budget_ms=2, shadow=shadow, clock=clock or Clock())


# --------------------------------------------------------------------------- following


@pytest.mark.parametrize("answer", [[3, 1, 2], (3.0, 1.0, 2.0), np.array([3, 1, 2], np.int8), [3, 1, float("inf")]])
def test_one_number_per_candidate_is_followed(answer: object) -> None:
    policy = runner(answering(answer))
    scores = policy.scores(REQUEST, ranks())
    assert scores is not None
    assert scores.dtype == np.float64
    assert scores[1] == 1
    assert policy.take_outcomes() == {"used": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([1, 2], "shape"),
        ([[1, 2, 3]], "shape"),
        (5, "shape"),
        ([1, [2], 3], "error"),
        (None, "shape"),
        ("abc", "error"),
        (["a", "b", "c"], "error"),
        ([1, float("nan"), 3], "not_a_number"),
        ([1, float("-inf"), 3], "not_a_number"),
        ([float("inf")] * 3, "not_a_number"),
        ([1, None, 3], "not_a_number"),
    ],
)
def test_any_other_answer_is_not(answer: object, reason: str) -> None:
    policy = runner(answering(answer))
    assert policy.scores(REQUEST, ranks()) is None
    assert policy.take_outcomes() == {reason: 1}
    assert policy.take_outcomes() == {}


@pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), SystemExit(1)])
def test_a_policy_that_raises_does_no_harm(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    policy = runner(raising(error))
    assert policy.scores(REQUEST, ranks()) is None
    assert policy.take_outcomes() == {"error": 1}
    assert type(error).__name__ in caplog.text


def test_a_policy_cannot_change_what_the_router_works_with() -> None:
    def vandal(request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        candidates.slots[:] = 0
        return [0.0, 0.0, 0.0]

    candidates = ranks()
    policy = runner(vandal)
    assert policy.scores(REQUEST, candidates) is None
    assert candidates.slots.tolist() == [0, 1, 2]


def test_a_late_answer_is_not_followed() -> None:
    clock = Clock()

    def late(request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        clock.now += 0.003
        return [1.0, 2.0, 3.0]

    policy = runner(late, clock)
    assert policy.scores(REQUEST, ranks()) is None
    assert policy.take_outcomes() == {"overrun": 1}


# --------------------------------------------------------------------------- leaving it alone


def test_failures_in_a_row_suspend_a_policy_for_a_while() -> None:
    clock = Clock()
    policy = runner(answering([]), clock)
    for _ in range(MAX_FAILURES_IN_A_ROW + 3):
        assert policy.scores(REQUEST, ranks()) is None
    assert policy.take_outcomes() == {"shape": MAX_FAILURES_IN_A_ROW, "suspended": 3}
    clock.now += SUSPENSION_S
    assert policy.scores(REQUEST, ranks()) is None
    assert policy.scores(REQUEST, ranks()) is None
    assert policy.take_outcomes() == {"shape": 1, "suspended": 1}  # it had one try


def test_a_policy_that_recovers_is_followed_again() -> None:
    clock, answers = Clock(), [[1.0, 2.0, 3.0]]

    def score(request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        return answers[-1]

    policy = runner(score, clock)
    answers.append([])
    for _ in range(MAX_FAILURES_IN_A_ROW):
        policy.scores(REQUEST, ranks())
    answers.pop()
    assert policy.scores(REQUEST, ranks()) is None
    clock.now += SUSPENSION_S
    assert policy.scores(REQUEST, ranks()) is not None
    answers.append([])
    for _ in range(MAX_FAILURES_IN_A_ROW - 1):
        policy.scores(REQUEST, ranks())
    answers.pop()
    assert policy.scores(REQUEST, ranks()) is not None


def test_failures_now_and_then_suspend_nothing() -> None:
    turns = iter(range(40))
    policy = runner(lambda _request, _candidates: [1.0, 2.0, 3.0] if next(turns) % 4 == 0 else [])
    for _ in range(40):
        policy.scores(REQUEST, ranks())
    assert policy.take_outcomes() == {"used": 10, "shape": 30}


# --------------------------------------------------------------------------- acting on it


@pytest.mark.parametrize(("shadow", "row"), [(False, 2), (True, 1)])
def test_a_shadow_is_compared_but_not_acted_upon(shadow: bool, row: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "dynamo.router")
    policy = runner(answering([0, 0, 0]), shadow=shadow)
    policy.scores(REQUEST, ranks())
    assert policy.settle(own=1, wanted=2) == row
    assert policy.settle(own=1, wanted=1) == 1
    assert policy.take_outcomes() == {"used": 1, "disagreed": 1, "agreed": 1}
    assert caplog.messages == [
        "request r-1: the routing policy policy chooses worker c rank 0, the built-in selection b rank 0"
    ]


# --------------------------------------------------------------------------- finding it


def test_a_function_is_found_by_module_and_name() -> None:
    policy = runner(load_policy(f"{EXAMPLES}:score"))
    scores = policy.scores(REQUEST, ranks(device_blocks=(0, 6, 3), prefill_tokens=(0, 160, 0)))
    assert scores is not None
    assert scores.tolist() == [7, 11, 4]


def test_a_class_is_made_with_its_parameters() -> None:
    loaded = ranks(num_requests=(5, 0, 3), device_blocks=(7, 0, 6))
    eager, patient = (runner(load_policy(f"{EXAMPLES}:CacheUnlessBusy", {"slack": slack})) for slack in (4, 5))
    eager_scores, patient_scores = eager.scores(REQUEST, loaded), patient.scores(REQUEST, loaded)
    assert eager_scores is not None
    assert patient_scores is not None
    assert (int(eager_scores.argmin()), int(patient_scores.argmin())) == (2, 0)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with an installed package of policies."""
    (tmp_path / "their_policies.py").write_text(
        "def one(request, candidates):\n    return [1.0] * len(candidates)\n"
        "def weighted(request, candidates, weight=1.0):\n    return [weight] * len(candidates)\n"
        "def narrow(request):\n    return []\n"
        "class Bare:\n    pass\n"
        "number = 5\n"
    )
    (tmp_path / "broken_policy.py").write_text("import no_such_module_anywhere\n")
    info = tmp_path / "their_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dynamo.routing_policies]\none = their_policies:one\nbroken = broken_policy:score\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_entry_point_is_found_by_name(packages: Path) -> None:
    policy = runner(load_policy("one"))
    scores = policy.scores(REQUEST, ranks())
    assert scores is not None
    assert scores.tolist() == [1, 1, 1]


def test_a_function_gets_its_parameters_with_each_call(packages: Path) -> None:
    policy = runner(load_policy("their_policies:weighted", {"weight": 3}))
    scores = policy.scores(REQUEST, ranks())
    assert scores is not None
    assert scores.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "no_such_module_anywhere:score",
            {},
            r"cannot be imported: ModuleNotFoundError: .*put its folder on PYTHONPATH",
        ),
        ("broken_policy:score", {}, r"cannot be imported: ModuleNotFoundError: .*no_such_module_anywhere"),
        (":score", {}, r"cannot be imported"),
        ("their_policies:two", {}, r"their_policies\.py has no 'two'; it has one, weighted, narrow, Bare"),
        ("their_policies:narrow", {}, r"must be callable as score\(request, candidates\): too many positional"),
        ("their_policies:one", {"weight": 3}, r"must be callable as score\(request, candidates, weight\): "),
        ("their_policies:Bare", {}, r"must be a function, or a class with a method score"),
        ("their_policies:number", {}, r"must be a function, or a class with a method score"),
        ("their_policies:Bare", {"slack": 1}, r"cannot be made with {'slack': 1}: "),
        ("two", {}, r"no installed package has that entry point .*; there are broken, one\. Write module:function"),
        ("broken", {}, r"broken_policy:score cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_found_or_used_is_said_at_start(
    packages: Path, name: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(name, parameters)
