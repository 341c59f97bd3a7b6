"""``python -m harness.report``: tables, figures and pages again from run folders, without training or evaluating."""

from __future__ import annotations

import contextlib
import os
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

Several runs stand side by side in one report: tables say which row is whose, and each later run is set against the first.

Examples:

  python -m harness.report --run runs/miniature --format md,html

  python -m harness.report --run runs/miniature --layout paper-2 --layout accuracy --out report

  python -m harness.report --run runs/monday --run runs/tuesday
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Runs = Annotated[list[Path] | None, typer.Option("--run", help="A run folder; several stand side by side.")]
Layouts = Annotated[list[str] | None, typer.Option("--layout", help="A table of reports/layouts; repeatable.")]
Formats = Annotated[str, typer.Option("--format", help="A comma list of md, tex, html.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Where to write. Default: RUN/report, for several runs RUN/report-with-OTHERS in the first."),
]


@app.command(help=_HELP)
def report(run: Runs = None, layout: Layouts = None, formats: Formats = "md,tex,html", out: Out = None) -> None:
    """Parse the command line and build."""
    offline()
    if not run:
        raise UserError("--run is missing: name a run folder, such as --run runs/miniature")
    wanted = tuple(part.strip() for part in formats.split(","))
    for name in wanted:
        if name not in FORMATS:
            raise unknown("format", name, FORMATS)
    roots = [folder.expanduser().resolve() for folder in run]
    with contextlib.ExitStack() as locks:
        for root in dict.fromkeys(roots):
            locks.enter_context(store.locked(root, store.read_preset(root)))
        if len(roots) == 1 and out is None:
            written = _rebuild(roots[0], wanted, layout)
        else:
            written = _beside(roots, wanted, layout, out)
    for path in written:
        cli.console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _options(formats: tuple[str, ...], layouts: list[str] | None) -> list[str]:
    """What else the command line needs, so that the same report is made again."""
    chosen = [] if set(formats) == set(FORMATS) else ["--format", ",".join(formats)]
    return chosen + [part for name in layouts or () for part in ("--layout", name)]


def _beside(roots: list[Path], formats: tuple[str, ...], layouts: list[str] | None, out: Path | None) -> list[Path]:
    """Write a report that belongs to no single run, or elsewhere; the runs themselves stay as they are."""
    from reports.build import build

    options = _options(formats, layouts)
    if out is not None:
        out = out.expanduser().resolve()
        options += ["--out", os.path.relpath(out, roots[0].parent)]
    return build(roots, formats=formats, layouts=layouts, out=out, options=options, processes=2)


def _rebuild(root: Path, formats: tuple[str, ...], layouts: list[str] | None) -> list[Path]:
    """Write the report and keep the ledger true: a whole report stays complete, a partial one is finished by the next run."""
    from reports.build import build

    entry = store.read_entry(root, _STAGE)
    if entry is None or set(formats) != set(FORMATS) or layouts:
        store.forget(root, _STAGE)
        return build(root, formats=formats, layouts=layouts, options=_options(formats, layouts), processes=2)
    started = time.monotonic()
    store.begin(root, _STAGE, entry.digest, (_STAGE,), resumes=False)
    target = store.partial(root, _STAGE)
    written = [path.relative_to(target) for path in build(root, formats=formats, out=target, processes=2)]
    store.commit(root, _STAGE, entry.digest, entry.version, (_STAGE,), time.monotonic() - started)
    return [root / _STAGE / path for path in written]


if __name__ == "__main__":
    cli.main(app, MODULE)
