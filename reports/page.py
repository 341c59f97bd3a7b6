"""Templates and escapes: the same report in Markdown, LaTeX and HTML. Nothing that comes from data is trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from reports.frames import Run
from reports.notes import DASH
from reports.sentences import Conclusion
from reports.tables import Cell, Column, Row, Table

TEMPLATES = Path(__file__).parent / "templates"
#: Rows of a LaTeX table that fit on one page of paper with their caption and notes.
MOST_ROWS = 32
#: Students that are named beside one reply before the rest is counted.
MOST_NAMED = 8

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "β": r"$\beta$", "|": r"\textbar{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "λ": r"$\lambda$", '"': r"\textquotedbl{}", "§": r"\S{}",
    "ρ": r"$\rho$", "±": r"$\pm$",
}  # fmt: skip


def tex(text: object) -> str:
    """Escape for LaTeX text."""
    return "".join(_TEX.get(c, c) for c in str(text))


def tex_code(text: object) -> str:
    """Set a name in typewriter, breakable after ``+`` and ``@``; a quote character needs no T1 font there."""
    safe = "".join("{\\textquotedbl}" if c == '"' else _TEX.get(c, c) for c in str(text))
    return r"\texttt{" + re.sub(r"([+@])", r"\1\\allowbreak{}", safe) + "}"


def markdown(text: object) -> str:
    """Escape for Markdown running text and table cells; one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def markdown_code(text: object) -> str:
    """Set a name as code; a pipe would end a table cell even there."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    fence = "``" if "`" in flat else "`"
    return f"{fence}{flat}{fence}"


def _with_code(text: str, plain: Any, code: Any) -> str:
    """Treat what stands between backticks as code and the rest as text."""
    parts = str(text).split("`")
    return "".join(str(code(p) if k % 2 else plain(p)) for k, p in enumerate(parts))


def prose_markdown(text: str) -> str:
    """Escape a sentence with `names` for Markdown."""
    return _with_code(text, lambda p: re.sub(r"([\\*_<>|#])", r"\\\1", p), markdown_code)


def prose_tex(text: str) -> str:
    """Escape a sentence with `names` for LaTeX."""
    return _with_code(text, tex, tex_code)


def _breakable(text: object) -> Markup:
    """Escape a name for HTML and let long recipes break after + and @."""
    return Markup(re.sub(r"([+@])", r"\1<wbr>", str(escape(text))))


def prose_html(text: str) -> Markup:
    """Escape a sentence with `names` for HTML."""
    return Markup(_with_code(text, escape, lambda p: f"<code>{_breakable(p)}</code>"))


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
    environment.filters.update(prose=prose_html, breakable=_breakable)
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
