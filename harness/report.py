"""``python -m harness.report``: tables, figures and pages again from a run folder, without training or evaluating."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from harness import cli, store
from harness.base import UserError, offline, unknown

MODULE = "harness.report"
FORMATS = ("md", "tex", "html")
_STAGE = "report"  # also its target
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
    for folder in run:
        root = folder.expanduser().resolve()
        with store.locked(root, store.read_preset(root)):
            for path in _rebuild(root, wanted, layout):
                cli.console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _rebuild(root: Path, formats: tuple[str, ...], layouts: list[str] | None) -> list[Path]:
    """Write the report and keep the ledger true: a whole report stays complete, a partial one is finished by the next run."""
    from reports.build import build

    entry = store.read_entry(root, _STAGE)
    if entry is None or set(formats) != set(FORMATS) or layouts:
        store.forget(root, _STAGE)
        return build(root, formats=formats, layouts=layouts)
    started = time.monotonic()
    store.begin(root, _STAGE, entry.digest, (_STAGE,), resumes=False)
    target = store.partial(root, _STAGE)
    written = [path.relative_to(target) for path in build(root, formats=formats, out=target)]
    store.commit(root, _STAGE, entry.digest, entry.version, (_STAGE,), time.monotonic() - started)
    return [root / _STAGE / path for path in written]


if __name__ == "__main__":
    cli.main(app, MODULE)
