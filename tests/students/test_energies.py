"""What every energy over logits must do, whatever its formula (METHOD.md 2.0), and how energies are found and built."""

import math
import shutil
import subprocess
import sys

import pytest
import torch
from energy_toys import BUILDS, NAMES, PROPER, P, Q, gradient, random_labels, random_pair, tokens

from harness.base import UserError
from students import energies
from students.batch import TokenBatch, sample_mean

every_build = pytest.mark.parametrize(("name", "options"), BUILDS, ids=lambda value: str(value).replace("'", ""))


def test_the_core_set_is_there():
    core = "adaptive_kl cosine_logits cosine_probs ctkd dkd fkl js mse_logits mse_probs rkl skew_fkl skew_rkl soft_ce taid tvd"
    assert set(core.split()) == set(NAMES)


@every_build
def test_zero_at_a_match_and_positive_elsewhere(name, options):
    energy = energies.build(name, **options)
    student, teacher = random_pair()
    values = energy(tokens(student, teacher))
    assert energy.zero_at_match == (name != "soft_ce")
    assert (values >= 0).all()
    if options.get("t0") != 0:  # TAID's target is the student itself there
        assert (values > 0).all()
    if name == "soft_ce":
        assert (energy(tokens(teacher.clone(), teacher)) > 0).all()
    else:
        assert energy(tokens(teacher.clone(), teacher)).abs().max() == 0
        assert gradient(energy, teacher, teacher).abs().max() < 1e-5
    if options != {"standardise": False}:  # the same distribution: logits are shift invariant
        torch.testing.assert_close(energy(tokens(student + 3.0, teacher)), values, atol=1e-5, rtol=1e-5)


@every_build
def test_bounds_are_declared_reached_and_kept(name, options):
    energy = energies.build(name, **options)
    low, high = energy.bounds
    assert low == 0 < high
    wrong, sure = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 40.0]])  # as far apart as two tokens can be
    value = energy(tokens(wrong, sure)).item()
    assert value <= high * (1 + 1e-6)
    if high < math.inf and name != "mse_logits":  # its supremum, 4, is that of an infinite vocabulary
        assert value == pytest.approx(high, rel=1e-5)


@pytest.mark.parametrize("name", ["tvd", "mse_probs", "mse_logits", "cosine_probs", "cosine_logits"])
def test_symmetric_energies_do_not_care_which_side_is_the_teacher(name):
    student, teacher = random_pair()
    energy = energies.build(name)
    assert energy.symmetric
    torch.testing.assert_close(energy(tokens(student, teacher)), energy(tokens(teacher, student)))


@pytest.mark.parametrize("name", [name for name in NAMES if not energies.build(name).symmetric])
def test_the_others_do(name):
    student, teacher = random_pair()
    energy = energies.build(name)
    assert (energy(tokens(student, teacher)) - energy(tokens(teacher, student))).abs().min() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_one_float32_value_per_token_and_no_gradient_into_the_teacher(name):
    student, teacher = (x.half().requires_grad_() for x in random_pair())
    values = energies.build(name)(tokens(student, teacher))
    assert values.shape == (16,)
    assert values.dtype == torch.float32
    values.sum().backward()
    assert teacher.grad is None
    assert student.grad.dtype == torch.float16
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64(name):
    student, teacher = random_pair(dtype=torch.float64)
    assert energies.build(name)(tokens(student, teacher)).dtype == torch.float64


