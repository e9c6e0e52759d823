"""The file of `--router-policy-config`: YAML in the form of Dynamo 1.6.1, with a few keys of our own.

    router:                      options that hold for all models, over their flags
    default_policy_family:       \\
    uncached_isl_buckets:         } queues of the models that `models` does not name
    policy_classes:              /
    models: {NAME: {the three keys above}}
    worker_selection:            which policy chooses workers, per kind of worker, with its parameters

A class is reached by its family and by how many tokens of the prompt are cached nowhere, or by its own name when it has
no family. Keys of `policy_classes` that Dynamo would refuse: max_queued_requests, max_queued_tokens,
max_running_requests, max_wait_secs.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import UNSET, Struct

from dynamo.router.class_queue import PolicyClass
from dynamo.router.policy_document import (
    OPTION_OF_SETTING,
    BucketEntry,
    ClassEntry,
    CostParameters,
    Document,
    InstanceEntry,
    Problem,
    ProfileEntry,
    SelectionEntry,
    Settings,
    load_yaml,
    read_mapping,
)
from dynamo.shared.config import ConfigError

BUILT_IN_SELECTION = "default"
BUILT_IN_TYPE = "dynamo-default-cost-fn"
ROLES = ("aggregated", "prefill", "decode", "encode")
SYNTHETIC = "default"  # family of the one class of a model that no file gives classes


class PolicyProfile(Struct, frozen=True):
    """The classes of a model, and which of them a placement belongs to."""

    classes: list[PolicyClass]
    default_family: str
    bucket_floors: list[int]  # uncached tokens from which each bucket counts; the first is 0
    families: dict[str, list[PolicyClass]]  # one class per bucket
    explicit: dict[str, PolicyClass]

    @classmethod
    def single(cls, policy_class: PolicyClass) -> PolicyProfile:
        return cls([policy_class], SYNTHETIC, [0], {SYNTHETIC: [policy_class]}, {})

    def classify(self, requested: str, uncached_tokens: int) -> PolicyClass:
        """`requested` is a family or an explicit class; anything else means the default family."""
        if (explicit := self.explicit.get(requested)) is not None:
            return explicit
        family = self.families.get(requested) or self.families[self.default_family]
        return family[bisect_right(self.bucket_floors, uncached_tokens) - 1]


class SelectionPolicy(Struct, frozen=True):
    """`parameters` are weights of the cost where the built-in selection is meant; any other `type` is an entry point of
    `dynamo.routing_policies`, which is called with them."""

    name: str
    type: str
    parameters: dict[str, Any]

    @property
    def is_built_in(self) -> bool:
        return self.type == BUILT_IN_TYPE


class PolicyFile(Struct, frozen=True):
    """What the file says. `settings` has our names of options, and only those that the file sets. A class that belongs
    to one model is called MODEL/NAME: the classes of all models wait in the same PlacementQueue."""

    origin: str
    settings: dict[str, Any]
    root: PolicyProfile | None
    models: dict[str, PolicyProfile]
    selected: dict[str, str]  # role -> name of an instance
    instances: dict[str, SelectionPolicy]

    def profile(self, model: str, fallback: PolicyProfile) -> PolicyProfile:
        """`fallback` is what the flags say."""
        return self.models.get(model) or self.root or fallback

    def classes(self, fallback: PolicyProfile) -> list[PolicyClass]:
        """Those of all profiles."""
        return [each for profile in (self.root or fallback, *self.models.values()) for each in profile.classes]

    def selection(self, role: str, override: str | None = None) -> SelectionPolicy | None:
        """Which policy chooses among workers of this role; None is the built-in one as the flags set it. `override` is
        the name that a flag gives instead. Raises ConfigError."""
        name = override or self.selected.get(role, BUILT_IN_SELECTION)
        if name == BUILT_IN_SELECTION:
            return None
        if name not in self.instances:
            known = ", ".join((BUILT_IN_SELECTION, *self.instances))
            raise ConfigError(f"{self.origin}: no worker_selection instance is called {name!r}; there are {known}")
        return self.instances[name]


def read_policy_file(path: str | Path, base: PolicyClass | None = None) -> PolicyFile:
    """`base` gives the classes what the file does not say. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--router-policy-config {path}: cannot be read: {error}") from None
    return parse_policy_file(text, str(path), base)


