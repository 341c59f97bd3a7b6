"""What every weighting must do (DESIGN section 4), and how bad input is refused."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from weighting_cases import ANCHORED, CHANNELS, NAMES, features, live, losses, make, stirred

from harness.base import UserError
from students import weightings
from students.checkpoint import load_weighting, save_weighting


@pytest.mark.parametrize("name", NAMES)
def test_total_is_the_mean_of_the_weighted_sum_and_the_regulariser(name):
    table, weighting = losses(), stirred(name)
    out = weighting(table, features=features(name=name))
    expected = sum((out.weights[c] * table[c]).mean() for c in CHANNELS) + out.regulariser
    torch.testing.assert_close(out.total, expected)
    assert set(out.weights) == set(CHANNELS)
    for value in out.weights.values():
        assert value.shape == (6,)
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert (value >= 0).all()
        assert (value > 0).all() or name == "oracle"
    assert not out.regulariser.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_ce_weighs_one_except_where_the_method_weighs_it(name):
    out = stirred(name)(losses(), features=features(name=name))
    anchored = torch.equal(out.weights["ce"], torch.ones(6))
    assert anchored == (name in ANCHORED) == (not make(name).weighs_ce)


def test_fixed_with_unit_weights_is_the_plain_sum_sample_by_sample():
    weighting = make("fixed")
    table = {c: v.requires_grad_() for c, v in losses().items()}
    for k in range(6):
        one = {c: v[k : k + 1] for c, v in table.items()}
        assert torch.equal(weighting(one).total, one["ce"][0] + one["kd"][0] + one["fd"][0])
    weighting(table).total.backward()
    for value in table.values():
        torch.testing.assert_close(value.grad, torch.full((6,), 1 / 6))


@pytest.mark.parametrize("name", ["beta_task", "beta_instance", "learned", "dwa", "gradnorm"])
def test_training_starts_as_fixed_does(name):
    table = losses()
    start, fixed = make(name)(table, features=features()), make("fixed")(table)
    torch.testing.assert_close(start.total, fixed.total)
    for c in CHANNELS:
        torch.testing.assert_close(start.weights[c], fixed.weights[c])


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_samples_permutes_the_weights(name):
    table, h, weighting = losses(), features(name=name), stirred(name)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain, mixed = weighting(table, features=h), weighting({c: v[order] for c, v in table.items()}, features=h[order])
    torch.testing.assert_close(plain.total, mixed.total)
    for c in CHANNELS:
        torch.testing.assert_close(mixed.weights[c], plain.weights[c][order])


def test_no_weighting_sends_a_gradient_through_its_features():
    for name in NAMES:
        h = features(name=name).requires_grad_()
        table = {c: v.requires_grad_() for c, v in losses().items()}
        stirred(name)(table, features=h).total.backward()
        assert h.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_is_a_constant_to_the_student(name):
    """The gradient to each loss is its reported weight over B: no weighting differentiates through its statistics."""
    table = {c: v.requires_grad_() for c, v in losses().items()}
    for weighting in (make(name), stirred(name)):
        for value in table.values():
            value.grad = None
        out = weighting(table, features=features(name=name))
        out.total.backward()
        for c, value in table.items():
            torch.testing.assert_close(value.grad, out.weights[c] / 6)


class NoReads(TorchDispatchMode):
    """Fails where a value is read from a tensor (`.item()`, `if tensor`, boolean indexing), which waits for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_back_from_the_device(name):
    weighting, table, h = make(name), losses(), features(name=name)
    keep = torch.tensor([True, True, False, True, False, True])
    with NoReads():
        for _ in range(2):
            weighting({c: v.requires_grad_() for c, v in table.items()}, features=h, mask={"fd": keep}).total.backward()
            live(weighting, steps=20)
        with pytest.raises(AssertionError, match="local_scalar"):
            table["ce"][0].item()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_computed_in_float32_under_autocast(name):
    table, h, weighting = losses(), features(name=name), stirred(name)
    plain = weighting(table, features=h)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = weighting(table, features=h)
    assert torch.equal(plain.total, mixed.total)
    half = weighting({c: v.bfloat16() for c, v in table.items()}, features=h.bfloat16())
    assert half.total.dtype == torch.float32
    torch.testing.assert_close(half.total, plain.total, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_half_precision_engines_leave_the_weighting_in_float32(name, cast):
    """DeepSpeed's engine halves the released log-variances (METHOD 2.6, row 12)."""
    weighting = stirred(name)
    before = {k: v.clone() for k, v in weighting.state_dict().items()}
    getattr(torch.nn.Sequential(torch.nn.Linear(2, 2), weighting), cast)()
    for key, value in weighting.state_dict().items():
        assert value.dtype == torch.float32, key
        assert torch.equal(value, before[key])
    assert all(v.dtype == torch.float64 for v in weighting.double().state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_round_trip_through_files(name, tmp_path):
    weighting, options = stirred(name), {"seed": 3} if name == "rlw" else {}
    save_weighting(weighting, name, {"options": options, "feature_dim": weighting.feature_dim}, tmp_path)
    loaded = load_weighting(tmp_path)
    table, h = losses(seed=9), features(seed=9, name=name)
    ours, theirs = weighting(table, features=h), loaded(table, features=h)
    assert torch.equal(ours.total, theirs.total)
    for c in CHANNELS:
        assert torch.equal(ours.weights[c], theirs.weights[c])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fixd", {}, "fixed"),
        ("fixed", {"weigths": 1.0}, "weights"),
        ("fixed", {"weights": {"kd": 1.0}}, "'fd'"),
        ("fixed", {"weights": {"kd": 1.0, "fd": 1.0, "ce": 2.0}}, "'ce'"),
        ("fixed", {"weights": -1.0}, "-1.0"),
        ("fixed", {"weights": math.nan}, "nan"),
        ("fixed", {"weights": "1"}, "'1'"),
        ("fixed", {"d": 2.0}, "'fixed' has no d"),
        ("uwo", {"d": {"kd": 1.0}}, "'uwo' has no d"),
        ("manual", {"n": 0}, "n is 0"),
        ("beta_task", {"d": -1.0}, "-1.0"),
        ("beta_task", {"d": 0}, "> 0"),
        ("beta_instance", {"d": {"kd": 1.0, "fd": 0.0}}, "channel 'fd' is 0.0"),
        ("analytic", {"d": math.inf}, "inf"),
        ("beta_task", {"d": {"kd": 1.0}}, "'fd'"),
        ("beta_task", {"d": {"kd": 1.0, "fd": 1.0, "ce": 1.0}}, "'ce'"),
        ("beta_task", {"channels": ("ce",)}, "'ce'"),
        ("analytic", {"channels": ("ce",)}, "'ce'"),
        ("beta_task", {"weigh_ce": "yes"}, "weigh_ce is 'yes'"),
        ("beta_instance", {"feature_dim": None}, "feature_dim"),
        ("released_instance", {"feature_dim": 0}, "feature_dim"),
        ("beta_instance", {"hidden": 0}, "hidden is 0"),
        ("beta_instance", {"features": "vision"}, "teacher_vision"),
        ("beta_instance", {"features": []}, "student_prompt"),
        ("beta_instance", {"features": ["scalars", "scalars"]}, "each once"),
        ("beta_instance", {"features": "blind"}, "'blind'"),
        ("released_instance", {"per_sample": 1}, "per_sample is 1"),
        ("kendall", {"form": "regresion"}, "regression"),
        ("kendall", {"init": math.nan}, "nan"),
        ("analytic", {"level": "sample"}, "instance"),
        ("analytic", {"decay": 0.5}, "level 'task'"),
        ("analytic", {"level": "task", "decay": 1.0}, "decay is 1.0"),
        ("analytic", {"floor": 0.0}, "floor is 0.0"),
        ("uwso", {"temperature": -1}, "temperature is -1"),
        ("dwa", {"window": 1.5}, "window is 1.5"),
        ("famo", {"b": -1.0}, "-1.0"),
        ("gradnorm", {"alpha": -1}, "alpha is -1"),
        ("rlw", {"seed": -1}, "seed is -1"),
        ("beta_task", {"rate": 0}, "rate is 0"),
        ("beta_task", {"lr_multiple": math.inf}, "lr_multiple is inf"),
        ("beta_task", {"rate": 1.0, "lr_multiple": 1.0}, "give one"),
        ("fixed", {"rate": 2.0}, "no parameters"),
        ("beta_task", {"lr_multiples": 1.0}, "lr_multiple"),
        ("fixed", {"channels": ("kd", "kd")}, "each once"),
    ],
)
def test_bad_settings_are_refused_by_name(name, options, words):
    with pytest.raises(UserError) as error:
        weightings.build(name, **{"channels": CHANNELS, "feature_dim": 8, **options})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_learning_rate_is_an_option_of_every_weighting_with_parameters():
    for name in NAMES:
        if list(make(name).parameters()):
            assert make(name, rate=3).rate == 3
            assert make(name, lr_multiple=1000).lr_multiple == 1000
            assert make(name).lr_multiple is None


