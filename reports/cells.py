"""What a table is made of, before any format: columns, cells, rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from reports.escape import RAISED
from reports.measures import Measure
from reports.notes import DASH
from reports.provenance import Origin
from reports.statistics import Difference, Interval
from tasks.catalogue import Protocol

What = Literal["measured", "reported", "measured - reported"]


@dataclass(frozen=True)
class Reported:
    """A number, or words about one, that sources report; ``value`` is None where the words are no number.

    ``letters`` are those of the footnotes with the sources.
    """

    text: str
    value: float | None
    source: str
    letters: str

    @property
    def raised(self) -> str:
        """The letters as plain text raises them."""
        return "".join(RAISED[letter] for letter in self.letters)


@dataclass(frozen=True)
class Column:
    """One column: what is measured where, and how it is headed; ``over`` says in the CSV what a value is taken over."""

    label: str
    under: str
    measure: Measure
    name: str
    protocol: Protocol | None
    over: str = "mean over protocols"

    @property
    def unit(self) -> str:
        """Unit of the printed number."""
        if self.name != "score":
            return self.measure.unit
        return "percent of range" if self.protocol is None else self.protocol.unit


@dataclass(frozen=True)
class Cell:
    """One number; ``estimate`` is None for a level known without sampling (chance, constant answer).

    Attributes:
        value, low, high: in the printed unit; low and high None where there is no interval.
        marked: bold in print; worse: a resolved difference in the bad direction; note: a caveat of this cell;
            detail: what stands in small print under the interval.
        what: where the number is from; reported: what the sources report, where it is theirs or was subtracted; several
            where they contradict each other.
    """

    value: float
    low: float | None
    high: float | None
    decimals: int
    signed: bool = False
    marked: bool = False
    worse: bool = False
    note: str | None = None
    estimate: Interval | Difference | None = None
    detail: tuple[str, ...] = ()
    what: What = "measured"
    reported: tuple[Reported, ...] = ()

    def number(self, value: float) -> str:
        """Format with a true minus sign; a difference carries its sign."""
        text = f"{value:+.{self.decimals}f}" if self.signed else f"{value:.{self.decimals}f}"
        if float(text) == 0.0:
            text = text.lstrip("+-")  # "-0.0" would suggest a direction
        return text.replace("-", "−")

    @property
    def text(self) -> str:
        """The value; of reported ones all, as their sources print them, each with the letter of its footnote."""
        if self.what == "reported":
            return " / ".join(r.text.replace("-", "–") + r.raised for r in self.reported)
        several = len(self.reported) > 1
        return self.number(self.value) + (self.reported[0].raised if several else "")

    @property
    def span(self) -> str | None:
        """The interval in brackets, or None."""
        if self.low is None or self.high is None:
            return None
        return f"[{self.number(self.low)}, {self.number(self.high)}]"


@dataclass(frozen=True)
class Row:
    """One row; ``cells`` align with the table's columns, None where the run holds no such number (printed as a dash).

    ``minus`` names the student that was subtracted, None for plain values; ``about`` says in words what else sets the row
    apart, empty where the label says it all; ``run`` names the run, where the table knows it, and ``minus_run`` the one whose
    student of the same name was subtracted.
    """

    label: str
    minus: str | None
    kind: str
    seeds: str
    cells: tuple[Cell | None, ...]
    about: str = ""
    run: str = ""
    minus_run: str = ""

    @property
    def block(self) -> str:
        """Rows of one block stand together: reference levels, given models, students."""
        return "given" if self.kind in ("teacher", "base", "external") else self.kind


@dataclass(frozen=True)
class Table:
    """A finished table, before any format; ``origins``: the runs that its numbers come from."""

    name: str
    title: str
    caption: str
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    difference: bool
    origins: tuple[Origin, ...] = ()

    @property
    def several(self) -> bool:
        """Whether rows come from more than one run: then a column says from which."""
        return len({row.run for row in self.rows}) > 1

    @property
    def versions(self) -> str:
        """The protocols of the columns with their versions, one sentence; empty where no column is one protocol's."""
        named = dict.fromkeys(f"`{c.protocol.name}` version {c.protocol.version}" for c in self.columns if c.protocol)
        return f"Protocols: {', '.join(named)}." if named else ""

    def frame(self) -> pd.DataFrame:
        """Return every number at full precision, one per line, each with the run that it comes from."""
        origins = {o.run: o for o in self.origins}
        out: list[dict[str, Any]] = []
        for row in self.rows:
            origin = origins.get(row.run)
            for column, cell in zip(self.columns, row.cells, strict=True):
                out.extend(_line(row, column, number, reported, origin) for number, reported in _numbers(cell))
        frame = pd.DataFrame(out)
        whole = ("protocol_version", "n", "clusters", "above", "below", "only_first", "only_second", "holm_family")
        return frame.astype({c: "Int64" for c in whole if c in frame})


