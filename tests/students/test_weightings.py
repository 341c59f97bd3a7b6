"""The paper's objective (METHOD.md 2.6) and the contract of weightings (DESIGN section 4)."""

import math

import pytest
import torch

from harness.base import UserError
from students import weightings

CHANNELS = ("ce", "kd", "fd")
NAMES = weightings.names()


def losses(size=6, channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {c: torch.rand(size, generator=generator) + 0.1 for c in channels}


def features(size=6, seed=1):
    return torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))


def make(name, channels=CHANNELS, seed=0, **options):
    torch.manual_seed(seed)
    return weightings.build(name, channels=channels, feature_dim=8, **options)


def stirred(name, **options):
    """A weighting whose parameters are no longer at their start."""
    weighting = make(name, **options)
    with torch.no_grad():
        for p in weighting.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.7)
    return weighting


def descend(weighting, table, h=None, steps=800, lr=0.05):
    optimizer = torch.optim.Adam(weighting.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        out = weighting(table, features=h)
        out.total.backward()
        optimizer.step()
    return weighting(table, features=h)


@pytest.mark.parametrize("name", NAMES)
def test_total_is_the_mean_of_the_weighted_sum_and_the_regulariser(name):
    table, weighting = losses(), stirred(name)
    out = weighting(table, features=features())
    expected = sum((out.weights[c] * table[c]).mean() for c in CHANNELS) + out.regulariser
    torch.testing.assert_close(out.total, expected)
    assert set(out.weights) == set(CHANNELS)
    for value in out.weights.values():
        assert value.shape == (6,)
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert (value > 0).all()
    assert not out.regulariser.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_ce_weighs_one_always(name):
    assert torch.equal(stirred(name)(losses(), features=features()).weights["ce"], torch.ones(6))


@pytest.mark.parametrize("name", ["beta_task", "beta_instance"])
def test_training_starts_as_fixed_does(name):
    table = losses()
    start, fixed = make(name)(table, features=features()), make("fixed")(table)
    torch.testing.assert_close(start.total, fixed.total)
    for c in CHANNELS:
        torch.testing.assert_close(start.weights[c], fixed.weights[c])


@pytest.mark.parametrize("name", ["beta_task", "beta_instance"])
@pytest.mark.parametrize(("loss", "d"), [(0.25, 1.0), (0.1, 1.0), (0.25, 3.0)])
def test_descent_finds_beta_star(name, loss, d):
    table = {"ce": torch.full((4,), 0.5), "kd": torch.full((4,), loss)}
    out = descend(make(name, ("ce", "kd"), d=d), table, features(4))
    torch.testing.assert_close(out.weights["kd"], torch.full((4,), d / (2 * loss)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["beta_task", "beta_instance"])
def test_value_at_beta_star(name):
    table = {"ce": torch.full((4,), 0.5), "kd": torch.full((4,), 0.25)}
    out = descend(make(name, ("ce", "kd")), table, features(4))
    assert out.total.item() == pytest.approx(0.5 + 0.153426, abs=1e-5)


def test_scaling_a_loss_scales_beta_star_and_leaves_the_students_gradient():
    gradients = []
    for scale in (1.0, 5.0):
        logit = torch.tensor([0.7], requires_grad=True)
        weighting = make("beta_task", ("ce", "kd"))
        with torch.no_grad():  # at beta* exactly: softplus(raw) = 1 / (2 l)
            weighting.raw.copy_(torch.log(torch.expm1(1 / (2 * scale * logit.square()))))
        weighting({"ce": logit * 0.3, "kd": scale * logit.square()}).total.backward()
        gradients.append(logit.grad.item())
        assert weighting.raw.grad.abs().item() < 1e-6
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)
    assert gradients[0] == pytest.approx(0.3 + 0.5 * 2 / 0.7, rel=1e-5)  # grad CE + (d / 2) grad log l


def test_without_the_penalty_beta_collapses():
    table = {"ce": torch.full((4,), 0.5), "kd": torch.full((4,), 0.25)}
    out = descend(make("beta_task", ("ce", "kd"), d=0.0), table, steps=1500, lr=0.1)
    assert out.weights["kd"].max() < 0.02
    assert out.regulariser.item() == 0


def test_the_penalty_stays_finite_where_softplus_underflows():
    weighting = make("beta_task", ("ce", "kd"))
    with torch.no_grad():
        weighting.raw.fill_(-500.0)
    out = weighting({"ce": torch.ones(2), "kd": torch.ones(2)})
    out.total.backward()
    assert out.regulariser.item() == pytest.approx(250)
    assert weighting.raw.grad.item() == pytest.approx(-0.5)  # pushed back up


def test_instance_betas_follow_each_samples_loss():
    """Two kinds of samples that the features tell apart: each gets its own d / (2 l), which a task-level beta cannot do."""
    h = torch.eye(8)[torch.tensor([0, 0, 1, 1])]
    table = {"ce": torch.ones(4), "kd": torch.tensor([0.25, 0.25, 0.05, 0.05])}
    assert descend(make("beta_instance", ("ce", "kd")), table, h).weights["kd"].tolist() == pytest.approx(
        [2, 2, 10, 10], rel=0.02
    )
    assert descend(make("beta_task", ("ce", "kd")), table).weights["kd"].tolist() == pytest.approx([1 / 0.3] * 4, rel=0.01)


def test_d_may_differ_by_channel():
    table = {"ce": torch.ones(4), "kd": torch.full((4,), 0.25), "fd": torch.full((4,), 0.25)}
    out = descend(make("beta_task", d={"kd": 1.0, "fd": 4.0}), table)
    assert out.weights["kd"][0].item() == pytest.approx(2, rel=1e-2)
    assert out.weights["fd"][0].item() == pytest.approx(8, rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_the_split_into_micro_batches_does_not_matter(name):
    table, h, weighting = losses(), features(), stirred(name)
    assert weighting.additive
    whole = weighting(table, features=h).total
    parts = [weighting({c: v[s] for c, v in table.items()}, features=h[s]).total for s in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(whole, (parts[0] + 5 * parts[1]) / 6)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_samples_permutes_the_weights(name):
    table, h, weighting = losses(), features(), stirred(name)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain, mixed = weighting(table, features=h), weighting({c: v[order] for c, v in table.items()}, features=h[order])
    torch.testing.assert_close(plain.total, mixed.total)
    for c in CHANNELS:
        torch.testing.assert_close(mixed.weights[c], plain.weights[c][order])


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_loss_is_as_if_absent(name):
    table, h, weighting = losses(), features(), stirred(name)
    keep = torch.tensor([True, True, False, True, False, True])
    table["fd"] = torch.where(keep, table["fd"], math.nan).requires_grad_()
    out = weighting(table, features=h, mask={"fd": keep})
    out.total.backward()
    assert out.total.isfinite()
    assert (out.weights["fd"] == 0).tolist() == (~keep).tolist()
    assert (table["fd"].grad[~keep] == 0).all()
    assert all(p.grad.isfinite().all() for p in weighting.parameters())
    everything = weighting({**table, "fd": torch.ones(6)}, features=h, mask={"fd": torch.zeros(6, dtype=torch.bool)})
    expected = (table["ce"] + everything.weights["kd"] * table["kd"]).mean() + everything.regulariser
    torch.testing.assert_close(everything.total, expected)


def test_the_gate_sends_no_gradient_into_the_student():
    h = features().requires_grad_()
    stirred("beta_instance")(losses(), features=h).total.backward()
    assert h.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_computed_in_float32_under_autocast(name):
    table, h, weighting = losses(), features(), stirred(name)
    plain = weighting(table, features=h)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = weighting(table, features=h)
    assert torch.equal(plain.total, mixed.total)


def test_fixed_weights_are_the_ones_asked_for():
    table = losses()
    out = make("fixed", weights={"kd": 0.3, "fd": 4.0})(table)
    torch.testing.assert_close(out.total, (table["ce"] + 0.3 * table["kd"] + 4.0 * table["fd"]).mean())
    assert torch.equal(make("fixed", weights=0.0)(table).total, table["ce"].mean())
    assert torch.equal(make("fixed", ("kd",))({"kd": table["kd"]}).total, table["kd"].mean())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fixd", {}, "fixed"),
        ("fixed", {"weigths": 1.0}, "weights"),
        ("fixed", {"weights": {"kd": 1.0}}, "'fd'"),
        ("fixed", {"weights": {"kd": 1.0, "fd": 1.0, "ce": 2.0}}, "'ce'"),
        ("fixed", {"weights": -1.0}, "-1.0"),
        ("fixed", {"weights": math.nan}, "nan"),
        ("fixed", {"d": 2.0}, "no d"),
        ("beta_task", {"d": -1.0}, "-1.0"),
        ("beta_task", {"d": {"kd": 1.0}}, "'fd'"),
        ("beta_task", {"channels": ("ce",)}, "'ce'"),
        ("beta_instance", {"feature_dim": None}, "feature_dim"),
        ("beta_instance", {"features": "vision"}, "student_prompt"),
    ],
)
def test_bad_settings_are_refused_by_name(name, options, words):
    with pytest.raises(UserError) as error:
        weightings.build(name, **{"channels": CHANNELS, "feature_dim": 8, **options})
    assert words in str(error.value)


def test_losses_must_be_the_ones_promised():
    weighting = make("fixed")
    with pytest.raises(ValueError, match="fd"):
        weighting({"ce": torch.ones(2), "kd": torch.ones(2)})
    with pytest.raises(ValueError, match="shape"):
        weighting({**losses(), "kd": torch.tensor(1.0)})
