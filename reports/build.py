"""From run folders to a report: tables, figures, Markdown, LaTeX and one HTML page. No model, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from harness.base import atomic_path, unknown, write_text
from reports import drawn, explorer, markup, page, provenance, runs, runs_apart, tables
from reports.conclusions import conclusions
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates
from reports.sentences import Conclusion
from reports.statistics import LEVEL, RESAMPLES
from reports.tables import Computed, Layout, Table

FORMATS = ("md", "tex", "html")


@dataclass(frozen=True)
class Part:
    """A table in its place; where ``missing`` is a sentence, that sentence stands there instead."""

    name: str
    title: str
    caption: str
    table: Table | None = None
    missing: str | None = None


def build(
    run: Path | Sequence[Path],
    formats: Sequence[str] = FORMATS,
    layouts: Sequence[str] | None = None,
    *,
    out: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    options: Sequence[str] = (),
    processes: int = 1,
) -> list[Path]:
    """Write the report of a run folder, or one report of several, and return the files.

    Args:
        run: the run folder, or several, which then stand side by side; formats: any of md, tex, html (CSV and figures are
            always written).
        layouts: names of table layouts, default all; out: where to write, default :func:`folder_of`.
        resamples, seed: of the bootstrap; options: of the command that makes this report again, beside ``--run``.
        processes: 2 to draw figures in a second process beside the tables; the files are the same.

    Raises:
        UserError: an unknown format or layout, a folder that is not a run, a damaged file (named), runs that must not
            stand side by side.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("report format", name, FORMATS)
    chosen = tables.layouts(layouts)
    folders = [run] if isinstance(run, Path) else list(run)
    loaded = runs.load(folders)
    made = [Estimates(one, resamples, seed, LEVEL) for one in loaded]
    target = folder_of(folders) if out is None else Path(out)
    easel = drawn.Easel(tuple(made), target / "figures", dark="html" in formats)
    with drawn.figures(folders, easel, processes) as figures:
        found = {name: _table(name, layout, made, asked=layouts is not None) for name, layout in chosen.items()}
        for name in [name for name, part in found.items() if part is None or part.table is None]:
            _remove_stale(target / "tables", [f"{name}.{ext}" for ext in ("csv", "md", "tex")])
        shown = [*_apart(made), *(part for part in found.values() if part is not None)]
        samples = explorer.write(loaded, target) if "html" in formats else {"files": []}
        done = figures.finish()
    written = [path for figure in done for path in figure.files] + _table_files(shown, formats, target / "tables")
    context = _context(made, shown, [figure for figure in done if figure.concerns], options)
    if "md" in formats:
        written.append(_write(target / "report.md", markup.markdown_environment(), "report.md.jinja", context))
    if "tex" in formats:
        written.append(_write(target / "report.tex", markup.tex_environment(), "report.tex.jinja", context))
    if "html" in formats:
        written += samples["files"]
        environment = page.html_environment()
        written.append(_write(target / "index.html", environment, "index.html.jinja", {**context, "explorer": samples}))
    return written


def folder_of(folders: Sequence[Path]) -> Path:
    """Return where the report goes: ``RUN/report``, or for several ``RUN/report-with-OTHERS`` in the first."""
    others = "-and-".join(Path(folder).resolve().name for folder in folders[1:])
    return Path(folders[0]) / (f"report-with-{others}" if others else "report")


# ---- tables ----------------------------------------------------------------------------------------------------------------


def _table(name: str, layout: Layout | Computed, made: Sequence[Estimates], asked: bool) -> Part | None:
    """A table, or the sentence in its place; None for one that concerns no run, unless it was asked for."""
    found: list[Table] = []
    lost: list[str] = []
    concerned = False
    for estimates in made:
        try:
            found.append(tables.build(name, layout, estimates))
        except Missing as missing:
            lost.append(f"`{estimates.run.name}`: {missing}" if len(made) > 1 else str(missing))
            concerned |= not isinstance(missing, Irrelevant)
    if found:
        table = runs.merge(found)
        table = replace(table, notes=(*lost, *table.notes)) if concerned else table
        return Part(name, table.title, layout.caption, table=table)
    return Part(name, layout.title, layout.caption, missing=" ".join(lost)) if concerned or asked else None


def _apart(made: Sequence[Estimates]) -> list[Part]:
    """Every other run minus the first one."""
    parts = []
    for estimates in made[1:]:
        first, name = made[0], f"runs-{estimates.run.slug}-minus-{made[0].run.slug}"
        try:
            table = runs_apart.build(name, first, estimates)
        except Missing as missing:
            title = runs_apart.TITLE.format(a=first.run.name, b=estimates.run.name)
            parts.append(Part(name, title, runs_apart.CAPTION, missing=str(missing)))
        else:
            parts.append(Part(name, table.title, table.caption, table=table))
    return parts


def _table_files(parts: Sequence[Part], formats: Sequence[str], folder: Path) -> list[Path]:
    written = []
    for part in parts:
        if part.table is None:
            continue
        path = folder / f"{part.name}.csv"
        write_text(path, part.table.frame().to_csv(index=False))
        written.append(path)
        context: dict[str, Any] = {"part": part}
        if "md" in formats:
            written.append(_write(folder / f"{part.name}.md", markup.markdown_environment(), "table.md.jinja", context))
        if "tex" in formats:
            written.append(_write(folder / f"{part.name}.tex", markup.tex_environment(), "table.tex.jinja", context))
    return written


def _remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Delete what an older report left: it would contradict the sentence that stands in its place, or the silence."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


# ---- what all formats share ------------------------------------------------------------------------------------------------


def _context(
    made: Sequence[Estimates], shown: Sequence[Part], figures: Sequence[drawn.Drawn], options: Sequence[str]
) -> dict[str, Any]:
    loaded = [estimates.run for estimates in made]
    first = loaded[0]
    title = provenance.lead(first) if len(made) == 1 else f"{', '.join(run.name for run in loaded[:-1])} and {loaded[-1].name}"
    descriptions = dict.fromkeys(" ".join(run.manifest.preset.description.split()) for run in loaded)
    return {
        "title": title if len(made) == 1 or not first.suite else f"{title} ({first.suite})",
        "description": " ".join(descriptions),
        "suite": first.suite,
        "facts": provenance.facts(loaded),
        "conclusions": provenance.ordered(_conclusions(made)),
        "tables": shown,
        "figures": figures,
        "provenance": [line for e in made for line in provenance.told(e.run, e.resamples, several=len(made) > 1)],
        "origins": [provenance.origin(run) for run in loaded],
        "made_by": [(run.name, provenance.made_by(run)) for run in loaded],
        "regenerate": provenance.regenerate(loaded, options),
    }


def _conclusions(made: Sequence[Estimates]) -> list[Conclusion]:
    """What each run says and, where there are several, how they differ; what is true of every run is said once."""
    if len(made) == 1:
        return conclusions(made[0])
    out = [c for estimates in made[1:] for c in runs_apart.conclusions(made[0], estimates)]
    each = [conclusions(estimates) for estimates in made]
    for estimates, found in zip(made, each, strict=True):
        for c in found:
            shared = all(c in others for others in each)
            told = c if shared else replace(c, text=f"Run `{estimates.run.name}`: {c.text}")
            out += [told] if told not in out else []
    return out


def _write(target: Path, environment: jinja2.Environment, template: str, context: dict[str, Any]) -> Path:
    text = environment.get_template(template).render(**context)
    with atomic_path(target) as path:
        path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return target
