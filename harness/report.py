"""``python -m harness.report``: tables, figures and pages again from a run folder, without training or evaluating."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import cli, store
from harness.base import UserError, offline, unknown

MODULE = "harness.report"
FORMATS = ("md", "tex", "html")
_HELP = """Write the report of a run again: tables, figures, Markdown, LaTeX and HTML, from its files alone.

Example:

  python -m harness.report --run runs/miniature --format md,html
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Runs = Annotated[list[Path] | None, typer.Option("--run", help="A run folder; may be given several times.")]
Layouts = Annotated[list[str] | None, typer.Option("--layout", help="A table of reports/layouts; repeatable.")]
Formats = Annotated[str, typer.Option("--format", help="A comma list of md, tex, html.")]


@app.command(help=_HELP)
def report(run: Runs = None, layout: Layouts = None, formats: Formats = "md,tex,html") -> None:
    """Parse the command line and build."""
    offline()
    if not run:
        raise UserError("--run is missing: name a run folder, such as --run runs/miniature")
    wanted = tuple(part.strip() for part in formats.split(","))
    for name in wanted:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    from reports.build import build

    for folder in run:
        root = folder.expanduser().resolve()
        with store.locked(root, store.read_preset(root)):
            for path in build(root, formats=wanted, layouts=layout):
                cli.console.print(str(path), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    cli.main(app, MODULE)
