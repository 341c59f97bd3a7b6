"""DKD, TAID and CTKD: identities, schedules and state (METHOD.md 2.2)."""

import math

import numpy as np
import pytest
import torch
from energy_toys import P, Q, decoupled, example, gradient, random_labels, random_pair, tokens

from students import energies

# ---- DKD


@pytest.mark.parametrize(("y", "target", "rest"), [(0, 0.082283, 0.009466), (1, 0.025732, 0.074238), (2, 0.036690, 0.053814)])
def test_dkd_parts_of_the_example(y, target, rest):
    found = energies.build("dkd").parts(tokens(Q.log(), P.log(), torch.tensor([y])))
    assert [part.item() for part in found] == pytest.approx([target, rest], abs=1e-6)
    assert energies.build("dkd", alpha=2.0, beta=3.0)(tokens(Q.log(), P.log(), torch.tensor([y]))).item() == pytest.approx(
        2 * target + 3 * rest, abs=1e-5
    )


def test_kl_is_the_targets_part_and_the_rest_by_its_mass():
    (student, teacher), labels = random_pair(n=50, dtype=torch.float64), random_labels(n=50)
    batch = tokens(student, teacher, labels)
    target, rest = energies.build("dkd").parts(batch)
    other = 1 - teacher.softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(target + other * rest, energies.build("fkl")(batch))


def test_dkd_carries_the_square_of_its_temperature():
    (student, teacher), labels = random_pair(), random_labels()
    found = energies.build("dkd", alpha=1.0, beta=8.0, temperature=4.0)(tokens(student, teacher, labels))
    target, rest = energies.build("dkd").parts(tokens(student / 4, teacher / 4, labels))
    torch.testing.assert_close(found, 16 * (target + 8 * rest))


@pytest.mark.parametrize("gap", [50.0, 1e4])
def test_dkd_where_the_teacher_is_sure_of_the_label(gap):
    """1 - p_y underflows to 0 there; the other tokens' distribution is still compared."""
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[gap, 1.0, 0.0]])
    target, rest = energies.build("dkd").parts(tokens(student, teacher))
    q = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    assert target.item() == pytest.approx(-math.log(q[0]), rel=1e-5)
    assert rest.item() == pytest.approx(decoupled(np.array([0.1, 0.9 * 0.731059, 0.9 * 0.268941]), q, 0)[1], rel=1e-4)
    for sides in ((student, teacher), (teacher, student)):
        assert gradient(energies.build("dkd"), *sides).isfinite().all()


def test_dkd_where_no_other_token_is_allowed():
    none = -math.inf
    student, alone = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, none, none]])
    energy = energies.build("dkd")
    target, rest = energy.parts(tokens(student, alone))
    assert target.item() == pytest.approx(-student.log_softmax(-1)[0, 0].item())
    assert rest.item() == 0
    assert energy.logs["alone"] == 1
    assert energy(tokens(alone, alone)).item() == 0
    target, rest = energy.parts(tokens(alone, student))  # the student allows nothing else: the floor's cost
    assert rest.item() == pytest.approx(1e4, rel=1e-3)
    assert energy.logs["floored"] == 3  # 1 - q_y and two tokens
    for sides in ((student, alone), (alone, student), (alone, alone)):
        assert gradient(energy, *sides).isfinite().all()
    torch.testing.assert_close(gradient(energy, student, alone), gradient(energies.build("fkl"), student, alone))


def test_dkd_reads_the_label():
    student, teacher = random_pair(n=1)
    values = {round(energies.build("dkd")(tokens(student, teacher, torch.tensor([y]))).item(), 6) for y in range(11)}
    assert len(values) == 11


# ---- TAID


def run_taid(energy, losses_of, steps, cut=16):
    """Train for some steps on the same teacher and a student that comes nearer, in micro-batches of ``cut``; return t's."""
    student, teacher = random_pair(dtype=torch.float64)
    path = []
    for step in range(1, steps + 1):
        now = torch.lerp(student, teacher, 0.8 * step / steps)
        values = [energy(tokens(now[k : k + cut], teacher[k : k + cut])) for k in range(0, 16, cut)]
        losses_of.append(torch.cat(values).mean().item())
        energy.on_optimiser_step(step, steps)
        path.append(energy.t.item())
    return path