@every_build
def test_half_precision_logits_lose_nothing_inside(name, options):
    """Probabilities under 6e-8 vanish in float16, and squares above 65504 overflow."""
    student, teacher = (x.half() for x in random_pair(v=300, scale=30.0))
    energy = energies.build(name, **options)
    torch.testing.assert_close(
        energy(tokens(student, teacher)).double(), energy(tokens(student.double(), teacher.double())), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_softmax(name):
    student, teacher = random_pair()
    plain = energies.build(name)(tokens(student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(energies.build(name)(tokens(student, teacher)), plain)


@every_build
def test_permuting_the_vocabulary_or_the_tokens_changes_nothing(name, options):
    (student, teacher), labels = random_pair(), random_labels()
    energy = energies.build(name, **options)
    plain, slope = energy(tokens(student, teacher, labels)), gradient(energy, student, teacher, labels)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    where = order.argsort()[labels]
    torch.testing.assert_close(energy(tokens(student[:, order], teacher[:, order], where)), plain)
    torch.testing.assert_close(gradient(energy, student[:, order], teacher[:, order], where), slope[:, order])
    rows = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(energy(tokens(student[rows], teacher[rows], labels[rows])), plain[rows])


@every_build
def test_tokens_banned_by_both_change_nothing(name, options):
    """So padding a vocabulary changes no value; not even a mean over it."""
    student, teacher = random_pair(v=11)
    energy = energies.build(name, **options)
    banned = torch.full((16, 3), -math.inf)
    wide = torch.cat([student, banned], 1)
    torch.testing.assert_close(energy(tokens(wide, torch.cat([teacher, banned], 1))), energy(tokens(student, teacher)))
    grad = gradient(energy, wide, torch.cat([teacher, banned], 1))
    assert (grad[:, 11:] == 0).all()
    torch.testing.assert_close(grad[:, :11], gradient(energy, student, teacher))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_visible(name):
    """A `where(p > 0, ...)` turns NaN logits into a loss of zero, and the run would go on without its teacher."""
    pair = random_pair()
    for side in (0, 1):
        for bad in (math.nan, math.inf):
            broken = [x.clone() for x in pair]
            broken[side][3, 2] = bad
            assert energies.build(name)(tokens(*broken)).isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_bans_every_token_is_no_match(name):
    student, teacher = random_pair()
    teacher[3] = -math.inf
    banned = student.clone()
    banned[3] = -math.inf
    for side in (student, banned):
        assert energies.build(name)(tokens(side, teacher)).isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    ("name", "cost"),
    [("fkl", 1e4), ("soft_ce", 1e4), ("ctkd", 15.6**2 * 1e4), ("dkd", 1e3), ("mse_logits", 0.1), ("cosine_logits", 0.1)],
)
def test_a_token_only_the_student_bans_is_floored_and_counted(name, cost):
    student, teacher = random_pair(n=2)
    student[0, 4] = -math.inf
    energy = energies.build(name)
    student.requires_grad_()
    values = energy(tokens(student, teacher))
    values.sum().backward()
    assert values.isfinite().all()
    assert values[0] > teacher.softmax(-1)[0, 4] * cost * 0.9
    assert energy.logs["floored"].item() == 1
    assert student.grad.isfinite().all()
    energy(tokens(teacher, teacher))
    assert energy.logs["floored"].item() == 0


@pytest.mark.parametrize("name", ["mse_logits", "cosine_logits"])
def test_a_floored_logit_is_a_constant(name):
    student, teacher = random_pair(n=2)
    student[0, 4] = -math.inf
    grad = gradient(energies.build(name), student, teacher)
    assert grad[0, 4] == 0
    assert (grad != 0).sum() == 21


def test_a_token_only_the_teacher_bans_costs_the_reverse_divergences():
    student, teacher = random_pair(n=2)
    teacher[0, 4] = -math.inf
    for name in ("rkl", "adaptive_kl"):
        energy = energies.build(name)
        assert energy(tokens(student, teacher))[0] > student.softmax(-1)[0, 4] * 1e3
        assert energy.logs["floored"].item() == 1
    for name in ("fkl", "skew_rkl", "js"):
        energy = energies.build(name)
        assert energy(tokens(student, teacher))[0] < 20
        assert "floored" not in energy.logs or energy.logs["floored"].item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_keep_the_graph(name):
    student = torch.zeros(0, 5, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    values = energies.build(name)(TokenBatch(student, torch.zeros(0, 5), none, none))
    means = sample_mean(values, none, 3)
    assert means.tolist() == [0, 0, 0]
    means.sum().backward()
    assert student.grad.shape == (0, 5)


@every_build
def test_a_batch_may_be_cut_anywhere(name, options):
    (student, teacher), labels = random_pair(dtype=torch.float64), random_labels()
    energy = energies.build(name, **options)
    whole = energy(tokens(student, teacher, labels))
    parts = [energy(tokens(student[k : k + 2], teacher[k : k + 2], labels[k : k + 2])) for k in range(0, 16, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_back_from_the_device(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    energy = energies.build(name)
    with FakeTensorMode(allow_non_fake_inputs=True):  # its tensors have no values: reading one raises
        student, teacher = torch.empty(4, 7, requires_grad=True), torch.empty(4, 7)
        energy(tokens(student, teacher)).sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_few_tensors_of_a_vocabulary_are_kept_for_the_backward_pass(name):
    (student, teacher), kept = random_pair(v=500), {}
    student.requires_grad_()

    def pack(tensor):
        if tensor.data_ptr() not in (student.data_ptr(), teacher.data_ptr()):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        energies.build(name)(tokens(student, teacher))
    allowed = {"mse_logits": 1, "cosine_logits": 1, "ctkd": 1, "dkd": 3}.get(name, 2)
    assert sum(kept.values()) / (4 * student.numel()) < allowed + 0.2


def test_sample_mean_weighs_samples_alike_whatever_their_length():
    values, sample = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2])
    assert sample_mean(values, sample, 3).tolist() == [2, 0, 10]


def test_misshapen_batches_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(2, 6\)"):
        tokens(torch.zeros(2, 5), torch.zeros(2, 6))


BAD = {
    "temperature": [0, -1.0, math.nan, math.inf, "2", True],
    "b": [0, 1, 1.5, -0.1, math.nan, "half", True],
    "alpha": [0, 1, None],
    "mu": [0, 1.0, 2],
    "reduce": ["max", None],
    "standardise": [1, "yes"],
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, "temperature") for name in ("fkl", "js", "dkd", "cosine_probs")),
        ("js", "b"), ("skew_fkl", "alpha"), ("skew_rkl", "alpha"), ("adaptive_kl", "mu"), ("mse_probs", "reduce"),
        ("mse_logits", "standardise"),
    ],
)  # fmt: skip
def test_bad_options_are_refused(name, option):
    for value in BAD[option]:
        with pytest.raises(UserError) as error:
            energies.build(name, **{option: value})
        text = str(error.value)
        assert option in text
        assert str(value) in text
        assert "allowed: " in text or "Known: mean, sum" in text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dkd", {"alpha": -1}, "alpha is -1; allowed: a finite number >= 0"),
        ("dkd", {"beta": math.inf}, "beta is inf"),
        ("dkd", {"alpha": 0, "beta": 0}, "both 0"),
        ("taid", {"t0": 0.9, "t_end": 0.5}, "t_end is 0.5, below t0 = 0.9"),
        ("taid", {"t0": -0.1}, r"t0 is -0.1; allowed: a finite number in \[0, 1\]"),
        ("taid", {"b": 1.1}, "b is 1.1"),
        ("taid", {"alpha": -1}, "alpha is -1"),
        ("taid", {"disable_adaptive": 1}, "disable_adaptive is 1; allowed: true, false"),
        ("ctkd", {"t0": 0}, "t0 is 0; allowed: a finite number > 0"),
        ("ctkd", {"t1": -4}, "t1 is -4"),
        ("ctkd", {"theta": math.nan}, "theta is nan; allowed: a finite number"),
        ("ctkd", {"share": 0}, r"share is 0; allowed: a finite number in \(0, 1\]"),
        ("fkl", {"temprature": 2.0}, "Did you mean 'temperature'"),
        ("mse_logits", {"temperature": 2.0}, "unknown option of energy 'mse_logits': 'temperature'"),
        ("fd", {"widths": {}}, "modules as wide as the tap"),
    ],
)
def test_what_is_wrong_is_said(name, options, message):
    with pytest.raises(UserError, match=message):
        energies.build(name, **options)


