"""Choosing workers by the operator's own Python: `score(request, candidates)` gives a number per candidate, the lowest
wins.

A policy runs inside the router, which waits for it. It cannot be interrupted: that it took too long is known when it
is back. So one that fails or overruns is not followed, and after several times in a row it is left alone for a while.
The built-in selection decides instead, always.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from dynamo.router.cost import Candidates
from dynamo.shared.config import ConfigError

log = logging.getLogger("dynamo.router")

ENTRY_POINTS = "dynamo.routing_policies"
MAX_FAILURES_IN_A_ROW = 5
SUSPENSION_S = 30.0


class PolicyRequest(Struct, frozen=True, kw_only=True):
    """What a policy may know of a request. `num_blocks` of `block_size` tokens hold its prompt, the last perhaps not
    full; `label` is its id in logs."""

    model: str
    num_tokens: int
    block_size: int
    num_blocks: int
    priority_jump: float = 0.0
    strict_priority: int = 0
    session_id: str = ""
    lora_name: str | None = None
    label: str = ""


class Score(Protocol):
    def __call__(self, request: PolicyRequest, candidates: Candidates, /) -> ArrayLike:
        """One number per candidate, in their order. Infinity rules a candidate out."""


class PolicyRunner:
    """Asks a policy, and counts how that went: `used`, or why not (error, shape, not_a_number, overrun, suspended), and
    how often it chose as the built-in selection did (agreed, disagreed). `clock` counts seconds."""

    def __init__(
        self, score: Score, budget_ms: float, shadow: bool = False, *, clock: Callable[[], float], name: str = "policy"
    ) -> None:
        self.name = name
        self.is_shadow = shadow
        self._score = score
        self._budget_s = budget_ms / 1000
        self._clock = clock
        self._num_failures = 0  # in a row
        self._suspended_until: float | None = None
        self._quiet_until = -math.inf  # one of many failures is logged
        self._outcomes: dict[str, int] = {}
        self._asked: tuple[PolicyRequest, Candidates] | None = None  # the last time

    def scores(self, request: PolicyRequest, candidates: Candidates) -> NDArray[np.float64] | None:
        """None: the policy has nothing to say that could be followed."""
        started = self._clock()
        self._asked = request, candidates
        if self._suspended_until is not None and started < self._suspended_until:
            self._count("suspended")
            return None
        try:
            scores = self._ask(request, candidates, started)
        except _NotFollowed as failure:
            self._note(failure, started)
            return None
        self._num_failures = 0
        self._suspended_until = None
        self._count("used")
        return scores

    def settle(self, own: int, wanted: int) -> int:
        """Of two rows, the built-in selection's and that of the last scores, the one to act upon."""
        self._count("agreed" if own == wanted else "disagreed")
        if own != wanted and log.isEnabledFor(logging.DEBUG):
            self._log_difference(own, wanted)
        return own if self.is_shadow else wanted

    def take_outcomes(self) -> dict[str, int]:
        """Counts since the last call."""
        outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def _ask(self, request: PolicyRequest, candidates: Candidates, started: float) -> NDArray[np.float64]:
        _protect(candidates)
        try:
            scores = np.asarray(self._score(request, candidates), np.float64)
        except (Exception, SystemExit) as error:  # whatever foreign code does, requests are placed
            raise _NotFollowed("error", type(error).__name__) from error
        if (took := self._clock() - started) > self._budget_s:
            raise _NotFollowed("overrun", f"it took {took * 1000:.1f} ms of {self._budget_s * 1000:g} ms")
        if scores.shape != (len(candidates),):
            raise _NotFollowed("shape", f"it gave shape {scores.shape} for {len(candidates)} candidates")
        if not np.isfinite(scores.min(initial=np.inf)):  # the minimum of anything with a NaN is NaN
            raise _NotFollowed("not_a_number", "its lowest score is not a finite number")
        return scores

    def _note(self, failure: _NotFollowed, now: float) -> None:
        self._count(failure.reason)
        self._num_failures += 1
        if now >= self._quiet_until:
            self._quiet_until = now + SUSPENSION_S
            log.warning("the routing policy %s is not followed: %s", self.name, failure, exc_info=failure.__cause__)
        if self._num_failures >= MAX_FAILURES_IN_A_ROW:
            self._suspended_until = now + SUSPENSION_S  # then it has one try
            log.error(
                "the routing policy %s failed %d times in a row and is not asked for %g s; the last time: %s",
                self.name,
                self._num_failures,
                SUSPENSION_S,
                failure,
            )

    def _log_difference(self, own: int, wanted: int) -> None:
        assert self._asked is not None
        request, ranks = self._asked
        log.debug(
            "request %s: the routing policy %s chooses worker %x rank %d, the built-in selection %x rank %d",
            request.label,
            self.name,
            ranks.instance_ids[wanted],
            ranks.dp_ranks[wanted],
            ranks.instance_ids[own],
            ranks.dp_ranks[own],
        )

    def _count(self, outcome: str) -> None:
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1


