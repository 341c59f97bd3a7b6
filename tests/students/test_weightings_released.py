"""The released arithmetic, against outputs recorded from the released code, and Kendall and Gal's, its origin."""

import json
import re
from pathlib import Path

import pytest
import torch
from weighting_cases import descend, features, flat, losses, make

RECORDED = json.loads(Path(__file__).with_name("recorded").joinpath("released_weightings.json").read_text(encoding="utf-8"))
HIDDEN, WIDTH = 4, 3
RENAMED = {
    "log_vars": "s",
    "uncertainty_predictor.0.weight": "gate.first.weight",
    "uncertainty_predictor.0.bias": "gate.first.bias",
    "uncertainty_predictor.2.weight": "gate.last.weight",
    "uncertainty_predictor.2.bias": "gate.last.bias",
}
CHANNELS = ("ce", "kd", "fd")


def ours(kind):
    if kind == "task":
        return make("released_task")
    torch.manual_seed(0)
    from students import weightings

    return weightings.build("released_instance", CHANNELS, WIDTH, hidden=HIDDEN, per_sample=kind == "instance_vectors")


@pytest.mark.parametrize(("kind", "k"), [(kind, k) for kind in ("task", "instance", "instance_vectors") for k in range(3)])
def test_recorded_inputs_give_the_recorded_totals_and_gradients(kind, k):
    case = RECORDED[kind][k]
    weighting = ours(kind)
    weighting.load_state_dict({RENAMED[n]: torch.tensor(v) for n, v in case["parameters"].items()})
    size = len(case["features"] or [0] * 5)
    h = None if case["features"] is None else torch.tensor(case["features"])
    scalars = [v if isinstance(v, list) else [v] * size for v in case["losses"]]  # a batch scalar is every sample's loss
    table = {c: torch.tensor(v, requires_grad=True) for c, v in zip(CHANNELS, scalars, strict=True)}
    out = weighting(table, features=h)
    out.total.backward()
    assert out.total.item() == pytest.approx(case["total"], rel=1e-6)
    for c, gradient, weight in zip(CHANNELS, case["gradient_losses"], case["weights"], strict=True):
        reached = table[c].grad if isinstance(gradient, list) else table[c].grad.sum()
        torch.testing.assert_close(reached, torch.tensor(gradient))
        assert out.weights[c].mean().item() == pytest.approx(weight, rel=1e-5)
    for name, gradient in case["gradient_parameters"].items():
        torch.testing.assert_close(weighting.get_parameter(RENAMED[name]).grad, torch.tensor(gradient))


def test_the_recordings_leave_the_clamp_at_least_once():
    s = torch.tensor([case["parameters"]["log_vars"] for case in RECORDED["task"]])
    assert (s.abs() > 5).any()
    outside = torch.tensor([case["gradient_parameters"]["log_vars"] for case in RECORDED["task"]])[s.abs() > 5]
    assert not outside.any()


def test_released_values_at_the_start_and_the_fixed_point():
    """Every loss at weight 1/2, CE included; s* = log l, so 1 / (2 l) at task level and twice that at instance level."""
    start = make("released_task")(losses())
    for c in CHANNELS:
        torch.testing.assert_close(start.weights[c], torch.full((6,), 0.5))
    table = flat(ce=0.5, kd=0.25, fd=2.0)
    task = descend(make("released_task"), table)
    instance = descend(make("released_instance"), table, features(4))
    for c in CHANNELS:
        loss = table[c]
        torch.testing.assert_close(task.weights[c], 1 / (2 * loss), rtol=2e-3, atol=0)
        torch.testing.assert_close(instance.weights[c], 1 / loss, rtol=1e-2, atol=0)


def test_the_instance_form_is_twice_the_task_form():
    weighting = make("released_instance")
    with torch.no_grad():
        weighting.gate.last.weight.zero_()
        weighting.gate.last.bias.copy_(torch.tensor([0.3, -1.0, 2.0]))
    task = make("released_task")
    with torch.no_grad():
        task.s.copy_(weighting.gate.last.bias)
    table = losses()
    torch.testing.assert_close(weighting(table, features=features()).total, 2 * task(table).total)


@pytest.mark.parametrize(("name", "low", "high"), [("released_task", 0.0034, 74.2), ("released_instance", 0.0067, 148.4)])
def test_the_clamp_bounds_the_implied_beta(name, low, high):
    for loss, bound in ((1e4, low), (1e-6, high)):
        weighting = make(name, ("ce", "kd"))
        out = descend(weighting, flat(ce=1.0, kd=loss), features(4), steps=400, lr=0.1)
        assert out.weights["kd"][0].item() == pytest.approx(bound, rel=0.02)


def test_outside_the_clamp_there_is_no_gradient_and_no_way_back():
    """MSE-Probs wants s = log 1.6e-6 = -13.3; once below -5, s stays where it is whatever the loss becomes (row 11)."""
    weighting = make("released_task", ("ce", "kd"))
    with torch.no_grad():
        weighting.s.copy_(torch.tensor([0.0, -5.1]))
    weighting(flat(ce=2.0, kd=100.0)).total.backward()
    assert weighting.s.grad[0] != 0
    assert weighting.s.grad[1] == 0
    free = make("kendall", ("ce", "kd"))  # the same form without the clamp
    with torch.no_grad():
        free.s.copy_(weighting.s)
    free(flat(ce=1.0, kd=100.0)).total.backward()
    assert free.s.grad[1] < -1e3


