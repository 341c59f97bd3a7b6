"""Plain training on labels: the optimiser that every small model here uses, and the loop that makes teachers and bases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from harness.base import Strict
from students.data.pack import Encoded, collate, groups, schedule

if TYPE_CHECKING:
    import torch

    from students.models.llava import LlavaAdapter


class Optimiser:
    """Muon for hidden matrices, AdamW for the rest, under one warm-up and cosine schedule.

    AdamW alone left models of this size at the prior for most of the budget (shared/EMBEDDED.md section B), so Muon
    (torch.optim.Muon) is the default for the language model's two-dimensional weights.
    """

    def __init__(
        self, named: Iterable[tuple[str, torch.nn.Parameter]], *, lr: float, muon_lr: float, steps: int, warmup: int
    ) -> None:
        import torch

        matrices: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in named:
            hidden = parameter.ndim == 2 and "language_model" in name and "embed" not in name
            (matrices if hidden else rest).append(parameter)
        self.parameters = matrices + rest
        self.adamw = torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
        self.muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.05, momentum=0.95, ns_steps=3) if matrices else None
        self.parts: list[Any] = [self.adamw] + ([self.muon] if self.muon else [])
        self.steps, self.warmup, self.done = steps, warmup, 0
        self.base = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self._set()

    def add(self, part: torch.optim.Optimizer) -> None:
        """Let another optimiser (of modules that belong to a loss) step with this one, under the same schedule."""
        self.parts.append(part)
        self.base.append([group["lr"] for group in part.param_groups])
        self._set()

    def factor(self) -> float:
        """The schedule's share of the base rate at this step: linear warm-up times a cosine down to 2 %."""
        rise = min(1.0, (self.done + 1) / max(1, self.warmup))
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / max(1, self.steps)))))

    def _set(self) -> None:
        for part, rates in zip(self.parts, self.base, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * self.factor()

    @property
    def lr(self) -> float:
        """AdamW's rate at this step."""
        return float(self.adamw.param_groups[0]["lr"])

    def step(self) -> None:
        """Apply the gradients, clear them, and move the schedule on."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        self.done += 1
        self._set()


class PretrainOptions(Strict):
    """How a teacher or a base learns from labels; rates are per optimiser step, ``rows`` packed rows a step."""

    steps: int
    rows: int = 24
    turns: int = 8
    lr: float = 3e-3
    muon_lr: float = 1e-2
    warmup: int = 60
    clip: float = 1.0


def train(
    adapter: LlavaAdapter,
    encoded: Encoded,
    pixels: dict[str, torch.Tensor],
    options: PretrainOptions,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Minimise the label NLL (mean over a sample's tokens, then over samples) in place.

    Args:
        adapter: the model; its trainable parameters learn, an unfrozen tower's included.
        encoded: the tokenised samples.
        pixels: float32 [3, H, W] per image key.
        options: steps, rates and sizes.
        seed: order of the samples.
        report: called with the number of finished steps and the last loss, every 50 steps and at the end.

    Raises:
        FloatingPointError: when the loss is not finite.
    """
    import torch

    from students.batch import label_nll, sample_mean

    device = next(adapter.model.parameters()).device
    optimiser = Optimiser(
        adapter.trainable(), lr=options.lr, muon_lr=options.muon_lr, steps=options.steps, warmup=options.warmup
    )
    rows = groups(encoded, options.turns, seed)
    adapter.model.train()
    for step, members in enumerate(schedule(rows, options.steps, options.rows, seed), start=1):
        batch = collate(encoded, members, pixels).to(device)
        logits = adapter.head(adapter.supervised(adapter.hidden(batch), batch))
        loss = sample_mean(label_nll(logits, batch.labels), batch.sample, len(batch.indices)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimiser.parameters, options.clip)
        optimiser.step()
        if step % 50 == 0 or step == options.steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}")
            report(step, value)
    adapter.model.eval()
