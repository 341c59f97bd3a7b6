"""MMBench as MobileVLM asks it and its authors read replies without a judge (Liu et al. 2023, arXiv 2307.06281).

The prompt is ``mobilevlm/eval/model_vqa_mmbench.py``'s (LLaVA's is the same). A reply is read by the paper's heuristic match,
as in open-compass' evaluation of 2023: a lone option letter, else the text of one option. What it cannot read goes to
ChatGPT there and is wrong here: no protocol asks a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Doc = Mapping[str, Any]
_LETTERS = "ABCD"
_ROTATIONS = 1_000_000
_AROUND = (  # what may stand around a letter, tried in this order
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","),
    (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip


def _options(doc: Doc) -> dict[str, str]:
    """Return the options up to the first that is missing."""
    found: dict[str, str] = {}
    for letter in _LETTERS:
        if doc.get(letter) is None:
            break
        found[letter] = doc[letter]
    return found


def prompt(doc: Doc) -> str:
    """Hint, question and options, one below the other, and the request for a letter; no "There are several options:"."""
    hint = [doc["hint"]] if doc["hint"] is not None else []
    options = [f"{letter}. {text}" for letter, text in _options(doc).items()]
    return "\n".join([*hint, doc["question"], *options, "Answer with the option's letter from the given choices directly."])


def choice(reply: str, doc: Doc) -> tuple[str, bool]:
    """A lone option letter (with a full stop, brackets, ...), else the one option whose text the reply holds.

    "A" among more than three words may be the article, so the bare letter is not taken there. Where the gold row carries
    no options (cut records), the letters A to D are valid.
    """
    options = _options(doc)
    letters = [*options] if options else [*_LETTERS]
    words = reply.split()
    for before, after in _AROUND:
        said = [letter for letter in letters if f"{before}{letter}{after}" in words]
        if len(said) != 1 or (not before and not after and "A" in words and len(words) > 3):
            continue
        return said[0], True
    low = reply.lower()
    named = [letter for letter, text in options.items() if text.lower() in low]
    return (named[0], True) if len(named) == 1 else ("", False)


def right(prediction: str, doc: Doc) -> float:
    """1 for the letter of the answer, else 0."""
    return float(prediction == doc["answer"])


def base(doc: Doc, image: bool) -> bool:  # noqa: ARG001
    """Each question once, as published: rows below 1,000,000 are the questions, the others their rotations."""
    return "index" not in doc or doc["index"] < _ROTATIONS
