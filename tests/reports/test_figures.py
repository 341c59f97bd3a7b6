"""Figures: legible at column width, apart for the colour-blind, whole on the paper, and drawn or refused in words."""

import itertools
import shutil

import numpy as np
import pytest
import simulate

from reports import figures, frames
from reports.figures import style
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates

#: Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
WEIGHED = [
    f"ce+{e}@{w}"
    for e in ("fkl", "rkl", "js", "tvd", "skew_fkl", "cosine_probs")
    for w in ("manual", "task", "instance", "analytic")
]
ALONE = [
    "fkl", "rkl", "js", "tvd", "mse_probs", "mse_logits", "cosine_probs", "cosine_logits", "adaptive_kl", "skew_fkl",
    "skew_rkl", "ctkd", "dkd", "taid", "fd", "align_kd@fixed@focus4", "llava_kd",
]  # fmt: skip


def linear(color):
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    x = XYZ @ rgb / np.array([0.95047, 1.0, 1.08883])
    f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# ---- colours ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_colours_stay_apart_for_the_colour_blind(theme, vision):
    seen = [lab(np.clip(VISION[vision] @ linear(color), 0, 1)) for color in theme.cycle]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 20


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_paper(theme):
    def contrast(a, b):
        low, high = sorted((XYZ[1] @ linear(a), XYZ[1] @ linear(b)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(color, theme.paper) for color in theme.cycle) >= 3.0
    assert contrast(theme.ink, theme.paper) >= 7.0
    assert contrast(theme.muted, theme.paper) >= 4.5


def test_no_two_weightings_look_alike():
    students = [
        *simulate.STUDENTS,
        "ce+fkl@analytic",
        "ce+fkl@manual",
        "ce+fkl@rlw",
        "ce+fkl@gls",
        "ce+fkl@famo",
        "ce+fkl@oracle",
    ]
    looks = [style.look(s, students, style.LIGHT) for s in students if s.startswith("ce+fkl@")]
    assert len({(own.color, str(own.dash)) for own in looks}) == len(looks)
    assert len({(own.color, own.marker) for own in looks}) == len(looks)


# ---- every figure of several runs ------------------------------------------------------------------------------------------


def drawn(folder, placed=True):
    """Every figure of a run, light, with its places found if ``placed``, and what is refused."""
    estimates = Estimates(frames.load(folder), resamples=20)
    found, refused = {}, {}
    for drawing in figures.drawings():
        try:
            with style.use(style.LIGHT):
                figure = drawing.draw(estimates, style.LIGHT)
                if placed:
                    figure.draw_without_rendering()
            found[drawing.name] = (figure, " ".join(drawing.notes(estimates)))
        except Missing as missing:
            refused[drawing.name] = missing
    return found, refused


@pytest.fixture(
    scope="module",
    params=["planted", pytest.param("weighed", marks=pytest.mark.slow), pytest.param("alone", marks=pytest.mark.slow)],
)
def gallery(request, planted_run, tmp_path_factory):
    """Planted truth, two seeds; 24 recipes of one shape; 17 energies alone."""
    if request.param == "planted":
        return drawn(planted_run)
    students = ["ce", *(WEIGHED if request.param == "weighed" else ALONE)]
    folder = tmp_path_factory.mktemp("many") / "run"
    return drawn(simulate.write_run(folder, clusters=8, students=students, steps=20))


def texts(figure):
    """Visible texts with something in them, and their boxes in pixels; ticks outside of an axis' limits are not shown."""
    renderer = figure._get_renderer()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            shown = axis._update_ticks() if axes.get_visible() and axes.axison else []
            hidden |= {
                t for tick in [*axis.majorTicks, *axis.minorTicks] if tick not in shown for t in (tick.label1, tick.label2)
            }
    concealed = {t for axes in figure.axes if not axes.get_visible() for t in axes.findobj(match=style.mpl.text.Text)}
    concealed |= {
        t for axes in figure.axes if not axes.axison for x in (axes.xaxis, axes.yaxis) for t in x.findobj(style.mpl.text.Text)
    }
    for text in figure.findobj(match=style.mpl.text.Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden and text not in concealed:
            yield text, text.get_window_extent(renderer)


def test_nothing_is_smaller_than_six_points_in_a_column(gallery):
    for name, (figure, _) in gallery[0].items():
        scale = style.COLUMN / figure.get_size_inches()[0]
        small = {t.get_text(): t.get_fontsize() * scale for t, _ in texts(figure) if t.get_fontsize() * scale < style.SMALLEST}
        assert not small, name


def test_exponents_are_not_set_as_small_print(gallery):
    for name, (figure, _) in gallery[0].items():
        assert not [t.get_text() for t, _ in texts(figure) if "^" in t.get_text() and "$" in t.get_text()], name


def test_nothing_leaves_the_paper(gallery):
    for name, (figure, _) in gallery[0].items():
        width, height = figure.bbox.width, figure.bbox.height
        out = [
            t.get_text() for t, box in texts(figure)
            if box.x0 < -2 or box.y0 < -2 or box.x1 > width + 2 or box.y1 > height + 2
        ]  # fmt: skip
        assert not out, name


def test_figures_fit_a_column_of_a_page(gallery):
    for name, (figure, _) in gallery[0].items():
        width, height = figure.get_size_inches()
        assert width == style.WIDTH, name
        assert height * style.COLUMN / width <= 24.0 / 2.54, name


def test_ticks_of_an_axis_do_not_touch(gallery):
    for name, (figure, _) in gallery[0].items():
        renderer = figure._get_renderer()
        for axes in [a for a in figure.axes if a.get_visible() and a.axison]:
            labels = [tick.label1 for tick in axes.xaxis._update_ticks()]
            boxes = sorted(
                (t.get_window_extent(renderer) for t in labels if t.get_visible() and t.get_text()), key=lambda b: b.x0
            )
            assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes)), name