def test_features_are_named_without_building():
    assert weightings.features("beta_instance", {}) == ("student_prompt",)
    several = {"features": ["teacher_prompt", "scalars"], "d": 2.0}
    assert weightings.features("beta_instance", several) == ("teacher_prompt", "scalars")
    assert make("beta_instance", **several).needs == {"teacher_prompt", "scalars"}
    assert weightings.features("released_instance", {}) == ("teacher_vision",)
    assert weightings.features("oracle", {}) == ("blind",)
    for name in NAMES:
        assert set(weightings.features(name, {})) == make(name).needs - {"losses", "gradient_norms", "second_forward"}
    with pytest.raises(UserError, match="teacher_vision"):
        weightings.features("beta_instance", {"features": "vision"})
    with pytest.raises(KeyError, match="beta_task"):
        weightings.features("beta_tsk", {})


@pytest.mark.parametrize("name", NAMES)
def test_energies_that_cannot_be_weighed_are_refused_with_the_reason(name):
    weighting = make(name)
    weighting.accept("fkl", True, (0.0, math.inf))
    free = {"fixed", "oracle", "rlw", "teacher_entropy"}
    logs = {"analytic", "beta_instance", "beta_task", "dwa", "famo", "gls", "gradnorm", "uwo", "uwso"}
    assert weighting.takes_logs == (name in logs)
    if name in free:
        weighting.accept("bkd", False, (-math.inf, math.inf))
        return
    with pytest.raises(UserError, match=rf"{name}.*'bkd'.*below zero.*METHOD 2.6"):
        weighting.accept("bkd", False, (-2.0, 3.0))
    if name in logs:
        with pytest.raises(UserError, match=rf"{name}.*'pld'.*not zero at a match"):
            weighting.accept("pld", False, (0.0, math.inf))
    else:  # defined for soft cross-entropy, which is what the released code feeds them
        weighting.accept("soft_ce", False, (0.0, math.inf))


