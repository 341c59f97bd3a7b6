"""From a run folder to its report: tables, figures, Markdown, LaTeX and one HTML page. No model, no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base import atomic_path, unknown, write_text
from reports import explorer, frames, markup, page, provenance, tables
from reports.conclusions import conclusions
from reports.figures import Drawing, drawings, style
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates
from reports.notes import seeds_note
from reports.statistics import LEVEL, RESAMPLES
from reports.tables import Computed, Layout, Table

FORMATS = ("md", "tex", "html")


@dataclass(frozen=True)
class Part:
    """A table or a figure in its place; where ``missing`` is a sentence, that sentence stands there instead."""

    name: str
    title: str
    caption: str
    table: Table | None = None
    missing: str | None = None


def build(
    run: Path,
    formats: Sequence[str] = FORMATS,
    layouts: Sequence[str] | None = None,
    *,
    out: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Path]:
    """Write the report of a run folder and return the files.

    Args:
        run: the run folder; formats: any of md, tex, html (CSV and figures are always written).
        layouts: names of table layouts, default all; out: where to write, default ``run/report``.
        resamples, seed: of the bootstrap.

    Raises:
        UserError: an unknown format or layout, a folder that is not a run, a damaged file (named).
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown("report format", name, FORMATS)
    chosen = tables.layouts(layouts)
    loaded = frames.load(Path(run))
    estimates = Estimates(loaded, resamples, seed, LEVEL)
    target = Path(run) / "report" if out is None else Path(out)
    found = {name: _table(name, layout, estimates, asked=layouts is not None) for name, layout in chosen.items()}
    for name in [name for name, part in found.items() if part is None or part.table is None]:
        _remove_stale(target / "tables", [f"{name}.{ext}" for ext in ("csv", "md", "tex")])
    shown = [part for part in found.values() if part is not None]
    drawn, written = _figures(estimates, target / "figures", dark="html" in formats)
    written += _table_files(shown, formats, target / "tables")
    context = _context(estimates, shown, drawn)
    if "md" in formats:
        written.append(_write(target / "report.md", markup.markdown_environment(), "report.md.jinja", context))
    if "tex" in formats:
        written.append(_write(target / "report.tex", markup.tex_environment(), "report.tex.jinja", context))
    if "html" in formats:
        context = {**context, "explorer": explorer.write(loaded, target)}
        written.extend(context["explorer"]["files"])
        written.append(_write(target / "index.html", page.html_environment(), "index.html.jinja", context))
    return written


def _table(name: str, layout: Layout | Computed, estimates: Estimates, asked: bool) -> Part | None:
    """A table, or the sentence in its place; None for one that does not concern the run, unless it was asked for."""
    try:
        table = tables.build(name, layout, estimates)
    except Irrelevant as irrelevant:
        return Part(name, layout.title, layout.caption, missing=str(irrelevant)) if asked else None
    except Missing as missing:
        return Part(name, layout.title, layout.caption, missing=str(missing))
    return Part(name, table.title, layout.caption, table=table)


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


def _figures(estimates: Estimates, folder: Path, dark: bool) -> tuple[list[Part], list[Path]]:
    parts: list[Part] = []
    written: list[Path] = []
    for drawing in drawings():
        title = tables.titled(drawing.title, estimates.run)
        try:
            written.extend(_draw(drawing, estimates, folder, dark))
        except Missing as missing:
            if not isinstance(missing, Irrelevant):
                parts.append(Part(drawing.name, title, drawing.caption, missing=str(missing)))
            _remove_stale(folder, [f"{drawing.name}{end}" for end in (".png", ".pdf", "-dark.png")])
        else:
            said = [drawing.caption, *drawing.notes(estimates), seeds_note(estimates.run, covered=False)]
            parts.append(Part(drawing.name, title, " ".join(said)))
    return parts, written


def _remove_stale(folder: Path, names: Sequence[str]) -> None:
    """Delete what an older report left: it would contradict the sentence that stands in its place, or the silence."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _draw(drawing: Drawing, estimates: Estimates, folder: Path, dark: bool) -> list[Path]:
    """PNG and PDF on white paper, and a PNG for pages that are read in the dark."""
    targets = [(style.LIGHT, [f"{drawing.name}.png", f"{drawing.name}.pdf"])]
    if dark:
        targets.append((style.DARK, [f"{drawing.name}-dark.png"]))
    written = []
    for theme, names in targets:
        with style.use(theme):
            figure = drawing.draw(estimates, theme)
            for name in names:
                style.save(figure, folder / name)
                written.append(folder / name)
    return written


def _context(estimates: Estimates, shown: Sequence[Part], drawn: Sequence[Part]) -> dict[str, Any]:
    run = estimates.run
    return {
        "title": provenance.lead(run),
        "description": " ".join(run.manifest.preset.description.split()),
        "suite": run.suite,
        "facts": provenance.facts(run),
        "conclusions": provenance.ordered(conclusions(estimates)),
        "tables": shown,
        "figures": drawn,
        "provenance": provenance.told(run, estimates.resamples),
        "regenerate": provenance.regenerate([run]),
        "digest": run.digest[:16],
        "run_name": run.name,
    }


def _write(target: Path, environment: Any, template: str, context: dict[str, Any]) -> Path:
    text = environment.get_template(template).render(**context)
    with atomic_path(target) as path:
        path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return target
