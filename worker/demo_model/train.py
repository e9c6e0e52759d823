"""Makes the files of the demo model: `python worker/demo_model/train.py`.

A byte-level BPE vocabulary trained on the sources and docstrings of the Python standard library and the reference texts
of `pydoc` (PSF licence), with the special tokens and the chat format of ChatML and Hermes tool calls. There are no
weights: the mock engines need none. The result depends only on the Python version; 3.11 made the files beside this one.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
VOCAB_SIZE = 16_384
CONTEXT_LENGTH = 32_768
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

CHAT_TEMPLATE = r"""
{%- macro turn(role, content) -%}
    {{- '<|im_start|>' + role + '\n' + content + '<|im_end|>\n' }}
{%- endmacro %}
{%- set ns = namespace(system='') %}
{%- for message in messages if message.role in ['system', 'developer'] %}
    {%- set ns.system = ns.system + ('\n\n' if ns.system else '') + message.content %}
{%- endfor %}
{%- if tools %}
    {%- set ns.system = ns.system + ('\n\n' if ns.system else '') %}
    {%- set ns.system = ns.system + '# Tools\n\nYou may call these functions:\n<tools>' %}
    {%- for tool in tools %}
        {%- set ns.system = ns.system + '\n' + (tool | tojson) %}
    {%- endfor %}
    {%- set ns.system = ns.system + '\n</tools>\n\nTo call one, write a JSON object between tags:\n<tool_call>\n'
        + '{"name": <function name>, "arguments": <object>}\n</tool_call>' %}
{%- endif %}
{%- if ns.system %}{{- turn('system', ns.system) }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- turn('user', message.content) }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n' if message.content or not loop.first }}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role in ['tool', 'function'] %}
        {{- turn('user', '<tool_response>\n' + message.content + '\n</tool_response>') }}
    {%- elif message.role not in ['system', 'developer'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""".strip()


def corpus() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(path.relative_to(library).parts):
            yield path.read_text(encoding="utf-8", errors="replace")
    for _, text in sorted(topics.items()):
        yield from [text] * 4  # prose is rare in sources


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(MARKUP_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in MARKUP_TOKENS])
    return tokenizer


def compact(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer.json with each merge as one string: half the size of pairs."""
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return content


def main() -> None:
    tokenizer = train()
    end_of_text, _, end_of_turn = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    write("tokenizer.json", compact(tokenizer), indent=None)
    write(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LENGTH,
            "bos_token": None,
            "eos_token": SPECIAL_TOKENS[2],
            "pad_token": SPECIAL_TOKENS[0],
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write(
        "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": CONTEXT_LENGTH,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "torch_dtype": "bfloat16",
            "eos_token_id": end_of_turn,
        },
    )
    write("generation_config.json", {"eos_token_id": [end_of_turn, end_of_text], "temperature": 0.7, "top_p": 0.9})


def write(name: str, content: dict[str, Any], indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
