"""What every weighting declares and returns, and the sum that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from harness.base import UserError
from students.batch import wide
from students.registry import per_channel

#: softplus(UNIT) = 1: where the beta weightings start.
UNIT = math.log(math.expm1(1.0))

#: {channel: [B]} weights and {channel: [B]} regularisers.
Betas = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass
class Weighted:
    """The result of a weighting.

    Attributes:
        total: scalar, (sum over channels of weight * loss, in order, + regulariser).mean() over the samples.
        weights: {channel: [B]}, detached, at least float32, every channel; 0 where the mask leaves a loss out.
        regulariser: scalar, detached, mean over the samples.
    """

    total: Tensor
    weights: dict[str, Tensor]
    regulariser: Tensor


@dataclass
class Inputs:
    """What the weights may depend on, all detached.

    Attributes:
        losses: {channel: [B]} at least float32; 0 where the mask leaves a loss out.
        features: [B, F] at least float32, or None.
        mask: {channel: [B] bool} of the channels that some sample lacks.
    """

    losses: dict[str, Tensor]
    features: Tensor | None
    mask: Mapping[str, Tensor]

    @property
    def like(self) -> Tensor:
        """One of the losses, for its shape [B], its type and its device."""
        return next(iter(self.losses.values()))

    def means(self) -> tuple[Tensor, Tensor]:
        """Return each channel's mean over the samples that have it, [K], and whether there are any, [K] bool."""
        size = self.like.new_full((), len(self.like), dtype=torch.int64)
        counts = torch.stack([self.mask[c].sum() if c in self.mask else size for c in self.losses])
        return torch.stack([v.sum() for v in self.losses.values()]) / counts.clamp(min=1), counts > 0

    def spread(self, values: Tensor, channels: Sequence[str]) -> dict[str, Tensor]:
        """Give each of the B samples the same value per channel: [K] -> {channel: [B]}."""
        return {c: values[k].expand(len(self.like)) for k, c in enumerate(channels)}