def test_unknown_names_name_near_matches():
    for ask in (energies.build, energies.needs):
        with pytest.raises(KeyError, match="fkl"):
            ask("fkll")


def test_needs_are_known_without_building():
    assert {name: energies.needs(name) for name in PROPER} == {
        name: frozenset({"labels"}) if name == "dkd" else frozenset() for name in PROPER
    }
    assert energies.needs("fd") == {"vision"}  # which cannot be built without widths
    for name in NAMES:
        assert energies.build(name, widths={"vision": (2, 3)}).needs == energies.needs(name)


def test_widths_reach_only_the_energies_that_have_modules_of_that_size():
    assert next(energies.build("fd", widths={"vision": (2, 3)}).parameters()).shape[:2] == (2, 3)
    assert not list(energies.build("fkl", widths={"vision": (2, 3)}).parameters())
    with pytest.raises(UserError, match=r"'fd' has modules as wide as the tap\(s\) vision, and widths names only: attention"):
        energies.build("fd", widths={"attention": (2, 4)})


def test_listing_imports_no_torch():
    code = "import sys; from students import energies; energies.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    teacher, student = P.log().requires_grad_(), Q.log().requires_grad_()
    value = energies.build("squared")(tokens(student, teacher))
    assert value.item() == pytest.approx(0.06, abs=1e-6)
    value.backward()
    assert student.grad is not None
    assert teacher.grad is None  # whatever the file does, the base keeps the teacher out
