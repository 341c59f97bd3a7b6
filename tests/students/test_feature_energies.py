"""fd, align_kd and llava_kd on made-up taps: golden values in numpy, limits, invariants, gradients, what they refuse."""

import copy
import math

import numpy as np
import pytest
import torch
from feature_toys import BUILD, EQUAL, GROUP, N_V, QUERIES, WIDTHS, B, Q, V, arrays, build, make, matched, np_kl, np_text, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base import UserError
from students.batch import Tap, TokenBatch, sample_mean
from students.energies import _taps, fkl
from students.energies.align_kd import TERMS, focus
from students.energies.align_kd import Energy as AlignKD
from students.energies.fd import Energy as FD
from students.energies.llava_kd import Energy as LlavaKD
from students.energies.llava_kd import relation

# ---- values against numpy --------------------------------------------------------------------------------------------------


def test_fd_is_the_mean_square_of_what_the_map_leaves():
    batch, energy = make(), build("fd")
    student, teacher = arrays(batch, "vision")
    w = energy.project.weight.detach().numpy()
    expected = [0.0 if g < 0 else np.mean([(w @ teacher[g, j] - student[g, j]) ** 2 for j in range(N_V)]) for g in GROUP]
    np.testing.assert_allclose(energy(batch).detach(), expected, rtol=1e-12)
    assert energy.present(batch).tolist() == [g >= 0 for g in GROUP]


def test_align_kd_is_the_sum_of_its_four_terms():
    batch = make()
    torch.manual_seed(0)
    energy = AlignKD(WIDTHS, k=2, text=0.5, attention=2.0, focused=3.0, vision=0.25).double()
    (f_s, f_t), (a_s, a_t) = arrays(batch, "vision"), arrays(batch, "attention")
    w, a_w = energy.project.weight.detach().numpy(), energy.heads.weight.detach().numpy()
    expected = {name: np.zeros(B) for name in TERMS}
    expected["text"] = np_text(batch)
    for b, g in enumerate(GROUP):
        if g < 0:
            continue
        queries = range(QUERIES[b])
        gaps = [(a_w @ a_t[b, q, j] - a_s[b, q, j]) ** 2 for q in queries for j in range(N_V)]
        expected["attention"][b] = np.mean(gaps)
        looked = [sum(a_t[b, q, j].mean() for q in queries) for j in range(N_V)]
        squares = np.array([np.mean((w @ f_t[g, j] - f_s[g, j]) ** 2) for j in range(N_V)])
        expected["focused"][b] = squares[np.argsort(looked)[-2:]].mean()
        expected["vision"][b] = squares.mean()
    for name, value in energy.terms(batch).items():
        np.testing.assert_allclose(value.detach(), expected[name], rtol=1e-9, err_msg=name)
    total = 0.5 * expected["text"] + 2 * expected["attention"] + 3 * expected["focused"] + 0.25 * expected["vision"]
    np.testing.assert_allclose(energy(batch).detach(), total, rtol=1e-9)
    assert energy.present(batch) is None


def test_llava_kd_is_the_sum_of_its_three_terms():
    batch = make()
    energy = LlavaKD(response=2.0, vision=0.5, relation=3.0)
    student, teacher = arrays(batch, "vision_logits")
    expected = {name: np.zeros(B) for name in ("vision", "relation")}
    for b, g in enumerate(GROUP):
        if g >= 0:
            r_s, r_t = (student[g] @ student[g].T).ravel(), (teacher[g] @ teacher[g].T).ravel()
            expected["vision"][b] = np_kl(teacher[g], student[g]).mean()
            expected["relation"][b] = 1 - r_s @ r_t / np.linalg.norm(r_s) / np.linalg.norm(r_t)
    for name, value in expected.items():
        np.testing.assert_allclose(energy.terms(batch)[name].detach(), value, rtol=1e-9, err_msg=name)
    total = 2 * np_text(batch) + 0.5 * expected["vision"] + 3 * expected["relation"]
    np.testing.assert_allclose(energy(batch).detach(), total, rtol=1e-9)


# ---- limits ----------------------------------------------------------------------------------------------------------------


