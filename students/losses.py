"""Per-sample losses of a recipe's channels, from one micro-batch: cross-entropy on the labels, energies against the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from students import energies
from students.batch import Tap, TokenBatch, label_nll, sample_mean
from students.energies._base import Energy
from students.recipe import Recipe, Variant

if TYPE_CHECKING:
    from students.models._base import Adapter


@dataclass
class ChannelLosses:
    """Losses of a micro-batch's B samples.

    Attributes:
        by_channel: {channel: [B]}, at least float32, with gradient.
        mask: {channel: [B] bool} for channels that say nothing about some of the samples (no image).
    """

    by_channel: dict[str, Tensor]
    mask: dict[str, Tensor]

    def presence(self) -> dict[str, Tensor]:
        """Return {channel: [B] bool}, for every channel."""
        return {c: self.mask.get(c, torch.ones_like(v, dtype=torch.bool)) for c, v in self.by_channel.items()}

    def present(self) -> dict[str, Tensor]:
        """Return {channel: [samples that have it]}, detached."""
        kept = {c: v.detach() for c, v in self.by_channel.items()}
        return {c: v[self.mask[c]] if c in self.mask else v for c, v in kept.items()}


class Losses(nn.Module):
    """The channels of a recipe; energies with parameters or state are its submodules.

    Args:
        recipe: names the channels.
        variant: options of the energies.
        widths: (student, teacher) size of each tap's last axis, for energies with modules of their own.
        vocabulary: V, the real tokens that both models' logits are cut to; None without energies.
    """

    def __init__(
        self, recipe: Recipe, variant: Variant, widths: Mapping[str, tuple[int, int]], vocabulary: int | None = None
    ) -> None:
        super().__init__()
        self.channels, self.vocabulary = recipe.channels, vocabulary
        built = {c: energies.build(c, widths=widths, **variant.energies.get(c, {})) for c in recipe.energies}
        self.energies = nn.ModuleDict(built)
        self.logs: dict[str, Tensor] = {}

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        sample: Tensor,
        count: int,
        teacher: Tensor | None = None,
        taps: Mapping[str, Tap] | None = None,
    ) -> ChannelLosses:
        """Return the losses of a micro-batch.

        A head may be wider than its tokenizer. Cross-entropy sees every logit, because it has to push the padded ones down;
        a divergence sees the real vocabulary alone.

        Args:
            logits: the student's, [N, width of its head].
            labels, sample: [N] int64.
            count: B.
            teacher: [N, V or more], needed by every channel but "ce".
            taps: features of both models, for the energies that need them.
        """
        values: dict[str, Tensor] = {}
        mask: dict[str, Tensor] = {}
        shared = None
        for channel in self.channels:
            if channel == "ce":
                values[channel] = sample_mean(label_nll(logits, labels), sample, count)
                continue
            if shared is None:
                if teacher is None:
                    raise ValueError(f"channel {channel!r} was asked for without a teacher")
                shared = TokenBatch(logits[:, : self.vocabulary], teacher[:, : self.vocabulary], labels, sample, taps)
            energy = self.energy(channel)
            found = energy(shared)
            values[channel] = sample_mean(found, sample, count) if energy.level == "token" else found
            present = energy.present(shared)
            if present is not None:
                mask[channel] = present
            if self.training:
                self._count(channel, energy.logs)
        return ChannelLosses(values, mask)

    def energy(self, channel: str) -> Energy:
        """Return the energy of a channel other than "ce"."""
        found = self.energies[channel]
        assert isinstance(found, Energy)
        return found

    def _count(self, channel: str, logs: Mapping[str, Tensor]) -> None:
        for name, count in logs.items():
            key = f"{channel}.{name}"
            self.logs[key] = self.logs[key] + count if key in self.logs else count

    def on_optimiser_step(self, step: int, total: int) -> None:
        """Advance the stateful energies, once per optimiser step."""
        with torch.no_grad():
            for channel in self.energies:
                self.energy(channel).on_optimiser_step(step, total)


class GradientNorms:
    """Norms of each channel's gradient on a layer that all channels share: the last matrix of the student's projector.

    Every channel reaches it, those that read vision features alone included, which no layer of the language model offers.
    """

    def __init__(self, channels: Sequence[str], adapter: Adapter) -> None:
        self.shared = [p for p in adapter.projector.parameters() if p.ndim == 2][-1]
        self.sums = {c: torch.zeros_like(self.shared) for c in channels}

    def add(self, losses: ChannelLosses, total: int) -> None:
        """Add a micro-batch's share: the gradient of the sum of its losses over ``total``, the samples of the step."""
        for channel, values in losses.by_channel.items():
            kept = torch.where(losses.mask[channel], values, 0.0) if channel in losses.mask else values
            (gradient,) = torch.autograd.grad(kept.sum() / total, self.shared, retain_graph=True, allow_unused=True)
            if gradient is not None:  # a micro-batch without an image does not use the projector
                self.sums[channel] = self.sums[channel] + gradient

    def norms(self) -> dict[str, Tensor]:
        """Return {channel: 0-d} over the whole step."""
        return {c: gradient.norm() for c, gradient in self.sums.items()}
