"""Values and gradients of the divergences: METHOD.md's golden numbers, limits, identities, and scipy in float64."""

import math

import numpy as np
import pytest
import torch
from energy_toys import BUILDS, P, Q, example, gradient, head_share, random_labels, random_pair, reference, tokens

from students import energies


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("fkl", {}, 0.085123),
        ("fkl", {"temperature": 2.0}, 0.098297),
        ("fkl", {"temperature": 4.0}, 0.098541),
        ("fkl", {"temperature": 50.0}, 0.094591),
        ("rkl", {}, 0.092033),
        ("js", {"b": 0.5}, 0.021901),
        ("js", {"b": 0.1}, 0.007695),
        ("tvd", {}, 0.2),
        ("mse_probs", {}, 0.02),
        ("mse_probs", {"reduce": "sum"}, 0.06),
        ("cosine_probs", {}, 0.050752),
        ("cosine_logits", {}, 0.004822),
        ("mse_logits", {}, 0.006430),
        ("adaptive_kl", {}, 0.088578),
        ("skew_fkl", {}, 0.069578),
        ("skew_rkl", {}, 0.072828),
        ("soft_ce", {}, 0.886941),
        ("dkd", {"beta": 0.0}, 0.082283),
        ("dkd", {"alpha": 0.0, "beta": 1.0}, 0.009466),
        ("taid", {}, 0.014995),
        ("taid", {"t0": 0.5}, 0.023145),
        ("taid", {"t0": 1.0}, 0.085123),
    ],
)
def test_golden_values(name, options, value):
    assert example(name, **options) == pytest.approx(value, abs=1e-6)


def test_defaults_are_the_published_ones():
    for name, options in (
        ("js", {"b": 0.1}), ("skew_fkl", {"alpha": 0.1}), ("skew_rkl", {"alpha": 0.1}), ("adaptive_kl", {"mu": 0.5}),
        ("mse_probs", {"reduce": "mean"}), ("mse_logits", {"standardise": True}),
        ("dkd", {"alpha": 1.0, "beta": 0.5, "temperature": 1.0}),
        ("taid", {"t0": 0.4, "t_end": 1.0, "alpha": 5e-4, "b": 0.99, "disable_adaptive": False}),
        ("ctkd", {"t0": 1.0, "t1": 20.0, "theta": 1.0}),
    ):  # fmt: skip
        assert example(name) == example(name, **options)
        built = energies.build(name)
        for key, value in options.items():
            assert getattr(built, key) == value


@pytest.mark.parametrize(("name", "options"), BUILDS, ids=lambda value: str(value).replace("'", ""))
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_parity_with_scipy(name, options, scale):
    (student, teacher), labels = random_pair(n=12, v=7, scale=scale, dtype=torch.float64), random_labels(n=12, v=7)
    found = energies.build(name, **options)(tokens(student, teacher, labels)).detach().numpy()
    triples = zip(teacher.numpy(), student.numpy(), labels.tolist(), strict=True)
    expected = [reference(name, zt, zs, y, **options) for zt, zs, y in triples]
    # scipy's own cancellation limits the agreement, and ctkd's theta and taid's t are float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


#: Those with a detached part have tests of their own.
PLAIN = [(name, options) for name, options in BUILDS if name != "adaptive_kl" and (name != "taid" or options == {"t0": 1.0})]


@pytest.mark.parametrize(("name", "options"), PLAIN, ids=lambda value: str(value).replace("'", ""))
def test_gradients_are_the_derivatives(name, options):
    energy = energies.build(name, **options)
    (student, teacher), labels = random_pair(n=3, v=5, scale=2.0, dtype=torch.float64), random_labels(n=3, v=5)

    def values(z, banned=-math.inf):
        left, right = torch.full((3, 1), banned, dtype=z.dtype), torch.full((3, 1), -math.inf, dtype=z.dtype)
        return energy(tokens(torch.cat([z, left], 1), torch.cat([teacher, right], 1), labels))

    assert torch.autograd.gradcheck(lambda z: energy(tokens(z, teacher, labels)), student.requires_grad_())
    assert torch.autograd.gradcheck(values, student)  # a token both ban
    if name != "mse_logits":  # raw, the ban's 1e8 drowns the differences
        assert torch.autograd.gradcheck(lambda z: values(z, 0.3), student)  # a token the teacher alone bans


def test_fkl_keeps_the_gradient_scale_at_high_temperature():
    gap = (P.log() - Q.log()) - (P.log() - Q.log()).mean()
    limit = gap.square().mean().item() / 2
    assert limit == pytest.approx(0.094075, abs=1e-6)
    assert example("fkl", temperature=1e3) == pytest.approx(limit, rel=1e-2)
    for name in ("rkl", "skew_fkl", "adaptive_kl"):
        scale = 0.81 if name == "skew_fkl" else 1  # the mixture is (1 - alpha) of the way, and small KLs are quadratic
        assert example(name, temperature=1e3) == pytest.approx(limit * scale, rel=1e-2)


