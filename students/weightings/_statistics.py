"""Weights from the batch's mean losses, frozen between optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import _base

#: Smallest mean loss that is divided by: so small that only a loss which has vanished meets it.
FLOOR = 1e-8


def checked(table: Mapping[str, Tensor], channels: tuple[str, ...]) -> None:
    """Check that a hook was given all channels.

    Raises:
        ValueError: for other channels than the weighting was built with.
    """
    if set(table) != set(channels):
        raise ValueError(f"values are given for {sorted(table)}; this weighting was built for {list(channels)}")


class StatisticWeighting(_base.Weighting):
    """Base of weightings that are functions of each channel's mean loss.

    The mean is that of the last optimiser step's samples (subclasses may keep another one, see :meth:`newest`), in buffers
    that :meth:`on_optimiser_step` alone updates, so that every micro-batch of a step is weighted alike. Before its first
    call, and for a channel that no sample had so far, the batch at hand takes its place; hence ``additive`` is False.
    """

    additive = False
    takes_logs = True
    mean: Tensor
    taken: Tensor

    def __init__(self, channels: tuple[str, ...], feature_dim: int | None, d: float | Mapping[str, float] = 1.0) -> None:
        super().__init__(channels, feature_dim, d)
        self.needs = frozenset({"losses"})
        self.register_buffer("mean", torch.zeros(len(channels)))
        self.register_buffer("taken", torch.zeros(len(channels)))

    def newest(self, step: int) -> Tensor:  # noqa: ARG002 - subclasses read it
        """Return the share [K] of step ``step``'s mean in the new statistic; 1 keeps nothing of the old."""
        return torch.ones_like(self.taken)

    @torch.no_grad()
    def on_optimiser_step(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Update the statistic of every channel that some sample has.

        Raises:
            ValueError: for other channels than this was built with.
        """
        fresh = self.means_of(losses)
        share = self.newest(step)
        for k, channel in enumerate(self.channels):
            if channel in fresh:
                self.mean[k] = torch.lerp(self.mean[k], fresh[channel].to(self.mean.dtype), share[k])
                self.taken[k] += (share[k] > 0).to(self.taken.dtype)

    def means_of(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean loss of each channel that some sample has.

        Raises:
            ValueError: for other channels than this was built with.
        """
        checked(losses, self.channels)
        return {c: losses[c].detach().mean() for c in self.channels if losses[c].numel()}

    def current(self, inputs: _base.Inputs) -> tuple[Tensor, Tensor]:
        """Return the means [K] that weights are to be made of, and which of them are known, [K] bool."""
        here, present = inputs.means()
        seen = self.taken > 0
        return torch.where(seen, self.mean.to(here.dtype), here), seen | present

    @staticmethod
    def step_one_again(step: int, taken: Tensor) -> Tensor:
        """Tell where [K] step 1's losses were already taken as step 0's: both are the first batch's, before training."""
        return (taken > 0) & (step == 1)
