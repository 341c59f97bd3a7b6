"""The competitors' golden numbers (METHOD.md 2.6), and what they share with Beta-KD."""

import math

import pytest
import torch
from weighting_cases import CHANNELS, features, flat, losses, make

TWO = ("ce", "kd")


def weights(out):
    return [out.weights[c][0].item() for c in out.weights]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uwo", (0.25, 0.125)),
        ("uwso", (0.562177, 0.437823)),
        ("famo", (0.666667, 0.333333)),
        ("manual", (1.0, 0.5)),
        ("gls", (8**0.5 / 4, 8**0.5 / 8)),
        ("dwa", (1.0, 1.0)),
        ("gradnorm", (1.0, 1.0)),
    ],
)
def test_golden_weights_of_losses_two_and_four(name, expected):
    fresh, told = make(name, TWO), make(name, TWO)
    assert weights(fresh(flat(ce=2, kd=4))) == pytest.approx(expected, abs=1e-6)
    told.on_optimiser_step(0, {"ce": torch.tensor([1.0, 3.0]), "kd": torch.tensor([4.0])})
    assert weights(told(flat(ce=7, kd=0.1))) == pytest.approx(expected, abs=1e-6)


def three_losses(theta):
    """Three losses of two numbers, whose logarithms pull in different directions; [B] of 4 equal samples each."""
    x, y = theta
    values = ((x - 1).square() + 0.3, (x + y).square() + 0.1, (y - 2).square() * 5 + 2)
    return {c: v.expand(4) for c, v in zip(CHANNELS, values, strict=True)}


def gradient(weighting, theta):
    theta = theta.clone().requires_grad_()
    weighting(three_losses(theta)).total.backward()
    return theta.grad


def test_beta_task_uwo_gls_and_uniform_famo_share_the_fixed_point():
    """All are multiples of sum_k grad log l_k (METHOD 2.6, insight): they end in the same place, CE included."""
    for theta in (torch.tensor([0.4, -0.3]), torch.tensor([2.0, 1.0])):
        free = theta.clone().requires_grad_()
        sum(v[0].log() for v in three_losses(free).values()).backward()
        common = free.grad / free.grad.norm()
        beta = make("beta_task", weigh_ce=True)
        with torch.no_grad():
            star = torch.stack([1 / (2 * v[0]) for v in three_losses(theta).values()])
            beta.raw.copy_(torch.log(torch.expm1(star)))
        torch.testing.assert_close(gradient(beta, theta), 0.5 * free.grad)
        torch.testing.assert_close(gradient(make("uwo"), theta), 0.5 * free.grad)
        for name in ("gls", "famo"):
            found = gradient(make(name), theta)
            torch.testing.assert_close(found / found.norm(), common)
        plain = gradient(make("fixed"), theta)
        assert (plain / plain.norm() - common).norm() > 0.1  # the plain sum of losses is another problem


def test_gls_is_the_geometric_mean_and_its_gradient():
    theta = torch.tensor([0.4, -0.3], requires_grad=True)
    torch.stack([v[0] for v in three_losses(theta).values()]).prod().pow(1 / 3).backward()
    torch.testing.assert_close(gradient(make("gls"), theta.detach()), theta.grad)
    product = torch.stack([v[0] for v in three_losses(theta.detach()).values()]).prod()
    assert make("gls")(three_losses(theta.detach())).total.item() == pytest.approx(product.item() ** (1 / 3), rel=1e-6)


def test_uwso_becomes_equal_as_the_temperature_grows():
    assert weights(make("uwso", temperature=1e6)(losses())) == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert weights(make("uwso", TWO, temperature=0.01)(flat(ce=2, kd=4))) == pytest.approx([1, 0], abs=1e-6)


def test_manual_keeps_the_scale_of_the_start():
    weighting = make("manual", n=1)
    weighting.on_optimiser_step(0, flat(ce=1.5, kd=0.5, fd=3))
    for step in (1, 2, 3):
        weighting.on_optimiser_step(step, flat(ce=9, kd=9, fd=9))
    assert weights(weighting(flat(ce=1, kd=1, fd=1))) == pytest.approx([1, 3, 0.5])
    alone = make("manual", ("fd", "kd"))  # the first channel anchors where there is no CE
    assert weights(alone(flat(fd=2, kd=0.5))) == pytest.approx([1, 4])


def test_manual_averages_the_first_n_steps_and_counts_the_first_batch_once():
    weighting = make("manual", TWO, n=3)
    table = [flat(ce=1, kd=0.1), flat(ce=2, kd=0.2), flat(ce=3, kd=0.6), flat(ce=100, kd=100)]
    weighting.on_optimiser_step(0, table[0])
    for step, losses_then in enumerate(table, start=1):
        weighting.on_optimiser_step(step, losses_then)
    assert weights(weighting(flat(ce=1, kd=1)))[1] == pytest.approx(2 / 0.3)


