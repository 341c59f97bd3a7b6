"""Micro-batches, absent samples and extreme losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weighting_cases import ANCHORED, CHANNELS, FROZEN, NAMES, features, live, losses, make, stirred

ADDITIVE = [
    *((name, {}) for name in NAMES if make(name).additive),
    ("beta_instance", {"weigh_ce": True}),
    ("beta_task", {"weigh_ce": True}),
    ("released_instance", {"per_sample": True}),
    ("kendall", {"form": "classification"}),
]
FROZEN_CASES = [*((name, {}) for name in FROZEN), ("analytic", {"level": "task"})]


def parts_and_whole(weighting, name, sizes, dtype, mask=None):
    """Totals and gradients (losses first, then parameters) of one batch, whole and in micro-batches of ``sizes``."""
    size = sum(sizes)
    h, results = features(size, name=name, dtype=dtype), []
    for split in ([size], sizes):
        table = {c: v.requires_grad_() for c, v in losses(size, dtype=dtype).items()}
        weighting.zero_grad()
        total, start = 0.0, 0
        for n in split:
            rows = slice(start, start + n)
            here = {c: v[rows] for c, v in (mask or {}).items()}
            part = weighting({c: v[rows] for c, v in table.items()}, features=h[rows], mask=here).total * (n / size)
            part.backward()
            total, start = total + part.detach(), start + n
        gradients = [v.grad for v in table.values()] + [p.grad.clone() for p in weighting.parameters()]
        results.append((total, gradients))
    return results


def assert_same(results, tolerance):
    (whole, theirs), (parts, ours) = results
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_what_is_additive_is_declared():
    declared = {name for name in NAMES if not make(name).additive}
    assert declared == {*FROZEN, "released_instance"}
    assert not make("analytic", level="task").additive
    for name in NAMES:  # a weighting that reads statistics must be told them
        assert make(name).additive or name == "released_instance" or "losses" in make(name).needs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("name", "options"), ADDITIVE + FROZEN_CASES)
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5]])
def test_one_batch_of_eight_equals_eight_of_one(name, options, sizes, dtype, tolerance):
    weighting = stirred(name, **options).to(dtype)
    assert_same(parts_and_whole(weighting, name, sizes, dtype), tolerance)
    mask = {"fd": torch.tensor([True, False, True, True, False, True, True, False])}
    assert_same(parts_and_whole(weighting, name, sizes, dtype, mask), tolerance)


@pytest.mark.parametrize(("name", "options"), FROZEN_CASES)
def test_statistics_are_frozen_from_step_zero_on(name, options):
    """Before the first call the batch at hand decides, and micro-batches differ; after step 0's call they do not."""
    fresh = make(name, **options)
    (whole, theirs), (_, ours) = parts_and_whole(fresh, name, [1] * 8, torch.float32)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) > 1e-3
    fresh.on_optimiser_step(0, losses(8))
    frozen = parts_and_whole(fresh, name, [1] * 8, torch.float32)
    assert_same(frozen, 1e-5)
    torch.testing.assert_close(frozen[0][0], whole)  # and nothing else changed for the whole batch
    weights = fresh(losses(8, seed=5)).weights
    for c in CHANNELS:
        torch.testing.assert_close(weights[c], fresh(losses(8)).weights[c])


def test_the_released_instance_level_depends_on_the_micro_batch():
    """METHOD 2.6, row 3: per-sample only at micro-batch 1. A property of the released arithmetic, kept on purpose."""
    weighting = stirred("released_instance")
    (whole, _), (parts, _) = parts_and_whole(weighting, "released_instance", [1] * 8, torch.float32)
    assert abs(whole - parts) > 1e-3
    true = make("released_instance", per_sample=True)
    true.load_state_dict(weighting.state_dict())
    single, _ = parts_and_whole(true, "released_instance", [8], torch.float32)
    torch.testing.assert_close(parts, single[0])


def test_the_released_mean_weight_is_that_of_the_samples_that_have_the_channel():
    weighting, h = stirred("released_instance"), features()
    keep = torch.tensor([True, True, False, True, False, True])
    masked = weighting(losses(), features=h, mask={"fd": keep}).weights["fd"]
    alone = weighting(losses(4), features=h[keep]).weights["fd"]
    torch.testing.assert_close(masked[keep], alone)


@pytest.mark.parametrize(("name", "options"), [*ADDITIVE, *FROZEN_CASES, ("released_instance", {})])
def test_a_masked_loss_is_as_if_absent(name, options):
    table, h, weighting = losses(), features(name=name), stirred(name, **options)
    keep = torch.tensor([True, True, False, True, False, True])
    table["fd"] = torch.where(keep, table["fd"], math.nan).requires_grad_()
    out = weighting(table, features=h, mask={"fd": keep})
    out.total.backward()
    assert out.total.isfinite()
    assert not out.weights["fd"][~keep].any()
    assert out.weights["fd"][keep].any()
    assert not table["fd"].grad[~keep].any()
    assert all(p.grad.isfinite().all() for p in weighting.parameters())
    other = weighting({**table, "fd": torch.where(keep, table["fd"], 7.0)}, features=h, mask={"fd": keep})
    assert torch.equal(other.total, out.total)


