"""Plain training on labels: the loop that makes teachers and bases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.base import Strict
from students.data.pack import Encoded, collate, groups, schedule
from students.optimise import Optimiser

if TYPE_CHECKING:
    import torch

    from students.models._base import Adapter


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
    adapter: Adapter,
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
    optimiser = Optimiser(adapter, lr=options.lr, muon_lr=options.muon_lr, steps=options.steps, warmup=options.warmup)
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