class Weighting(nn.Module):
    """Base class: checks the losses, asks the subclass for weights [B] and regulariser [B], and sums in fp32.

    Parameters and buffers stay at least float32, whatever an engine casts the model to (METHOD 2.6, row 12).

    Args:
        channels: names of the losses, in summing order.
        feature_dim: F, the columns of the features.
        d: refused by weightings without it.
        weighs_ce: overrides the class's.

    Attributes:
        channels: names of the losses, in summing order.
        weighs_ce: whether "ce" gets a weight too; where not, it always weighs 1.
        trainable: the channels that get a weight: all, or all but "ce".
        needs: what it wants beside the losses. Names of features (students/features.py), which are concatenated in the
            order of :meth:`feature_names`; "gradient_norms" for :meth:`after_backward`; "second_forward" for
            :meth:`after_step`; "losses" for :meth:`on_optimiser_step` (the other weightings get no call).
        additive: the total does not depend on the split into micro-batches (weighted by their sizes).
        takes_logs: whether it divides by losses or takes their logarithms, so that an energy must be >= 0 and 0 at a match.
        nonnegative: whether it makes no sense for losses below 0 (its weights would run away), though they need not be 0 at
            a match.
        has_d: whether it has an effective dimension d.
        reads: the features of a weighting that has no choice of them.
        rate: factor on the run's ``weighting_lr`` for this weighting's parameters.
        lr_multiple: their learning rate as a multiple of the student's instead, or None.
    """

    weighs_ce: bool = False
    additive: bool = True
    takes_logs: bool = False
    nonnegative: bool = False
    has_d: bool = False
    reads: tuple[str, ...] = ()
    rate: float = 1.0
    lr_multiple: float | None = None

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None = None,
        d: float | Mapping[str, float] = 1.0,
        weighs_ce: bool | None = None,
    ) -> None:
        super().__init__()
        if not channels or len(set(channels)) != len(channels):
            raise UserError(f"channels are {list(channels)}; allowed: at least one, each once")
        if not self.has_d and d != 1.0:
            raise UserError(f"weighting {self.name!r} has no d (got {d!r})")
        if weighs_ce is not None:
            if not isinstance(weighs_ce, bool):
                raise UserError(f"weigh_ce is {weighs_ce!r}; allowed: true, false")
            self.weighs_ce = weighs_ce
        self.channels = channels
        self.feature_dim = feature_dim
        self.trainable = tuple(c for c in channels if self.weighs_ce or c != "ce")
        self.needs: frozenset[str] = frozenset(self.reads)

    @property
    def name(self) -> str:
        """The file's name, by which recipes know this weighting."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG003 - subclasses read it
        """Return the features that a weighting built with ``options`` reads, in the order of its columns."""
        return cls.reads

    def on_optimiser_step(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Take in the losses of optimiser step ``step``: {channel: [samples that have it]}, detached, over all micro-batches.

        Called with step 0 and the first batch's losses before the first step, so that weights that read batch statistics
        are frozen from the start and do not depend on the micro-batch.
        """

    def after_backward(self, gradient_norms: Mapping[str, Tensor]) -> None:
        """Take in {channel: 0-d} norms of each unweighted loss's gradient on a shared layer, before the optimiser's step."""

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Take in the losses {channel: [samples that have it]} of the same batch after the optimiser's step."""

    def accept(self, channel: str, zero_at_match: bool, bounds: tuple[float, float]) -> None:
        """Refuse an energy that this weighting cannot weigh.

        Raises:
            UserError: naming the channel and the reason.
        """
        head = f"weighting {self.name!r} cannot weigh {channel!r}:"
        tail = "(METHOD 2.6); use a proper divergence, or 'fixed'"
        below = f"it can be {bounds[0]:g}, below zero"
        if self.takes_logs and (not zero_at_match or bounds[0] < 0):
            why = below if bounds[0] < 0 else "it is not zero at a match"
            raise UserError(f"{head} {why}, and the weighting rests on the logarithm of a loss >= 0 and 0 at a match {tail}")
        if self.nonnegative and bounds[0] < 0:
            raise UserError(f"{head} {below}, where its weight would have no meaning {tail}")

    def betas(self, inputs: Inputs) -> Betas:
        """Return {channel: [B]} weights and {channel: [B]} regularisers (possibly none) of the trainable channels."""
        raise NotImplementedError

    def forward(
        self,
        losses: Mapping[str, Tensor],
        features: Tensor | None = None,
        mask: Mapping[str, Tensor] | None = None,
    ) -> Weighted:
        """Weigh per-sample losses.

        Args:
            losses: {channel: [B]}, exactly the channels this was built with.
            features: [B, F] or None; detached here, so that no weighting trains the student through its gate.
            mask: {channel: [B] bool}; where False, the channel's loss and regulariser are left out for that sample.

        Raises:
            ValueError: for other channels or shapes than promised.
        """
        mask = mask or {}
        self._check(losses, features, mask)
        with torch.autocast(losses[self.channels[0]].device.type, enabled=False):
            kept = {c: wide(losses[c]) for c in self.channels}
            # replaced before any product, so that a missing (NaN) loss reaches no gradient and no statistic
            kept |= {c: torch.where(there, kept[c], 0.0) for c, there in mask.items()}
            inputs = Inputs({c: v.detach() for c, v in kept.items()}, self._features(features, mask), mask)
            betas, regularisers = self.betas(inputs)
            summed, penalty = torch.zeros_like(inputs.like), torch.zeros_like(inputs.like)
            weights = {}
            for channel, loss in kept.items():
                weight = betas[channel] if channel in betas else torch.ones_like(loss)
                extra = regularisers.get(channel)
                if channel in mask:
                    weight = torch.where(mask[channel], weight, 0.0)
                    extra = extra if extra is None else torch.where(mask[channel], extra, 0.0)
                summed = summed + weight * loss
                penalty = penalty if extra is None else penalty + extra
                weights[channel] = weight.detach()
            return Weighted((summed + penalty).mean(), weights, penalty.mean().detach())

    def _features(self, features: Tensor | None, mask: Mapping[str, Tensor]) -> Tensor | None:
        """Detached features; zeros for samples that no weighted channel speaks about, which may have none."""
        if features is None:
            return None
        features = wide(features.detach())
        if not self.trainable or not all(c in mask for c in self.trainable):
            return features
        there = torch.stack([mask[c] for c in self.trainable]).any(0)
        return torch.where(there[:, None], features, 0.0)

    def _check(self, losses: Mapping[str, Tensor], features: Tensor | None, mask: Mapping[str, Tensor]) -> None:
        if set(losses) != set(self.channels):
            raise ValueError(f"losses are given for {sorted(losses)}; this weighting was built for {list(self.channels)}")
        size = losses[self.channels[0]].shape[0] if losses[self.channels[0]].ndim else None
        for kind, table in (("loss", losses), ("mask", mask)):
            for channel, value in table.items():
                if channel not in self.channels:
                    raise ValueError(f"{kind} of unknown channel {channel!r}; known: {list(self.channels)}")
                if value.shape != (size,):
                    raise ValueError(f"{kind} of {channel!r} has shape {tuple(value.shape)}; one per sample is [{size or 'B'}]")
                if kind == "mask" and value.dtype != torch.bool:
                    raise ValueError(f"mask of {channel!r} is {value.dtype}; allowed: torch.bool")
        if features is not None and (features.ndim != 2 or features.shape[0] != size):
            raise ValueError(f"features have shape {tuple(features.shape)}; allowed: [{size}, F]")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Weighting:
        """Move and cast as any module, but never below float32: half-precision engines cast whatever they are given."""

        def at_least_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(moved.device) if half else moved

        # submodules get the wrapped function through super, which calls their own _apply with it
        super()._apply(at_least_float32, recurse)  # type: ignore[no-untyped-call]
        return self


class BetaWeighting(Weighting):
    """Beta-KD, the paper's objective: L_CE + sum_k [beta_k l_k - (d_k / 2) log beta_k], beta by softplus (METHOD 2.6).

    The penalty is the Laplace approximation of the log partition function of a Gibbs prior exp(-beta l), which is why it
    asks for losses that are >= 0 and 0 at a match. The minimum over beta is beta* = d / (2 l).

    Args:
        weigh_ce: whether CE gets a beta too (with its own d), where the paper leaves it at 1.
    """

    takes_logs = True
    has_d = True

    def __init__(
        self,
        channels: tuple[str, ...],
        feature_dim: int | None,
        d: float | Mapping[str, float],
        weigh_ce: bool = False,
    ) -> None:
        super().__init__(channels, feature_dim, d, weigh_ce)
        if not self.trainable:
            raise UserError(f"weighting {self.name!r} needs a channel beside 'ce', got {list(channels)}")
        self.d = per_channel("d", d, self.trainable, above_zero=True)

    def penalise(self, raw: Tensor) -> Betas:
        """Turn raw parameters [B, K] into weights softplus(raw) and penalties -(d / 2) log softplus(raw), {channel: [B]}."""
        beta = softplus(raw)
        # log softplus(x) = x - e^x / 2 + ... far below zero, where softplus itself underflows and its log would be -inf
        log_beta = torch.where(raw < -15, raw, softplus(raw.clamp(min=-15)).log())
        weights = {c: beta[:, k] for k, c in enumerate(self.trainable)}
        penalties = {c: -0.5 * self.d[c] * log_beta[:, k] for k, c in enumerate(self.trainable)}
        return weights, penalties