def _numbers(cell: Cell | None) -> list[tuple[Cell, Reported | None]]:
    """One line per number: a cell may hold what several sources report, or the differences to them."""
    if cell is None:
        return []
    if cell.what == "measured":
        return [(cell, None)]
    if cell.what == "reported":
        return [(cell, r) for r in cell.reported]
    first = cell.reported[0].value or 0.0
    out: list[tuple[Cell, Reported | None]] = []
    for r in [r for r in cell.reported if r.value is not None]:
        low, value, high = (None if x is None else x + first - (r.value or 0.0) for x in (cell.low, cell.value, cell.high))
        assert value is not None
        out.append((replace(cell, low=low, value=value, high=high), r))
    return out


def _line(row: Row, column: Column, cell: Cell, reported: Reported | None, origin: Origin | None) -> dict[str, Any]:
    e, theirs = cell.estimate, cell.what == "reported" and reported is not None
    return {
        "student": row.label,
        "minus": row.minus,
        "about": row.about,
        "kind": row.kind,
        "seeds": "" if theirs else row.seeds.replace(DASH, ""),
        "protocol": column.over if column.protocol is None else column.protocol.name,
        "protocol_version": None if column.protocol is None else column.protocol.version,
        "measure": column.name,
        "unit": column.unit,
        "what": cell.what,
        "value": reported.value if theirs and reported is not None else cell.value,
        "low": cell.low,
        "high": cell.high,
        "n": None if e is None else e.n,
        "clusters": None if e is None else e.clusters,
        **_facts(e, column.measure.scale),
        "marked": cell.marked,
        "method": None if e is None else e.method,
        "note": reported.text if reported is not None and reported.value is None else cell.note,
        "source": None if reported is None else reported.source,
        "run": None if origin is None or theirs else origin.run,
        "minus_run": row.minus_run or None,
        "manifest_digest": None if origin is None or theirs else origin.digest,
        "commit": None if origin is None or theirs else origin.commit,
    }


def _facts(e: Interval | Difference | None, scale: float) -> dict[str, Any]:
    """What a CSV says of an estimate beside its ends; spreads and detectable differences in the printed unit."""

    def printed(x: float | None) -> float | None:
        return None if x is None else scale * x

    d = e if isinstance(e, Difference) else None
    return {
        "sampling_se": None if e is None else printed(e.sampling_se),
        "training_sd": None if e is None else printed(e.training_sd),
        "above": None if d is None else d.above,
        "below": None if d is None else d.below,
        "only_first": None if d is None or d.discordant is None else d.discordant[0],
        "only_second": None if d is None or d.discordant is None else d.discordant[1],
        "test": None if d is None else d.test,
        "p": None if d is None else d.p,
        "p_holm": None if d is None else d.p_adjusted,
        "holm_family": None if d is None else d.family,
        "detectable": None if d is None else printed(d.detectable),
        "resolved": None if d is None else d.resolved,
    }