class _NotFollowed(Exception):
    def __init__(self, reason: str, why: str) -> None:
        super().__init__(f"{reason}: {why}")
        self.reason = reason


def _protect(candidates: Candidates) -> None:
    """The router goes on working with these arrays."""
    for name in candidates.__struct_fields__:
        if isinstance(array := getattr(candidates, name), np.ndarray):
            array.setflags(write=False)


# --------------------------------------------------------------------------- finding it


def load_policy(name: str, parameters: Mapping[str, Any] | None = None) -> Score:
    """`name` is module:function, or an entry point of the group `dynamo.routing_policies`. It means a function, which
    gets `parameters` with each call, or a class with a method `score`, which is made once with them.

    Raises ConfigError."""
    found = _import(name) if ":" in name else _entry_point(name)
    given = dict(parameters or {})
    if isinstance(found, type):
        found, given = getattr(_make(name, found, given), "score", None), {}
    if not callable(found):
        raise ConfigError(f"--router-policy {name}: must be a function, or a class with a method score")
    _check_call(name, found, given)
    return functools.partial(found, **given) if given else found


def _import(name: str) -> object:
    module_name, _colon, path = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything
        raise ConfigError(
            f"--router-policy {name}: the module {module_name!r} cannot be imported: {type(error).__name__}: {error}; "
            "install it where the router runs, or put its folder on PYTHONPATH"
        ) from error
    try:
        return functools.reduce(getattr, path.split("."), module)
    except AttributeError:
        functions = [key for key, each in vars(module).items() if callable(each) and not key.startswith("_")]
        known = ", ".join(functions) or "no functions"
        raise ConfigError(f"--router-policy {name}: {module.__file__} has no {path!r}; it has {known}") from None


def _entry_point(name: str) -> object:
    found = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise ConfigError(
            f"--router-policy {name}: no installed package has that entry point in the group {ENTRY_POINTS}; there are "
            f"{', '.join(sorted(found)) or 'none'}. Write module:function for a function of your own"
        )
    try:
        return found[name].load()
    except Exception as error:
        raise ConfigError(
            f"--router-policy {name}: {found[name].value} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _make(name: str, cls: type, parameters: dict[str, Any]) -> object:
    try:
        return cls(**parameters)
    except Exception as error:
        raise ConfigError(f"--router-policy {name}: cannot be made with {parameters}: {error}") from error


def _check_call(name: str, score: Callable[..., Any], parameters: dict[str, Any]) -> None:
    try:
        inspect.signature(score).bind(None, None, **parameters)
    except TypeError as error:
        wanted = ", ".join(("request", "candidates", *parameters))
        raise ConfigError(f"--router-policy {name}: must be callable as score({wanted}): {error}") from None
    except ValueError:  # a callable that does not tell its signature shows at the first call what it takes
        pass