def test_fd_is_zero_exactly_where_the_map_carries_the_teacher_into_the_student():
    batch, energy = make(), build("fd")
    vision = batch.taps["vision"]
    vision.student = energy.project(vision.teacher).detach()
    assert (energy(batch) == 0).all()
    vision.student[1, 2, 0] += 1e-3
    assert (energy(batch) != 0).tolist() == [g == 1 for g in GROUP]


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_match_of_equal_widths_everything_is_exactly_zero(name, dtype):
    energy = build(name, EQUAL).to(dtype)
    assert energy.zero_at_match
    assert (energy(matched(make(widths=EQUAL, dtype=dtype))) == 0).all()
    assert (energy(make(widths=EQUAL, dtype=dtype)) > 0).tolist() == [name != "fd" or g >= 0 for g in GROUP]


def test_a_map_between_unequal_widths_starts_orthogonal():
    for student, teacher in ((3, 5), (5, 3)):
        w = _taps.projection("fd", {"vision": (student, teacher)}, "vision").weight
        assert w.shape == (student, teacher)
        small = w @ w.T if student < teacher else w.T @ w
        torch.testing.assert_close(small, torch.eye(3))


def test_focused_is_all_of_vision_when_k_is_all_tokens():
    batch = make()
    torch.manual_seed(0)
    terms = AlignKD(WIDTHS, k=N_V).double().terms(batch)
    torch.testing.assert_close(terms["focused"], terms["vision"], rtol=1e-12, atol=0)
    terms = AlignKD(WIDTHS, k=1).double().terms(batch)
    assert not torch.isclose(terms["focused"], terms["vision"])[terms["vision"] > 0].any()


def test_focus_finds_the_planted_tokens():
    attention = torch.full((2, Q, N_V, 4), 0.01)
    attention[0, :, 4] = 0.2  # every query, every head
    attention[0, 1, 0, 2] = 0.9  # one head of one query: .9 + 15 * .01 < 16 * .2
    attention[1, 0, 5] = 0.3
    attention[1, 3, 1] = 0.9  # a query that does not exist
    mask = torch.tensor([[True] * Q, [True, True, True, False]])
    assert focus(attention, mask, 1).tolist() == [[4], [5]]
    assert focus(attention, mask, 2)[0].tolist() == [4, 0]
    assert focus(attention, None, 1).tolist() == [[4], [1]]


def test_rdist_does_not_see_scale_and_stays_within_its_bounds():
    a, b = randn(1, 7, N_V, V).float(), randn(2, 7, N_V, V).float()
    assert float(relation(a, 3 * a).abs().max()) < 1e-6
    torch.testing.assert_close(relation(1e-3 * a, 300 * b), relation(a, b), rtol=1e-4, atol=1e-7)
    assert (relation(a, a) == 0).all()
    assert (relation(a, b) > 0).all()
    assert (relation(a, b) <= 2).all()
    torch.testing.assert_close(relation(a, b), relation(b, a))


def test_rdist_works_between_vocabularies_of_unequal_size():
    a = randn(1, 2, N_V, V)
    wider = torch.cat([a, torch.zeros(2, N_V, 5, dtype=a.dtype)], -1)  # zeros add nothing to any product
    torch.testing.assert_close(relation(a, wider), torch.zeros(2, dtype=a.dtype), rtol=0, atol=1e-12)
    assert relation(a, randn(3, 2, N_V, V + 4)).shape == (2,)


def test_an_images_relation_is_its_own():
    """The released cosine runs over the whole batch and mixes its samples."""
    a, b = randn(1, 2, N_V, V), randn(2, 2, N_V, V)
    changed = a.clone()
    changed[1] *= -7
    changed[1, 0] += 1
    assert relation(changed, b)[0] == relation(a, b)[0]
    assert relation(changed, b)[1] != relation(a, b)[1]


def test_padded_rows_of_a_head_change_nothing():
    batch = make()
    expected = LlavaKD()(batch)
    tap = batch.taps["vision_logits"]
    batch.taps["vision_logits"] = Tap(
        torch.cat([tap.student, 9 + randn(1, 3, N_V, 2)], -1), torch.cat([tap.teacher, randn(2, 3, N_V, 5)], -1), tap.group
    )
    torch.testing.assert_close(LlavaKD()(batch), expected, rtol=0, atol=0)


