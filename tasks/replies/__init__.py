"""Saved replies: files of many kinds in, one ``{id, reply}`` per gold question out. Imports no torch and no lmms-eval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.base import UserError, nearest
from tasks.catalogue import Protocol
from tasks.questions import Question, QuestionSet
from tasks.replies import fields, formats
from tasks.replies.formats import File, Raw

__all__ = ["Replies", "read"]

_SHOWN = 3


@dataclass(frozen=True)
class Replies:
    """Replies to a protocol's questions.

    Attributes:
        rows: ``{"id": ..., "reply": ...}`` in the file's order; the ids are the gold's. A row whose file says which part of
            the benchmark it belongs to has a ``group`` too, for gold files that do not (ScienceQA's subjects).
        left_out: replies to questions that the gold knows and the protocol leaves out: reason -> how many.
        kind: what the file was recognised as.
        notes: what was assumed in reading it, for people.
    """

    rows: Sequence[Mapping[str, str]]
    left_out: Mapping[str, int]
    kind: str
    notes: Sequence[str]


class _Named(NamedTuple):
    """A row of the file: what it calls its question, and the gold's id for that (None: the gold has no such question)."""

    raw: Raw
    called: str
    id: str | None


def read(path: str | Path, protocol: Protocol, gold: QuestionSet) -> Replies:
    """Read a file of replies, or MME's folder of result files.

    Args:
        path: JSON lines, JSON, CSV, TSV, MME's result files or lmms-eval's saved samples; recognised by content.
        protocol: says how rows name their questions (:mod:`tasks.replies.fields`).
        gold: the questions, from :func:`tasks.gold`.

    Returns:
        The replies; questions that have none are :func:`tasks.score`'s business.

    Raises:
        UserError: for malformed lines, ids that are unknown or occur twice, rows that carry another question or another gold
            answer than the gold's (another release of the benchmark), or a file whose rows cannot be told apart.
    """
    file = formats.read(Path(path))
    named, notes = _named(file, protocol, gold)
    _refuse_unknown(path, named, gold)
    _refuse_twice(path, named)
    questions = {question.id: question for question in gold.questions}
    _refuse_other_questions(path, named, questions)
    said = "filtered_resps" if fields.is_sample(file.rows[0].fields) else fields.reply_name(file.columns, str(path))
    left_out: Counter[str] = Counter()
    reasons: Mapping[str, str] = getattr(gold, "left_out", {})
    rows = []
    for raw, _, name in named:
        if said not in raw.fields:
            raise UserError(f"{raw.where}: the field {said!r}, which holds the reply elsewhere in the file, is missing")
        reply = fields.reply(raw.fields[said], raw.where)
        if name is None:  # refused above
            continue
        if name in reasons:
            left_out[reasons[name]] += 1
        else:
            rows.append({"id": name, "reply": reply, **fields.group(raw.fields)})
    if said not in ("reply", "filtered_resps"):
        notes.append(f"replies are read from the field {said!r}")
    return Replies(rows, dict(left_out), file.kind, notes)


# ---- which question a row answers ------------------------------------------------------------------------------------------


def _named(file: File, protocol: Protocol, gold: QuestionSet) -> tuple[list[_Named], list[str]]:
    """Return the rows with the gold ids they answer, and how they were recognised where that is not plain."""
    order: Sequence[str] = getattr(gold, "order", ()) or tuple(question.id for question in gold.questions)
    known = _known(gold)
    if getattr(gold, "whole", False):
        return _by_position(file, order, range(len(file.rows))), ["rows carry no id and are named by their position"]
    first = file.rows[0].fields
    if fields.is_sample(first) and not fields.sample_names_itself(protocol.benchmark, first):
        return _by_position(file, order, _positions(file, "doc_id")), ["lmms-eval's doc_id is the position in the gold's order"]
    if _numbers_rows(file, known, len(order)):
        note = f"'index' numbers all {len(order)} rows from 0 and is no id here: taken as the position in the gold's order"
        return _by_position(file, order, _positions(file, "index")), [note]
    named = []
    for raw in file.rows:
        keys = fields.keys(protocol.benchmark, raw.fields, raw.where)
        named.append(_Named(raw, " / ".join(keys[0]), next((known[key] for key in keys if key in known), None)))
    return named, []


def _known(gold: QuestionSet) -> dict[tuple[str, ...], str]:
    """Return every name that a reply may call its question by, left-out rows included, and the gold's id for it."""
    keys: Mapping[tuple[str, ...], str] = getattr(gold, "keys", {})
    left_out: Mapping[str, str] = getattr(gold, "left_out", {})
    own: dict[tuple[str, ...], str] = {(name,): name for name in (*left_out, *(question.id for question in gold.questions))}
    return {**own, **keys}


def _positions(file: File, name: str) -> list[int]:
    found = []
    for raw in file.rows:
        value = raw.fields.get(name)
        if isinstance(value, bool) or not str(value).strip().isdecimal():
            raise UserError(f"{raw.where}: {name} is {value!r}, expected the row's number from 0")
        found.append(int(str(value)))
    return found


def _numbers_rows(file: File, known: Mapping[tuple[str, ...], str], count: int) -> bool:
    """Say whether ``index`` is the only id, numbers all of a protocol's rows from 0, and is not what the gold calls them."""
    if "index" not in file.columns or any(name in file.columns for name in fields.IDS if name != "index"):
        return False
    values = [str(raw.fields.get("index")).strip() for raw in file.rows]
    complete = sorted(values, key=lambda text: (len(text), text)) == [str(n) for n in range(count)]
    return complete and not all((value,) in known for value in values)


def _by_position(file: File, order: Sequence[str], positions: Sequence[int]) -> list[_Named]:
    """Name rows by their place in the gold's order, where each carries something that shows that the place is right."""
    named = []
    for raw, position in zip(file.rows, positions, strict=True):
        if not any(isinstance(raw.fields.get(name), str) for name in (*fields.QUESTIONS, *fields.GOLDS)):
            raise UserError(
                f"{raw.where}: the row names its question by position only, and holds neither the question nor the gold answer "
                f"to check that by; add an id ({', '.join(fields.IDS)})"
            )
        named.append(_Named(raw, f"position {position}", order[position] if position < len(order) else None))
    return named


# ---- what is refused -------------------------------------------------------------------------------------------------------


def _listed(items: Sequence[str]) -> str:
    return "; ".join(items[:_SHOWN]) + (f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")


def _refuse_unknown(path: str | Path, named: Sequence[_Named], gold: QuestionSet) -> None:
    lost = [each for each in named if each.id is None]
    if not lost:
        return
    names = [" / ".join(key) for key in _known(gold)]
    said = []
    for raw, called, _ in lost[:_SHOWN]:
        close = nearest(called, names, n=1)
        said.append(f"{called!r} ({raw.where.rsplit(', ', 1)[-1]})" + (f", did you mean {close[0]!r}?" if close else ""))
    said += [""] * (len(lost) - len(said))
    raise UserError(f"{path}: {len(lost)} of {len(named)} replies are to unknown questions: {_listed(said)}")


def _refuse_twice(path: str | Path, named: Sequence[_Named]) -> None:
    first: dict[str, str] = {}
    twice = []
    for raw, called, name in named:
        here = raw.where.rsplit(", ", 1)[-1]
        if name in first:
            twice.append(f"{called!r} ({first[name]} and {here})")
        elif name is not None:
            first[name] = here
    if twice:
        raise UserError(f"{path}: {len(twice)} questions are answered twice: {_listed(twice)}")


def _refuse_other_questions(path: str | Path, named: Sequence[_Named], questions: Mapping[str, Question]) -> None:
    """Compare what a row says of its question with the gold: ids of two releases may mean different questions."""
    wrong = []
    for raw, called, name in named:
        if name is None or name not in questions:
            continue
        why = fields.contradiction(raw.fields, questions[name])
        if why:
            wrong.append(f"{called!r} ({raw.where.rsplit(', ', 1)[-1]}): {why}")
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(named)} rows are about other questions than the gold's: {_listed(wrong)}"
        )
