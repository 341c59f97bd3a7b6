"""How far a form is from the exact one: measured on the distributions themselves while they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from students import energies
from students.batch import TokenBatch
from students.bins import Bins, binned
from students.teacher_signal import codec
from students.teacher_signal.forms import Form

#: Losses that are compared, each against two students that need no model: one that knows nothing (all tokens alike), and one
#: that is half as sure as the teacher (its logits halved).
LOSSES = ("fkl", "rkl", "js", "tvd", "cosine_probs")
STUDENTS = ("even", "softer")
#: Logits that are looked at, at most; of more, tokens at a regular distance.
LIMIT = 1 << 25


class Errors:
    """Collects what the rounding and the bins of a form change.

    Args:
        form: not "exact".
        tokens: about how many there will be.
        vocabulary: V.
    """

    def __init__(self, form: Form, tokens: int, vocabulary: int) -> None:
        self.form = form
        self.stride = max(1, math.ceil(tokens * vocabulary / LIMIT))
        self.seen = self.measured = self.entries = 0
        self.sums: dict[str, float] = {}
        self.most: dict[str, float] = {}
        built = {name: energies.build(name).eval() for name in LOSSES}
        self.energies = {name: energy for name, energy in built.items() if energy.bins or form.k is None}

    @torch.no_grad()
    def add(self, logits: Tensor, arrays: codec.Arrays) -> None:
        """Compare logits [N, V] with what was made of them."""
        picked = slice(-self.seen % self.stride, None, self.stride)
        self.seen += len(logits)
        logits = logits[picked].float()
        if not len(logits):
            return
        kept = codec.decode(self.form, {name: array[picked] for name, array in arrays.items()})
        if isinstance(kept, Bins):
            exact, found = binned(logits.double(), kept.ids), kept.logits.double().log_softmax(-1)
            rest = exact[:, -1].exp()
            spread = rest * (math.log(logits.shape[1] - kept.ids.shape[1])) - self._rest_entropy(logits, kept.ids)
            self._add("rest", rest)
            self._add("kl_even_rest", spread.clamp(min=0.0))
        else:
            exact, found = logits.double().log_softmax(-1), kept.double().log_softmax(-1)
        both = exact.isfinite() & found.isfinite()
        gap = torch.where(both, (exact - found).abs(), 0.0)
        p = exact.exp()
        self.entries += int(both.sum())
        self._add("log_p", gap)
        self._add("log_p_expected", (p * gap).sum(-1))
        self._add("kl", (p * torch.where(both, exact - found, 0.0)).sum(-1).clamp(min=0.0))
        self._losses(logits, kept)
        self.measured += len(logits)

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs, in plain values."""
        return {"seen": self.seen, "measured": self.measured, "entries": self.entries, "sums": self.sums, "most": self.most}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.seen, self.measured, self.entries = state["seen"], state["measured"], state["entries"]
        self.sums, self.most = dict(state["sums"]), dict(state["most"])

    def _add(self, name: str, values: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.sum())
        self.most[name] = max(self.most.get(name, 0.0), float(values.max()))

    @staticmethod
    def _rest_entropy(logits: Tensor, ids: Tensor) -> Tensor:
        """Return -sum p log(p / rest) over the tokens that have no bin of their own, [N]."""
        log_p = logits.double().log_softmax(-1).scatter(-1, ids, -torch.inf)
        within = log_p - log_p.logsumexp(-1, keepdim=True)
        return -(log_p.exp() * within.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)

    def _losses(self, logits: Tensor, kept: Tensor | Bins) -> None:
        """Add the losses of the stand-in students against both."""
        nothing = torch.zeros(len(logits), dtype=torch.int64)
        for name, student in zip(STUDENTS, (torch.zeros_like(logits), logits / 2), strict=True):
            if isinstance(kept, Bins):
                other = TokenBatch(binned(student, kept.ids), kept.logits, nothing, nothing)
            else:
                other = TokenBatch(student, kept, nothing, nothing)
            exact = TokenBatch(student, logits, nothing, nothing)
            for loss, energy in self.energies.items():
                for form, batch in (("exact", exact), ("kept", other)):
                    key = f"{loss}.{name}.{form}"
                    self.sums[key] = self.sums.get(key, 0.0) + float(energy(batch).double().sum())

    def result(self) -> dict[str, Any]:
        """Return what was measured, in nats but for ``rest``, which is a probability; see the module's names.

        ``log_p``: |log p - log p kept| over all entries that both have; ``expected``: weighted by p. ``kl``: KL(exact || kept),
        for bins between binned distributions. ``rest``: probability without a bin of its own. ``kl_even_rest``: what is not
        known of it, KL to the same bins with the rest spread evenly. ``losses``: mean of each loss by student, exact and kept.
        """
        count = max(1, self.measured)
        found: dict[str, Any] = {
            "tokens": self.measured,
            "every": self.stride,
            "log_p": {
                "max": self.most.get("log_p", 0.0),
                "mean": self.sums.get("log_p", 0.0) / max(1, self.entries),
                "expected": self.sums.get("log_p_expected", 0.0) / count,
            },
        }
        for name in ("kl", "rest", "kl_even_rest"):
            if name in self.sums:
                found[name] = {"max": self.most[name], "mean": self.sums[name] / count}
        found["losses"] = {
            loss: {
                student: {form: self.sums.get(f"{loss}.{student}.{form}", 0.0) / count for form in ("exact", "kept")}
                for student in STUDENTS
            }
            for loss in self.energies
        }
        return found
