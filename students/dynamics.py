"""What a student's training leaves on record: losses and weights per step, betas per sample, logit histograms.

Nothing is read from the device step by step: a step's numbers stay there until the next flush, which also finds out whether
they are finite and, from the samples kept beside them, where they stopped being so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from harness.base import UserError, atomic_path, write_json

if TYPE_CHECKING:
    from students.feed import Feed

BINS = 100
SNAPSHOT_LIMIT = 1_000_000  # logits kept per snapshot; a regular stride thins out more
BETAS = {
    "step": "int32", "id": "str", "channel": "str", "beta": "float32", "energy": "float32",
    "teacher_entropy": "float32", "teacher_correct": "bool", "noisy": "bool",
}  # fmt: skip


@dataclass
class Step:
    """One step's record, still on the device.

    Attributes:
        step: 1-based number.
        indices: the B samples' numbers.
        ids: their ids.
        noisy: for each, whether its label was replaced.
        losses: [K, B] float32, one row per channel.
        weights: [K, B] float32.
        present: [K, B] float32, 1 where the sample has the channel, 0 where it says nothing (no image).
        scalars: [3] float32: regulariser, total, gradient norm.
        lr, weighting_lr: rates that this step used (weighting_lr 0 for a weighting without parameters).
        tokens: N.
        seconds: wall time of the step.
        evidence: tensors to look at if the step turns out not to be finite.
        teacher: [2, B] float32: the teacher's entropy, and 1 where it is right; None where it said nothing.
        sizes: how many of the B samples each micro-batch has.
        counts, replaced: of each micro-batch, what training.json sums and names.

    On one of several ranks, ``losses``, ``weights``, ``present`` and ``scalars`` are of all ranks' samples, the rest is of its
    own until :func:`students.gathering.complete` joins it.
    """

    step: int
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    noisy: tuple[bool, ...]
    losses: Tensor
    weights: Tensor
    present: Tensor
    scalars: Tensor
    lr: float
    weighting_lr: float
    tokens: int
    seconds: float
    evidence: Mapping[str, Tensor]
    teacher: Tensor | None = None
    sizes: tuple[int, ...] = ()
    counts: tuple[Mapping[str, int], ...] = ()
    replaced: tuple[tuple[str, ...], ...] = ()


class Columns(NamedTuple):
    """One step on the host: losses, weights float32 [K, B], present bool [K, B]; teacher float32 [2, B] or None."""

    losses: np.ndarray
    weights: np.ndarray
    present: np.ndarray
    teacher: np.ndarray | None


class Recorder:
    """Collects steps and writes dynamics.jsonl, betas.parquet and snapshots.npz into ``out``."""

    def __init__(self, out: Path, channels: Sequence[str], feed: Feed, betas_every: int) -> None:
        self.out, self.channels, self.feed = out, tuple(channels), feed
        self.betas_every, self.steps = betas_every, feed.steps
        self.pending: list[Step] = []
        self.failed: int | None = None  # the step that was not finite
        self.samples = 0  # handed to the student so far, repeats counted
        self.betas: list[pd.DataFrame] = []
        self.final: dict[str, float | None] = {}
        self.snapshots: dict[str, tuple[int, Tensor]] = {}
        self.path = out / "dynamics.jsonl"

    def begin(self) -> None:
        """Start with no records."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, in tensors and plain values; call :meth:`flush` before."""
        frame = self._frame()
        columns = {name: frame[name].to_numpy() for name in BETAS}
        betas = {name: column.tolist() if BETAS[name] == "str" else torch.tensor(column) for name, column in columns.items()}
        return {
            "bytes": self.path.stat().st_size, "samples": self.samples, "betas": betas, "final": self.final,
            "snapshots": self.snapshots,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`: what was recorded after it is cut off.

        Raises:
            UserError: when the records are shorter than they were then.
        """
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < state["bytes"]:
            raise UserError(
                f"{self.path} has {size} bytes, and the resume point beside it was written at {state['bytes']}; remove"
                f" {self.out} to start this training from nothing"
            )
        with self.path.open("rb+") as file:
            file.truncate(state["bytes"])
        columns = {name: kept if BETAS[name] == "str" else kept.numpy() for name, kept in state["betas"].items()}
        self.betas = [pd.DataFrame(columns)]
        self.samples, self.final, self.snapshots = state["samples"], state["final"], dict(state["snapshots"])

    def _frame(self) -> pd.DataFrame:
        """Every beta so far, in the types of :data:`BETAS`."""
        frame = pd.concat(self.betas) if self.betas else pd.DataFrame({name: [] for name in BETAS})
        return frame.astype({name: kind for name, kind in BETAS.items() if kind != "str"})

    def keeps(self, step: int) -> bool:
        """Say whether every sample's beta of this step is recorded."""
        return step % self.betas_every == 0 or step in (1, self.steps)

    def add(self, step: Step) -> None:
        """Keep a step's tensors until the next :meth:`flush`."""
        self.pending.append(step)
        self.samples += len(step.indices)

    def flush(self) -> None:
        """Read the pending steps from the device, write them, and check them.

        Raises:
            FloatingPointError: naming the first step that was not finite, its channel and its samples. The steps before it
                are on disk.
        """
        if not self.pending:
            return
        widths = [len(s.indices) for s in self.pending]
        # one transfer for everything: [3K, sum of B] and [steps, 3]
        table = torch.cat([torch.cat([s.losses, s.weights, s.present]) for s in self.pending], 1).cpu().numpy()
        scalars = torch.stack([s.scalars for s in self.pending]).cpu().numpy()
        said = [s.teacher for s in self.pending if s.teacher is not None]
        heard = torch.cat(said, 1).cpu().numpy() if said else np.zeros((2, 0), np.float32)
        lines, place = [], 0
        try:
            parts = np.split(table, np.cumsum(widths)[:-1], axis=1)
            for step, part, row in zip(self.pending, parts, scalars, strict=True):
                losses, weights, present = np.split(part, 3)
                teacher = None if step.teacher is None else heard[:, place : place + len(step.indices)]
                place += 0 if teacher is None else len(step.indices)
                table_of = Columns(losses, weights, present > 0, teacher)
                self._check(step, table_of, row)
                lines.append(json.dumps(self._line(step, table_of, row), allow_nan=False) + "\n")
                if self.keeps(step.step):
                    self._keep_betas(step, table_of)
        finally:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
            self.pending = []

    def _check(self, step: Step, table: Columns, row: np.ndarray) -> None:
        for what, values in (("channel", table.losses), ("weight of channel", table.weights)):
            bad = {
                c: np.flatnonzero(~np.isfinite(v) & here)
                for c, v, here in zip(self.channels, values, table.present, strict=True)
            }
            for channel, where in bad.items():
                if len(where):
                    others = [c for c in self.channels if c != channel and len(bad[c])]
                    also = f" (also: {', '.join(others)})" if others else ""
                    ids = [step.ids[k] for k in where]
                    listed = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
                    raise self._failure(
                        f"{what} {channel!r} is not finite at step {step.step}{also};"
                        f" {len(ids)} of {len(step.indices)} samples: {listed}", step, table, ids,
                    )  # fmt: skip
        for name, value in zip(("regulariser", "total", "gradient norm"), row, strict=True):
            if not np.isfinite(value):
                ids = list(step.ids)
                raise self._failure(
                    f"the {name} is {value} at step {step.step} though every channel ({', '.join(self.channels)}) is finite;"
                    f" samples: {', '.join(ids[:8])}, ...", step, table, ids,
                )  # fmt: skip

    def _failure(self, what: str, step: Step, table: Columns, bad: Sequence[str]) -> FloatingPointError:
        """Write what is needed to look at a step that was not finite, and return the error that stops the run."""
        from safetensors.torch import save_file

        self.failed = step.step
        folder = self.out / "failure"
        folder.mkdir(exist_ok=True)
        facts = {
            "what": what, "step": step.step, "channels": list(self.channels), "bad": list(bad), "lr": step.lr,
            "weighting_lr": step.weighting_lr, "tensors": sorted(step.evidence),
            "samples": [self.feed.describe(k) for k in step.indices],
        }  # fmt: skip
        write_json(folder / "failure.json", facts)
        kept = {name: value.detach().cpu().contiguous() for name, value in step.evidence.items()}
        kept |= {name: torch.from_numpy(getattr(table, name).copy()) for name in ("losses", "weights", "present")}
        save_file(kept, folder / "failure.safetensors")
        return FloatingPointError(f"{what}. The step's samples, logits and losses are in {folder}")

    def _line(self, step: Step, table: Columns, row: np.ndarray) -> dict[str, object]:
        def means(values: np.ndarray, over: np.ndarray) -> dict[str, float | None]:
            """Per channel the sum of its present samples over ``over``; null where a step has none."""
            sums = np.where(table.present, values, 0.0).sum(1, dtype=np.float64)
            return {c: float(v / n) if n else None for c, v, n in zip(self.channels, sums, over, strict=True)}

        own, all_samples = table.present.sum(1), np.full(len(self.channels), len(step.indices))
        self.final = means(table.weights, own)
        entropy = None if table.teacher is None else float(table.teacher[0].mean())
        return {
            "step": step.step, "loss": means(table.losses, own), "weight": self.final,
            "weighted": means(table.losses * table.weights, all_samples),
            "regulariser": float(row[0]), "total": float(row[1]), "lr": step.lr, "weighting_lr": step.weighting_lr,
            "grad_norm": float(row[2]), "teacher_entropy": entropy,
            "samples": len(step.indices), "tokens": step.tokens, "seconds": round(step.seconds, 6),
        }  # fmt: skip

    def _keep_betas(self, step: Step, table: Columns) -> None:
        if table.teacher is None:
            return
        entropy, correct = table.teacher[0], table.teacher[1] > 0
        for channel, losses, weights, here in zip(self.channels, table.losses, table.weights, table.present, strict=True):
            if channel == "ce":
                continue
            where = np.flatnonzero(here)
            columns: Mapping[str, object] = {
                "step": step.step, "id": [step.ids[k] for k in where], "channel": channel,
                "beta": weights[here], "energy": losses[here],
                "teacher_entropy": entropy[here], "teacher_correct": correct[here],
                "noisy": [step.noisy[k] for k in where],
            }  # fmt: skip
            self.betas.append(pd.DataFrame(columns))

    def snapshot(self, when: str, step: int, **logits: Tensor) -> None:
        """Keep logits [N, V] by owner ("student", "teacher") for the histograms of an "early" or "late" moment."""
        for owner, values in logits.items():
            flat = values.detach().float().reshape(-1)
            self.snapshots[f"{owner}_{when}"] = (step, flat[:: -(-flat.numel() // SNAPSHOT_LIMIT)].cpu())

    def finish(self) -> None:
        """Write the betas and the histograms; call :meth:`flush` before."""
        with atomic_path(self.out / "betas.parquet") as path:
            self._frame().astype({"id": "string", "channel": "string"}).to_parquet(path, index=False)
        finite = {name: values[values.isfinite()].numpy() for name, (_, values) in self.snapshots.items()}
        low, high = min(float(v.min()) for v in finite.values()), max(float(v.max()) for v in finite.values())
        edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
        arrays: dict[str, np.ndarray] = {"edges": edges}
        for name, values in finite.items():
            arrays[name] = np.histogram(values, edges)[0]  # counts; banned (-inf) logits are left out
            arrays[f"{name.split('_')[1]}_step"] = np.array(self.snapshots[name][0])
        with atomic_path(self.out / "snapshots.npz") as path, path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
