"""Per-sample losses of a recipe's channels, from one micro-batch: cross-entropy on the labels, energies against the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.base import UserError
from students import energies
from students.batch import Tap, TokenBatch, label_nll, sample_mean
from students.bins import Bins, binned
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

    def detached(self) -> ChannelLosses:
        """Return the same without a graph."""
        return ChannelLosses({c: v.detach() for c, v in self.by_channel.items()}, self.mask)

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
        teacher: Tensor | Bins | None = None,
        taps: Mapping[str, Tap] | None = None,
    ) -> ChannelLosses:
        """Return the losses of a micro-batch.

        A head may be wider than its tokenizer. Cross-entropy sees every logit, because it has to push the padded ones down;
        a divergence sees the real vocabulary alone.

        Args:
            logits: the student's, [N, width of its head].
            labels, sample: [N] int64.
            count: B.
            teacher: logits [N, V or more], or bins of N tokens; needed by every channel but "ce".
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
                shared = self._shared(channel, logits, labels, sample, teacher, taps)
            found = self._found(channel, shared)
            values[channel] = sample_mean(found, sample, count) if self.energy(channel).level == "token" else found
            present = self.energy(channel).present(shared)
            if present is not None:
                mask[channel] = present
        return ChannelLosses(values, mask)

    @property
    def by_tokens(self) -> bool:
        """Whether some of the tokens may be compared without the others: no energy of samples reads logits."""
        built = [self.energy(channel) for channel in self.energies]
        return not any(energy.level == "sample" and energy.reads_logits for energy in built)

    def of_tokens(
        self, logits: Tensor, labels: Tensor, sample: Tensor, teacher: Tensor | Bins | None, taps: Mapping[str, Tap] | None
    ) -> dict[str, Tensor]:
        """Return {channel: [n]} of the channels that have a value for each token, for n of a micro-batch's tokens.

        The arguments are those of :meth:`forward`; :meth:`of_samples` takes the values of all tokens.
        """
        values: dict[str, Tensor] = {}
        shared = None
        for channel in self.channels:
            if channel == "ce":
                values[channel] = label_nll(logits, labels)
            elif self.energy(channel).level == "token":
                if shared is None:
                    shared = self._shared(channel, logits, labels, sample, teacher, taps)
                values[channel] = self._found(channel, shared)
        return values

    def of_samples(
        self, tokens: Mapping[str, Tensor], labels: Tensor, sample: Tensor, count: int, taps: Mapping[str, Tap] | None
    ) -> ChannelLosses:
        """Return what :meth:`forward` does, from the values of :meth:`of_tokens`; energies of samples see no logits.

        Args:
            tokens: {channel: [N]}.
            labels, sample, count, taps: as in :meth:`forward`.
        """
        values: dict[str, Tensor] = {}
        mask: dict[str, Tensor] = {}
        nothing = torch.zeros(len(labels), 0, device=labels.device)
        shared = TokenBatch(nothing, nothing, labels, sample, taps)
        for channel in self.channels:
            values[channel] = sample_mean(tokens[channel], sample, count) if channel in tokens else self._found(channel, shared)
            present = None if channel == "ce" else self.energy(channel).present(shared)
            if present is not None:
                mask[channel] = present
        return ChannelLosses(values, mask)

    def _shared(
        self,
        channel: str,
        logits: Tensor,
        labels: Tensor,
        sample: Tensor,
        teacher: Tensor | Bins | None,
        taps: Mapping[str, Tap] | None,
    ) -> TokenBatch:
        """What the energies see, ``channel`` the first of them."""
        if teacher is None:
            raise ValueError(f"channel {channel!r} was asked for without a teacher")
        own = logits[:, : self.vocabulary]
        if isinstance(teacher, Bins):
            self._refuse_bins()
            return TokenBatch(binned(own, teacher.ids), teacher.logits, labels, sample, taps)
        return TokenBatch(own, teacher[:, : self.vocabulary], labels, sample, taps)

    def _refuse_bins(self) -> None:
        """Raise a UserError for energies that need more of a teacher than its likeliest tokens."""
        whole = [channel for channel in self.energies if not self.energy(channel).bins]
        if whole:
            raise UserError(
                f"{' and '.join(whole)} (as set here) cannot be taken from the teacher's likeliest tokens and one bin for the"
                " others, and its signal has no more (form topk); give it the form exact or half (preset: signal), or run the"
                " teacher beside the student (--live-teacher)"
            )

    def _found(self, channel: str, shared: TokenBatch) -> Tensor:
        """Ask an energy, and count what it logs; tokens, which are independent of each other, a cacheful at a time."""
        energy = self.energy(channel)
        found = []
        for part in shared.blocks() if energy.level == "token" else (shared,):
            found.append(energy(part))
            if self.training:
                self._count(channel, energy.logs)
        return found[0] if len(found) == 1 else torch.cat(found)

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
