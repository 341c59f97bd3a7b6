"""Templates and escapes: the same report in Markdown, LaTeX and HTML. Nothing that comes from data is trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from reports.escape import breakable as breakable
from reports.escape import markdown as markdown
from reports.escape import markdown_code as markdown_code
from reports.escape import prose_html as prose_html
from reports.escape import prose_markdown as prose_markdown
from reports.escape import prose_tex as prose_tex
from reports.escape import tex as tex
from reports.escape import tex_code as tex_code
from reports.frames import Run
from reports.notes import DASH
from reports.sentences import Conclusion
from reports.tables import Cell, Column, Row, Table

TEMPLATES = Path(__file__).parent / "templates"
#: Rows of a LaTeX table that fit on one page of paper with their caption and notes.
MOST_ROWS = 32
#: Students that are named beside one reply before the rest is counted.
MOST_NAMED = 8

# ---- tables ----------------------------------------------------------------------------------------------------------------


def stacked(column: Column) -> list[str]:
    """Cut what stands under a column's name where a narrow head may break: unit, questions, clusters."""
    return [line.strip() for line in re.split(r", (?=n = )|(?= \()", column.under)]


def tex_head(column: Column) -> str:
    """A column's head, stacked: its name, and what is measured on how many questions in small print."""
    under = [rf"\tiny {tex(line)}" for line in stacked(column)]
    return r"\shortstack{" + r"\\[-1pt]".join([*map(tex, column.label.split(" ", 1)), *under]) + "}"


def tex_size(label: str) -> str:
    """Return the size of a row's label: long recipes would push the last column off the paper."""
    return r"\scriptsize" if len(label) <= 26 else r"\tiny"


def tex_pages(table: Table) -> list[Sequence[Row]]:
    """Cut a long table into parts of equal length that fit on a page each; LaTeX cannot break a float."""
    parts = -(-len(table.rows) // MOST_ROWS)
    size = -(-len(table.rows) // parts)
    return [table.rows[k : k + size] for k in range(0, len(table.rows), size)]


def markdown_table(table: Table) -> str:
    """Return a table whose columns align in the raw text too."""

    def shown(cell: Cell | None) -> str:
        if cell is None:
            return DASH
        value = f"**{cell.text}**" if cell.marked else cell.text
        return value if cell.span is None else "; ".join([f"{value} {cell.span}", *cell.detail])

    def label(row: Row) -> str:
        name = markdown(row.label) if row.kind == "reference" else markdown_code(row.label)
        about = f" {markdown(row.about)}" if row.about else ""
        return name + ("" if row.minus is None else f" − {markdown_code(row.minus)}") + about

    lines = [["", "seeds", *(markdown(c.label) for c in table.columns)]]
    lines.append(["", "", *(markdown(c.under) for c in table.columns)])
    lines.extend([label(row), row.seeds, *(shown(c) for c in row.cells)] for row in table.rows)
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]

    def drawn(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return "| " + " | ".join([first, *(text.rjust(w) for text, w in zip(line[1:], widths[1:], strict=True))]) + " |"

    return "\n".join([drawn(lines[0]), drawn(rule), *(drawn(line) for line in lines[1:])])


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


def _environment(**options: Any) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def html_environment() -> jinja2.Environment:
    """Autoescape on for everything."""
    environment = _environment(autoescape=True)
    environment.filters.update(prose=prose_html, breakable=breakable)
    environment.globals.update(track=track, tracks=_tracks, stacked=stacked, dash=DASH, most_named=MOST_NAMED)
    return environment


def markdown_environment() -> jinja2.Environment:
    """No autoescape: the templates call the Markdown filters."""
    environment = _environment(autoescape=False, keep_trailing_newline=True)
    environment.filters.update(md=markdown, code=markdown_code, prose=prose_markdown, table=markdown_table)
    return environment


def tex_environment() -> jinja2.Environment:
    """Delimiters that LaTeX does not use."""
    environment = _environment(
        autoescape=False, keep_trailing_newline=True,
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    environment.filters.update(tex=tex, code=tex_code, prose=prose_tex)
    environment.globals.update(tex_head=tex_head, tex_pages=tex_pages, tex_size=tex_size, dash=DASH)
    return environment


# ---- what every format shows -----------------------------------------------------------------------------------------------


def provenance(run: Run, resamples: int) -> list[tuple[str, str]]:
    """Where the numbers come from; "not recorded" where the manifest is silent."""
    m = run.manifest
    unknown = "not recorded"
    given = m.command if isinstance(m.command, str) else " ".join(m.command or ())
    data = ", ".join(f"{k} {v}" for k, v in m.preset.data.items())
    weights = ", ".join(f"{k} {str(v)[:12]}" for k, v in m.weights.items())
    protocols = "; ".join(
        f"{p.name} version {p.version}, data {(m.protocols[p.name].digest or unknown)[:12]}" for p in run.protocols
    )
    return [
        ("Run", f"{run.folder.name} (preset {m.preset.name})"),
        ("Manifest digest", run.digest[:16]),
        ("Harness commit", m.git_commit or unknown),
        ("Protocols", protocols or unknown),
        ("Training data", data or unknown),
        ("Weights", weights or unknown),
        ("Limit", "none" if m.limit is None else f"first {m.limit} clusters of every benchmark"),
        ("Changed by hand", ", ".join(f"{k} {v}" for k, v in m.overrides.items()) or "nothing"),
        ("Software", ", ".join(f"{k} {v}" for k, v in m.versions.items()) or unknown),
        ("Hardware", ", ".join(f"{k} {v}" for k, v in m.hardware.items()) or unknown),
        ("Threads per student", unknown if m.threads is None else str(m.threads)),
        ("Seeds", ", ".join(str(s) for s in m.seeds) or "none, nothing was trained"),
        ("Resamples", f"{resamples:,}"),
        ("Made by", given or unknown),
    ]


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a handful of numbers, for the head of the page."""
    counts = [("student", len(run.manifest.students)), ("benchmark", len(run.protocols))]
    if run.scores is not None:
        counts.append(("question", len(run.scores.drop_duplicates(["protocol", "id"]))))
    counts.append(("seed", len(run.manifest.seeds)))
    if not run.manifest.students:
        counts = [("model", len(run.kinds)), *counts[1:-1]]
    return [(word if n == 1 else f"{word}s", f"{n:,}") for word, n in counts]


def lead(run: Run) -> str:
    """The title of the report."""
    title = run.manifest.preset.title
    return f"{title} ({run.suite})" if run.suite and "miniature" not in title.lower() else title


def ordered(found: Sequence[Conclusion]) -> list[Conclusion]:
    """Findings first, caveats last, otherwise as given."""
    return [c for c in found if c.verdict != "caveat"] + [c for c in found if c.verdict == "caveat"]
