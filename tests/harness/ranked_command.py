"""A command over several processes, on a plan of fake stages: what harness.run does round its session, without models.

``python ranked_command.py FOLDER PLAN``, in each process of a launch. PLAN: names of functions below, one stage each.
"""

import errno
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import typer
from fake_plan import Log, stage

from harness import cli, executors, plan, ranks, store
from harness.base import UserError, write_json
from harness.execute import Execution, error
from harness.executors import launched
from harness.follow import follow
from harness.launch import leading
from harness.workers import Settings
from students.distributed import ranks as found_ranks

app = typer.Typer()


@app.command()
def run(root: Path, names: list[str]) -> None:
    launched.GRACE_SECONDS = 1.0
    if "nonsense" in names:
        raise UserError("this command makes no sense")
    stages = [replace(stage(name), run=f"ranked_command:{name}", distributed=not name.startswith("alone")) for name in names]
    with store.locked(root, "fake"):
        write_json(root / "manifest.json", {"preset": {"name": "fake"}})
        settings = Settings(root, "cpu", 1, ranks=ranks.membership())
        executor = executors.make("local", settings, 1)
        try:
            failures = Execution(stages, plan.survey(root, stages), settings, executor, Log(), lambda _: None).run()
        finally:
            executor.stop()
    if failures:
        raise error(failures)


def main():
    membership = ranks.find(os.environ)
    if membership is None:
        cli.main(app, "ranked_command")
    if membership.rank:
        follow(membership)
    with leading(membership):
        cli.main(app, "ranked_command")


# ---- stages ----------------------------------------------------------------------------------------------------------------


def alone(context):
    """The first process only, and nothing in it looks as if there were others."""
    launcher = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "MASTER_PORT")]
    context.out("alone.txt").write_text(f"{found_ranks().world} {launcher}")


def alone_again(context):
    """The same after a stage in which the processes found each other."""
    context.out("alone_again.txt").write_text(str(found_ranks().world))


def together(context):
    """Every process; the first writes what all of them said."""
    mine = found_ranks()
    said = mine.gather((mine.rank, mine.world, os.getpid()))
    if mine.first:
        context.out("together.txt").write_text(repr(said))


def later(context):
    together(replace(context, stage=replace(context.stage, targets=("together.txt",))))
    if found_ranks().first:
        store.partial(context.root, "together.txt").replace(context.out("later.txt"))


def broken(context):
    """An error that all processes share."""
    with found_ranks().together():
        if found_ranks().rank == 1:
            raise ValueError("a bug of the second process")


def refused(context):
    """Bad input that only the second process sees."""
    if found_ranks().rank == 1:
        raise UserError("this input is bad")
    found_ranks().barrier()


def full(context):
    """A disk on which the second process alone finds no space left."""
    if found_ranks().rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device")
    found_ranks().barrier()


def left(context):
    """An error of one process that the others do not hear of."""
    if found_ranks().rank == 1:
        raise ValueError("a bug of the second process alone")
    found_ranks().barrier()


def killed(context):
    """The second process dies while the first waits for it."""
    if found_ranks().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    found_ranks().barrier()
    time.sleep(600)


def worker_killed(context):
    """The process in which the first one works dies."""
    if found_ranks().first:
        os.kill(os.getpid(), signal.SIGKILL)
    found_ranks().barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
