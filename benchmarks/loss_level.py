"""Time and memory of each energy's forward and backward pass, here and as a plain full-sequence implementation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import measuring
import plain_losses
from students import energies
from students.batch import Tap, TokenBatch, label_nll, sample_mean
from students.energies._base import Energy

#: Options of energies whose defaults do not fit the shapes here: 16 focused tokens are more than a miniature image has.
OPTIONS: dict[str, dict[str, Any]] = {"align_kd": {"k": 4}}

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    """R rows of L positions, ``supervised`` of them in each row, V tokens; every row is a sample that starts with its image.

    Attributes:
        rows, length, supervised, vocabulary: R, L, N / R, V.
        width: H of the student's states; the teacher's are twice as wide.
        vision: n_v positions of the image, at the start of the row.
        heads: of the student's attention; the teacher has twice as many.
    """

    name: str
    rows: int
    length: int
    supervised: int
    vocabulary: int
    width: int
    vision: int
    heads: int = 4

    @property
    def tokens(self) -> int:
        """N."""
        return self.rows * self.supervised


LARGER = Shape("larger", rows=4, length=256, supervised=26, vocabulary=8192, width=256, vision=16)


class Case:
    """Random inputs of a shape, the same for every energy; ``mask`` [R, L] holds 1 / N where supervised, else 0."""

    def __init__(self, shape: Shape) -> None:
        self.shape = s = shape
        draw = torch.Generator().manual_seed(0)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*size, generator=draw) * scale

        self.hidden = normal(s.rows, s.length, s.width).requires_grad_()
        self.head = normal(s.vocabulary, s.width, scale=s.width**-0.5).requires_grad_()
        self.teacher = normal(s.rows, s.length, s.vocabulary, scale=2.0)
        self.labels = torch.randint(s.vocabulary, (s.rows, s.length), generator=draw)
        self.mask = torch.zeros(s.rows, s.length)
        self.mask[:, -s.supervised :] = 1 / s.tokens
        self.row, self.column = self.mask.nonzero(as_tuple=True)
        self.spoken = self.teacher[self.row, self.column]  # what a cached signal holds
        self.seen = self.teacher[:, : s.vision].contiguous()  # what a live teacher says at the image
        self.vision = normal(s.rows, s.vision, s.width).requires_grad_(), normal(s.rows, s.vision, 2 * s.width)
        size = s.rows, s.length, s.length
        student = normal(size[0], s.heads, *size[1:]).softmax(-1).requires_grad_()
        self.maps = student, normal(size[0], 2 * s.heads, *size[1:]).softmax(-1)
        text = torch.arange(s.length) >= s.vision
        self.is_text = text.float().expand(s.rows, -1)
        looks = [m.detach()[:, :, text][..., : s.vision].permute(0, 2, 3, 1).contiguous() for m in self.maps]
        self.looks = looks[0].requires_grad_(), looks[1]
        self.widths = {
            "vision": (s.width, 2 * s.width), "vision_logits": (s.vocabulary, s.vocabulary), "attention": (s.heads, 2 * s.heads)
        }  # fmt: skip

    def inputs(self) -> Iterator[Tensor]:
        """All tensors that both sides are given."""
        for value in vars(self).values():
            yield from (t for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))

    def clear(self) -> None:
        """Drop the gradients."""
        for tensor in self.inputs():
            tensor.grad = None

    def taps(self, wanted: frozenset[str]) -> dict[str, Tap]:
        """Return taps of all samples; the vision logits are made by the student's head, from the image's positions alone."""
        own = torch.arange(self.shape.rows)
        found = {"vision": Tap(*self.vision, own), "attention": Tap(*self.looks, own)}
        if "vision_logits" in wanted:
            found["vision_logits"] = Tap(self.hidden[:, : self.shape.vision] @ self.head.T, self.seen, own)
        return found


def ours(name: str, case: Case, energy: Energy | None) -> Loss:
    """Return the loss as the distiller computes it: supervised positions gathered before the head; no energy is "ce"."""

    def loss() -> Tensor:
        # vision features alone need no logits
        logits = case.spoken if name == "fd" else case.hidden[case.row, case.column] @ case.head.T
        labels = case.labels[case.row, case.column]
        values: Tensor
        if energy is None:
            values = label_nll(logits, labels)
        else:
            values = energy(TokenBatch(logits, case.spoken, labels, case.row, case.taps(energy.needs)))
            if energy.level == "sample":
                return values.mean()
        return sample_mean(values, case.row, case.shape.rows).mean()

    return loss


def plain(name: str, case: Case, energy: Energy | None) -> Loss:
    """Return the same loss over the full sequence, with the energy's projections."""
    weights = {} if energy is None else dict(energy.named_parameters())
    per_token = plain_losses.LOGITS.get(name, plain_losses.LOGITS["fkl"])()
    vision = (torch.arange(case.shape.length) < case.shape.vision).float().expand(case.shape.rows, -1)
    whole = torch.ones(case.shape.rows)

    def loss() -> Tensor:
        if name == "fd":
            return plain_losses.feature_distance(*case.vision, weights["project.weight"], whole).mean()
        student = case.hidden @ case.head.T
        values = per_token(case.teacher, student, case.labels)
        total: Tensor = (values * case.mask).sum()
        if name == "align_kd":
            k, projections = OPTIONS[name]["k"], (weights["project.weight"], weights["heads.weight"])
            total = total + plain_losses.align(case.vision, case.maps, *projections, case.is_text, k).mean()
        elif name == "llava_kd":
            spans = (values * vision).sum() / vision.sum()
            total = total + spans + plain_losses.relation(case.teacher, student, vision).mean()
        return total

    return loss


