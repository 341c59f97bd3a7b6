"""The paper's objective (METHOD.md 2.6), learned, in closed form and without its regulariser."""

import pytest
import torch
from weighting_cases import descend, features, flat, losses, make

BETAS = ["beta_task", "beta_instance"]


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize(("loss", "d"), [(0.25, 1.0), (0.1, 1.0), (0.25, 3.0)])
def test_descent_finds_beta_star(name, loss, d):
    out = descend(make(name, ("ce", "kd"), d=d), flat(ce=0.5, kd=loss), features(4))
    torch.testing.assert_close(out.weights["kd"], torch.full((4,), d / (2 * loss)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", BETAS)
def test_value_at_beta_star(name):
    out = descend(make(name, ("ce", "kd")), flat(ce=0.5, kd=0.25), features(4))
    assert out.total.item() == pytest.approx(0.5 + 0.153426, abs=1e-5)


@pytest.mark.parametrize("name", BETAS)
def test_scaling_a_loss_by_c_scales_the_learned_beta_by_its_reciprocal(name):
    plain = descend(make(name, ("ce", "kd")), flat(ce=0.5, kd=0.25), features(4)).weights["kd"]
    scaled = descend(make(name, ("ce", "kd")), flat(ce=0.5, kd=0.5), features(4)).weights["kd"]
    torch.testing.assert_close(scaled, plain / 2, rtol=2e-3, atol=0)


def test_scaling_a_loss_leaves_the_students_gradient_at_the_fixed_point():
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


@pytest.mark.parametrize("name", [*BETAS, "kendall", "released_task"])
def test_adding_a_constant_changes_learned_weights_and_not_fixed_ones(name):
    """Why a divergence must be 0 at a match: soft cross-entropy is KL plus the teacher's entropy (METHOD 2.6, row 5)."""
    entropy = 0.801819  # of p = (.7, .2, .1); the divergence is METHOD's 0.085123
    kl, soft = flat(ce=0.5, kd=0.085123), flat(ce=0.5, kd=0.085123 + entropy)
    learned = [descend(make(name, ("ce", "kd")), t, features(4)).weights["kd"][0].item() for t in (kl, soft)]
    assert learned[0] == pytest.approx(1 / (2 * 0.085123), rel=2e-3)
    assert learned[1] == pytest.approx(1 / (2 * 0.886941), rel=2e-3)  # <= 1 / (2 H), however well the student matches
    fixed = make("fixed", ("ce", "kd"))
    assert torch.equal(fixed(kl).weights["kd"], fixed(soft).weights["kd"])
    student = [{c: v.requires_grad_() for c, v in t.items()} for t in (kl, soft)]
    for table in student:
        fixed(table).total.backward()
    assert torch.equal(student[0]["kd"].grad, student[1]["kd"].grad)


def test_the_negative_control_collapses():
    """Without -(d / 2) log beta the weight falls to 0, and the total to CE alone."""
    out = descend(make("learned", ("ce", "kd")), flat(ce=0.5, kd=0.25), steps=1500, lr=0.1)
    assert out.weights["kd"].max() < 0.02
    assert out.total.item() == pytest.approx(0.5, abs=0.01)
    assert out.regulariser.item() == 0


def test_a_beta_near_zero_is_pushed_back_up():
    weighting = make("beta_task", ("ce", "kd"))
    with torch.no_grad():
        weighting.raw.fill_(-500.0)
    out = weighting(flat(ce=1, kd=1))
    out.total.backward()
    assert out.regulariser.item() == pytest.approx(250)  # finite where softplus underflows
    assert weighting.raw.grad.item() == pytest.approx(-0.5)


def test_instance_betas_follow_each_samples_loss():
    """Two kinds of samples that the features tell apart: each gets its own d / (2 l), which a task-level beta cannot do."""
    h = torch.eye(8)[torch.tensor([0, 0, 1, 1])]
    table = {"ce": torch.ones(4), "kd": torch.tensor([0.25, 0.25, 0.05, 0.05])}
    assert descend(make("beta_instance", ("ce", "kd")), table, h).weights["kd"].tolist() == pytest.approx(
        [2, 2, 10, 10], rel=0.02
    )
    assert descend(make("beta_task", ("ce", "kd")), table).weights["kd"].tolist() == pytest.approx([1 / 0.3] * 4, rel=0.01)


@pytest.mark.parametrize("name", BETAS)
def test_d_may_differ_by_channel(name):
    table = {"ce": torch.ones(4), "kd": torch.full((4,), 0.25), "fd": torch.full((4,), 0.25)}
    out = descend(make(name, d={"kd": 1.0, "fd": 4.0}), table, features(4))
    assert out.weights["kd"][0].item() == pytest.approx(2, rel=1e-2)
    assert out.weights["fd"][0].item() == pytest.approx(8, rel=1e-2)


@pytest.mark.parametrize("name", BETAS)
def test_ce_may_get_a_beta_with_a_d_of_its_own(name):
    weighting = make(name, ("ce", "kd"), d={"ce": 2.0, "kd": 1.0}, weigh_ce=True)
    start = weighting(flat(ce=0.5, kd=0.25), features=features(4))
    torch.testing.assert_close(start.weights["ce"], torch.ones(4))
    out = descend(weighting, flat(ce=0.5, kd=0.25), features(4))
    assert out.weights["ce"][0].item() == pytest.approx(2, rel=1e-2)
    assert out.weights["kd"][0].item() == pytest.approx(2, rel=1e-2)


def test_the_gate_is_the_papers():
    weighting = make("beta_instance")
    assert [tuple(p.shape) for p in weighting.parameters()] == [(128, 8), (128,), (2, 128), (2,)]
    h = features(3)
    with torch.no_grad():
        weighting.gate.last.weight.normal_()
    by_hand = torch.nn.functional.softplus(
        (h @ weighting.gate.first.weight.T + weighting.gate.first.bias).relu() @ weighting.gate.last.weight.T
        + weighting.gate.last.bias
    )
    out = weighting(losses(3), features=h)
    torch.testing.assert_close(torch.stack([out.weights["kd"], out.weights["fd"]], 1), by_hand.detach())


def test_a_float32_gate_reads_float64_features():
    out = make("beta_instance")(losses(dtype=torch.float64), features=features(dtype=torch.float64))
    assert out.total.dtype == torch.float64
    with pytest.raises(ValueError, match=r"\[B, 8\]"):
        make("beta_instance")(losses(), features=torch.ones(6, 9))


# ---- the closed form -------------------------------------------------------------------------------------------------------


def test_analytic_is_the_minimum_over_beta():
    """Golden: l = .25, d = 1 gives beta 2 and value CE + 0.153426; per sample, where beta_task has one for all."""
    out = make("analytic", ("ce", "kd"))(flat(ce=0.5, kd=0.25))
    torch.testing.assert_close(out.weights["kd"], torch.full((4,), 2.0))
    assert out.total.item() == pytest.approx(0.5 + 0.153426, abs=1e-6)
    table = {"ce": torch.ones(2), "kd": torch.tensor([0.25, 0.05])}
    assert make("analytic", ("ce", "kd"), d=3.0)(table).weights["kd"].tolist() == pytest.approx([6, 30])


def test_analytic_gives_the_student_half_d_times_the_gradient_of_the_log():
    for scale in (1.0, 5.0):
        logit = torch.tensor([0.7], requires_grad=True)
        make("analytic", ("ce", "kd"), d=3.0)({"ce": logit * 0.3, "kd": scale * logit.square()}).total.backward()
        assert logit.grad.item() == pytest.approx(0.3 + 1.5 * 2 / 0.7, rel=1e-5)


def test_analytic_learning_ends_where_beta_task_does():
    table = {"ce": torch.ones(4), "kd": torch.tensor([0.25, 0.35, 0.05, 0.15])}
    learned = descend(make("beta_task", ("ce", "kd")), table)
    closed = make("analytic", ("ce", "kd"), level="task")(table)
    torch.testing.assert_close(learned.weights["kd"], closed.weights["kd"], rtol=1e-3, atol=1e-3)
    assert learned.total.item() == pytest.approx(closed.total.item(), abs=1e-4)


def test_the_floor_bounds_beta():
    out = make("analytic", ("ce", "kd"))(flat(ce=0.5, kd=0.0))
    assert out.weights["kd"].tolist() == pytest.approx([50] * 4)
    assert make("analytic", ("ce", "kd"), floor=0.1)(flat(ce=0.5, kd=0.0)).weights["kd"].tolist() == pytest.approx([5] * 4)


def test_the_moving_average_is_bias_corrected():
    weighting = make("analytic", ("ce", "kd"), level="task", decay=0.5)
    weighting.on_optimiser_step(0, flat(ce=1, kd=0.25))
    assert weighting(flat(ce=1, kd=9)).weights["kd"][0].item() == pytest.approx(2)
    weighting.on_optimiser_step(1, flat(ce=1, kd=0.25))  # the first batch again, which must not count twice
    weighting.on_optimiser_step(2, flat(ce=1, kd=1.0))
    average = (0.5 * 0.5 * 0.25 + 0.5 * 1.0) / (1 - 0.25)
    assert weighting(flat(ce=1, kd=9)).weights["kd"][0].item() == pytest.approx(1 / (2 * average))