def test_rlw_is_random_with_equal_means_and_reproducible():
    def run(seed, steps):
        weighting, rows = make("rlw", seed=seed), []
        weighting.on_optimiser_step(0, losses())
        for step in range(1, steps + 1):
            first, again = weighting(losses()), weighting(losses(seed=4))
            assert weights(first) == weights(again)  # drawn once per step, not once per micro-batch
            rows.append(weights(first))
            weighting.on_optimiser_step(step, losses())
        return torch.tensor(rows)

    drawn = run(0, 2000)
    torch.testing.assert_close(drawn.sum(1), torch.ones(2000))
    assert drawn.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert drawn.std(0).min() > 0.1
    assert torch.equal(drawn[:5], run(0, 5))
    assert not torch.equal(drawn[:5], run(1, 5))


def test_rlw_takes_its_seed_from_the_run_and_moves_no_other_random_numbers():
    def built(seed):
        from students import weightings

        torch.manual_seed(seed)
        return weights(weightings.build("rlw", CHANNELS)(losses()))

    assert built(0) == built(0) != built(1)
    weighting = make("rlw", seed=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weighting.on_optimiser_step(1, losses())
    weighting(losses())
    assert torch.equal(torch.rand(3), expected)


def test_dwa_weighs_by_the_ratio_of_the_last_two_windows():
    weighting = make("dwa", TWO, window=2)
    weighting.on_optimiser_step(0, flat(ce=77, kd=77))  # not a step of its own
    for step, (ce, kd) in enumerate([(3, 1), (1, 3), (1.7, 2.3), (1.9, 2.1)], start=1):
        assert weights(weighting(losses(channels=TWO))) == [1, 1]
        weighting.on_optimiser_step(step, flat(ce=ce, kd=kd))
    assert weights(weighting(losses(channels=TWO))) == pytest.approx([0.950042, 1.049958], abs=1e-6)
    weighting.on_optimiser_step(5, flat(ce=50, kd=0.1))  # an open window changes nothing yet
    assert weights(weighting(losses(channels=TWO))) == pytest.approx([0.950042, 1.049958], abs=1e-6)


def test_dwa_means_over_a_window_count_samples_and_skip_absent_channels():
    weighting = make("dwa", TWO, window=2)
    values = [([1.0], [1.0]), ([1.0, 4.0], []), ([2.0], []), ([2.0], [])]
    for step, (ce, kd) in enumerate(values, start=1):
        weighting.on_optimiser_step(step, {"ce": torch.tensor(ce), "kd": torch.tensor(kd)})
    ratio = torch.tensor([1.0, 1.0])  # ce fell from 2 to 2; kd was not seen in the second window, so there is no ratio yet
    assert weights(weighting(losses(channels=TWO))) == pytest.approx((2 * (ratio / 2).softmax(0)).tolist())


def test_famo_moves_weight_to_the_loss_that_falls_least():
    weighting = make("famo", TWO, decay=0.0)
    weighting.on_optimiser_step(0, flat(ce=2, kd=2))
    for step in range(1, 21):
        weighting.on_optimiser_step(step, flat(ce=2, kd=2))
        weighting.after_step(flat(ce=1.0, kd=1.9))
    ce, kd = weights(weighting(flat(ce=2, kd=2)))
    assert ce + kd == pytest.approx(1)
    assert kd > 0.6
    assert weighting.xi[1].item() == pytest.approx(20 * 0.025, rel=0.02)  # Adam: about lr a step


def test_famo_steps_xi_as_adam_on_the_change_of_the_log_loss():
    """Against autograd through the softmax and torch's Adam, as the official code has it."""
    weighting = make("famo", lr=0.025, decay=0.01, b=0.05)
    xi = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.025, weight_decay=0.01)
    for step in range(1, 8):
        before, after = losses(seed=step), losses(seed=step + 50)
        weighting.on_optimiser_step(step, before)
        weighting.after_step(after)
        fell = torch.stack([(before[c].mean() - 0.05 + 1e-8).log() - (after[c].mean() - 0.05 + 1e-8).log() for c in CHANNELS])
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, grad_outputs=fell)
        adam.step()
        torch.testing.assert_close(weighting.xi, xi.detach(), rtol=1e-4, atol=1e-6)


