"""What a .tiktoken file leaves to code: how text is split before merging, and which tokens are special.

Models that ship one keep both in Python files of their own, which are not run here: the pattern is that of the model's
family, the special tokens are those of its tokenizer_config.json, or the family's where that lists none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamo.frontend.tokenizer import TiktokenFormat, TokenizerError

_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

CL100K = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
QWEN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL


def _cased_words(upper: str, lower: str) -> str:
    """o200k's words: capitals first, then small letters, contraction included."""
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    )


_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = _cased_words(f"[{_UPPER}]", f"[{_LOWER}]") + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
KIMI = (
    r"[\p{Han}]+|"
    + _cased_words(rf"[{_UPPER}&&[^\p{{Han}}]]", rf"[{_LOWER}&&[^\p{{Han}}]]")
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    + _TAIL
)


NUM_KIMI_SPECIAL_TOKENS = 256
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))
PATTERNS = {"kimi": KIMI, "qwen": QWEN, "o200k": O200K, "gpt_oss": O200K, "cl100k": CL100K, "dbrx": CL100K}


def tiktoken_format(path: Path, model_type: str | None, tokenizer_config: Mapping[str, Any]) -> TiktokenFormat:
    """`pat_str` of the tokenizer_config.json wins; else the family is looked for in the names the model goes by.

    Raises TokenizerError.
    """
    names = [model_type, tokenizer_config.get("tokenizer_class"), tokenizer_config.get("auto_map")]
    family = _family(" ".join(map(str, names)).lower())
    pattern = tokenizer_config.get("pat_str") or PATTERNS.get(family)
    if not isinstance(pattern, str):
        raise TokenizerError(
            f"{path}: no known way to split text for a model of type {model_type!r}; "
            "put the pattern into tokenizer_config.json as pat_str"
        )
    return TiktokenFormat(pattern, _special_tokens(path, family, _listed_tokens(tokenizer_config)))


def _family(names: str) -> str:
    return next((family for family in PATTERNS if family in names), "")


def _listed_tokens(tokenizer_config: Mapping[str, Any]) -> dict[int, str]:
    listed = tokenizer_config.get("added_tokens_decoder") or {}
    try:
        return {int(token_id): str(token["content"]) for token_id, token in listed.items()}
    except (AttributeError, LookupError, TypeError, ValueError):
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder does not list tokens by id") from None


def _special_tokens(path: Path, family: str, listed: dict[int, str]) -> dict[str, int]:
    """Kimi names every id of a block behind the file's last; Qwen's are as fixed as its file."""
    if family == "kimi":
        first = _num_ranks(path)
        block = range(first, first + NUM_KIMI_SPECIAL_TOKENS)
        return {listed.get(token_id, f"<|reserved_token_{token_id}|>"): token_id for token_id in block}
    if family == "qwen" and not listed:
        first = _num_ranks(path)
        return {token: first + n for n, token in enumerate(QWEN_SPECIAL_TOKENS)}
    return {token: token_id for token_id, token in listed.items()}


def _num_ranks(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
