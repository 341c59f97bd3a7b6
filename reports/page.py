"""The HTML page's template and the axes in its tables."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from reports.cells import Cell, Table, What
from reports.escape import breakable, prose_html
from reports.markup import environment, stacked
from reports.notes import DASH

# ---- tables ----------------------------------------------------------------------------------------------------------------


Limits = dict[What, tuple[float, float]]


def tracks(table: Table) -> list[Limits]:
    """Return the ends of every column's little interval axes: one axis per kind of number, of differences about zero."""
    out = []
    for k in range(len(table.columns)):
        shown = [(row.kind, row.cells[k]) for row in table.rows]
        cells = [cell for kind, cell in shown if cell is not None and (kind != "reference" or cell.span is not None)]
        out.append({what: _ends([c for c in cells if c.what == what], table.difference) for what in {c.what for c in cells}})
    return out


def _ends(cells: Sequence[Cell], difference: bool) -> tuple[float, float]:
    ends = [x for c in cells for x in (c.value, c.low, c.high) if x is not None]
    low, high = min(ends), max(ends)
    if difference or cells[0].signed:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def track(cell: Cell, limits: Limits) -> dict[str, str]:
    """Positions in percent of a cell's interval on its column's axis for that kind of number."""
    low, high = limits[cell.what]

    def place(x: float) -> str:
        return f"{100.0 * (x - low) / (high - low):.2f}%"

    ends = (cell.value if cell.low is None else cell.low, cell.value if cell.high is None else cell.high)
    return {"low": place(ends[0]), "width": f"{100.0 * (ends[1] - ends[0]) / (high - low):.2f}%", "at": place(cell.value)}


# ---- environments ----------------------------------------------------------------------------------------------------------


def html_environment() -> jinja2.Environment:
    """Autoescape on for everything."""
    made = environment(autoescape=True)
    made.filters.update(prose=prose_html, breakable=breakable)
    made.globals.update(track=track, tracks=tracks, stacked=stacked, dash=DASH)
    return made
