"""Tables and whole reports in Markdown and LaTeX: what a template is given to render them with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from reports import escape
from reports.cells import Cell, Column, Row, Table
from reports.notes import DASH

TEMPLATES = Path(__file__).parent / "templates"
#: Rows of a LaTeX table that fit on one page of paper with their caption and notes.
MOST_ROWS = 32


def stacked(column: Column) -> list[str]:
    """Cut what stands under a column's name where a narrow head may break: unit, questions, clusters."""
    return [line.strip() for line in re.split(r", | / |(?= \()", column.under)]


def tex_head(column: Column) -> str:
    """A column's head, stacked: its name, and what is measured on how many questions in small print."""
    under = [rf"\tiny {escape.tex(line)}" for line in stacked(column)]
    return r"\shortstack{" + r"\\[-1pt]".join([*map(escape.tex, column.label.split(" ", 1)), *under]) + "}"


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
        return "; ".join([value if cell.span is None else f"{value} {cell.span}", *cell.detail])

    def label(row: Row) -> str:
        name = escape.markdown(row.label) if row.kind == "reference" else escape.markdown_code(row.label)
        about = f" {escape.markdown(row.about)}" if row.about else ""
        return name + ("" if row.minus is None else f" − {escape.markdown_code(row.minus)}") + about

    runs = [""] if table.several else []
    lines = [[*(["run"] if runs else []), "", "seeds", *(escape.markdown(c.label) for c in table.columns)]]
    lines.append([*runs, "", "", *(escape.markdown(c.under) for c in table.columns)])
    for row in table.rows:
        first = [escape.markdown_code(row.run)] if runs else []
        lines.append([*first, label(row), row.seeds, *(shown(c) for c in row.cells)])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    left = 1 + len(runs)
    rule = ["-" * w for w in widths[:left]] + ["-" * (w - 1) + ":" for w in widths[left:]]

    def drawn(line: Sequence[str]) -> str:
        padded = [text.ljust(w) if k < left else text.rjust(w) for k, (text, w) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([drawn(lines[0]), drawn(rule), *(drawn(line) for line in lines[1:])])


def environment(**options: Any) -> jinja2.Environment:
    """Templates of this package; an undefined name is an error."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def markdown_environment() -> jinja2.Environment:
    """No autoescape: the templates call the Markdown filters."""
    made = environment(autoescape=False, keep_trailing_newline=True)
    made.filters.update(md=escape.markdown, code=escape.markdown_code, prose=escape.prose_markdown, table=markdown_table)
    made.filters.update(oneline=lambda text: " ".join(str(text).split()))
    return made


def tex_environment() -> jinja2.Environment:
    """Delimiters that LaTeX does not use."""
    made = environment(
        autoescape=False, keep_trailing_newline=True,
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    made.filters.update(tex=escape.tex, code=escape.tex_code, prose=escape.prose_tex)
    made.globals.update(tex_head=tex_head, tex_pages=tex_pages, tex_size=tex_size, dash=DASH)
    return made
