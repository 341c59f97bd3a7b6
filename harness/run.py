"""``python -m harness.run``: distil, evaluate, report; or list, plan, export."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from harness import cli, ranks, store
from harness.base import UserError, offline

if TYPE_CHECKING:
    from harness.config import Preset

MODULE = "harness.run"
_HELP = """Distil every student of a preset, evaluate it, and write the report.

The same command again continues what is missing and repeats nothing.

Examples:

  python -m harness.run --students all

  python -m harness.run --students ce,'ce+fkl@*' --seeds 0,1,2

  python -m harness.run --students ce+cosine_probs@instance --tasks pope,mme --limit 50 --dry-run

  python -m harness.run --preset official --model mine=checkpoints/mine --tasks pope,mme@perception --data-root data/

  python -m harness.run --export ce+fkl@instance exported/
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Students = Annotated[str, typer.Option(help="'all', names, globs, or any recipe spelled out; a comma list. See --list.")]
PresetName = Annotated[str, typer.Option("--preset", help="An experiment of --list, or the path of a YAML file.")]
Tasks = Annotated[str, typer.Option("--tasks", help="'all', benchmarks, protocols or globs; a comma list.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds of the students, such as 0,1,2. Default: the preset's.")]
Limit = Annotated[int | None, typer.Option(help="Evaluate the first N whole clusters of each protocol only.")]
Out = Annotated[Path | None, typer.Option(help="The run folder. Default: runs/PRESET.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the stages, which are done, and how long the rest takes.")]
ListAll = Annotated[bool, typer.Option("--list", help="Show presets, students, channels, weightings and protocols.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Export = Annotated[
    tuple[str, Path] | None, typer.Option(metavar="RECIPE DIR", help="Copy a finished student out, with a model card.")
]
ModelList = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME=PATH_OR_ID", help="Evaluate this checkpoint as well; repeatable.")
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="A folder with the published data sets (docs/data_root.md).")
]
Offline = Annotated[bool, typer.Option("--offline", help="Reach no network, not even for models and data that are named.")]
Live = Annotated[bool, typer.Option("--live-teacher", help="Run the teacher beside each student; cache no signal.")]
Skip = Annotated[int, typer.Option("--skip-unreadable", min=0, help="Leave out the rows of up to N unreadable images.")]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="local: as many stages at once as this machine allows; ray: on a Ray cluster.")
]
Track = Annotated[
    str | None, typer.Option(help="Show trainings in tensorboard, wandb or trackio, below OUT/tracking; a comma list.")
]
Launch = Annotated[
    str | None,
    typer.Option(metavar="CONFIG", help="Work on each student with several processes: a configuration of accelerate's."),
]
CacheGb = Annotated[
    float | None,
    typer.Option("--cache-gb", metavar="GB", help="Most that caches (signal, vision, tokens) hold. Default: the preset's."),
]
Retrain = Annotated[bool, typer.Option("--retrain-teacher", help="Make tower, teacher and base on this machine first.")]


