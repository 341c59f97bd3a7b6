"""The real vocabulary of a tokenizer: what two models must share before their logits can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.base import UserError

#: How many differing tokens an error names.
SHOWN = 3


def tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the tokens of a Hugging Face tokenizer in id order; padded rows of a model's head have none.

    Raises:
        UserError: when the ids have gaps, so that the head cannot be cut to them.
    """
    known: dict[str, int] = tokenizer.get_vocab()
    ordered = sorted(known, key=known.__getitem__)
    if [known[token] for token in ordered] != list(range(len(ordered))):
        missing = sorted(set(range(max(known.values()) + 1)) - set(known.values()))
        raise UserError(
            f"the tokenizer has no token for id(s) {', '.join(map(str, missing[:SHOWN]))}; a real vocabulary has no gaps"
        )
    return tuple(ordered)


def check(student: Sequence[str], teacher: Sequence[str], student_width: int, teacher_width: int) -> int:
    """Return V, the number of real tokens, to which both models' logits are cut (METHOD 2.0, rule 4).

    Args:
        student, teacher: tokens in id order, as :func:`tokens` gives them.
        student_width, teacher_width: number of logits of each model; more than V means padding.

    Raises:
        UserError: when the tokenizers differ, naming tokens that do, or a head is narrower than its vocabulary.
    """
    if list(student) != list(teacher):
        pairs = [(k, a, b) for k, (a, b) in enumerate(zip(student, teacher, strict=False)) if a != b]
        named = "; ".join(f"id {k}: {a!r} against {b!r}" for k, a, b in pairs[:SHOWN])
        if not pairs:
            longer, names = ("student", student) if len(student) > len(teacher) else ("teacher", teacher)
            extra = names[min(len(student), len(teacher)) :]
            named = f"only the {longer} has {', '.join(map(repr, extra[:SHOWN]))}"
        raise UserError(
            f"student and teacher have different tokenizers ({len(student)} and {len(teacher)} tokens; {named});"
            " their logits can be compared token by token only with the same one"
        )
    for owner, width in (("student", student_width), ("teacher", teacher_width)):
        if width < len(student):
            raise UserError(f"the {owner}'s head has {width} logits for {len(student)} tokens; needed: at least one each")
    return len(student)
