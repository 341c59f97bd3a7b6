"""Losses, features and weightings that the tests of weightings share."""

import torch

from students import weightings

CHANNELS = ("ce", "kd", "fd")
NAMES = weightings.names()
#: Columns of the one feature that some weightings read.
WIDTHS = {"teacher_entropy": 2, "oracle": 1}
#: CE always weighs 1 with these.
ANCHORED = ("analytic", "beta_instance", "beta_task", "fixed", "learned", "manual", "teacher_entropy")
#: Weights from the batch's mean losses, frozen since the last optimiser step.
FROZEN = ("famo", "gls", "manual", "uwo", "uwso")


def losses(size=6, channels=CHANNELS, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {c: torch.rand(size, generator=generator, dtype=dtype) + 0.1 for c in channels}


def features(size=6, seed=1, name="", dtype=torch.float32):
    """[size, F] for the weighting ``name``: shares for scalars, 0 and 1 for the planted truth, normal numbers for a gate."""
    h = torch.randn(size, WIDTHS.get(name, 8), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (h > 0).to(dtype) if name == "oracle" else h.sigmoid() if name == "teacher_entropy" else h


def make(name, channels=CHANNELS, seed=0, **options):
    torch.manual_seed(seed)
    return weightings.build(name, channels=channels, feature_dim=WIDTHS.get(name, 8), **options)


def stirred(name, **options):
    """A weighting whose parameters and statistics are no longer at their start."""
    weighting = make(name, **({"window": 1} if name == "dwa" else {}), **options)
    with torch.no_grad():
        for p in weighting.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.7)
    return live(weighting)


def live(weighting, steps=3):
    """Call the hooks that a weighting asks for, as the distiller does."""
    channels = weighting.channels
    for step in range(steps + 1):
        if step and "gradient_norms" in weighting.needs:
            norms = torch.rand(len(channels), generator=torch.Generator().manual_seed(20 + step)) + 0.1
            weighting.after_backward(dict(zip(channels, norms, strict=True)))
        if "losses" in weighting.needs:
            weighting.on_optimiser_step(step, losses(channels=channels, seed=max(step, 1)))
        if step and "second_forward" in weighting.needs:
            weighting.after_step({c: v * 0.9 for c, v in losses(channels=channels, seed=step).items()})
    return weighting


def descend(weighting, table, h=None, steps=800, lr=0.05):
    """Train a weighting on constant losses and return what it then gives."""
    optimizer = torch.optim.Adam(weighting.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        weighting(table, features=h).total.backward()
        optimizer.step()
    return weighting(table, features=h)


def flat(size=4, **values):
    """The same loss for every sample: flat(ce=.5, kd=.25)."""
    return {c: torch.full((size,), float(v)) for c, v in values.items()}
