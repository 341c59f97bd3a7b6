"""Golden values and invariants of METHOD.md 2.0 and 2.1."""

import math
import shutil

import pytest
import torch

from harness.base import UserError
from students import energies
from students.batch import TokenBatch, sample_mean

P = torch.tensor([[0.7, 0.2, 0.1]])
Q = torch.tensor([[0.5, 0.3, 0.2]])
NAMES = tuple(name for name in energies.names() if energies.needs(name) <= {"labels"})  # over logits alone
PROPER = tuple(name for name in NAMES if name != "soft_ce")


def tokens(student, teacher, sample=None):
    n = student.shape[0]
    return TokenBatch(
        student, teacher, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long) if sample is None else sample
    )


def random_pair(n=16, v=11, scale=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, generator=generator) * scale, torch.randn(n, v, generator=generator) * scale


def gradient(energy, student, teacher):
    student = student.clone().requires_grad_()
    energy(tokens(student, teacher)).sum().backward()
    return student.grad


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("fkl", {}, 0.085123),
        ("fkl", {"temperature": 2.0}, 0.098297),
        ("fkl", {"temperature": 4.0}, 0.098541),
        ("fkl", {"temperature": 50.0}, 0.094591),
        ("cosine_probs", {}, 0.050752),
    ],
)
def test_golden_values(name, options, value):
    assert energies.build(name, **options)(tokens(Q.log(), P.log())).item() == pytest.approx(value, abs=1e-6)


def test_fkl_keeps_the_gradient_scale_at_high_temperature():
    gap = (P.log() - Q.log()) - (P.log() - Q.log()).mean()
    limit = gap.square().mean().item() / 2
    assert limit == pytest.approx(0.094075, abs=1e-6)
    assert energies.build("fkl", temperature=1e3)(tokens(Q.log(), P.log())).item() == pytest.approx(limit, rel=1e-2)


def test_fkl_gradient_is_q_minus_p():
    student, teacher = random_pair()
    expected = student.softmax(-1) - teacher.softmax(-1)
    torch.testing.assert_close(gradient(energies.build("fkl"), student, teacher), expected)
    at_two = 2 * ((student / 2).softmax(-1) - (teacher / 2).softmax(-1))
    torch.testing.assert_close(gradient(energies.build("fkl", temperature=2.0), student, teacher), at_two)


@pytest.mark.parametrize("name", PROPER)
def test_zero_at_a_match_and_positive_elsewhere(name):
    energy = energies.build(name)
    student, teacher = random_pair()
    assert energy.zero_at_match
    assert energy(tokens(teacher + 3.0, teacher)).abs().max() < 1e-5  # the same distribution: logits are shift invariant
    assert energy(tokens(teacher.clone(), teacher)).abs().max() == 0
    assert gradient(energy, teacher, teacher).abs().max() < 1e-6
    assert (energy(tokens(student, teacher)) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_float32_value_per_token_and_no_gradient_into_the_teacher(name):
    student, teacher = (x.half().requires_grad_() for x in random_pair())
    values = energies.build(name)(tokens(student, teacher))
    assert values.shape == (16,)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_softmax(name):
    student, teacher = random_pair()
    plain = energies.build(name)(tokens(student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(energies.build(name)(tokens(student, teacher)), plain)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_vocabulary_changes_nothing(name):
    student, teacher = random_pair()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    energy = energies.build(name)
    torch.testing.assert_close(energy(tokens(student[:, order], teacher[:, order])), energy(tokens(student, teacher)))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_banned_by_both_change_nothing(name):
    student, teacher = random_pair(v=11)
    energy = energies.build(name)
    banned = torch.full((16, 1), -math.inf)
    wide = torch.cat([student, banned], 1)
    torch.testing.assert_close(energy(tokens(wide, torch.cat([teacher, banned], 1))), energy(tokens(student, teacher)))
    grad = gradient(energy, wide, torch.cat([teacher, banned], 1))
    assert grad.isfinite().all()
    torch.testing.assert_close(grad[:, :-1], gradient(energy, student, teacher))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_visible(name):
    """A `where(p > 0, ...)` turns NaN logits into a loss of zero, and the run would go on without its teacher."""
    student, teacher = random_pair()
    for bad in (math.nan, math.inf):
        broken = teacher.clone()
        broken[3, 2] = bad
        assert energies.build(name)(tokens(student, broken)).isnan().nonzero().tolist() == [[3]]


def test_a_token_only_the_student_bans_is_floored_and_counted():
    student, teacher = random_pair(n=2)
    student[0, 4] = -math.inf
    energy = energies.build("fkl")
    student.requires_grad_()
    values = energy(tokens(student, teacher))
    values.sum().backward()
    assert values.isfinite().all()
    assert values[0] > teacher.softmax(-1)[0, 4] * 0.9e4
    assert energy.logs["floored"].item() == 1
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_keep_the_graph(name):
    student = torch.zeros(0, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    values = energies.build(name)(TokenBatch(student, torch.zeros(0, 5), none, none))
    means = sample_mean(values, none, 3)
    assert means.tolist() == [0, 0, 0]
    means.sum().backward()
    assert student.grad.shape == (0, 5)


def test_cosine_probs_is_bounded_and_symmetric():
    energy = energies.build("cosine_probs")
    student, teacher = random_pair(n=500, scale=20.0)
    values = energy(tokens(student, teacher))
    assert values.min() >= 0
    assert values.max() <= 1 + 1e-6
    torch.testing.assert_close(values, energy(tokens(teacher, student)))
    torch.testing.assert_close(values, 1 - torch.cosine_similarity(student.softmax(-1), teacher.softmax(-1)), atol=1e-6, rtol=0)


def test_cosine_probs_is_flat_where_the_student_is_sure_and_wrong():
    """Its gradient vanishes exactly where fkl's is largest."""
    wrong, teacher = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0.0, 30.0, 0.0]])
    assert energies.build("cosine_probs")(tokens(wrong, teacher)).item() == pytest.approx(1, abs=1e-6)
    assert gradient(energies.build("cosine_probs"), wrong, teacher).abs().max() < 1e-6
    assert gradient(energies.build("fkl"), wrong, teacher).abs().max() > 0.99


def test_sample_mean_weighs_samples_alike_whatever_their_length():
    values, sample = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2])
    assert sample_mean(values, sample, 3).tolist() == [2, 0, 10]


def test_misshapen_batches_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 6\)"):
        tokens(torch.zeros(2, 5), torch.zeros(2, 6))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "2", True])
def test_a_bad_temperature_is_refused(value):
    with pytest.raises(UserError, match="temperature"):
        energies.build("fkl", temperature=value)


def test_unknown_names_and_options_name_near_matches():
    with pytest.raises(KeyError, match="fkl"):
        energies.build("fkll")
    with pytest.raises(UserError, match="temperature"):
        energies.build("fkl", temprature=2.0)


def test_a_new_file_is_a_new_energy(tmp_path, monkeypatch):
    from students import recipe, registry

    for name in ("energies", "weightings"):
        shutil.copytree(registry.ROOT / name, tmp_path / name)
    (tmp_path / "energies" / "squared.py").write_text(
        "from students.energies import _base\n"
        "class Energy(_base.LogitsEnergy):\n"
        "    def compare(self, teacher, student):\n"
        "        return (teacher.exp() - student.exp()).square().sum(-1)\n"
    )
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(energies, "__path__", [str(tmp_path / "energies")])
    assert recipe.parse("ce+squared").name == "ce+squared@fixed"
    assert energies.build("squared")(tokens(Q.log(), P.log())).item() == pytest.approx(0.06, abs=1e-6)