def test_axes_say_what_they_measure(gallery):
    for name, (figure, _) in gallery[0].items():
        shown = [a for a in figure.axes if a.get_visible() and a.axison]
        if shown:
            assert any(a.get_xlabel() for a in shown), name
            assert any(a.get_ylabel() for a in shown) or any(t.get_text() for t in shown[0].get_yticklabels()), name


def test_captions_say_n_and_seeds(gallery):
    for name, (_, said) in gallery[0].items():
        assert "seed" in said, name
        assert "n = " in said or "no n" in said, name


def test_every_figure_is_drawn_or_refused_in_a_sentence(gallery):
    found, refused = gallery
    assert len(found) >= 10
    for name, reason in refused.items():
        assert str(reason).endswith("."), name


def test_titles_and_captions_are_sentences():
    for drawing in figures.drawings():
        assert drawing.title and not drawing.title.endswith(".")
        assert drawing.caption.endswith(".")
        assert len(drawing.caption) > 80


# ---- what a run may lack ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("students", [[], ["ce"], ["fkl"], ["ce", "ce+fkl@task"]], ids=lambda s: "-".join(s) or "none")
def test_small_runs_are_drawn_or_refused(tmp_path, students):
    found, refused = drawn(simulate.write_run(tmp_path / "run", clusters=14, students=students, steps=12), placed=False)
    assert {"student-entropy", "categories-mme", "calibration"} <= set(found)
    if not students:
        assert isinstance(refused["energies-simplex"], Irrelevant)
        assert "loss-trajectories" in refused


def test_a_student_that_failed_is_named_and_the_others_are_drawn(small_copy):
    import pandas as pd

    shutil.rmtree(small_copy / "students" / "ce+fkl@instance")
    for name in ("scores.parquet", "diagnostics.parquet"):
        frame = pd.read_parquet(small_copy / name)
        frame[frame["student"] != "ce+fkl@instance"].to_parquet(small_copy / name)
    found, refused = drawn(small_copy, placed=False)
    assert "beta-trust" in refused
    for name in ("loss-trajectories", "logit-distributions", "accuracy-cost"):
        assert "ce+fkl@instance" in found[name][1], name


# ---- files -----------------------------------------------------------------------------------------------------------------


def test_a_drawing_writes_its_files_and_both_themes_have_the_same_places(small_run, tmp_path):
    from PIL import Image

    estimates = Estimates(frames.load(small_run), resamples=40)
    drawing = next(d for d in figures.drawings() if d.name == "student-entropy")
    written = drawing.write(estimates, tmp_path, dark=True)
    assert [p.name for p in written] == ["student-entropy.png", "student-entropy.pdf", "student-entropy-dark.png"]
    light, dark = (Image.open(tmp_path / n) for n in ("student-entropy.png", "student-entropy-dark.png"))
    assert light.size == dark.size
    assert light.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    shapes = [np.asarray(image.convert("L"), dtype=float) for image in (light, dark)]
    shapes = [np.abs(s - np.median(s)) > 60 for s in shapes]  # where anything is drawn
    assert (shapes[0] & shapes[1]).sum() > 0.6 * min(s.sum() for s in shapes)
    assert not drawing.write(estimates, tmp_path, dark=False)[-1].name.endswith("-dark.png")


def test_pdfs_embed_truetype_and_greek(small_run, tmp_path):
    pdf = tmp_path / "beta.pdf"
    with style.use(style.LIGHT):
        figure = style.canvas(2.0)
        figure.subplots().set_xlabel("β of 漢字 α−1")  # a letter that neither copy of the font holds draws a box, no error
        with pytest.warns(UserWarning, match="missing from font"):
            style.save(figure, pdf)
    data = pdf.read_bytes()
    assert b"/FontFile2" in data  # TrueType, which publishers take
    assert b"/Type3" not in data
    assert b"ReportSans" in data


def test_wrapping_keeps_every_letter():
    for name in [*simulate.STUDENTS, *simulate.PLANTED, "ce+cosine_probs+fd@instance@teacher-gate-ce"]:
        assert style.wrapped(name).replace("\n", "") == name
        assert style.wrapped(name, 8).replace("\n", "") == name
    assert style.wrapped("ce+cosine_probs@instance", 18) == "ce+cosine_probs\n@instance"
