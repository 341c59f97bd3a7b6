"""One command at work on one run folder: plan it, carry it out, and say what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import caching, disk, executors, left_out, manifest, missing, needs, outlook, plan, progress, ranks, store
from harness.base import read_json
from harness.blueprint import Blueprint, Cell, widened
from harness.config import Models, Preset
from harness.execute import DiskFull, Execution, Failure, broken, error
from harness.executors.local import Local
from harness.listing import show_plan
from harness.real import Requires
from harness.sources import NOTHING_ABSENT, Absent
from harness.workers import Settings

#: Stages after which the manifest knows more.
_TELLING = ("questions", "model", "corpus", "student")
#: Kinds, and ids, of the stages that tell of all others: after a failure they tell of what there is.
_LAST = ("collect", "report")


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
        online: whether they may be fetched from the hub.
        skip_unreadable: how many images of a corpus may be unreadable.
        executor: where stages run, one of :data:`harness.executors.NAMES`.
        track: the trackers that trainings report to.
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
        online: bool = False,
        skip_unreadable: int = 0,
        executor: str = "local",
        track: tuple[str, ...] = (),
    ) -> None:
        self.root = root
        self.preset = preset
        self.console = console
        self._models, self._limit, self._wanted, self._data_root = models, limit, wanted, data_root
        self._online, self._skip_unreadable, self._executor = online, skip_unreadable, executor
        self._track = track

        self._bound = caching.bound_of(preset.cache_gb)

    def _plan(self, absent: Absent = NOTHING_ABSENT) -> tuple[Blueprint, list[plan.Stage], set[str]]:
        wanted = widened(self.root, *self._given(), self._wanted, self._data_root, absent)
        blueprint = Blueprint(*self._given(), wanted, self._data_root, absent)
        stages = blueprint.settled(self.root, blueprint.stages(), self._bound)
        found = plan.look(self.root, stages)
        for line in found.damaged:
            self._say(line)
        blueprint.training.signal.check(self.root, stages, found.done)
        return blueprint, stages, found.done

    def _given(self) -> tuple[Preset, Models, int | None]:
        return self.preset, self._models, self._limit

    def show(self, device: Literal["cpu", "cuda"]) -> None:
        """Print what :meth:`run` would do, and what it lacks; writes nothing, reaches no network."""
        lost = self.missing()
        blueprint, stages, done = self._plan(missing.absent(lost))
        if self.preset.stages or lost:
            coming = caching.to_write(self.root, stages, done, self._bound)
            outlook.show(self.console, blueprint, self.root, lost, device, coming)
        timed = not self.preset.requires.gpu  # a GPU's hours are not guessed: outlook measures them or says that it cannot
        for decision in blueprint.vision.decisions:
            self._say(f"vision tower on {decision.line}")
        for made in blueprint.rows.decisions:
            self._say(made.line)
        self._say_signal(blueprint)
        for line in caching.lines(self.root, stages, done, self._bound):
            self._say(line)
        caching.Keeper(self.root, stages, self._bound).check(done)
        width = Local(Settings(self.root, device, self.preset.threads), self.preset.workers).width
        show_plan(self.console, stages, done, width, timed)
        self._say_left_out(blueprint)

    def missing(self) -> list[missing.Missing]:
        """Return what of models and data is not on this machine."""
        protocols = list(dict.fromkeys(cell.protocol for cell in self._wanted))
        return missing.find(self.preset, self._models, protocols, self._data_root)

    def prepare(self, device: Literal["cpu", "cuda"], online: bool) -> None:
        """Refuse what this machine cannot do, then fetch models; nothing is written to the run folder.

        Args:
            device: where models will run.
            online: whether the hub may be reached.

        Raises:
            UserError: for something missing that cannot be fetched, and for too little of a GPU, memory or disk.
        """
        lost = self.missing()
        missing.refuse(lost, online)
        blueprint = Blueprint(*self._given(), self._wanted, self._data_root, missing.absent(lost))
        preset = self.preset
        if executors.elsewhere(self._executor):  # of the nodes' GPUs the executor knows
            preset = preset.model_copy(update={"requires": Requires()})
        needs.check(preset, device, needs.machine(self.root), self._others(blueprint))
        if any(each.kind == "model" for each in lost):
            missing.fetch(self._models)
            missing.refuse([each for each in self.missing() if each.kind == "model"], online=False)

    def _others(self, blueprint: Blueprint) -> float:
        """Return the bytes that the run folder will still take beside caches."""
        return sum(outlook.disk(blueprint, self.root, outlook.sizes(blueprint)).values()) if self.preset.stages else 0.0

    def run(self, device: Literal["cpu", "cuda"], overrides: Mapping[str, object], command: str) -> None:
        """Do what is not done yet.

        Raises:
            UserError: when the folder is in use or not ours, a complete file was changed, a corpus lacks more images than are
                allowed, or a stage refuses its input.
            StageError: when stages were given up; everything that does not need them is done, and the report names them.
                A :class:`harness.execute.DiskFull` when there is no space left on the disk.
        """
        try:
            self._run(device, overrides, command)
        except OSError as error:
            if not disk.is_full(error):
                raise
            raise DiskFull(disk.line(self.root, "the run")) from error

    def _run(self, device: Literal["cpu", "cuda"], overrides: Mapping[str, object], command: str) -> None:
        with store.locked(self.root, self.preset.name):
            blueprint, stages, done = self._plan()
            keeper = caching.Keeper(self.root, stages, self._bound)
            keeper.check(done)
            for cache in keeper.surplus(done):
                caching.delete(cache)
            coming = caching.to_write(self.root, stages, done, self._bound) + self._others(blueprint)
            needs.check_disk(self.preset, needs.free_disk(self.root), coming)
            for entry in store.entries(self.root):
                if entry.stage in done and not entry.cache:
                    store.renew_times(self.root, entry)
            complete = [name for name in blueprint.training.corpora if f"corpus/{name}" in done]
            left_out.refuse(self.root, complete, self._skip_unreadable)
            if len(done) == len(stages):
                self._say(f"nothing to do: {len(stages)} stages up to date")
                self._conclude(blueprint)
                return

            self._say(f"{len(stages) - len(done)} of {len(stages)} stages to do in {self.root}")
            settings = Settings(
                self.root, device, self.preset.threads, self._online, self._skip_unreadable, ranks.membership(),
                self._track,
            )  # fmt: skip
            executor = executors.make(self._executor, settings, self.preset.workers)

            def work(blueprint: Blueprint, stages: Sequence[plan.Stage], done: set[str]) -> list[Failure]:
                def record(stage: plan.Stage | None) -> None:
                    if stage is None or stage.kind in _TELLING:
                        manifest.write(self.root, manifest.build(self.root, blueprint, device, overrides, command))

                record(None)
                with progress.display(self.console, stages, done, executor.width) as watcher:
                    return Execution(stages, done, settings, executor, watcher, record, bound=self._bound).run()

            try:
                failures = work(blueprint, stages, done)
                rest = self._without(blueprint, failures)
                more = work(*rest) if failures and rest is not None else []
            finally:
                executor.stop()
            if rest is not None and not more:
                self._conclude(rest[0])
            for line in _told([*failures, *more]):
                self._say(f"FAILED: {line}")
            if failures:
                raise error([*failures, *more])

    def _without(
        self, blueprint: Blueprint, failures: Sequence[Failure]
    ) -> tuple[Blueprint, list[plan.Stage], set[str]] | None:
        """Return the plan of what can still be reported, its stages, and which of them are complete; None for nothing."""
        if not failures:
            return blueprint, [], set()
        lost = broken(failures)
        left = [cell for cell in blueprint.cells if cell.stage not in lost]
        if not left:
            return None
        smaller = Blueprint(*self._given(), left, self._data_root, failed=_told(failures))
        stages = smaller.settled(self.root, smaller.stages(), self._bound)
        last = [stage for stage in stages if stage.kind in _LAST]
        before = {each.id for stage in last for each in plan.upstream(stage, stages)} - {stage.id for stage in last}
        if before & lost:
            return None
        done = [stage for stage in stages if stage not in last and stage.id not in lost]
        return smaller, [*done, *last], {stage.id for stage in done}

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _say_left_out(self, blueprint: Blueprint) -> None:
        for line in left_out.lines(self.root, blueprint):
            self._say(f"LEFT OUT: {line}")

    def _say_signal(self, blueprint: Blueprint) -> None:
        for line in blueprint.training.signal.lines(self.root, dict.fromkeys(name for name, _ in blueprint.students)):
            self._say(line)

    def _conclude(self, blueprint: Blueprint) -> None:
        """Print the main numbers and where the report is."""
        self._say(f"{blueprint.preset.title}: values (intervals are in the report)")
        self._say(f"protocols: {', '.join(blueprint.protocols)}")
        asked = _asked(self.root)
        for name, (rows, expected) in asked.items():
            if rows != expected:
                self._say(f"PARTIAL: {name} was asked {rows:,} of its {expected:,} questions")
        self._say_signal(blueprint)
        self._say_left_out(blueprint)
        whole = all(rows == expected for rows, expected in asked.values())
        self.console.print(main_table(self.root, blueprint, averages=whole))
        page = self.root / "report" / "index.html"
        self._say(f"report: {page} (and report.md, report.tex beside it)")


def _told(failures: Sequence[Failure]) -> list[str]:
    """Return a line for each stage that was given up; what tells of all stages is not left out, only smaller."""
    return [replace(each, lost=tuple(name for name in each.lost if name not in _LAST)).line for each in failures]


def _asked(root: Path) -> dict[str, tuple[int, int]]:
    """Return (questions asked, questions that the protocol has) of every protocol that says how many it has."""
    facts: Mapping[str, Mapping[str, int | None]] = read_json(root / store.MANIFEST)["protocols"]
    pairs = {name: (fact.get("rows"), fact.get("expected_rows")) for name, fact in facts.items()}
    return {name: (rows, expected) for name, (rows, expected) in pairs.items() if rows is not None and expected is not None}


def main_table(root: Path, blueprint: Blueprint, averages: bool = True) -> Table:
    """Return students x protocols, values only, from ``scores.parquet``; intervals and caveats are the report's.

    Args:
        root: the run folder.
        blueprint: the rows and columns.
        averages: add a column for every derived score whose protocols are all there.
    """
    import pandas as pd

    import tasks
    from tasks.aggregate import aggregate

    scores = pd.read_parquet(root / "scores.parquet")
    protocols = [tasks.protocol(name) for name in blueprint.protocols]
    benchmarks = [protocol.benchmark for protocol in protocols]
    derived = [tasks.derived(name) for name in tasks.derived_names()]
    derived = [each for each in derived if averages and set(each.terms) <= set(blueprint.protocols)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("student", no_wrap=True)
    for protocol in protocols:  # two protocols of one benchmark never share a name, let alone a column
        alone = benchmarks.count(protocol.benchmark) == 1
        table.add_column(protocol.benchmark if alone else protocol.name, justify="right", overflow="fold")
    for each in derived:
        table.add_column(each.title, justify="right", overflow="fold")
    for name in dict.fromkeys(cell.name for cell in blueprint.cells):
        found: dict[str, float] = {}
        for protocol in protocols:
            part = scores[(scores["student"] == name) & (scores["protocol"] == protocol.name)]
            values = [aggregate(rows, protocol.aggregation) for _, rows in part.groupby("seed", dropna=False)]
            if values:
                found[tasks.one_column(part["protocol"])] = sum(values) / len(values)
        row: list[str | Text] = [Text(name)]
        row += [f"{found[p.name]:.1f}" if p.name in found else "-" for p in protocols]
        for each in derived:
            terms = {term: found[term] for term in each.terms if term in found}
            row.append(f"{each.value(terms):.1f}" if len(terms) == len(each.terms) else "-")
        table.add_row(*row)
    return table
