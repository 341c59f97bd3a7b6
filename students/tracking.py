"""A training's numbers in TensorBoard, Weights & Biases or Trackio, through accelerate's trackers.

Nothing is measured for them: after each flush the new lines of dynamics.jsonl are handed on. So tracking reads nothing from the
device and changes no result, and a training that goes on from a resume point goes on in the same tracker's run.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, read_json, remove, unknown, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Trackers by the name that accelerate and their package share.
NAMES = ("tensorboard", "trackio", "wandb")
_STATE = "tracked.json"


def check(names: str) -> tuple[str, ...]:
    """Return the trackers of a comma list, each once.

    Raises:
        UserError: for an unknown name, or a package that is not installed.
    """
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in found:
        if name not in NAMES:
            raise unknown("tracker (--track)", name, NAMES)
        if find_spec(name) is None:
            raise UserError(f"--track {name}: the package {name!r} is not installed; pip install {name}")
    return found


@dataclass(frozen=True)
class Trackers:
    """Where a training's numbers go.

    Attributes:
        names: of :data:`NAMES`.
        folder: of this training's run; what trackers write lies below it.
        shared: of all runs; Trackio keeps them in one place.
        project: what groups the runs of one experiment.
        run: this training's name.
        facts: its settings, shown beside its curves.
    """

    names: tuple[str, ...]
    folder: Path
    shared: Path
    project: str
    run: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``accelerate.Accelerator`` is told."""
        return {"log_with": list(self.names), "project_dir": str(self.folder)}


class Log:
    """Hands a training's records to its trackers; without any, does nothing.

    Args:
        trackers: where they go, or None.
        accelerator: made with :attr:`Trackers.arguments`.
        records: dynamics.jsonl.
    """

    def __init__(self, trackers: Trackers | None, accelerator: Accelerator, records: Path) -> None:
        self._trackers, self._accelerator, self._records = trackers, accelerator, records
        self._step = 0
        self._place = 0
        self._id = ""

    def open(self, done: int) -> None:
        """Start the trackers' run, or go on with it.

        Args:
            done: steps that an earlier attempt has done; 0 starts a new run in the place of what is there.

        Raises:
            UserError: when a tracker cannot start.
        """
        if self._trackers is None:
            return
        folder = self._trackers.folder
        state = folder / _STATE
        if done and state.is_file():
            known = read_json(state)
            self._step, self._id = known["step"], known["id"]
        else:
            remove(folder)
            self._id = secrets.token_hex(4)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(self._trackers.shared / "trackio"))  # it takes no argument for this
        name = self._trackers.run
        same = {"resume": "allow", "name": name}
        options = {
            "wandb": {**same, "id": self._id, "dir": str(folder)},
            "trackio": {**same, "name": f"{name} {self._id}"},  # which knows runs by name
        }
        try:
            self._accelerator.init_trackers(self._trackers.project, _flat(self._trackers.facts), options)
        except Exception as error:  # each tracker has errors of its own: no login, no network, no room
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"--track {','.join(self._trackers.names)}: a tracker could not start ({line})") from error

    def flush(self) -> None:
        """Hand on what was recorded since the last call."""
        if self._trackers is None:
            return
        with self._records.open("rb") as file:
            file.seek(self._place)
            lines = file.read().splitlines()
            self._place = file.tell()
        for line in lines:
            values = json.loads(line)
            step = values.pop("step")
            if step > self._step:
                self._accelerator.log(_numbers(values), step=step)
                self._step = step
        write_json(self._trackers.folder / _STATE, {"id": self._id, "step": self._step})

    def close(self) -> None:
        """End the trackers' run; they keep what they were given."""
        for tracker in self._accelerator.trackers if self._trackers is not None else []:
            tracker.finish()  # accelerate's end_training would also end the process group


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return {"loss/ce": 1.5, ...}: what is a number, nested names joined."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Return settings as trackers take them: one level, and no kinds of values but these."""
    found: dict[str, str | float | bool] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
