"""Stage functions for the tests of the store and the executor; workers import them by name."""

import json
import os
import signal
import time
from pathlib import Path

from harness.base import UserError
from harness.caching import Planned


def write(context):
    """Write the configured text, and what was read, into every target; keep a log of every call."""
    read = "".join((context.root / path).read_text() for path in context.stage.reads)
    with (context.root.parent / "calls.log").open("a") as log:
        log.write(f"{context.stage.id}\n")
    for target in context.stage.targets:
        context.out(target).write_text(f"{context.config['text']}{read}")
    context.progress(1, 1)


def folder(context):
    """Write a folder, half of it, then die the way the configuration says, unless the marker file is there."""
    target = context.out(context.stage.targets[0])
    target.mkdir(exist_ok=context.stage.resumes)
    (target / "first.txt").write_text("first")
    marker = context.root.parent / "survive"
    if not marker.exists():
        how = context.config["how"]
        if how == "exit":
            os._exit(9)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "refuse":
            raise UserError("this input is bad")
        if how == "raise":
            raise ValueError("a bug")
    (target / "second.txt").write_text("second")


def resume(context):
    """Do two halves; the second attempt must find the first half."""
    target = context.out(context.stage.targets[0])
    if not target.exists():
        target.write_text("first ")
        os._exit(9)
    target.write_text(target.read_text() + "second")


def sleep(context):
    """Tell who we are, then hang."""
    (context.root.parent / "pid").write_text(str(os.getpid()))
    target = context.out(context.stage.targets[0])
    while True:
        with target.open("a") as file:
            file.write("x")
        time.sleep(0.01)


def threads(context):
    """Write the thread variables as the stage sees them."""
    Path(context.out(context.stage.targets[0])).write_text(os.environ["OMP_NUM_THREADS"] + os.environ["MKL_NUM_THREADS"])


def remember(context):
    """Write how often the shared value was made in this worker."""
    made = context.memory.setdefault("made", [])
    context.remember("value", context.config["key"], lambda: made.append(1))
    context.out(context.stage.targets[0]).write_text(str(len(made)))


def chatter(context):
    """Print, as libraries do."""
    os.write(1, b"noise on stdout\n")
    os.write(2, b"noise on stderr\n")
    write(context)


def once(context):
    """Break the first time, in the way that the configuration says; do as configured the second time."""
    marker = context.root.parent / f"{context.stage.id}.broke"
    if not marker.exists():
        marker.touch()
        if context.config["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("once")
    write(context)


def infinite(context):
    """Fail as a training does whose loss is not finite."""
    raise FloatingPointError("the loss is not finite at step 3")


def visible(context):
    """Write which GPUs this process may see."""
    context.out(context.stage.targets[0]).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))


def plans(root, stage):
    """Say what :func:`write` will take of a cache that reads nothing, or what a file beside the run folder says."""
    told = root.parent / "size"
    return Planned("text", int(told.read_text()) if told.exists() else len(stage.config["text"]))


def watch(context):
    """Write, and log what caches (files called ``cache*``) take while this stage works, its own included."""
    write(context)
    total = sum(path.stat().st_size for path in context.root.glob("cache*"))
    with (context.root.parent / "held.log").open("a") as log:
        log.write(f"{context.stage.id} {total}\n")


def full(context):
    """Write half, then meet a full disk, as the system says it, unless the marker file is there."""
    target = context.out(context.stage.targets[0])
    target.mkdir(exist_ok=context.stage.resumes)
    (target / "half.txt").write_text("half")
    if not (context.root.parent / "room").exists():
        try:
            Path("/dev/full").write_text("more")
        except OSError as error:
            if context.config.get("as_input"):
                raise UserError(f"this file is damaged ({error})") from error
            raise
    (target / "rest.txt").write_text("rest")