def parse_policy_file(text: str, origin: str, base: PolicyClass | None = None) -> PolicyFile:
    """`origin` goes before every message. Raises ConfigError."""
    try:
        return _Reader(origin, base or PolicyClass()).read(load_yaml(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None
    except Problem as problem:
        raise ConfigError(f"{origin}: {problem}") from None


class _Reader:
    """From the document to what it means; all of it raises Problem."""

    def __init__(self, origin: str, base: PolicyClass) -> None:
        self._origin = origin
        self._base = base

    def read(self, content: object) -> PolicyFile:
        document = read_mapping(Document, {} if content is None else content, "")
        if document.request_classifier is not None:
            raise Problem(
                "request_classifier",
                "classifiers are parts of Dynamo's own binary; remove the section, and let requests name their class",
            )
        root = self._root(document)
        models = {_model_name(name): self._model(each, name) for name, each in document.models.items()}
        if document.router is None and document.worker_selection is None and root is None and not models:
            raise Problem("", f"it says nothing; give it at least one of {', '.join(Document.__struct_fields__[:-1])}")
        selected, instances = _selection(document.worker_selection)
        return PolicyFile(self._origin, _settings(document.router), root, models, selected, instances)

    def _root(self, document: Document) -> PolicyProfile | None:
        keys = ProfileEntry.__struct_fields__
        given = {key: value for key in keys if (value := getattr(document, key)) is not None}
        if not given:
            return None
        if missing := [key for key in keys if key not in given]:
            raise Problem("", f"{', '.join(given)} is there without {', '.join(missing)}; the three belong together")
        return self._profile(read_mapping(ProfileEntry, given, ""), "", "")

    def _model(self, content: object, model: str) -> PolicyProfile:
        where = f"models.{model}"
        return self._profile(read_mapping(ProfileEntry, content, where), f"{where}.", f"{model}/")

    def _profile(self, profile: ProfileEntry, where: str, prefix: str) -> PolicyProfile:
        buckets = _buckets(profile.uncached_isl_buckets, f"{where}uncached_isl_buckets")
        names = [bucket.bucket for bucket in buckets]
        entries = _class_entries(profile.policy_classes, names, f"{where}policy_classes")
        classes = {entry.name: self._policy_class(entry, prefix) for entry in entries}
        explicit = {entry.name: classes[entry.name] for entry in entries if entry.policy_family is None}
        families = _families(entries, classes, names, f"{where}policy_classes")
        if clashing := explicit.keys() & families:
            name = min(clashing)
            raise Problem(f"{where}policy_classes", f"{name!r} is both an explicit class and a family; rename one")
        if (default := profile.default_policy_family) not in families:
            known = ", ".join(families) or "none"
            raise Problem(f"{where}default_policy_family", f"no class has the family {default!r}; there are {known}")
        floors = [bucket.min_tokens for bucket in buckets]
        return PolicyProfile(list(classes.values()), default, floors, families, explicit)

    def _policy_class(self, entry: ClassEntry, prefix: str) -> PolicyClass:
        given = {name: getattr(entry, name) for name in PolicyClass.__struct_fields__} | {"name": prefix + entry.name}
        return msgspec.structs.replace(self._base, **{name: each for name, each in given.items() if each is not UNSET})


def _settings(content: object) -> dict[str, Any]:
    if content is None:
        return {}
    given = msgspec.structs.asdict(read_mapping(Settings, content, "router"))
    return {OPTION_OF_SETTING.get(name, name): value for name, value in given.items() if value is not UNSET}


def _model_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise Problem("models", f"{name!r} is not the name of a model; put names into quotes")
    return name


# --------------------------------------------------------------------------- classes


def _buckets(contents: Sequence[object], where: str) -> list[BucketEntry]:
    buckets = [read_mapping(BucketEntry, content, f"{where}[{index}]") for index, content in enumerate(contents)]
    if not buckets or buckets[0].min_tokens != 0:
        raise Problem(where, "the first bucket must start at min_tokens: 0")
    if any(upper.min_tokens <= lower.min_tokens for lower, upper in pairwise(buckets)):
        raise Problem(where, "min_tokens must grow from one bucket to the next")
    names: list[str] = []
    for index, bucket in enumerate(buckets):
        _check_new_name(bucket.bucket, names, f"{where}[{index}].bucket")
        names.append(bucket.bucket)
    return buckets


def _class_entries(contents: Sequence[object], buckets: Sequence[str], where: str) -> list[ClassEntry]:
    if not contents:
        raise Problem(where, "must not be empty")
    entries: dict[str, ClassEntry] = {}
    for index, content in enumerate(contents):
        entry = read_mapping(ClassEntry, content, f"{where}[{index}]")
        _check_new_name(entry.name, entries, f"{where}[{index}].name")
        _check_class(entry, buckets, f"{where}[{index}]")
        entries[entry.name] = entry
    return list(entries.values())


def _check_class(entry: ClassEntry, buckets: Sequence[str], where: str) -> None:
    if entry.queue_policy not in ("fcfs", "wspt"):
        raise Problem(f"{where}.queue_policy", f"must be fcfs or wspt, not {entry.queue_policy!r}")
    if (entry.policy_family is None) != (entry.cache_bucket is None):
        raise Problem(where, "give both policy_family and cache_bucket, or neither to make it an explicit class")
    if entry.policy_family is not None:
        _check_identifier(entry.policy_family, f"{where}.policy_family")
    if entry.cache_bucket is not None and entry.cache_bucket not in buckets:
        known = ", ".join(buckets)
        raise Problem(f"{where}.cache_bucket", f"no bucket is called {entry.cache_bucket!r}; there are {known}")


def _families(
    entries: Sequence[ClassEntry], classes: dict[str, PolicyClass], buckets: Sequence[str], where: str
) -> dict[str, list[PolicyClass]]:
    """Of each family the class of each bucket."""
    families: dict[str, dict[str, PolicyClass]] = {}
    for index, entry in enumerate(entries):
        if entry.policy_family is None or entry.cache_bucket is None:
            continue
        members = families.setdefault(entry.policy_family, {})
        if entry.cache_bucket in members:
            what = f"family {entry.policy_family!r} has a class for bucket {entry.cache_bucket!r} before"
            raise Problem(f"{where}[{index}]", f"{what}; one is enough")
        members[entry.cache_bucket] = classes[entry.name]
    for family, members in families.items():
        if missing := [name for name in buckets if name not in members]:
            raise Problem(where, f"family {family!r} has no class for bucket {', '.join(missing)}; add one")
    return {family: [members[name] for name in buckets] for family, members in families.items()}


# --------------------------------------------------------------------------- selection


def _selection(content: object) -> tuple[dict[str, str], dict[str, SelectionPolicy]]:
    """Per role the name of what is selected, and the instances by name."""
    if content is None:
        return {}, {}
    selection = read_mapping(SelectionEntry, content, "worker_selection")
    instances = _instances(selection.instances, "worker_selection.instances")
    selected = {role: name for role in ROLES if (name := getattr(selection, role)) is not None}
    for role, name in selected.items():
        if name != BUILT_IN_SELECTION and name not in instances:
            known = ", ".join((BUILT_IN_SELECTION, *instances))
            raise Problem(f"worker_selection.{role}", f"no instance is called {name!r}; there are {known}")
    if not selected and not instances:
        raise Problem("worker_selection", f"it says nothing; give it instances, or one of {', '.join(ROLES)}")
    return selected, instances


def _instances(contents: Sequence[object], where: str) -> dict[str, SelectionPolicy]:
    instances: dict[str, SelectionPolicy] = {}
    for index, content in enumerate(contents):
        at = f"{where}[{index}]"
        entry = read_mapping(InstanceEntry, content, at)
        _check_new_name(entry.name, instances, f"{at}.name")
        _check_identifier(entry.type, f"{at}.type")
        if entry.name == BUILT_IN_SELECTION:
            raise Problem(f"{at}.name", f"{BUILT_IN_SELECTION!r} is the built-in selection; take another name")
        instances[entry.name] = SelectionPolicy(entry.name, entry.type, _parameters(entry, f"{at}.parameters"))
    return instances


def _parameters(entry: InstanceEntry, where: str) -> dict[str, Any]:
    if entry.type != BUILT_IN_TYPE:
        return entry.parameters
    weights = msgspec.structs.asdict(read_mapping(CostParameters, entry.parameters, where))
    return {name: weight for name, weight in weights.items() if weight is not None}


# --------------------------------------------------------------------------- names


def _check_new_name(name: str, known: Container[str], where: str) -> None:
    _check_identifier(name, where)
    if name in known:
        raise Problem(where, f"{name!r} is there before; give each its own name")


def _check_identifier(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise Problem(where, f"{name!r} is not a name; use letters, digits, and the characters _ . -")