@app.command(help=_HELP)
def run(
    students: Students = "all",
    preset_name: PresetName = "miniature",
    tasks: Tasks = "all",
    seeds: Seeds = None,
    limit: Limit = None,
    out: Out = None,
    dry_run: DryRun = False,
    list_all: ListAll = False,
    device: Device = "auto",
    export: Export = None,
    retrain_teacher: Retrain = False,
    model: ModelList = None,
    data_root: DataRoot = None,
    no_network: Offline = False,
    live_teacher: Live = False,
    skip_unreadable: Skip = 0,
    executor: ExecutorName = "local",
    launch: Launch = None,
    track: Track = None,
    cache_gb: CacheGb = None,
) -> None:
    """Parse the command line and do what it says."""
    if launch is not None and ranks.membership() is None:  # else this is one of the processes that it started
        from harness.launch import start

        raise cli.Said(start(launch, device, MODULE, sys.argv[1:]))
    from harness.config import load_preset, retrained
    from students.tracking import check as check_trackers

    if no_network:
        offline()
        os.environ["WANDB_MODE"] = "offline"
    preset = load_preset(preset_name)
    if list_all:
        from harness.listing import show_all

        show_all(cli.console, preset)
        return
    from harness import selection

    chosen = selection.students(students, preset)
    protocols = selection.protocols(tasks, preset)
    seed_list = selection.seeds(seeds) if seeds is not None else list(preset.seeds)
    _check(limit, device, executor)
    trackers = check_trackers(track) if track is not None else ()
    root = (out or Path("runs") / preset.name).expanduser().resolve()
    if export is not None:
        _export(root, *export, seed_list)
        return
    store.check_folder(root, preset.name)

    from harness.blueprint import cells
    from harness.session import Session

    models = selection.models(model or [], retrained(preset) if retrain_teacher else preset.models)
    if not models.names:
        raise UserError(f"preset {preset.name!r} evaluates given models: name one with --model NAME=PATH_OR_ID")
    preset = _changed(preset, live_teacher, cache_gb, skip_unreadable)
    models = selection.with_earlier(root, models, cli.console)
    online = data_root is None and not no_network and selection.on_the_hub(preset, protocols)
    wanted = cells(chosen, seed_list, protocols, models.names)
    where = None if data_root is None else data_root.expanduser().resolve()
    session = Session(root, preset, models, limit, wanted, cli.console, where, online, skip_unreadable, executor, trackers)
    if dry_run:
        session.show(_resolved(device, executor))
        return
    session.prepare(_resolved(device, executor), not no_network)
    if not online:
        offline()
    overrides = _overrides(
        students=students, tasks=tasks, seeds=seeds, limit=limit, device=device, retrain=retrain_teacher, model=model,
        data_root=None if where is None else str(where), live_teacher=live_teacher, skip_unreadable=skip_unreadable,
        cache_gb=cache_gb,
    )  # fmt: skip
    session.run(_resolved(device, executor), overrides, cli.command_line(MODULE, sys.argv[1:]))


def _export(root: Path, recipe: str, target: Path, seeds: Sequence[int]) -> None:
    from harness.config import load_recipe
    from harness.export import export_student

    target = export_student(root, load_recipe(recipe).name, seeds, target)
    cli.console.print(f"{recipe} is in {target}", soft_wrap=True, highlight=False, markup=False)


def _changed(preset: Preset, live_teacher: bool, cache_gb: float | None, skip_unreadable: int) -> Preset:
    """Return the preset as the options change it."""
    from harness import selection

    if live_teacher:
        preset = selection.live(preset)
    if cache_gb is not None:
        preset = selection.bounded(preset, cache_gb)
    if skip_unreadable and not preset.stages:
        raise UserError(f"--skip-unreadable {skip_unreadable}: preset {preset.name!r} reads no corpus of images")
    return preset


#: What the options recorded as overrides are when nobody gives them.
_DEFAULTS: dict[str, object] = {
    "students": "all",
    "tasks": "all",
    "seeds": None,
    "limit": None,
    "device": "auto",
    "retrain": False,
    "model": None,
    "data_root": None,
    "live_teacher": False,
    "skip_unreadable": 0,
    "cache_gb": None,
}


def _overrides(**given: object) -> dict[str, object]:
    """Return the options that differ from their defaults."""
    return {name: value for name, value in given.items() if value != _DEFAULTS[name]}


def _check(limit: int | None, device: str, executor: str) -> None:
    from harness import executors

    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; allowed: 1 or more whole clusters")
    executors.check_name(executor)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device is {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not _has_gpu(executor):
        where = (
            "no node of the Ray cluster has a GPU"
            if executors.elsewhere(executor)
            else "torch sees no CUDA device on this machine"
        )
        raise UserError(f"--device cuda: {where}; use --device cpu or auto")


def _resolved(device: str, executor: str) -> Literal["cpu", "cuda"]:
    return "cuda" if device == "cuda" or (device == "auto" and _has_gpu(executor)) else "cpu"


def _has_gpu(executor: str) -> bool:
    from harness import executors  # here, because the import path is put right first (cli.own_packages_first)

    if executors.elsewhere(executor):
        from harness.executors import on_ray

        return on_ray.has_gpu()
    from harness.needs import has_gpu

    return has_gpu()


def main() -> NoReturn:
    """Run the command; under a launcher, as the process that directs the others, or as one of those."""
    membership = ranks.find(os.environ)
    if membership is None:
        cli.main(app, MODULE)
    cli.own_packages_first()
    if membership.rank:
        from harness.follow import follow

        follow(membership)
    from harness.launch import leading

    with leading(membership):
        cli.main(app, MODULE)


if __name__ == "__main__":
    main()