@pytest.mark.parametrize("name", NAMES)
def test_losses_must_be_the_ones_promised(name):
    weighting, h = make(name), features(2, name=name)
    with pytest.raises(ValueError, match="fd"):
        weighting({"ce": torch.ones(2), "kd": torch.ones(2)}, features=h)
    with pytest.raises(ValueError, match="shape"):
        weighting({**losses(2), "kd": torch.tensor(1.0)}, features=h)
    with pytest.raises(ValueError, match="shape"):
        weighting({c: torch.tensor(1.0) for c in CHANNELS}, features=h)
    with pytest.raises(ValueError, match="unknown channel 'xx'"):
        weighting(losses(2), features=h, mask={"xx": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"torch\.bool"):
        weighting(losses(2), features=h, mask={"kd": torch.ones(2)})
    with pytest.raises(ValueError, match="features"):
        weighting(losses(2), features=torch.ones(3, 8))


@pytest.mark.parametrize("name", ["beta_instance", "released_instance", "teacher_entropy", "oracle"])
def test_missing_features_are_named(name):
    with pytest.raises(ValueError, match=f"{name}.* without features"):
        make(name)(losses())


@pytest.mark.parametrize("name", ["analytic", "dwa", "famo", "gls", "gradnorm", "manual", "uwo", "uwso"])
def test_hooks_must_name_every_channel(name):
    weighting = make(name, level="task") if name == "analytic" else make(name)
    with pytest.raises(ValueError, match="kd"):
        weighting.on_optimiser_step(1, {"ce": torch.ones(2)})
