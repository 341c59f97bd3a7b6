"""The optimisers of a training, under one schedule: Muon with AdamW, or AdamW alone as the published trainings have it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from students.models._base import Adapter
    from students.options import DistilOptions

Kind = Literal["muon", "adamw"]
#: What AdamW is built with where an option says nothing: weight decay and betas.
OWN: dict[Kind, tuple[float, tuple[float, float]]] = {"muon": (0.01, (0.9, 0.98)), "adamw": (0.0, (0.9, 0.999))}


def fall(kind: Kind, done: int, steps: int, warmup: int) -> float:
    """Return the schedule's share of the base rate after ``done`` steps.

    "muon": linear warm-up times a cosine over all steps down to 2 %. "adamw": linear warm-up from 0, then a cosine over the
    remaining steps down to 0, as transformers' ``get_cosine_schedule_with_warmup``, which the published trainings used.
    """
    if kind == "muon":
        rise = min(1.0, (done + 1) / max(1, warmup))
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done / max(1, steps)))))
    if done < warmup:
        return done / max(1, warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / max(1, steps - warmup))))


class Optimiser:
    """What steps the student, and whatever learns under the same schedule.

    With "muon", Muon (torch.optim.Muon) takes the language model's two-dimensional weights and AdamW the rest: AdamW alone
    left models of the embedded suite's size at the prior for most of the budget.

    Args:
        adapter: the model; its trainable parameters are stepped.
        kind: "muon" or "adamw".
        lr: AdamW's peak rate.
        muon_lr: Muon's.
        steps, warmup: of the schedule.
        projector_lr: AdamW's for the projector, or None for ``lr``.
        weight_decay: AdamW's, or None for the kind's own (:data:`OWN`). Beside Muon it is on everything, alone on parameters
            of two and more dimensions, which leaves out norms and biases.
        betas: AdamW's, or None for the kind's own.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        lr: float,
        muon_lr: float,
        steps: int,
        warmup: int,
        kind: Kind = "muon",
        projector_lr: float | None = None,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> None:
        import torch

        self.kind, self.steps, self.warmup, self.done = kind, steps, warmup, 0
        matrices, rest = _split(adapter, kind)
        self.parameters = matrices + rest
        decay, own_betas = OWN[kind]
        decay = decay if weight_decay is None else weight_decay
        projector = set() if projector_lr is None else {id(p) for p in adapter.projector.parameters()}
        groups: list[dict[str, Any]] = []
        for inside, rate in ((False, lr), (True, projector_lr)):
            members = [p for p in rest if (id(p) in projector) == inside]
            for decays in (True, False):
                part = [p for p in members if (kind == "muon" or p.ndim >= 2) == decays]
                if part:
                    groups.append({"params": part, "lr": rate, "weight_decay": decay if decays else 0.0})
        self.parts: list[Any] = []
        if groups:
            self.parts.append(torch.optim.AdamW(groups, lr=lr, betas=betas or own_betas))
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05, momentum=0.95, ns_steps=3))
        self.base = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self._set()

    @classmethod
    def of(cls, options: DistilOptions, adapter: Adapter, steps: int) -> Optimiser:
        """Make the optimiser of a student that trains for ``steps``."""
        return cls(
            adapter, lr=options.lr, muon_lr=options.muon_lr, steps=steps, warmup=options.warmup_steps(steps),
            kind=options.optimiser, projector_lr=options.projector_lr, weight_decay=options.weight_decay, betas=options.betas,
        )  # fmt: skip

    def add(self, part: torch.optim.Optimizer) -> None:
        """Let another optimiser (of modules that belong to a loss) step with this one, under the same schedule."""
        self.parts.append(part)
        self.base.append([group["lr"] for group in part.param_groups])
        self._set()

    def refresh(self) -> None:
        """Take note of parameters that an engine put in the place of the first part's."""
        self.parameters = [p for group in self.parts[0].param_groups for p in group["params"]]

    def hand_over(self, stepped: Any) -> None:
        """Let an engine step the first part; ``stepped`` stands for it, with its groups and steps that do nothing."""
        self.parts[0], self.parameters = stepped, []

    def _set(self) -> None:
        share = fall(self.kind, self.done, self.steps, self.warmup)
        for part, rates in zip(self.parts, self.base, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * share

    @property
    def lr(self) -> float:
        """AdamW's rate at this step: that of its first group, which is the language model's where it has one."""
        return float(self.parts[0].param_groups[0]["lr"])

    def step(self) -> None:
        """Apply the gradients, clear them, and move the schedule on."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        self.done += 1
        self._set()

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs: the schedule's place and every part's state."""
        return {"done": self.done, "parts": [part.state_dict() for part in self.parts]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state` of an equal optimiser, each tensor whole."""
        from students.sharding import lay_out

        self.done = int(state["done"])
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
            lay_out(part)
        self._set()


def _split(adapter: Adapter, kind: Kind) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the language model's hidden matrices, for Muon, and the rest."""
    embedding = adapter.model.get_input_embeddings().weight
    inside = {id(p) for p in adapter.language.parameters()} if kind == "muon" else set()
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for _, parameter in adapter.trainable():
        hidden = parameter.ndim == 2 and id(parameter) in inside and parameter is not embedding
        (matrices if hidden else rest).append(parameter)
    return matrices, rest
