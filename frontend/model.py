"""A model as an acceptor serves it: everything its card refers to, loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from dynamo.frontend.artifacts import ArtifactError, ArtifactStore
from dynamo.frontend.chat_template import ChatTemplate, ChatTemplateError, parse_special_tokens, parse_templates
from dynamo.frontend.detokenizer import Detokenizer, Vocabulary
from dynamo.frontend.parsers.context import ReasoningParserFactory, ToolParserFactory
from dynamo.frontend.parsers.detect import NOTHING, detect
from dynamo.frontend.parsers.registry import UnknownParser, reads_special_tokens, reasoning_parser, tool_parser
from dynamo.frontend.structural_tags import StructuralTags, structural_tags
from dynamo.frontend.tiktoken_format import tiktoken_format
from dynamo.frontend.tokenizer import DEFAULT_OPTIONS, Tokenizer, TokenizerError, TokenizerOptions, load_tokenizer
from dynamo.shared.errors import InvalidRequest
from dynamo.shared.protocol import ChatTemplateFile, FileRef, ModelDeploymentCard

log = logging.getLogger("dynamo.models")

JsonObject = dict[str, Any]
F = TypeVar("F")
Entry = TypeVar("Entry", FileRef, ChatTemplateFile)


class ModelLoadError(Exception):
    """A card that cannot be served; the message says why and names the file."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TextCodec:
    """Text to ids and back. The big part of a model, so cards that name the same files share one."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One worker set's model. `chat_template` is None for a model that only completes text, a parser where answers
    are to be passed on as they are, `codec` where workers take text and tokenize it themselves.
    """

    name: str
    mdcsum: str
    card: ModelDeploymentCard
    codec: TextCodec | None
    vocab_size: int
    chat_template: ChatTemplate | None
    tool_parser: ToolParserFactory | None
    reasoning_parser: ReasoningParserFactory | None
    reads_special_tokens: bool  # its parsers do
    structural_tags: StructuralTags | None
    eos_token_ids: tuple[int, ...]

    @property
    def takes_text(self) -> bool:
        """Its workers are asked in OpenAI's words, and answer in them."""
        return self.codec is None

    def check_tokenizer(self) -> None:
        """Raises InvalidRequest where nobody but the workers can tokenize."""
        if self.codec is None:
            raise InvalidRequest(
                f"The workers of {self.name!r} tokenize by themselves, so its tokens cannot be told here.",
                "model",
                "unsupported_value",
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """Of a model that takes tokens."""
        assert self.codec is not None
        return self.codec.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """Of a model that takes tokens."""
        assert self.codec is not None
        return self.codec.vocabulary

    @property
    def aliases(self) -> list[str]:
        return self.card.aliases

    @property
    def model_types(self) -> frozenset[str]:
        return self.card.model_types

    @property
    def max_context_length(self) -> int:
        """Tokens of prompt and answer together, 0 when nobody knows."""
        return self.card.max_context_length

    @property
    def lora_name(self) -> str | None:
        """Of the adapter, if it is one."""
        name = (self.card.lora or {}).get("name")
        return name if isinstance(name, str) else None

    @property
    def kv_cache_block_size(self) -> int:
        return self.card.kv_cache_block_size

    def detokenizer(self, skip_special_tokens: bool = False) -> Detokenizer:
        return self.vocabulary.detokenizer(skip_special_tokens)


class ModelLoader:
    """`load` blocks for a second or two, in files, downloads and a process of its own: call it in a thread."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        tokenizer_options: TokenizerOptions = DEFAULT_OPTIONS,
        *,
        detects_parsers: bool = True,
    ) -> None:
        self._artifacts = artifacts
        self._tokenizer_options = tokenizer_options
        self._detects_parsers = detects_parsers
        self._codecs: WeakValueDictionary[tuple[object, ...], TextCodec] = WeakValueDictionary()
        self._loading = Lock()

    def load(self, card: ModelDeploymentCard, mdcsum: str) -> Model:
        """Raises ModelLoadError."""
        try:
            return self._load(card, mdcsum)
        except (ArtifactError, TokenizerError, ChatTemplateError) as error:
            raise ModelLoadError(str(error)) from None

    def _load(self, card: ModelDeploymentCard, mdcsum: str) -> Model:
        if card.model_input == "Text":
            return _text_model(card, mdcsum)
        if card.model_input != "Tokens":
            raise ModelLoadError(f"its workers take {card.model_input}; this gateway serves those of Tokens and Text")
        config = self._json(card, card.model_info)
        tokenizer_config = self._json(card, card.prompt_formatter)
        generation_config = self._json(card, card.gen_config)
        templates = self._templates(card, tokenizer_config)
        chat_template = None if templates is None else ChatTemplate(templates, parse_special_tokens(tokenizer_config))
        implied = (
            detect("\n".join(templates.values()))
            if templates and self._detects_parsers and "Chat" in card.model_types
            else NOTHING
        )
        runtime = card.runtime_config
        parsers = runtime.tool_call_parser or implied.tool_parser, runtime.reasoning_parser or implied.reasoning_parser
        codec = self._shared_codec(card, config, tokenizer_config)
        return Model(
            name=card.display_name,
            mdcsum=mdcsum,
            card=card,
            codec=codec,
            vocab_size=max(len(codec.vocabulary), _vocab_size(config)),
            chat_template=chat_template,
            tool_parser=_parser(tool_parser, runtime.tool_call_parser, implied.tool_parser, card.display_name),
            reasoning_parser=_parser(
                reasoning_parser, runtime.reasoning_parser, implied.reasoning_parser, card.display_name
            ),
            reads_special_tokens=any(map(reads_special_tokens, filter(None, parsers))),
            structural_tags=structural_tags(runtime),
            eos_token_ids=_eos_token_ids(generation_config, config),
        )

    def _shared_codec(self, card: ModelDeploymentCard, config: JsonObject, tokenizer_config: JsonObject) -> TextCodec:
        """One at a time: a second card of the same model waits for the first instead of loading it again."""
        entry = _only_entry(card.tokenizer)
        if entry is None:
            raise ModelLoadError("its card names no tokenizer")
        kind, ref = entry
        prompt_formatter = _only_entry(card.prompt_formatter)
        key = (kind, ref.checksum, prompt_formatter and prompt_formatter[1].checksum, config.get("model_type"))
        with self._loading:
            codec = self._codecs.get(key)
            if codec is None:
                path = self._artifacts.fetch(ref, card.source_path)
                codec = self._codecs[key] = self._load_codec(kind, path, config, tokenizer_config)
        return codec

    def _load_codec(self, kind: str, path: Path, config: JsonObject, tokenizer_config: JsonObject) -> TextCodec:
        if kind == "hf_tokenizer_json":
            return TextCodec(*load_tokenizer(path, options=self._tokenizer_options))
        if kind == "tik_token_model":
            tiktoken = tiktoken_format(path, config.get("model_type"), tokenizer_config)
            return TextCodec(*load_tokenizer(path, tiktoken, self._tokenizer_options))
        raise ModelLoadError(f"its card names a tokenizer of the unknown kind {kind!r}")

    def _templates(self, card: ModelDeploymentCard, tokenizer_config: JsonObject) -> dict[str, str] | None:
        """Of conversations, by name. A separate file wins over the entry of tokenizer_config.json."""
        source: object = tokenizer_config.get("chat_template")
        if (entry := _only_entry(card.chat_template_file)) is not None:
            kind, template = entry
            path = self._artifacts.fetch(template.file, None if template.is_custom else card.source_path)
            is_json = kind == "hf_chat_template_json"
            source = _read_json(path).get("chat_template") if is_json else _read_text(path)
        return None if source is None else parse_templates(source)

    def _json(self, card: ModelDeploymentCard, files: dict[str, FileRef] | None) -> JsonObject:
        entry = _only_entry(files)
        return {} if entry is None else _read_json(self._artifacts.fetch(entry[1], card.source_path))


def _text_model(card: ModelDeploymentCard, mdcsum: str) -> Model:
    """Nothing of it is needed here: workers that take text render, tokenize and parse by themselves."""
    return Model(
        name=card.display_name,
        mdcsum=mdcsum,
        card=card,
        codec=None,
        vocab_size=0,
        chat_template=None,
        reads_special_tokens=False,
        structural_tags=None,
        tool_parser=None,
        reasoning_parser=None,
        eos_token_ids=(),
    )


def _parser(find: Callable[[str], F], named: str | None, implied: str | None, model: str) -> F | None:
    """What the card names goes before what its chat template implies. A model whose output cannot be read still
    answers: better than not at all."""
    name = named or implied
    if name is None:
        return None
    try:
        factory = find(name)
    except UnknownParser as error:
        log.error("model %r: %s; its answers are passed on unparsed", model, error)
        return None
    source = "its card names" if named else "its chat template implies"
    log.info("model %r: answers are read by the parser %r, which %s", model, name, source)
    return factory


def _only_entry(entries: dict[str, Entry] | None) -> tuple[str, Entry] | None:
    return next(iter(entries.items()), None) if entries else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _read_json(path: Path) -> JsonObject:
    try:
        return msgspec.json.decode(path.read_bytes(), type=JsonObject)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path}: not a JSON object: {error}") from None


def _eos_token_ids(*configs: JsonObject) -> tuple[int, ...]:
    """Of the first config that has any; multimodal models keep theirs in `text_config`."""
    for config in configs:
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and (ids := _ids(part.get("eos_token_id"))):
                return ids
    return ()


def _ids(value: object) -> tuple[int, ...]:
    values: Iterable[object] = value if isinstance(value, list) else (value,)
    return tuple(dict.fromkeys(i for i in values if isinstance(i, int)))


def _vocab_size(config: JsonObject) -> int:
    sizes = (part.get("vocab_size") for part in (config, config.get("text_config")) if isinstance(part, dict))
    return next((size for size in sizes if isinstance(size, int)), 0)