def test_famo_with_bounds_weighs_the_distance_to_them():
    out = make("famo", TWO, b={"ce": 1.0, "kd": 2.0})(flat(ce=2, kd=4))
    assert weights(out) == pytest.approx([2 / 3, 1 / 3])
    assert make("famo", TWO, b=3.0)(flat(ce=2, kd=4)).total.isnan()  # below its bound: not hidden


def test_gradnorm_keeps_equal_gradients_and_equal_rates_equal():
    weighting = make("gradnorm")
    weighting.on_optimiser_step(0, flat(ce=0.2, kd=0.6, fd=3))
    for step in range(1, 50):
        weighting.after_backward(dict.fromkeys(CHANNELS, torch.tensor(0.37)))
        weighting.on_optimiser_step(step, flat(ce=0.1, kd=0.3, fd=1.5))
    assert weights(weighting(losses())) == pytest.approx([1, 1, 1], abs=1e-5)


def test_gradnorm_makes_gradients_equal_and_keeps_the_sum():
    weighting = make("gradnorm", TWO)
    weighting.on_optimiser_step(0, flat(ce=1, kd=1))
    for _ in range(300):
        weighting.after_backward({"ce": torch.tensor(3.0), "kd": torch.tensor(1.0)})
    ce, kd = weights(weighting(flat(ce=1, kd=1)))
    assert ce + kd == pytest.approx(2, abs=1e-5)
    assert 3 * ce == pytest.approx(kd, rel=0.02)


def test_gradnorm_favours_the_loss_that_lags():
    def after(alpha):
        weighting = make("gradnorm", TWO, alpha=alpha)
        weighting.on_optimiser_step(0, flat(ce=1, kd=1))
        weighting.on_optimiser_step(1, flat(ce=0.5, kd=1.0))
        for _ in range(300):
            weighting.after_backward({"ce": torch.tensor(1.0), "kd": torch.tensor(1.0)})
        return weights(weighting(flat(ce=1, kd=1)))

    rates = torch.tensor([0.5, 1.0]) / 0.75
    target = 2 * rates**1.5 / (rates**1.5).sum()
    assert after(1.5)[1] > after(0.5)[1] > after(0.0)[1] == pytest.approx(1)
    assert after(1.5) == pytest.approx(target.tolist(), abs=0.06)


def test_gradnorm_leaves_a_channel_without_gradient_alone_and_hides_no_nan():
    weighting = make("gradnorm")
    weighting.on_optimiser_step(0, {**flat(ce=1, kd=1), "fd": torch.zeros(0)})
    for _ in range(20):
        weighting.after_backward({"ce": torch.tensor(2.0), "kd": torch.tensor(1.0), "fd": torch.tensor(0.0)})
    ce, kd, fd = weights(weighting(losses()))
    assert kd > fd > ce
    assert fd == pytest.approx(1, abs=0.2)
    weighting.after_backward({"ce": torch.tensor(float("nan")), "kd": torch.tensor(1.0), "fd": torch.tensor(0.0)})
    assert weighting(losses()).total.isnan()


def test_teacher_entropy_trusts_a_certain_teacher():
    h = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.25, 0.6], [1.0000001, 0.1]])
    out = make("teacher_entropy")(losses(4), features=h)
    for c in ("kd", "fd"):
        assert out.weights[c].tolist() == pytest.approx([0, 1, 0.75, 0])  # a uniform teacher weighs 0
    assert out.weights["ce"].tolist() == [1] * 4


def test_teacher_entropy_of_real_distributions():
    from students.features import scalars

    logits = torch.stack([torch.zeros(5), torch.tensor([90.0, 0, 0, 0, 0]), torch.tensor([0.0, 0, -90, -90, -90])])
    h = scalars(logits, torch.arange(3), 3)
    weight = make("teacher_entropy")(losses(3), features=h).weights["kd"]
    assert weight.tolist() == pytest.approx([0, 1, 1 - math.log(2, 5)], abs=1e-6)


def test_oracle_takes_labels_where_the_teacher_is_blind_and_the_teacher_elsewhere():
    table, blind = losses(3), torch.tensor([[1.0], [0.0], [1.0]])
    out = make("oracle")(table, features=blind)
    assert out.weights["ce"].tolist() == [1, 0, 1]
    assert out.weights["kd"].tolist() == out.weights["fd"].tolist() == [0, 1, 0]
    torch.testing.assert_close(out.total, (table["ce"][0] + table["kd"][1] + table["fd"][1] + table["ce"][2]) / 3)


def test_weights_that_only_change_between_steps_ignore_the_features():
    for name in ("uwo", "dwa", "rlw"):
        weighting = make(name)
        assert torch.equal(weighting(losses()).total, weighting(losses(), features=features()).total)