# ---- samples ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
def test_permuting_samples_permutes_values(name):
    batch, energy = make(), build(name)
    order = torch.tensor([3, 0, 4, 2, 1])
    place = order.argsort()
    taps = {}
    for tap_name, t in batch.taps.items():
        if tap_name == "attention":
            owner = torch.where(t.group[order] >= 0, torch.arange(B), -1)
            taps[tap_name] = Tap(t.student[order], t.teacher[order], owner, t.mask[order])
        else:
            taps[tap_name] = Tap(t.student, t.teacher, t.group[order])
    moved = TokenBatch(batch.student_logits, batch.teacher_logits, batch.labels, place[batch.sample], taps)
    torch.testing.assert_close(energy(moved), energy(batch)[order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BUILD)
def test_the_order_of_vision_tokens_does_not_matter(name):
    batch, energy = make(), build(name)
    expected = energy(batch)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    for tap_name, t in batch.taps.items():
        axis = 2 if tap_name == "attention" else 1
        batch.taps[tap_name] = Tap(t.student.index_select(axis, order), t.teacher.index_select(axis, order), t.group, t.mask)
    torch.testing.assert_close(energy(batch), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["align_kd", "llava_kd"])
def test_a_sample_of_text_alone_has_the_text_term_alone(name):
    batch = make()
    value = build(name)(batch)[GROUP.index(-1)]
    divergence = sample_mean(fkl.Energy()(batch), batch.sample, B)[GROUP.index(-1)]
    torch.testing.assert_close(value, divergence, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", BUILD)
def test_a_batch_without_images_gives_zeros_that_keep_the_graph(name):
    batch, energy = make(group=(-1,) * B), build(name)
    for tap in ("vision", "vision_logits"):  # slices of something that learns, as the adapter returns them
        whole = torch.ones(1, N_V, WIDTHS[tap][0], dtype=torch.float64, requires_grad=True)
        batch.taps[tap].student = whole[:0]
    values = energy(batch)
    values.sum().backward()
    if name == "fd":
        assert (values == 0).all()
        assert not energy.present(batch).any()
    else:
        torch.testing.assert_close(values, sample_mean(fkl.Energy()(batch), batch.sample, B), rtol=1e-12, atol=0)
    assert all(p.grad is not None and not p.grad.any() for p in energy.parameters())


def test_queries_that_do_not_exist_get_no_gradient():
    batch, energy = make(), build("align_kd")
    energy.terms(batch)["attention"].sum().backward()
    tap = batch.taps["attention"]
    there = tap.mask & (tap.group >= 0)[:, None]
    assert not tap.student.grad[~there].any()
    assert (tap.student.grad[there] != 0).all()


# ---- gradients and numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
def test_gradients_in_float64(name):
    batch, energy = make(), build(name)
    read = sorted(energy.needs)
    students = [batch.taps[tap].student for tap in read]

    def value(logits, *rest):
        taps = dict(batch.taps) | {
            tap: Tap(s, batch.taps[tap].teacher, batch.taps[tap].group, batch.taps[tap].mask)
            for tap, s in zip(read, rest, strict=False)
        }
        return energy(TokenBatch(logits, batch.teacher_logits, batch.labels, batch.sample, taps))

    inputs = (batch.student_logits, *students)
    if name == "fd":
        assert torch.autograd.gradcheck(lambda *s: value(batch.student_logits, *s), tuple(students))
    else:
        assert torch.autograd.gradcheck(value, inputs)
    for parameter in energy.parameters():
        numeric = torch.zeros_like(parameter)
        (exact,) = torch.autograd.grad(value(*inputs).sum(), parameter)
        with torch.no_grad():
            for k in range(parameter.numel()):
                for sign in (1, -1):
                    parameter.view(-1)[k] += sign * 1e-5
                    numeric.view(-1)[k] += sign * value(*inputs).sum() / 2e-5
                    parameter.view(-1)[k] -= sign * 1e-5
        torch.testing.assert_close(exact, numeric, rtol=1e-5, atol=1e-8)
        assert exact.abs().max() > 0


@pytest.mark.parametrize("name", BUILD)
def test_half_precision_does_not_overflow(name):
    """A gap of 300 squares to 90000, and half precision ends at 65504."""
    energy = build(name).float()
    batch = make(dtype=torch.float16, scale=300.0)
    values = energy(batch)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    values.sum().backward()
    for tap in energy.needs:
        assert batch.taps[tap].student.grad.isfinite().all()
    same = copy.copy(batch)
    same.student_logits, same.teacher_logits = batch.student_logits.double(), batch.teacher_logits.double()
    same.taps = {k: Tap(t.student.double(), t.teacher.double(), t.group, t.mask) for k, t in batch.taps.items()}
    torch.testing.assert_close(values.double(), energy.double()(same), rtol=1e-4, atol=1e-4)


def test_rdist_of_half_precision_logits_is_computed_wide():
    """Their norm alone passes 65504, and their products do so by far."""
    a, b = (2e4 * randn(k, 2, N_V, V).half() for k in range(2))
    values = relation(a, b)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), relation(a.double(), b.double()), rtol=1e-5, atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1e-12, 1e-3, 1.0, 1e4, 1e8]), st.sampled_from([0.0, 0.2, 0.9]))
