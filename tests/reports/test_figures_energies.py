"""The formulas behind the simplex: METHOD's golden values, the energies that students are trained with, and the drawing."""

import numpy as np
import pytest

from reports.figures import _energies as drawn
from reports.figures import energies_simplex

P, Q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
#: METHOD.md 2.0, to the places printed there.
GOLDEN = {
    "fkl": 0.085123, "rkl": 0.092033, "js": 0.007695, "tvd": 0.2, "mse_probs": 0.02, "cosine_probs": 0.050752,
    "cosine_logits": 0.004822, "mse_logits": 0.006430, "adaptive_kl": 0.088578, "skew_fkl": 0.069578, "skew_rkl": 0.072828,
    "taid": 0.014995, "dkd": 0.082283 + 0.5 * 0.009466,
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    assert float(drawn.ENERGIES[name][0](P, Q)) == pytest.approx(GOLDEN[name], abs=1.5e-6)


def test_golden_values_of_other_settings():
    assert float(drawn.js(P, Q, b=0.5)) == pytest.approx(0.021901, abs=1e-6)
    for label, (target, others) in enumerate([(0.082283, 0.009466), (0.025732, 0.074238), (0.036690, 0.053814)]):
        assert [float(x) for x in drawn.dkd_parts(P, Q, label)] == pytest.approx([target, others], abs=1e-6)
        assert sum(w * float(x) for w, x in zip((1.0, 1.0 - P[label]), drawn.dkd_parts(P, Q, label), strict=True)) == (
            pytest.approx(float(drawn.fkl(P, Q)), rel=1e-12)
        )
    for t, value in ((0.4, 0.014995), (0.5, 0.023145), (1.0, 0.085123)):
        assert float(drawn.taid(P, Q, t)) == pytest.approx(value, abs=1e-6)
    for temperature, value in ((1, 0.085123), (2, 0.098297), (4, 0.098541), (50, 0.094591)):
        assert float(drawn.tempered_kl(P, Q, temperature)) == pytest.approx(value, abs=1e-6)


def test_every_energy_is_zero_at_the_teacher_and_nowhere_below():
    q = energies_simplex.grid()[0].reshape(-1, 3)
    q = q[~np.isnan(q).any(axis=1)]
    teacher = np.array(energies_simplex.TEACHER)
    for name, (energy, _) in drawn.ENERGIES.items():
        assert float(energy(teacher, teacher)) == pytest.approx(0.0, abs=1e-15), name
        assert energy(teacher, q).min() >= -1e-15, name
        assert np.isfinite(energy(teacher, q)).all(), name


def test_the_grid_is_the_simplex():
    q, x, y = energies_simplex.grid()
    inside = ~np.isnan(q).any(axis=-1)
    assert inside.sum() == energies_simplex.SIDE * (energies_simplex.SIDE + 1) // 2
    assert q[inside].sum(axis=-1) == pytest.approx(1.0)
    assert q[inside].min() == pytest.approx(energies_simplex.EDGE)
    corners = {"A": (0.0, 0.0), "B": (1.0, 0.0), "C": (0.5, np.sqrt(0.75))}
    for k, (u, v) in enumerate(corners.values()):
        top = np.nanargmax(np.where(inside, q[..., k], np.nan))
        assert (x.ravel()[top], y.ravel()[top]) == pytest.approx((u, v), abs=0.03)


@pytest.mark.parametrize("name", drawn.ENERGIES)
def test_what_is_drawn_is_what_students_are_trained_with(name):
    torch = pytest.importorskip("torch")
    from students import energies
    from students.batch import TokenBatch

    q = energies_simplex.grid()[0].reshape(-1, 3)
    q = q[~np.isnan(q).any(axis=1)][::37]
    p = np.array(energies_simplex.TEACHER)
    student, teacher = (torch.from_numpy(np.log(np.broadcast_to(x, q.shape)).copy()) for x in (q, p))
    batch = TokenBatch(student, teacher, torch.zeros(len(q), dtype=torch.long), torch.arange(len(q)))
    with torch.no_grad():
        values = energies.build(name)(batch).numpy()
    assert drawn.ENERGIES[name][0](p, q) == pytest.approx(values, rel=1e-6, abs=1e-9)