def test_fkl_gradient_is_q_minus_p():
    student, teacher = random_pair()
    expected = student.softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(gradient(energies.build("fkl"), student, teacher), expected)
    torch.testing.assert_close(gradient(energies.build("soft_ce"), student, teacher), expected)
    at_two = 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))
    torch.testing.assert_close(gradient(energies.build("fkl", temperature=2.0), student, teacher), at_two)
    student[:, 3] = -3e4  # below the floor the value stands still, and the gradient pulls on
    expected = student.softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(gradient(energies.build("fkl"), student, teacher), expected)


def test_rkl_gradient():
    student, teacher = random_pair()
    q, ratio = student.softmax(-1), student.log_softmax(-1) - teacher.log_softmax(-1)
    value = energies.build("rkl")(tokens(student, teacher))
    torch.testing.assert_close(gradient(energies.build("rkl"), student, teacher), q * (ratio - value[:, None]))


def test_soft_cross_entropy_is_fkl_and_the_teachers_entropy():
    student, teacher = random_pair()
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    fkl, soft = (energies.build(name)(tokens(student, teacher)) for name in ("fkl", "soft_ce"))
    torch.testing.assert_close(soft, fkl + entropy)
    torch.testing.assert_close(energies.build("soft_ce")(tokens(teacher, teacher)), entropy)
    assert entropy.min() > 0.01


def test_a_kl_near_a_match_keeps_its_digits():
    """The textbook sum is a difference of numbers of order 1: at gaps of 1e-4 float32 leaves nothing of it, or less than 0."""
    teacher = random_pair(n=200, v=50)[1].double()
    student = teacher + 1e-4 * random_pair(n=200, v=50, seed=1)[0].double()
    for name in ("fkl", "rkl", "js", "skew_fkl", "skew_rkl", "taid", "adaptive_kl"):
        exact = energies.build(name)(tokens(student, teacher))
        found = energies.build(name)(tokens(student.float(), teacher.float()))
        assert (found >= 0).all()
        assert found.double().sum().item() == pytest.approx(exact.sum().item(), rel=0.05)


def test_limits_of_the_generalised_js():
    student, teacher = random_pair(dtype=torch.float64)
    batch = tokens(student, teacher)
    fkl, rkl = (energies.build(name)(batch) for name in ("fkl", "rkl"))
    torch.testing.assert_close(energies.build("js", b=1e-9)(batch) / 1e-9, fkl, rtol=1e-4, atol=0)
    torch.testing.assert_close(energies.build("js", b=1 - 1e-9)(batch) / 1e-9, rkl, rtol=1e-4, atol=0)


def test_swapping_teacher_and_student_equals_swapping_the_weights_of_js():
    student, teacher = random_pair()
    left, right = energies.build("js", b=0.1)(tokens(student, teacher)), energies.build("js", b=0.9)(tokens(teacher, student))
    torch.testing.assert_close(left, right)
    half = energies.build("js", b=0.5)
    assert half.symmetric
    assert not energies.build("js").symmetric
    torch.testing.assert_close(half(tokens(student, teacher)), half(tokens(teacher, student)))
    assert half.bounds == (0, pytest.approx(math.log(2)))


def test_limits_of_the_skew_divergences():
    student, teacher = random_pair(dtype=torch.float64)
    batch = tokens(student, teacher)
    for skew, plain in (("skew_fkl", "fkl"), ("skew_rkl", "rkl")):
        torch.testing.assert_close(energies.build(skew, alpha=1e-12)(batch), energies.build(plain)(batch), rtol=1e-4, atol=0)
        assert energies.build(skew, alpha=1 - 1e-9)(batch).max() < 1e-9
        assert energies.build(skew).bounds == (0, pytest.approx(2.3026, abs=1e-4))


def test_pinsker_and_the_triangle():
    a, b = random_pair(n=300, scale=2.0)
    c, _ = random_pair(n=300, scale=2.0, seed=1)
    tvd = energies.build("tvd")
    left, right, across = tvd(tokens(a, b)), tvd(tokens(b, c)), tvd(tokens(a, c))
    assert (across <= left + right + 1e-6).all()
    assert (left.square() <= energies.build("fkl")(tokens(a, b)) / 2 + 1e-7).all()