def test_the_students_gradient_uses_only_the_batch_mean_weight():
    """METHOD 2.6, row 3: swapping which sample has which weight, or which loss, changes nothing for the student."""
    weighting, h = make("released_instance"), features()
    with torch.no_grad():
        weighting.gate.last.weight.mul_(5)
    out = weighting(losses(), features=h)
    assert out.weights["kd"].unique().numel() == 1  # what is reported is what is used
    s = weighting.gate(h).detach()
    assert s[:, 1].std() > 0.3  # though the gate tells samples apart
    gradients = []
    for order in (torch.arange(6), torch.tensor([5, 3, 1, 0, 2, 4])):
        theta = torch.tensor(0.7, requires_grad=True)
        slopes = torch.tensor([1.0, -2.0, 4.0, 0.5, -1.0, 3.0])
        table = losses() | {"kd": (theta * slopes).square()}
        weighting(table, features=h[order]).total.backward()
        gradients.append(theta.grad.item())
    by_mean = (-s[:, 1]).exp().mean() * (2 * 0.7 * slopes.square()).mean()
    assert gradients == pytest.approx([by_mean.item()] * 2, rel=1e-5)
    true = make("released_instance", per_sample=True)
    true.load_state_dict(weighting.state_dict())
    theta = torch.tensor(0.7, requires_grad=True)
    true(losses() | {"kd": (theta * slopes).square()}, features=h).total.backward()
    by_sample = ((-s[:, 1]).exp() * 2 * 0.7 * slopes.square()).mean()
    assert theta.grad.item() == pytest.approx(by_sample.item(), rel=1e-5)
    assert abs(by_sample - by_mean) > 0.05


def test_batch_means_cannot_tell_samples_apart_and_per_sample_losses_can():
    """At the optimum every s_i is log of the batch mean, however different the samples are."""
    h = torch.eye(8)[torch.tensor([0, 0, 1, 1])]
    table = {"ce": torch.ones(4), "kd": torch.tensor([0.25, 0.25, 0.75, 0.75])}
    weighting = make("released_instance", ("ce", "kd"))
    descend(weighting, table, h)
    torch.testing.assert_close((-weighting.gate(h)[:, 1]).exp(), torch.full((4,), 2.0), rtol=0.02, atol=0)
    true = descend(make("released_instance", ("ce", "kd"), per_sample=True), table, h)
    torch.testing.assert_close(true.weights["kd"], 1 / table["kd"], rtol=0.02, atol=0)


def test_the_released_gates_size():
    """524,803 parameters at teacher width 4096 and three losses: 0.0314 % of 1.67 B (row 4)."""
    from students import weightings

    gate = weightings.build("released_instance", CHANNELS, 4096)
    assert sum(p.numel() for p in gate.parameters()) == 524_803


@pytest.mark.parametrize(("form", "factor", "shift"), [("regression", 0.5, 1.0), ("classification", 1.0, 2.0)])
def test_kendall_forms(form, factor, shift):
    """s* = log l (regression) or log 2l (classification); the weight is 1 / (2 l) in both."""
    table = flat(ce=0.5, kd=0.25, fd=2.0)
    weighting = make("kendall", form=form, init=0.0)
    start = weighting(table)
    assert start.total.item() == pytest.approx(factor * 2.75)
    out = descend(weighting, table)
    for k, c in enumerate(CHANNELS):
        assert weighting.s[k].item() == pytest.approx(torch.log(shift * table[c][0]).item(), abs=2e-3)
        torch.testing.assert_close(out.weights[c], 1 / (2 * table[c]), rtol=2e-3, atol=0)
    assert make("kendall").s.tolist() == [-0.5] * 3


def test_kendall_is_beta_task_with_ce_included():
    table = flat(ce=0.5, kd=0.25, fd=2.0)
    kendall, beta = descend(make("kendall"), table), descend(make("beta_task", weigh_ce=True), table)
    for c in CHANNELS:
        torch.testing.assert_close(kendall.weights[c], beta.weights[c], rtol=5e-3, atol=0)
    # 1/2 e^-s l + 1/2 s against beta l - 1/2 log beta with beta = 1/2 e^-s: a constant 1/2 log 2 per channel apart
    assert beta.total.item() - kendall.total.item() == pytest.approx(3 * 0.5 * 0.693147, abs=1e-3)


def test_the_table_of_differences_names_tests_that_exist():
    here = Path(__file__).parent
    table = here.parents[1].joinpath("docs", "paper_vs_released.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith(("| #", "| Energy"))]
    assert len(rows) == 17 + 13
    for row in rows:
        cited = re.findall(r"`(\w+)(?:::(\w+))?`", row.rpartition(" | ")[2])
        assert cited, row
        for file, name in cited:
            source = here.joinpath(f"test_{file}.py").read_text(encoding="utf-8")
            assert f"def {name}(" in source or not name, name
