import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from dynamo.frontend.artifacts import ArtifactStore
from dynamo.frontend.model import Model, ModelLoader, ModelLoadError
from dynamo.frontend.parsers.reasoning import REASONING_PARSERS
from dynamo.frontend.parsers.tools import TOOL_PARSERS
from dynamo.frontend.tokenizer import TokenizerOptions
from dynamo.shared.protocol import ModelDeploymentCard
from tests.frontend.conversations import TALK, TOOLS, reference, tool_talk
from tests.frontend.vocabularies import DEEPSEEK, QWEN

DEMO_MODEL = Path(__file__).parents[2] / "worker" / "demo_model"
ENTRIES = {
    "model_info": ("hf_config_json", "config.json"),
    "tokenizer": ("hf_tokenizer_json", "tokenizer.json"),
    "prompt_formatter": ("hf_tokenizer_config_json", "tokenizer_config.json"),
    "gen_config": ("hf_generation_config_json", "generation_config.json"),
}


def file_ref(path: Path) -> dict[str, Any]:
    return {"path": str(path), "checksum": "blake3:" + blake3(path.read_bytes()).hexdigest()}


def card(folder: Path = DEMO_MODEL, **fields: Any) -> ModelDeploymentCard:
    """The card of the model in `folder`, with the files that are there."""
    present = {
        name: {kind: file_ref(folder / file)} for name, (kind, file) in ENTRIES.items() if (folder / file).is_file()
    }
    defaults = {"display_name": "demo", "model_type": "Chat | Completions", "model_input": "Tokens"}
    return msgspec.convert(defaults | present | fields, ModelDeploymentCard)


@pytest.fixture
def loader(tmp_path: Path) -> ModelLoader:
    return ModelLoader(ArtifactStore(cache_dir=tmp_path / "cache"))


@pytest.fixture
def demo(loader: ModelLoader) -> Model:
    return loader.load(card(context_length=4096, aliases=["also"]), "sum")


def test_the_demo_model_loads(demo: Model) -> None:
    assert (demo.name, demo.mdcsum, demo.aliases) == ("demo", "sum", ["also"])
    assert (demo.max_context_length, demo.kv_cache_block_size) == (4096, 16)
    assert demo.model_types == {"Chat", "Completions"}
    assert demo.tokenizer.backend == "fastokens"
    assert demo.vocab_size == 16_384
    end_of_turn, end_of_text = (
        int.from_bytes(demo.tokenizer.encode(token), "little") for token in ("<|im_end|>", "<|endoftext|>")
    )
    assert demo.eos_token_ids == (end_of_turn, end_of_text)


def test_the_demo_model_reads_what_it_writes(demo: Model) -> None:
    text = "<think>Größe, 中文 👍</think>\n<tool_call>\n{}</tool_call><|im_end|>\n"
    token_ids = memoryview(demo.tokenizer.encode(text)).cast("I").tolist()
    detokenizer = demo.detokenizer()
    assert "".join(detokenizer.push([i]) for i in token_ids) + detokenizer.flush() == text
    assert demo.detokenizer(skip_special_tokens=True).push(token_ids) == text.replace("<|im_end|>", "")


