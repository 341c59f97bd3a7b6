"""The HTML page's template and the axes in its tables."""

from __future__ import annotations

import jinja2

from reports.escape import breakable, prose_html
from reports.markup import environment, stacked
from reports.notes import DASH
from reports.tables import Cell, Table

# ---- tables ----------------------------------------------------------------------------------------------------------------


def _tracks(table: Table) -> list[tuple[float, float]]:
    """The range of each column's little interval axis; symmetric about zero for differences."""
    out = []
    for k in range(len(table.columns)):
        cells = [row.cells[k] for row in table.rows if row.kind != "reference" or _spans(row.cells[k])]
        ends = [x for c in cells if c for x in (c.value, c.low, c.high) if x is not None]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        if table.difference:
            low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        out.append((low, high) if high > low else (low - 1.0, high + 1.0))
    return out


def _spans(cell: Cell | None) -> bool:
    return cell is not None and cell.span is not None


def track(cell: Cell, limits: tuple[float, float]) -> dict[str, str]:
    """Positions in percent of a cell's interval on its column's axis."""
    low, high = limits

    def place(x: float) -> str:
        return f"{100.0 * (x - low) / (high - low):.2f}%"

    ends = (cell.value if cell.low is None else cell.low, cell.value if cell.high is None else cell.high)
    return {"low": place(ends[0]), "width": f"{100.0 * (ends[1] - ends[0]) / (high - low):.2f}%", "at": place(cell.value)}


# ---- environments ----------------------------------------------------------------------------------------------------------


def html_environment() -> jinja2.Environment:
    """Autoescape on for everything."""
    made = environment(autoescape=True)
    made.filters.update(prose=prose_html, breakable=breakable)
    made.globals.update(track=track, tracks=_tracks, stacked=stacked, dash=DASH)
    return made
