"""TextVQA as LLaVA evaluates it: ``llava_textvqa_val_v051_ocr.jsonl`` and M4C's evaluator (``llava/eval/m4c_evaluator.py``).

The metric is VQA's soft accuracy after EvalAI's normalisation of answers: a reply scores the mean, over the ten people, of
min(1, others who said so / 3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

Doc = Mapping[str, Any]
_TABLE = yaml.safe_load((Path(__file__).parent / "tables" / "evalai.yaml").read_text(encoding="utf-8"))
_NUMBERS: dict[str, str] = _TABLE["numbers"]
_CONTRACTIONS: dict[str, str] = {
    **{word.replace("'", ""): word for word in _TABLE["contractions"]},
    **{word.replace("'", "", 1): word for word in _TABLE["double_contractions"]},
    **{"".join(word.rsplit("'", 1)): word for word in _TABLE["double_contractions"]},
    **_TABLE["other_contractions"],
}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")  # published so: the first bracket is no look-behind, and every such dot goes
_COMMA = re.compile(r"(?<=\d)(,)+(?=\d)")
_STOPS = 32  # the published code passes re.UNICODE (32) where the number of replacements belongs


def _short(text: str) -> str:
    return f"{text}\nAnswer the question using a single word or phrase."


def _question(doc: Doc) -> str:
    """The question with a capital first letter and the rest in lower case, as LLaVA's question file holds it."""
    return str(doc["question"]).capitalize()


def with_ocr(doc: Doc) -> str:
    """The question, the OCR tokens of the data set (a line of its own, also where there are none), the request."""
    return _short(f"{_question(doc)}\nReference OCR token: {', '.join(doc['ocr_tokens'])}")


def without_ocr(doc: Doc) -> str:
    """The question and the request alone."""
    return _short(_question(doc))


@lru_cache(maxsize=65536)
def normal(text: str) -> str:
    """Return an answer in EvalAI's normal form: lower case, no punctuation, no articles, digits for number words."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = _COMMA.search(text) is not None
    bare = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_blank or thousands else " ")
    bare = _STOP.sub("", bare, count=_STOPS)
    words = [_NUMBERS.get(word, word) for word in bare.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def reply(text: str, doc: Doc) -> tuple[str, bool]:  # noqa: ARG001
    """The reply in normal form; only an empty one says nothing."""
    said = normal(text)
    return said, said != ""


def soft(prediction: str, doc: Doc) -> float:
    """VQA soft accuracy of a normal form over the ten answers, leaving one person out at a time."""
    same = [normal(answer) == prediction for answer in doc["answers"]]
    agree = sum(same)
    return sum(min(1.0, (agree - own) / 3) for own in same) / len(same)