def test_rdist_is_finite_and_bounded_for_any_logits(seed, scale, banned):
    a, b = (scale * randn(seed + k, 2, N_V, V).float() for k in range(2))
    holes = torch.rand(2, N_V, V, generator=torch.Generator().manual_seed(seed)) < banned
    a = a.masked_fill(holes, -math.inf).requires_grad_()
    values = relation(a, b)
    assert ((values >= 0) & (values <= 2)).all()
    values.sum().backward()
    assert a.grad.isfinite().all()


def test_nan_stays_visible():
    """A broken feature must stop the run, not vanish."""
    for name in BUILD:
        batch = make()
        for tap in batch.taps.values():
            tap.teacher[0] = math.nan
        assert build(name)(batch).isnan()[0]


def test_the_teacher_gets_no_gradient():
    for name in BUILD:
        batch = make()
        for tap in batch.taps.values():
            tap.teacher.requires_grad_()
        build(name)(batch).sum().backward()
        assert all(tap.teacher.grad is None for tap in batch.taps.values())


# ---- bad input -------------------------------------------------------------------------------------------------------------


def without(name):
    batch = make()
    del batch.taps[name]
    return batch


def narrower(name, axis):
    batch = make()
    tap = batch.taps[name]
    tap.teacher = tap.teacher.narrow(axis, 0, tap.teacher.shape[axis] - 1)
    return batch


def narrow_head():
    batch = make()
    batch.taps["vision_logits"].student = batch.taps["vision_logits"].student[..., : V - 1]
    return batch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("fd")(without("vision")), "'fd' needs the tap 'vision'; taps given: attention, vision_logits"),
        (lambda: build("align_kd")(without("attention")), "'align_kd' needs the tap 'attention'"),
        (lambda: build("llava_kd")(without("vision_logits")), "'llava_kd' needs the tap 'vision_logits'"),
        (lambda: build("fd")(narrower("vision", 1)), r"'fd'.*student \[3, 6, 3\], teacher \[3, 5, 5\]"),
        (lambda: build("llava_kd")(narrower("vision_logits", 1)), r"student \[3, 6, 11\], teacher \[3, 5, 11\]"),
        (lambda: build("llava_kd")(narrow_head()), r"over 10 \(student\) and 11 \(teacher\) tokens; allowed: at least the 11"),
        (lambda: AlignKD(WIDTHS, k=16).double()(make()), "k = 16, and an image has 6 vision tokens"),
        (lambda: AlignKD(WIDTHS, k=0), "k is 0; allowed: a whole number"),
        (lambda: AlignKD(WIDTHS, focused=-1.0), "'focused' is -1.0; allowed: a finite number >= 0"),
        (lambda: LlavaKD(relation=math.nan), "'relation' is nan; allowed"),
        (lambda: FD({}), "'fd' needs the widths of the tap 'vision'; given: none"),
        (lambda: AlignKD({"vision": (3, 5)}), "needs the widths of the tap 'attention'; given: vision"),
    ],
)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(UserError, match=message):
        call()