@pytest.mark.parametrize(
    "messages", [TALK, tool_talk({"city": "Köln"}), [{"role": "assistant", "reasoning_content": "r"}]]
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_demo_template_means_the_same_in_jinja2(
    demo: Model, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    assert demo.chat_template is not None
    source = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text())["chat_template"]
    expected = reference(source, messages, tools=tools, add_generation_prompt=True)
    assert demo.chat_template.render(messages, tools) == expected


def test_cards_that_share_files_share_what_is_loaded(loader: ModelLoader) -> None:
    with ThreadPoolExecutor(2) as executor:
        one, other = executor.map(loader.load, [card(), card(display_name="lora")], "ab")
    assert one.codec is other.codec
    assert (one.name, other.name) == ("demo", "lora")


def test_a_tiktoken_model_loads_by_its_family(loader: ModelLoader, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen", "vocab_size": 151936, "eos_token_id": 151643}')
    model = loader.load(card(tmp_path, tokenizer={"tik_token_model": file_ref(QWEN)}), "sum")
    assert memoryview(model.tokenizer.encode("<|im_end|>")).cast("I").tolist() == [151645]
    assert model.eos_token_ids == (151643,)
    assert model.vocab_size == 151936
    assert model.chat_template is None


def test_a_tiktoken_model_of_no_known_family_is_refused(loader: ModelLoader, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="pat_str"):
        loader.load(card(tmp_path, tokenizer={"tik_token_model": file_ref(QWEN)}), "sum")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 7}, (5,)),
        ({"eos_token_id": [5, 6, 5]}, {}, (5, 6)),
        ({}, {"eos_token_id": [0, 7]}, (0, 7)),
        ({}, {"text_config": {"eos_token_id": 9}}, (9,)),
        ({}, {}, ()),
    ],
)
def test_eos_ids_come_from_the_generation_config_first(
    generation: dict[str, Any],
    config: dict[str, Any],
    expected: tuple[int, ...],
    loader: ModelLoader,
    tmp_path: Path,
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = {"hf_tokenizer_json": file_ref(DEMO_MODEL / "tokenizer.json")}
    assert loader.load(card(tmp_path, tokenizer=tokenizer), "sum").eos_token_ids == expected


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("hf_chat_template", "from a file"),
        ("hf_chat_template_json", '{"chat_template": "from a file"}'),
        ("hf_chat_template_json", '{"chat_template": [{"name": "default", "template": "from a file"}]}'),
    ],
)
def test_a_separate_chat_template_wins(kind: str, content: str, loader: ModelLoader, tmp_path: Path) -> None:
    path = tmp_path / "chat_template"
    path.write_text(content)
    model = loader.load(card(chat_template_file={kind: {"file": file_ref(path), "is_custom": True}}), "sum")
    assert model.chat_template is not None
    assert model.chat_template.render(TALK) == "from a file"


def test_a_template_that_does_not_compile_is_refused(loader: ModelLoader, tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_text("{% if %}")
    with pytest.raises(ModelLoadError, match="does not compile"):
        loader.load(card(chat_template_file={"hf_chat_template": {"file": file_ref(path)}}), "sum")


def missing_file() -> dict[str, Any]:
    return {"path": "/nowhere/tokenizer.json", "checksum": "blake3:" + "0" * 64}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_input": "Tensor"}, "take Tensor"),
        ({"tokenizer": None}, "no tokenizer"),
        ({"tokenizer": {"sentencepiece": missing_file()}}, "/nowhere/tokenizer.json: no such file"),
        ({"tokenizer": {"novel": file_ref(DEEPSEEK)}}, "unknown kind 'novel'"),
        ({"tokenizer": {"hf_tokenizer_json": file_ref(DEMO_MODEL / "config.json")}}, "config.json"),
        ({"model_info": {"hf_config_json": file_ref(DEMO_MODEL / "train.py")}}, "train.py: not a JSON object"),
    ],
)
def test_a_card_that_cannot_be_served_says_why(fields: dict[str, Any], reason: str, loader: ModelLoader) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        loader.load(card(**fields), "sum")


def test_the_tokenizer_options_are_used(tmp_path: Path) -> None:
    loader = ModelLoader(ArtifactStore(cache_dir=tmp_path), TokenizerOptions("huggingface"))
    assert loader.load(card(), "sum").tokenizer.is_slow


@pytest.mark.parametrize("detects", [True, False])
def test_a_chat_template_implies_parsers_unless_the_card_names_some(
    detects: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = ModelLoader(ArtifactStore(cache_dir=tmp_path), detects_parsers=detects)
    hermes, qwen3 = TOOL_PARSERS["hermes"], REASONING_PARSERS["qwen3"]
    caplog.set_level(logging.INFO)
    model = loader.load(card(), "sum")
    assert (model.tool_parser, model.reasoning_parser) == ((hermes, qwen3) if detects else (None, None))
    assert ("the parser 'hermes', which its chat template implies" in caplog.text) == detects
    model = loader.load(card(runtime_config={"tool_call_parser": "mistral"}), "sum")
    assert (model.tool_parser, model.reasoning_parser) == (TOOL_PARSERS["mistral"], qwen3 if detects else None)
    assert "the parser 'mistral', which its card names" in caplog.text
