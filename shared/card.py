"""Reading what workers put into discovery: instances, registrations, model deployment cards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec
from blake3 import blake3
from msgspec import Struct

from dynamo.shared.protocol import FileRef, Instance, ModelDeploymentCard, Registration

WORKER_TYPES = ("prefill", "decode", "encode", "aggregated")
MAX_VALUE_BYTES = 4 << 20  # of one discovery value; real cards have about 2 kB

_PROMPT_CONTEXTS = {"oai_chat": "OaiChat", "llama3_date_time": "Llama3DateTime"}
_WORKER_TYPE_BYTES = {name: bytes([1 + i]) for i, name in enumerate(WORKER_TYPES)}

_decode_instance = msgspec.json.Decoder(Instance).decode
_decode_registration = msgspec.json.Decoder(Registration).decode
_decode_card = msgspec.json.Decoder(ModelDeploymentCard).decode


class CardError(ValueError):
    """A discovery value that is not what its bucket holds; the message says which part."""


class Registered(Struct, frozen=True):
    """One instance's registration with its card read. `raw_card` is the card as it was published."""

    registration: Registration
    card: ModelDeploymentCard
    raw_card: bytes
    mdcsum: str


def read_instance(value: bytes) -> Instance:
    """Raises CardError."""
    try:
        instance = _decode_instance(_bounded(value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CardError(f"not an instance: {error}") from None
    if len(instance.transport) != 1:
        raise CardError(f"not an instance: expected one transport, found {len(instance.transport)} - at `$.transport`")
    _check_id(instance.instance_id)
    return instance


def read_registration(value: bytes) -> Registered:
    """Raises CardError."""
    try:
        registration = _decode_registration(_bounded(value))
        raw_card = bytes(registration.card_json)
        card = _decode_card(raw_card)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CardError(f"not a model registration: {error}") from None
    _check_id(registration.instance_id)
    for name in _worker_types_of(card):
        if name not in WORKER_TYPES:
            raise CardError(f"worker type {name!r} is unknown; expected one of {', '.join(WORKER_TYPES)}")
    return Registered(registration, card, raw_card, mdcsum(card))


def _bounded(value: bytes) -> bytes:
    if len(value) > MAX_VALUE_BYTES:
        raise CardError(f"{len(value)} bytes long, over the limit of {MAX_VALUE_BYTES}")
    return value


def _check_id(instance_id: int) -> None:
    if not 0 <= instance_id < 1 << 64:
        raise CardError(f"instance_id {instance_id} is not a u64")


def _worker_types_of(card: ModelDeploymentCard) -> Iterator[str]:
    if card.worker_type is not None:
        yield card.worker_type
    for alternative in card.needs:
        yield from alternative


def slugify(name: str) -> str:
    """A model name as one path segment, the way Dynamo writes it."""
    return re.sub(r"[^a-z0-9_-]", "_", name.lower()).lstrip("_")


def mdcsum(card: ModelDeploymentCard) -> str:
    """Checksum over what workers of one set must agree on, and that requests carry as `mdc_sum`."""
    return blake3(b"".join(_mdcsum_parts(card))).hexdigest()


def _mdcsum_parts(card: ModelDeploymentCard) -> Iterator[bytes]:
    yield card.display_name.encode()
    yield (card.source_path or "").encode()
    yield from _file_parts(card)
    if card.prompt_context is not None:
        names = [_PROMPT_CONTEXTS.get(str(name), str(name)) for name in card.prompt_context]
        yield f"[{', '.join(names)}]".encode()
    yield _u32(_context_length(card))
    yield _u32(card.kv_cache_block_size)
    yield _WORKER_TYPE_BYTES.get(card.worker_type or "", b"\0")
    yield _u32(len(card.needs))
    for alternative in card.needs:
        yield _u32(len(alternative))
        yield from (_WORKER_TYPE_BYTES[name] for name in alternative)
    if (router_config := bytes(card.router_config)) not in (b"", b"null"):
        yield blake3(router_config).digest()
    if card.indexer_identity is not None:
        yield from _identity_parts(card.indexer_identity)
    if card.aliases:
        yield _u32(len(card.aliases))
        for alias in card.aliases:
            yield _u32(len(alias.encode())) + alias.encode()


def _file_parts(card: ModelDeploymentCard) -> Iterator[bytes]:
    """Checksums only: where a file lies may differ between workers."""
    for slot in (card.model_info, card.tokenizer, card.prompt_formatter):
        yield from (file.checksum.encode() for file in (slot or {}).values())
    yield from (template.file.checksum.encode() for template in (card.chat_template_file or {}).values())
    yield from (file.checksum.encode() for file in (card.gen_config or {}).values())
    extra_files = [(_basename(file), file.checksum.removeprefix("blake3:")) for file in card.extra_files or []]
    for name, digest in sorted(extra_files):
        yield name.encode() + b"\0" + digest.encode()


def _basename(file: FileRef) -> str:
    return urlsplit(file.path).path.rstrip("/").rpartition("/")[2]


def _context_length(card: ModelDeploymentCard) -> int:
    """The first that is given, and a given 0 counts: unlike `max_context_length`, which asks what is known."""
    for length in (card.runtime_config.context_length, card.architectural_max_context_length, card.context_length):
        if length is not None:
            return length
    return 0


def _identity_parts(identity: dict[str, dict[str, str] | None]) -> Iterator[bytes]:
    """Not seen on a real wire yet: the layout follows Dynamo's source, the order of entries is an assumption."""
    yield b"dynamo/model-card/indexer-identity/v1"
    for name in ("semantics", "routing_scope"):
        entries = identity.get(name)
        if entries is None:
            yield b"\0"
            continue
        yield b"\1" + len(entries).to_bytes(4, "little")
        for pair in sorted(entries.items()):
            for text in pair:
                yield len(text.encode()).to_bytes(4, "little") + text.encode()


def _u32(number: int) -> bytes:
    """Raises CardError for what no card of Dynamo's can hold."""
    try:
        return number.to_bytes(4, "big")
    except OverflowError:
        raise CardError(f"{number} is not a u32") from None
