"""``reports/paper/reported.csv``: what sources report, checked when it is read, joined to our students and protocols.

The first five columns are the facts as they were collected, every row kept, contradictions included; the other five join
them to a table, a student, what was subtracted, and a measure of ours. docs/reports.md says why each row is joined as it is.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic

from harness.base import Strict, UserError, nearest, parse, unknown
from reports.cells import Reported
from reports.escape import LETTERS, RAISED
from tasks import catalogue
from tasks.averages import derived_names

FILE = Path(__file__).parent / "paper" / "reported.csv"
#: Measures of a training that no protocol gives: name -> (label, unit, decimals).
EFFICIENCY = {
    "iterations/s": ("Speed", "iterations/s", 2),
    "GB": ("Peak memory", "GB", 2),
    "parameters": ("Weighting", "% of student", 3),
}
TABLES = (1, 2, 3, 4, 5, 6)

Kind = Literal[
    "value", "given", "approximate", "delta", "sign", "rescaled", "fact", "setting", "figure", "released", "invalid",
    "unpublished", "elsewhere",
]  # fmt: skip


class Fact(Strict):
    """One row of ``reported.csv``.

    Attributes:
        section, row, column, value, source: as collected.
        table: of the paper, 1 to 6, or None; student: our recipe, or a given model's name; minus: what was subtracted.
        measure: a protocol, a derived score, or a name in :data:`EFFICIENCY`.
        kind: ``value``: a number that stands in a cell; ``given``: one of a model that was not distilled here;
            ``approximate``: words about a number, which stand in its cell; ``delta``, ``sign``: of a difference;
            ``rescaled``: a value printed in another unit beside it; ``fact``: on a table, for no cell; the rest is for no
            table.
    """

    section: str
    row: str
    column: str
    value: str
    source: str
    table: int | None
    student: str
    minus: str
    measure: str
    kind: Kind

    @pydantic.model_validator(mode="after")
    def _joined(self) -> Fact:
        if self.table is not None and self.table not in TABLES:
            raise ValueError(f"table {self.table}; known: 1 to 6")
        joined = self.kind in ("value", "given", "approximate", "delta", "sign", "rescaled")
        if joined != bool(self.student and self.measure and self.table):
            raise ValueError(f"kind {self.kind!r} {'needs' if joined else 'takes no'} table, student and measure together")
        if bool(self.minus) != (self.kind in ("delta", "sign")):
            raise ValueError(f"minus is for kinds delta and sign, and they need it; kind is {self.kind!r}")
        known = (*catalogue.names(), *derived_names(), *EFFICIENCY)
        if self.measure and self.measure not in known:
            raise ValueError(str(unknown("measure", self.measure, known)))  # pydantic adds the line to a ValueError only
        if self.kind in ("value", "given", "delta", "rescaled") and self.number is None:
            raise ValueError(f"value {self.value!r} is no number; its kind would be approximate")
        if self.kind == "approximate" and not re.search(r"\d", self.value):
            raise ValueError(f"value {self.value!r} holds no number; its kind would be fact")
        return self

    @property
    def number(self) -> float | None:
        """The value as a number, in the measure's unit; None where it is words."""
        try:
            return float(self.value.removesuffix("%"))
        except ValueError:
            return None

    @property
    def said(self) -> str:
        """The source with its cautions, as a footnote prints it."""
        return re.sub(r"\b(CONTRADICT\w*|DECLINE)\b", lambda word: word[0].lower(), self.source)


@functools.cache
def facts(path: Path = FILE) -> tuple[Fact, ...]:
    """Read and check the file.

    Raises:
        UserError: naming file, line and field for a column, kind or measure that is unknown (with the nearest known one), a
            value that is no number, or a row that is there twice.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        _check_columns(columns, path)
        rows = list(reader)
    found: list[Fact] = []
    for number, row in enumerate(rows, start=2):
        where = f"{path}, line {number}"
        if None in row or None in row.values():
            raise UserError(f"{where}: expected {len(columns)} fields")
        fact = parse(Fact, {**row, "table": row["table"] or None}, where)
        if fact in found:
            raise UserError(f"{where}: the same row stands there twice")
        found.append(fact)
    return tuple(found)


def _check_columns(columns: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in Fact.model_fields:
            close = nearest(name, Fact.model_fields)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{path}: unknown column {name!r}.{hint} Known: {', '.join(Fact.model_fields)}")
    lost = [name for name in Fact.model_fields if name not in columns]
    if lost:
        raise UserError(f"{path} lacks the column(s) {', '.join(lost)}")


def of_table(table: int) -> list[Fact]:
    """Return the facts on one table of the paper, in the file's order."""
    return [fact for fact in facts() if fact.table == table]


@dataclass
class Footnotes:
    """Letters for sources, given in the order in which they are asked for; one letter per distinct note."""

    notes: dict[str, str] = field(default_factory=dict)

    def letter(self, note: str) -> str:
        """Return the letter of a note.

        Raises:
            UserError: when a table needs more letters than there are.
        """
        if note not in self.notes:
            if len(self.notes) == len(LETTERS):
                raise UserError(f"a table has more than {len(LETTERS)} footnotes; the next would be {note!r}")
            self.notes[note] = LETTERS[len(self.notes)]
        return self.notes[note]

    def sentences(self) -> list[str]:
        """Return one line per footnote."""
        return [f"{RAISED[letter]} {note}." for note, letter in self.notes.items()]


def in_cell(found: Sequence[Fact], student: str, measure: str, notes: Footnotes) -> tuple[Reported, ...]:
    """Return what stands in one cell: every distinct value with its sources, in the file's order."""
    texts: dict[str, list[Fact]] = {}
    for fact in found:
        if fact.kind in ("value", "given", "approximate") and (fact.student, fact.measure) == (student, measure):
            texts.setdefault(fact.value, []).append(fact)
    out = []
    for text, same in texts.items():
        sources = dict.fromkeys(fact.said for fact in same)
        number = same[0].number if same[0].kind != "approximate" else None
        out.append(Reported(text, number, "; ".join(sources), "".join(map(notes.letter, sources))))
    return tuple(out)