def recursion(losses, t0=0.4, t_end=1.0, alpha=5e-4, b=0.99):
    """METHOD's formula, in plain numbers."""
    t, m, before, path = t0, 0.0, None, []
    for n, loss in enumerate(losses, start=1):
        floor, move = t0 + (t_end - t0) * n / len(losses), 0.0
        if before is not None:
            m = b * m + (1 - b) * (before - loss) / (before + 1e-15)
            move = alpha / (1 + math.exp(-m)) * (1 - t)
        t, before = min(t_end, max(floor, t + move)), loss
        path.append(t)
    return path


def test_taid_target_of_the_example():
    energy = energies.build("taid")
    assert energy.target(P.log(), Q.log()).exp()[0].tolist() == pytest.approx([0.584489, 0.260639, 0.154872], abs=1e-6)
    assert example("taid", t0=0.0) == 0
    assert example("taid", t0=1.0) == example("fkl")


@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "b": 0.5}, {"t0": 0.1, "t_end": 0.6, "alpha": 1.0}])
def test_taid_moves_as_the_formula_says(options):
    losses: list[float] = []
    energy = energies.build("taid", **options)
    path = run_taid(energy, losses, 40)
    assert path == pytest.approx(recursion(losses, **options), abs=1e-6)
    assert all(a <= b + 1e-7 for a, b in zip([energy.t0, *path], path, strict=False))
    assert path[-1] == pytest.approx(energy.t_end)
    ahead = [t - (energy.t0 + (energy.t_end - energy.t0) * n / 40) for n, t in enumerate(path, start=1)]
    assert min(ahead) > -1e-6
    if options:
        assert max(ahead) > 0.05  # the adaptive part is at work, not the floor alone


def test_taid_is_linear_when_told_to_be():
    path = run_taid(energies.build("taid", disable_adaptive=True, alpha=1.0), [], 40)
    assert path == pytest.approx([0.4 + 0.6 * n / 40 for n in range(1, 41)], abs=1e-6)


def test_no_gradient_passes_through_taids_target():
    student, teacher = random_pair()
    energy = energies.build("taid")
    target = (0.6 * student + 0.4 * teacher).softmax(-1)
    torch.testing.assert_close(gradient(energy, student, teacher), student.softmax(-1) - target)
    assert gradient(energies.build("taid", t0=0.0), student, teacher).abs().max() == 0
    torch.testing.assert_close(
        gradient(energies.build("taid", t0=1.0), student, teacher), gradient(energies.build("fkl"), student, teacher)
    )


def test_taid_state_does_not_depend_on_micro_batches():
    states = []
    for cut in (16, 8, 1):
        energy = energies.build("taid", alpha=0.5, b=0.5)
        run_taid(energy, [], 10, cut)
        states.append({key: value.item() for key, value in energy.state_dict().items()})
    assert states[0]["momentum"] != 0
    for state in states[1:]:
        assert state == pytest.approx(states[0], rel=1e-6)


def test_taid_in_evaluation_moves_nothing():
    student, teacher = random_pair()
    trained, evaluated = energies.build("taid"), energies.build("taid")
    for step in (1, 2, 3):
        for energy in (trained, evaluated):
            energy(tokens(student * step, teacher))
        evaluated.eval()
        evaluated(tokens(student * 100, teacher))
        evaluated.train()
        for energy in (trained, evaluated):
            energy.on_optimiser_step(step, 5)
    assert trained.state_dict() == evaluated.state_dict()


def test_taid_goes_on_after_a_step_without_tokens():
    student, teacher = random_pair()
    energy = energies.build("taid", alpha=0.5)
    energy(tokens(student, teacher))
    energy.on_optimiser_step(1, 10)
    before = energy.before.item()
    energy.on_optimiser_step(2, 10)
    assert energy.t.item() == pytest.approx(0.4 + 0.6 * 0.2)
    assert energy.before.item() == before
    assert energy.momentum.item() == 0


def test_a_broken_loss_reaches_taids_state():
    student, teacher = random_pair()
    energy = energies.build("taid")
    for step in (1, 2):
        energy(tokens(student * (math.nan if step == 2 else 1), teacher))
        energy.on_optimiser_step(step, 10)
    assert energy.t.isnan()


