"""A word-level tokenizer for small closed vocabularies, built with ``tokenizers``: words whole, numbers digit by digit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<answer>")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{% if message['role'] == 'user' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %}<answer>{{ message['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
_PIECE = r"\n?[A-Z]\.|[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]"


def build_tokenizer(texts: Iterable[str], phrases: Iterable[str] = ()) -> Any:
    """Build a fast tokenizer whose vocabulary is every word of ``texts``.

    Option letters keep their line break (``\\nB.`` is one token, apart from the article ``a``); each of ``phrases`` (fixed
    instructions that end every prompt) is one token, which shortens prompts by half; a number is its first digit and
    continuations (``42`` is ``4 ##2``), so that decoding joins it again.

    Returns:
        A ``PreTrainedTokenizerFast`` with a chat template.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    wanted = sorted(phrases, key=len, reverse=True)
    pattern = "|".join([*(re.escape(phrase).replace(r"\ ", " ") for phrase in wanted), _PIECE])
    words = {piece for text in texts for piece in re.findall(pattern, text) if not piece.isdigit()}
    digits = [d for n in "0123456789" for d in (n, f"##{n}")]
    vocabulary = [*SPECIAL, *digits, *sorted(words | set(wanted))]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token="<unk>", max_input_chars_per_word=200))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=["<image>", "<answer>"], chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
