"""One command at work on one run folder: plan it, carry it out, and say what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import manifest, plan, progress, store
from harness.blueprint import Blueprint, Cell, widened
from harness.config import Models, Preset
from harness.execute import Execution
from harness.listing import show_plan
from harness.workers import Settings

#: Stages after which the manifest knows more.
_TELLING = ("questions", "model")


class Session:
    """One selection of one preset, in one folder.

    Args:
        root: the run folder.
        preset: the experiment.
        models: given or trained.
        limit: whole clusters per protocol, or None for the preset's.
        wanted: the cells asked for.
        console: where to speak.
        data_root: the folder with the published data sets, for protocols that read one.
    """

    def __init__(
        self,
        root: Path,
        preset: Preset,
        models: Models,
        limit: int | None,
        wanted: Sequence[Cell],
        console: Console,
        data_root: Path | None = None,
    ) -> None:
        self.root = root
        self.preset = preset
        self.console = console
        self._models, self._limit, self._wanted, self._data_root = models, limit, wanted, data_root

    def _plan(self) -> tuple[Blueprint, list[plan.Stage], set[str]]:
        wanted = widened(self.root, self.preset, self._models, self._limit, self._wanted, self._data_root)
        blueprint = Blueprint(self.preset, self._models, self._limit, wanted, self._data_root)
        stages = blueprint.stages()
        return blueprint, stages, plan.survey(self.root, stages)

    def show(self) -> None:
        """Print what :meth:`run` would do; writes nothing."""
        _, stages, done = self._plan()
        show_plan(self.console, stages, done, self.preset.workers)

    def run(self, device: Literal["cpu", "cuda"], overrides: Mapping[str, object], command: str) -> None:
        """Do what is not done yet.

        Raises:
            UserError: when the folder is in use or not ours, a complete file was changed, or a stage refuses its input.
            StageError: when a stage fails.
        """
        with store.locked(self.root, self.preset.name):
            blueprint, stages, done = self._plan()
            if len(done) == len(stages):
                self._say(f"nothing to do: {len(stages)} stages up to date")
                self._conclude(blueprint)
                return

            def record(stage: plan.Stage | None) -> None:
                if stage is None or stage.kind in _TELLING:
                    manifest.write(self.root, manifest.build(self.root, blueprint, device, overrides, command))

            record(None)
            self._say(f"{len(stages) - len(done)} of {len(stages)} stages to do in {self.root}")
            settings = Settings(self.root, device, self.preset.threads)
            with progress.display(self.console, stages, done, self.preset.workers) as watcher:
                Execution(stages, done, settings, self.preset.workers, watcher, record).run()
            self._conclude(blueprint)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _conclude(self, blueprint: Blueprint) -> None:
        """Print the main numbers and where the report is."""
        suffixes = sorted({name.partition("@")[2] for name in blueprint.protocols})
        self._say(f"{blueprint.preset.title}: values, protocols {', '.join(suffixes)} (intervals are in the report)")
        self.console.print(main_table(self.root, blueprint))
        page = self.root / "report" / "index.html"
        self._say(f"report: {page} (and report.md, report.tex beside it)")


def main_table(root: Path, blueprint: Blueprint) -> Table:
    """Return students x protocols, values only, from ``scores.parquet``; intervals and caveats are the report's."""
    import pandas as pd

    import tasks
    from tasks.aggregate import aggregate

    scores = pd.read_parquet(root / "scores.parquet")
    protocols = [tasks.protocol(name) for name in blueprint.protocols]
    suffixes = {protocol.name.partition("@")[2] for protocol in protocols}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("student", no_wrap=True)
    for protocol in protocols:
        table.add_column(protocol.benchmark if len(suffixes) == 1 else protocol.name, justify="right", overflow="fold")
    for name in dict.fromkeys(cell.name for cell in blueprint.cells):
        row: list[str | Text] = [Text(name)]
        for protocol in protocols:
            part = scores[(scores["student"] == name) & (scores["protocol"] == protocol.name)]
            values = [aggregate(rows, protocol.aggregation) for _, rows in part.groupby("seed", dropna=False)]
            row.append(f"{sum(values) / len(values):.1f}" if values else "-")
        table.add_row(*row)
    return table
