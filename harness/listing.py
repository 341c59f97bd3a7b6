"""``--list`` and ``--dry-run``: what there is, and what a command would do."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

import tasks
from harness.config import Preset, load_preset, load_recipe, load_variant, preset_names, variant_names
from harness.plan import Stage
from harness.progress import duration
from students import registry
from students.recipe import SHORT


def _module_line(folder: str, name: str) -> str:
    """Return the first line of a module's docstring without importing it (the modules import torch)."""
    source = Path(registry.__file__).parent / folder / f"{name}.py"
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def _section(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(f"  {name}"), Text(" ".join(text.split())))
    console.print(table)
    console.print()


def show_all(console: Console, preset: Preset) -> None:
    """Print presets, the preset's recipes and protocols, and what recipes can be made of."""
    _section(console, "Presets (--preset)", ((name, load_preset(name).title) for name in preset_names()))
    recipes = [load_recipe(word) for word in preset.recipes]
    described = []
    for recipe in recipes:
        weighting = f"weighting {recipe.weighting}" if recipe.weighting else "one channel alone"
        variant = f": {load_variant(recipe.variant).description}" if recipe.variant else ""
        described.append((recipe.name, f"{', '.join(recipe.channels)}; {weighting}{variant}"))
    _section(console, f"Students of preset {preset.name} (--students)", described)
    channels = [("ce", "Cross-entropy with the labels.")]
    channels += [(name, _module_line("energies", name)) for name in registry.names("energies")]
    _section(console, "Channels of a recipe: channel(+channel)*[@weighting[@variant]]", channels)
    short = {long: word for word, long in SHORT.items()}
    weightings = [(short.get(n, n), _module_line("weightings", n)) for n in registry.names("weightings")]
    _section(console, "Weightings", weightings)
    _section(console, "Variants", ((name, load_variant(name).description) for name in variant_names()))
    title = f"Protocols (--tasks; * = of preset {preset.name}, also by benchmark)"
    show_protocols(console, title, set(preset.protocols))


def show_protocols(console: Console, title: str = "Protocols (--protocol)", mine: Collection[str] = ()) -> None:
    """Print every protocol with its description; those of ``mine`` get a star."""
    protocols = [(name, tasks.protocol(name)) for name in tasks.names()]
    described = [(name + (" *" if name in mine else ""), f"{each.title}: {each.description}") for name, each in protocols]
    _section(console, title, described)
    scores = [tasks.derived(name) for name in tasks.derived_names()]
    _section(console, "Derived scores", ((each.name, f"{each.title}: {each.description}") for each in scores))


def show_plan(console: Console, stages: Sequence[Stage], done: set[str], workers: int, timed: bool = True) -> None:
    """Print every stage, done or to do, and an estimate of the time unless it is not to be ``timed``."""
    for stage in stages:
        word = "done " if stage.id in done else "to do"
        console.print(f"{word}  {stage.label}", highlight=False, markup=False, soft_wrap=True)
    todo = [s for s in stages if s.id not in done]
    if not todo:
        console.print(f"nothing to do: {len(stages)} stages up to date")
        return
    if not timed:
        console.print(f"{len(todo)} of {len(stages)} stages to do", highlight=False)
        return
    estimate = duration(estimated_seconds(stages, done, workers))
    console.print(f"{len(todo)} of {len(stages)} stages to do, about {estimate} with {workers} worker(s)", highlight=False)


def estimated_seconds(stages: Sequence[Stage], done: set[str], workers: int) -> float:
    """Return the cost of what is to do, spread over the workers; never less than the longest chain of kinds."""
    todo = [s for s in stages if s.id not in done]
    longest: dict[str, float] = {}
    for stage in todo:
        longest[stage.kind] = max(longest.get(stage.kind, 0.0), stage.cost)
    return max(sum(s.cost for s in todo) / workers, sum(longest.values()))
