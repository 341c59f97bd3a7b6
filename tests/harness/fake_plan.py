"""Tiny plans of fake stages."""

from harness import plan
from harness.resources import Resources


class Log:
    """A watcher that remembers."""

    def __init__(self):
        self.worked, self.unchanged, self.failed, self.left = [], [], [], []

    def begin(self, stage):
        pass

    def advance(self, stage, done, total):
        assert 0 <= done <= total

    def finish(self, stage, seconds):
        (self.unchanged if seconds is None else self.worked).append(stage.id)

    def fail(self, stage, text, attempt, again):
        self.failed.append((stage.id, attempt, again, text))

    def leave(self, stage):
        self.left.append(stage.id)


def stage(name, run="write", reads=(), targets=None, version=1, job="", resumes=False, resources=None, cache=False, **config):
    """One fake stage that writes ``NAME.txt``; a ``cache`` plans as many bytes as its text has."""
    targets = (f"{name}.txt",) if targets is None else targets
    config.setdefault("text", name)
    return plan.Stage(
        id=name, kind="fake", run=f"fake_stages:{run}", version=version, config=config, targets=targets,
        reads=tuple(reads), job=job or name, resumes=resumes, resources=resources or Resources(memory_gb=0.1),
        cache=cache, plans="fake_stages:plans" if cache else "",
    )  # fmt: skip