def comparable() -> tuple[str, ...]:
    """Names of the energies that have a plain counterpart here."""
    return (*plain_losses.LOGITS, "fd", "align_kd", "llava_kd")


@dataclass(frozen=True)
class First:
    """The first pass: its value, the gradient of the states (or vision tokens), and the bytes that autograd kept.

    Bytes count each storage once, from the end of the forward pass to the backward pass; what was given is not counted.
    """

    value: Tensor
    gradient: Tensor
    kept: int


def first(case: Case, loss: Loss) -> First:
    """Run a pass that is not timed."""
    given = {t.untyped_storage().data_ptr() for t in case.inputs()}
    found: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    case.clear()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        value = loss()  # alive until the sum is taken, so that no address is used twice
    total = sum(found.values())
    value.backward()
    gradient = case.vision[0].grad if case.hidden.grad is None else case.hidden.grad
    assert gradient is not None
    return First(value.detach(), gradient, total)


def peak(case: Case, loss: Loss) -> int:
    """Largest number of bytes allocated at once during forward and backward, from torch's own allocator."""
    case.clear()
    found = measuring.peak_bytes(lambda: loss().backward())
    case.clear()
    return found


def _seconds(case: Case, loss: Loss) -> float:
    """Processor seconds of a forward and backward pass."""
    case.clear()
    return measuring.processor_seconds(lambda: loss().backward())


def _gap(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def measure(names: Sequence[str], shape: Shape, repeats: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Measure each energy on both sides, passes interleaved.

    Args:
        names: "ce" or energies.
        shape: of the inputs.
        repeats: timed passes of each side, after one that is not.
        tick: called after each energy.

    Returns:
        One row per energy: microseconds, kept and peak bytes per supervised token of both sides, how many times more the
        plain side takes, and the relative distance of the two sides' values and gradients.
    """
    case, rows = Case(shape), []
    for name in names:
        energy = None if name == "ce" else energies.build(name, widths=case.widths, **OPTIONS.get(name, {}))
        sides = {"ours": ours(name, case, energy), "plain": plain(name, case, energy)}
        passes = {side: first(case, loss) for side, loss in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, loss in sides.items():
                seconds[side].append(_seconds(case, loss))
        row: dict[str, Any] = {"shape": shape.name, "energy": name}
        row |= _compared("microseconds", {side: statistics.median(v) * 1e6 / shape.tokens for side, v in seconds.items()})
        row |= _compared("kept_bytes", {side: found.kept / shape.tokens for side, found in passes.items()})
        row |= _compared("peak_bytes", {side: peak(case, loss) / shape.tokens for side, loss in sides.items()})
        row["value_gap"] = _gap(passes["ours"].value, passes["plain"].value)
        row["gradient_gap"] = _gap(passes["ours"].gradient, passes["plain"].gradient)
        rows.append(row)
        tick()
    return rows


def _compared(what: str, sides: Mapping[str, float]) -> dict[str, float | None]:
    """Both sides per token, and plain over ours (None where ours is 0)."""
    times = sides["plain"] / sides["ours"] if sides["ours"] else None
    return {what: sides["ours"], f"plain_{what}": sides["plain"], f"{what}_times": times}
