"""What every weighting declares and returns, and the sum that all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        losses: {channel: [B]} float32.
        features: [B, F] float32, or None.
    """

    losses: dict[str, Tensor]
    features: Tensor | None

    @property
    def like(self) -> Tensor:
        """One of the losses, for its shape [B], its type and its device."""
        return next(iter(self.losses.values()))


class Weighting(nn.Module):
    """Base class: checks the losses, asks the subclass for weights [B] and regulariser [B], and sums in fp32.

    Attributes:
        channels: names of the losses, in summing order.
        weighs_ce: whether "ce" gets a weight too; where not, it always weighs 1.
        trainable: the channels that get a weight: all, or all but "ce".
        needs: what it wants beside the losses. Names of features (students/features.py), which are concatenated in the
            order of :meth:`feature_names`; "gradient_norms" for :meth:`after_backward`; "second_forward" for
            :meth:`after_step`; "losses" for :meth:`on_optimiser_step` (the other weightings get no call).
        additive: the total does not depend on the split into micro-batches (weighted by their sizes).
        takes_logs: whether it divides by losses or takes their logarithms, so that an energy must be >= 0 and 0 at a match.
        rate: factor on the run's ``weighting_lr`` for this weighting's parameters.
        lr_multiple: their learning rate as a multiple of the student's instead, or None.
    """

    weighs_ce: bool = False
    additive: bool = True
    takes_logs: bool = False
    rate: float = 1.0
    lr_multiple: float | None = None

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None) -> None:
        super().__init__()
        if not channels or len(set(channels)) != len(channels):
            raise UserError(f"channels are {list(channels)}; allowed: at least one, each once")
        self.channels = channels
        self.feature_dim = feature_dim
        self.trainable = tuple(c for c in channels if self.weighs_ce or c != "ce")
        self.needs: frozenset[str] = frozenset()

    @classmethod
    def feature_names(cls, options: Mapping[str, Any]) -> tuple[str, ...]:  # noqa: ARG003 - subclasses read it
        """Return the features that a weighting built with ``options`` reads, in the order of its columns."""
        return ()

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
        if not self.takes_logs:
            return
        name = type(self).__module__.rpartition(".")[2]
        for broken, why in (
            (not zero_at_match, "it is not zero at a match"),
            (bounds[0] < 0, f"it can be {bounds[0]:g}, below zero"),
        ):
            if broken:
                raise UserError(
                    f"weighting {name!r} cannot weigh {channel!r}: {why}, and the weighting rests on the logarithm of a loss"
                    " that is >= 0 and 0 at a match (METHOD 2.6); use a proper divergence, or 'fixed'"
                )

    def betas(self, inputs: Inputs) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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
        self._check(losses, features, mask or {})
        first = losses[self.channels[0]]
        with torch.autocast(first.device.type, enabled=False):
            features = None if features is None else wide(features.detach())
            betas, regularisers = self.betas(Inputs({c: wide(losses[c].detach()) for c in self.channels}, features))
            summed = torch.zeros_like(wide(first.detach()))
            penalty = torch.zeros_like(summed)
            weights = {}
            for channel in self.channels:
                loss = wide(losses[channel])
                weight = betas[channel] if channel in betas else torch.ones_like(loss)
                term, extra = weight * loss, regularisers.get(channel, torch.zeros_like(loss))
                keep = (mask or {}).get(channel)
                if keep is not None:
                    zero = torch.zeros_like(loss)
                    # the loss is replaced before the product, so that a missing (NaN) one reaches no gradient
                    term = weight * torch.where(keep, loss, zero)
                    weight, extra = torch.where(keep, weight, zero), torch.where(keep, extra, zero)
                summed = summed + term
                penalty = penalty + extra
                weights[channel] = weight.detach()
            return Weighted((summed + penalty).mean(), weights, penalty.mean().detach())

    def _check(self, losses: Mapping[str, Tensor], features: Tensor | None, mask: Mapping[str, Tensor]) -> int:
        if set(losses) != set(self.channels):
            raise ValueError(f"losses are given for {sorted(losses)}; this weighting was built for {list(self.channels)}")
        size = losses[self.channels[0]].shape[0]
        for kind, table in (("loss", losses), ("mask", mask)):
            for channel, value in table.items():
                if channel not in self.channels:
                    raise ValueError(f"{kind} of unknown channel {channel!r}; known: {list(self.channels)}")
                if value.shape != (size,):
                    raise ValueError(f"{kind} of {channel!r} has shape {tuple(value.shape)}; one per sample is [{size}]")
        if features is not None and (features.ndim != 2 or features.shape[0] != size):
            raise ValueError(f"features have shape {tuple(features.shape)}; allowed: [{size}, F]")
        return size


class BetaWeighting(Weighting):
    """Beta-KD, the paper's objective: L_CE + sum_k [beta_k l_k - (d_k / 2) log beta_k], beta by softplus (METHOD 2.6).

    The penalty is the Laplace approximation of the log partition function of a Gibbs prior exp(-beta l), which is why it
    asks for losses that are >= 0 and 0 at a match. The minimum over beta is beta* = d / (2 l).
    """

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None, d: float | Mapping[str, float]) -> None:
        super().__init__(channels, feature_dim)
        if not self.trainable:
            raise UserError(f"a beta weighting needs a channel beside 'ce', got {list(channels)}")
        self.d = per_channel("d", d, self.trainable)

    def penalise(self, raw: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Turn raw parameters [B, K] into weights softplus(raw) and penalties -(d / 2) log softplus(raw), {channel: [B]}."""
        beta = softplus(raw)
        # log softplus(x) = x - e^x / 2 + ... far below zero, where softplus itself underflows and its log would be -inf
        log_beta = torch.where(raw < -15, raw, softplus(raw.clamp(min=-15)).log())
        weights = {c: beta[:, k] for k, c in enumerate(self.trainable)}
        penalties = {c: -0.5 * self.d[c] * log_beta[:, k] for k, c in enumerate(self.trainable)}
        return weights, penalties
