"""Weightings: how the channels of a loss are balanced. One file per weighting, found by its name; no torch until built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from students import registry

if TYPE_CHECKING:
    from ._base import Weighting


def names() -> tuple[str, ...]:
    """Names of all weightings, sorted; imports none of them."""
    return registry.names("weightings")


def build(
    name: str,
    channels: Sequence[str],
    feature_dim: int | None = None,
    d: float | Mapping[str, float] = 1.0,
    **options: Any,
) -> Weighting:
    """Make the weighting ``name``, a ``torch.nn.Module`` over per-sample losses.

    Args:
        name: a file in this folder.
        channels: names of the losses, in the order they are summed; opaque, except that "ce" is the anchor.
        feature_dim: F, for weightings that read features [B, F].
        d: effective dimension per channel other than "ce" (one number for all, or one each), for weightings that have one.
        options: the weighting's own.

    Raises:
        UserError: (a ``KeyError`` too for names) for an unknown name, option or channel, with near matches.
    """
    factory = registry.find("weighting", "weightings", "Weighting", name)
    registry.check_options("weighting", name, factory, options, given_anyway=("channels", "feature_dim"))
    weighting: Weighting = factory(channels=tuple(channels), feature_dim=feature_dim, d=d, **options)
    return weighting
