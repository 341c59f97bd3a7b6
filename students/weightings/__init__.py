"""Weightings: how the channels of a loss are balanced. One file per weighting, found by its name; no torch until built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.base import UserError
from students import registry

if TYPE_CHECKING:
    from ._base import Weighting

#: Options that every weighting with parameters takes.
PACE = ("rate", "lr_multiple")


def names() -> tuple[str, ...]:
    """Names of all weightings, sorted; imports none of them."""
    return registry.names("weightings")


def features(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the features that the weighting ``name`` reads with ``options``, in the order of their columns; builds nothing.

    Raises:
        UserError: (a ``KeyError`` too) for an unknown weighting or feature, with near matches.
    """
    found: tuple[str, ...] = _factory(name).feature_names(options)
    return found


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
        d: effective dimension per weighted channel (one number for all, or one each), > 0, for weightings that have one.
        options: the weighting's own. Every weighting with parameters takes ``rate`` (factor on the run's ``weighting_lr``)
            or, instead, ``lr_multiple`` (their learning rate as a multiple of the student's; the released code has 1000 at
            task and 10 at instance level, METHOD 2.6, row 10).

    Raises:
        UserError: (a ``KeyError`` too for names) for an unknown name, option or channel, with near matches, and for values
            that are not allowed.
    """
    factory = _factory(name)
    registry.check_options(
        "weighting", name, factory, options, given_anyway=("channels", "feature_dim", "weighs_ce"), also=PACE
    )
    pace = {key: registry.positive(key, options.pop(key)) for key in PACE if key in options}
    if len(pace) == 2:
        raise UserError(f"weighting {name!r} got both rate and lr_multiple; each sets its learning rate, give one")
    weighting: Weighting = factory(channels=tuple(channels), feature_dim=feature_dim, d=d, **options)
    for key, value in pace.items():
        if not any(True for _ in weighting.parameters()):
            raise UserError(f"weighting {name!r} has no parameters, so it takes no {key} (got {value!r})")
        setattr(weighting, key, value)
    return weighting


def _factory(name: str) -> Any:
    return registry.find("weighting", "weightings", "Weighting", name)
