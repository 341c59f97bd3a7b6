"""The real vocabulary of a tokenizer: what two models must share before their logits can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError

#: How many differing tokens an error names.
SHOWN = 3
#: What marks (special tokens) look like: <image>, <|im_end|>, [PAD]. Text is never tokenised into them.
_MARK = re.compile(r"<[^\s<>]+>|\[[A-Z][A-Z0-9_]*\]")


def tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the tokens of a Hugging Face tokenizer in id order; padded rows of a model's head have none.

    Raises:
        UserError: when the ids have gaps, so that the head cannot be cut to them.
    """
    known: dict[str, int] = tokenizer.get_vocab()
    ordered = sorted(known, key=known.__getitem__)
    if [known[token] for token in ordered] != list(range(len(ordered))):
        missing = sorted(set(range(max(known.values()) + 1)) - set(known.values()))
        if not missing:
            raise UserError("the tokenizer gives several tokens one id; a real vocabulary has one token an id")
        raise UserError(
            f"the tokenizer has no token for {len(missing)} id(s), the first is id(s) {', '.join(map(str, missing[:SHOWN]))}; a"
            " real vocabulary has no gaps: name the missing tokens in its tokenizer files"
        )
    return tuple(ordered)


def check(student: Sequence[str], teacher: Sequence[str], student_width: int, teacher_width: int) -> int:
    """Return V, the number of tokens that both models share, to which their logits are cut (METHOD 2.0, rule 4).

    Tokenizers of one family may end in other marks: an <image> that was added, the tool marks of a later release. Those are
    cut off like padding, as text is never tokenised into them. Labels must be below V: see :func:`refuse_beyond`.

    Args:
        student, teacher: tokens in id order, as :func:`tokens` gives them.
        student_width, teacher_width: number of logits of each model; more than V means padding.

    Raises:
        UserError: when the tokenizers differ in more than their last marks, naming tokens that do, or a head is narrower than
            V.
    """
    shared = _shared(student, teacher)
    if not shared or not all(_MARK.fullmatch(token) for names in (student, teacher) for token in names[shared:]):
        pairs = [(k, a, b) for k, (a, b) in enumerate(zip(student, teacher, strict=False)) if a != b]
        named = "; ".join(f"id {k}: {a!r} against {b!r}" for k, a, b in pairs[:SHOWN])
        if not pairs:
            longer, names = ("student", student) if len(student) > len(teacher) else ("teacher", teacher)
            named = f"only the {longer} has {', '.join(map(repr, names[shared : shared + SHOWN]))}"
        raise UserError(
            f"student and teacher have different tokenizers ({len(student)} and {len(teacher)} tokens; {named});"
            " their logits can be compared token by token only with the same one"
        )
    for owner, width in (("student", student_width), ("teacher", teacher_width)):
        if width < shared:
            raise UserError(f"the {owner}'s head has {width} logits for {shared} tokens; needed: at least one each")
    return shared


def _shared(student: Sequence[str], teacher: Sequence[str]) -> int:
    """How many leading tokens are the same."""
    for number, (mine, other) in enumerate(zip(student, teacher, strict=False)):
        if mine != other:
            return number
    return min(len(student), len(teacher))


def refuse_beyond(labels: NDArray[np.int64], shared: int, names: Sequence[str]) -> None:
    """Refuse labels that only one of the models knows.

    Args:
        labels: token ids to learn.
        shared: V, as :func:`check` returns it.
        names: the tokens of the model that the labels are of.

    Raises:
        UserError: naming such a token.
    """
    beyond = np.unique(labels[labels >= shared])
    if len(beyond):
        named = ", ".join(repr(names[k]) if k < len(names) else f"id {k}" for k in beyond[:SHOWN].tolist())
        raise UserError(
            f"replies contain {named}, which student and teacher do not share; both chat templates must end replies with tokens"
            " that both know"
        )
