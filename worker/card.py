"""Model deployment cards as a worker writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from dynamo.shared.protocol import ChatTemplateFile, FileRef
from dynamo.worker.model_types import ModelInput, ModelRuntimeConfig, ModelType, WorkerType

TIKTOKEN_SUFFIXES = (".tiktoken", "tiktoken.model")
MAX_FILE_SIZE = 1 << 30  # bytes; a frontend takes no larger file


class LoraInfo(msgspec.Struct, omit_defaults=True):
    name: str
    max_gpu_lora_count: int | None = None


class Card(msgspec.Struct, kw_only=True):
    """`None` and UNSET both mean absent; `encode` leaves them out."""

    display_name: str
    slug: str
    source_path: str | None = None
    model_info: dict[str, FileRef] | None = None
    tokenizer: dict[str, FileRef] | None = None
    prompt_formatter: dict[str, FileRef] | None = None
    chat_template_file: dict[str, ChatTemplateFile] | None = None
    gen_config: dict[str, FileRef] | None = None
    architectural_max_context_length: int | None = None
    context_length: int = 0
    kv_cache_block_size: int = 16
    migration_limit: int = 0
    model_type: ModelType
    model_input: ModelInput
    worker_type: WorkerType
    needs: list[list[WorkerType]] = []
    lora: LoraInfo | None = None
    aliases: list[str] | None = None
    user_data: Any = None
    router_config: Any = None
    tensor_model_config: dict[str, Any] | None = None
    runtime_config: ModelRuntimeConfig

    def encode(self) -> msgspec.Raw:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["model_type"] = " | ".join(self.model_type.names)
        return msgspec.Raw(msgspec.json.encode({name: value for name, value in fields.items() if value is not None}))


class ModelFiles(msgspec.Struct, kw_only=True):
    """What a model directory holds that a frontend needs. Names of the fields are those of the card."""

    model_info: dict[str, FileRef]
    tokenizer: dict[str, FileRef] | None
    prompt_formatter: dict[str, FileRef] | None
    chat_template_file: dict[str, ChatTemplateFile] | None
    gen_config: dict[str, FileRef] | None
    architectural_max_context_length: int | None


def read_model_files(directory: Path, custom_template: Path | None = None, *, has_tokenizer: bool = True) -> ModelFiles:
    """Look through a model directory and hash what is found; blocking. Raises ModelDirectoryError."""
    return ModelFiles(
        architectural_max_context_length=max_context_length(directory),
        model_info={"hf_config_json": file_ref(directory / "config.json")},
        tokenizer=_tokenizer(directory) if has_tokenizer else None,
        prompt_formatter=_file("hf_tokenizer_config_json", directory / "tokenizer_config.json"),
        chat_template_file=_chat_template(directory, custom_template),
        gen_config=_file("hf_generation_config_json", directory / "generation_config.json"),
    )


class ModelDirectoryError(Exception):
    """The model directory cannot be described in a card; the message says what is missing."""


def file_ref(path: Path) -> FileRef:
    size = path.stat().st_size
    if size > MAX_FILE_SIZE:
        raise ModelDirectoryError(f"{path} has {size} bytes; frontends take up to {MAX_FILE_SIZE}")
    digest = blake3(path.read_bytes()).hexdigest()
    return FileRef(path=str(path.resolve()), checksum=f"blake3:{digest}", size=size)


def max_context_length(directory: Path) -> int | None:
    """`max_position_embeddings` of the model or of its text part. Raises ModelDirectoryError."""
    config = directory / "config.json"
    if not config.is_file():
        raise ModelDirectoryError(f"{directory} has no config.json: give a local directory with it and tokenizer files")
    try:
        values = msgspec.json.decode(config.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ModelDirectoryError(f"{config} is not a JSON object: {error}") from None
    for part in (values, values.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def slugify(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "_", name.lower()).lstrip("_")


def _tokenizer(directory: Path) -> dict[str, FileRef]:
    if found := _file("hf_tokenizer_json", directory / "tokenizer.json"):
        return found
    for path in sorted(directory.iterdir()):
        if path.name.endswith(TIKTOKEN_SUFFIXES):
            return {"tik_token_model": file_ref(path)}
    raise ModelDirectoryError(f"{directory} has neither tokenizer.json nor a .tiktoken vocabulary")


def _chat_template(directory: Path, custom: Path | None) -> dict[str, ChatTemplateFile] | None:
    if custom is not None:
        if not custom.is_file():
            raise ModelDirectoryError(f"custom chat template {custom} does not exist")
        return {_template_kind(custom): ChatTemplateFile(file_ref(custom), is_custom=True)}
    for path in (directory / "chat_template.jinja", directory / "chat_template.json"):
        if path.is_file():
            return {_template_kind(path): ChatTemplateFile(file_ref(path))}
    return None


def _template_kind(path: Path) -> str:
    return "hf_chat_template_json" if path.suffix == ".json" else "hf_chat_template"


def _file(kind: str, path: Path) -> dict[str, FileRef] | None:
    return {kind: file_ref(path)} if path.is_file() else None