@pytest.mark.parametrize("name", ANCHORED)
def test_a_sample_without_any_teacher_signal_needs_no_features(name):
    """Absent in every weighted channel: its features may be NaN, its CE still counts."""
    table, weighting = losses(), stirred(name)
    h, keep = features(name=name), torch.tensor([True, True, False, True, True, True])
    h[2] = math.nan
    out = weighting(table, features=h, mask={"kd": keep, "fd": keep})
    if list(weighting.parameters()):
        out.total.backward()
    assert out.total.isfinite()
    assert all(p.grad.isfinite().all() for p in weighting.parameters())
    assert out.weights["ce"][2] == 1


@pytest.mark.parametrize("name", FROZEN)
def test_statistics_leave_absent_samples_out(name):
    keep = torch.tensor([True, False, True, True, False, True])
    table = losses()
    masked = make(name)({**table, "kd": torch.where(keep, table["kd"], math.nan)}, mask={"kd": keep}).weights
    told = make(name)
    told.on_optimiser_step(0, {**table, "kd": table["kd"][keep]})
    for c in CHANNELS:
        torch.testing.assert_close(masked[c][0], told(table).weights[c][0])


@pytest.mark.parametrize("name", FROZEN)
def test_a_channel_that_nobody_had_yet_is_weighed_by_the_first_batch_that_has_it(name):
    weighting, table = make(name), losses()
    weighting.on_optimiser_step(0, {**table, "fd": torch.zeros(0)})
    without = weighting(table, mask={"fd": torch.zeros(6, dtype=torch.bool)})
    two = make(name, channels=("ce", "kd"))
    two.on_optimiser_step(0, {"ce": table["ce"], "kd": table["kd"]})
    torch.testing.assert_close(without.total, two({"ce": table["ce"], "kd": table["kd"]}).total)
    full = make(name)
    full.on_optimiser_step(0, table)
    torch.testing.assert_close(weighting(table).total, full(table).total)


@pytest.mark.parametrize("name", NAMES)
def test_nan_of_a_present_sample_is_never_hidden(name):
    h = features(name=name)
    for channel in CHANNELS:
        table = losses()
        table[channel][3] = math.nan
        keep = torch.tensor([True, True, False, True, True, True])
        assert stirred(name)(table, features=h, mask={channel: keep}).total.isnan()
    if {"beta_instance", "released_instance", "teacher_entropy", "oracle"} & {name}:
        h[3] = math.nan
        assert stirred(name)(losses(), features=h).total.isnan()


@pytest.mark.parametrize(("name", "options"), FROZEN_CASES)
def test_a_nan_statistic_is_never_hidden(name, options):
    weighting = live(make(name, **options))
    if name == "manual":
        weighting = make(name)
    weighting.on_optimiser_step(4, {c: v * math.nan for c, v in losses().items()})
    assert weighting(losses()).total.isnan()


EXTREMES = st.sampled_from([0.0, 1e-30, 1e-8, 0.25, 3.0, 1e4])


@pytest.mark.parametrize(("name", "options"), [*ADDITIVE, *FROZEN_CASES, ("released_instance", {})])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_extreme_losses_and_masks_never_give_nan(name, options, data):
    size = data.draw(st.integers(1, 4))
    draw = lambda what: {c: data.draw(st.lists(what, min_size=size, max_size=size)) for c in CHANNELS}  # noqa: E731
    table = {c: torch.tensor(v, requires_grad=True) for c, v in draw(EXTREMES).items()}
    mask = {c: torch.tensor(v) for c, v in draw(st.booleans()).items()}
    weighting, h = stirred(name, **options), features(size, name=name)
    present = {c: v.detach()[mask[c]] for c, v in table.items()}
    for step in range(3):
        out = weighting(table, features=h, mask=mask)
        out.total.backward()
        assert out.total.isfinite()
        assert out.regulariser.isfinite()
        for c in CHANNELS:
            assert out.weights[c].isfinite().all()
            assert (out.weights[c] >= 0).all()
            assert not out.weights[c][~mask[c]].any()
            assert table[c].grad.isfinite().all()
        if "gradient_norms" in weighting.needs:
            norms = data.draw(st.lists(EXTREMES, min_size=3, max_size=3))
            weighting.after_backward({c: torch.tensor(n) for c, n in zip(CHANNELS, norms, strict=True)})
        weighting.on_optimiser_step(step, present)
        weighting.after_step({c: v * 0.5 for c, v in present.items()})