def test_mse_logits_is_cosine_logits_at_another_weight():
    """The two rows of the paper's Table 1."""
    for v in (3, 50):
        student, teacher = random_pair(v=v)
        mse, cosine = (energies.build(name)(tokens(student, teacher)) for name in ("mse_logits", "cosine_logits"))
        torch.testing.assert_close(mse, 2 * (v - 1) / v * cosine)
        torch.testing.assert_close(
            gradient(energies.build("mse_logits"), student, teacher),
            2 * (v - 1) / v * gradient(energies.build("cosine_logits"), student, teacher),
        )
    assert 2 * 49 / 50 == 1.96


@pytest.mark.parametrize("name", ["mse_logits", "cosine_logits"])
def test_standardised_logits_do_not_see_shift_and_scale(name):
    student, teacher = random_pair()
    energy = energies.build(name)
    plain = energy(tokens(student, teacher))
    torch.testing.assert_close(energy(tokens(student * 7 + 2, teacher)), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(energy(tokens(student, teacher / 5 - 1)), plain, rtol=1e-4, atol=1e-5)
    assert energy(tokens(torch.zeros_like(student), teacher)).isfinite().all()  # a head that starts at zero


def test_raw_mse_logits_sees_them():
    student, teacher = random_pair()
    raw = energies.build("mse_logits", standardise=False)
    torch.testing.assert_close(raw(tokens(student, teacher)), (student - teacher).square().mean(-1))
    torch.testing.assert_close(raw(tokens(teacher + 3, teacher)), torch.full((16,), 9.0))
    assert raw.bounds == (0, math.inf)


def test_mse_probs_fades_with_the_vocabulary_and_its_sum_does_not():
    (small, large), sums = ([energies.build("mse_probs", reduce=r)(tokens(*random_pair(v=v))).mean().item() for v in (20, 2000)]
                            for r in ("mean", "sum"))  # fmt: skip
    assert large < small / 50
    assert sums[1] > sums[0] / 50
    student, teacher = random_pair(n=500, v=6, scale=30.0)
    assert (energies.build("mse_probs")(tokens(student, teacher)) <= 2 / 6).all()


def test_cosine_probs_is_flat_where_the_student_is_sure_and_wrong():
    """Its gradient vanishes exactly where fkl's is largest; so does that of tvd."""
    wrong, teacher = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0.0, 30.0, 0.0]])
    for name in ("cosine_probs", "tvd"):
        assert energies.build(name)(tokens(wrong, teacher)).item() == pytest.approx(1, abs=1e-6)
        assert gradient(energies.build(name), wrong, teacher).abs().max() < 1e-6
    assert gradient(energies.build("fkl"), wrong, teacher).abs().max() > 0.99


def test_adaptive_kl_lies_between_its_parts_and_detaches_the_weights():
    student, teacher = random_pair(n=200, scale=2.0, dtype=torch.float64)
    batch, energy = tokens(student, teacher), energies.build("adaptive_kl")
    fkl, rkl = (energies.build(name)(batch) for name in ("fkl", "rkl"))
    value, slack = energy(batch), 1e-12
    assert (torch.minimum(fkl, rkl) <= value + slack).all()
    assert (value <= torch.maximum(fkl, rkl) + slack).all()
    p, q = teacher.softmax(-1), student.softmax(-1)
    h = torch.tensor([head_share(a, b) for a, b in zip(p.numpy(), q.numpy(), strict=True)])[:, None]
    torch.testing.assert_close(energy.head(p, q), h[:, 0])
    ahead, back = (gradient(energies.build(name), student, teacher) for name in ("fkl", "rkl"))
    torch.testing.assert_close(gradient(energy, student, teacher), h * ahead + (1 - h) * back)


def test_adaptive_kl_weights_of_the_example():
    energy = energies.build("adaptive_kl")
    assert energy.head(P, Q).item() == pytest.approx(0.5)  # the top token alone, though its mass is above mu
    wide = torch.tensor([[0.3, 0.1, 0.25, 0.2, 0.15]]), torch.tensor([[0.1, 0.3, 0.2, 0.2, 0.2]])
    assert energy.head(*wide).item() == pytest.approx(0.2 / 0.5)  # .3 and .25 make .55: the second is out
    assert energies.build("adaptive_kl", mu=0.6).head(*wide).item() == pytest.approx(0.25 / 0.5)
    assert energy.head(P, P).item() == 0.5
    exact = torch.tensor([[0.5, 0.25, 0.125, 0.125]]), torch.tensor([[0.25, 0.375, 0.25, 0.125]])
    assert energies.build("adaptive_kl", mu=0.75).head(*exact).item() == pytest.approx(0.75)  # the mass may be mu itself


def test_adaptive_kl_does_not_depend_on_the_order_of_equal_tokens():
    p, q = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]]), torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1]])
    energy = energies.build("adaptive_kl")
    shares = {round(energy.head(p, q[:, torch.randperm(5)]).item(), 6) for _ in range(20)}
    assert shares == {0.4}  # two of five equal tokens are head: each counts two fifths