def test_a_token_that_only_the_student_bans_counts_at_the_end_of_taid():
    student, teacher = random_pair(n=1)
    student[0, 2] = -math.inf
    assert energies.build("taid")(tokens(student, teacher)).item() < 10
    assert energies.build("taid", t0=1.0)(tokens(student, teacher)) == energies.build("fkl")(tokens(student, teacher))


# ---- CTKD


def test_ctkd_is_the_divergence_at_its_temperature():
    student, teacher = random_pair()
    energy = energies.build("ctkd")
    assert energy.temperature.item() == pytest.approx(1 + 20 / (1 + math.exp(-1)))
    at = energies.build("fkl", temperature=energy.temperature.item())
    torch.testing.assert_close(energy(tokens(student, teacher)), at(tokens(student, teacher)))
    torch.testing.assert_close(gradient(energy, student, teacher), gradient(at, student, teacher))


@pytest.mark.parametrize("bans", [(), (0,), (1,), (0, 1)])
def test_ctkds_theta_climbs_where_the_student_descends(bans):
    sides = random_pair(dtype=torch.float64)
    for side in bans:
        sides[side][2, 5] = -math.inf
    energy = energies.build("ctkd", t1=4.0, theta=-0.5, share=0.5).double()

    def total(theta):
        energy.theta.data.fill_(theta)
        return energy(tokens(*sides)).sum()

    plain = (total(-0.5 + 1e-5) - total(-0.5 - 1e-5)).item() / 2e-5
    assert abs(plain) > 0.1
    for step, strength in ((0, 0.0), (1, 0.5 - math.cos(math.pi / 4) / 2), (2, 0.5), (4, 1.0), (7, 1.0)):
        if step:
            energy.on_optimiser_step(step, 8)
        energy.theta.grad = None
        total(-0.5).backward()
        assert energy.strength.item() == pytest.approx(strength, abs=1e-7)
        assert energy.theta.grad.item() == pytest.approx(-strength * plain, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("theta", [-12.0, -1.0, 0.0, 12.0])
def test_ctkds_temperature_stays_in_its_range(theta):
    assert 0.5 < energies.build("ctkd", t0=0.5, t1=4.0, theta=theta).temperature.item() < 4.5


def test_ctkds_number_is_one_float32_parameter():
    energy = energies.build("ctkd")
    (theta,) = energy.parameters()
    assert theta.dtype == torch.float32
    assert theta.shape == ()
    assert not list(energies.build("taid").parameters())


def test_ctkds_temperature_moves_against_the_student():
    """Where a hotter comparison costs more, theta rises, though an optimiser descends."""
    student, teacher = random_pair()
    energy = energies.build("ctkd", t1=4.0, theta=0.0)
    energy.on_optimiser_step(10, 10)
    optimiser = torch.optim.SGD(energy.parameters(), lr=1e-3)
    before = energy(tokens(student, teacher)).mean()
    for _ in range(20):
        optimiser.zero_grad()
        energy(tokens(student, teacher)).mean().backward()
        optimiser.step()
    assert energy(tokens(student, teacher)).mean() > before


# ---- both


@pytest.mark.parametrize("name", ["taid", "ctkd"])
def test_state_survives_a_checkpoint(name, tmp_path):
    from safetensors.torch import load_file, save_file

    student, teacher = random_pair()
    energy = energies.build(name)
    assert energy.stateful
    for step in (1, 2):
        energy(tokens(student * step, teacher))
        energy.on_optimiser_step(step, 400)
    energy(tokens(student, teacher))  # in the middle of a step
    save_file(energy.state_dict(), tmp_path / "energy.safetensors")
    again = energies.build(name)
    again.load_state_dict(load_file(tmp_path / "energy.safetensors"))
    for one in (energy, again):
        one(tokens(student / 2, teacher))
        one.on_optimiser_step(3, 400)
    assert energy.state_dict() == again.state_dict()
    assert torch.equal(energy(tokens(student, teacher)), again(tokens(student, teacher)))
    fresh = energies.build(name).state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in again.state_dict().items())


def test_no_other_energy_has_state():
    for name in energies.names():
        if energies.needs(name) <= {"labels"} and name not in ("taid", "ctkd"):
            assert not energies.build(name).stateful
            assert not energies.build(name).state_dict()
