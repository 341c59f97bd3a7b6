"""The page and the explorer's data as files: nothing from outside, nothing unescaped, nothing stale, missing pieces said."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pages
import pandas as pd
import pytest
import simulate
from PIL import Image

from harness.base import UserError
from reports import explorer, explorer_pictures, frames, page, runs
from reports.cells import Cell, Row, Table
from reports.explorer_columns import Interned, Texts, significant, thousandths, write_script


class Links(HTMLParser):
    """Collects what a page refers to, and its tags."""

    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "srcset")]


def loaded(path: Path) -> dict:
    """What a script hands to the page."""
    name, value = re.fullmatch(r'sampleData\("([^"]+)",(.*)\);\n', path.read_text(), flags=re.S).groups()
    assert name == path.stem
    return json.loads(value)


def said(data: dict, answers: dict, student: str, protocol: str, row_id: str) -> tuple:
    """Reply, prediction and score of one student on one question, read back from the columns."""
    names = [s["name"] for s in data["students"]]
    protocols = [p["name"] for p in data["protocols"]]
    columns = data["columns"]
    keys = zip(columns["protocol"], columns["id"], strict=True)
    row = next(k for k, (p, i) in enumerate(keys) if (protocols[p], data["strings"][i]) == (protocol, row_id))
    reply, prediction, score, _ = answers["outcomes"][answers["answers"][str(names.index(student))][row]]
    return answers["strings"][reply], answers["strings"][prediction], score


@pytest.fixture(scope="module")
def written(small_run, tmp_path_factory):
    """The explorer of the small run, outside of its folder."""
    out = tmp_path_factory.mktemp("page")
    return out, explorer.write(frames.load(small_run), out)


def test_every_reply_can_be_read_back(written, small_run):
    out, context = written
    data, answers = loaded(out / "samples" / "questions.js"), loaded(out / "samples" / "answers-0.js")
    scores = pd.read_parquet(small_run / "scores.parquet")
    assert context["questions"] == len(scores.drop_duplicates(["protocol", "id"])) == len(data["columns"]["id"])
    for row in scores.sample(40, random_state=0).itertuples():
        assert said(data, answers, row.student, row.protocol, row.id) == (row.prediction, row.prediction, row.score)


def test_texts_golds_and_diagnostics_can_be_read_back(written, small_run):
    out, _ = written
    data, answers = loaded(out / "samples" / "questions.js"), loaded(out / "samples" / "answers-0.js")
    asked = pd.read_parquet(small_run / "questions" / "gqa@miniature.parquet")
    first = [p["name"] for p in data["protocols"]].index("gqa@miniature")
    start = data["columns"]["protocol"].index(first)
    for k in (0, 5, len(asked) - 1):
        row, expected = start + k, asked.iloc[k]
        lines = data["prompts"][data["columns"]["prompt"][row]]
        assert "\n".join(data["lines"][line] for line in lines) == expected["prompt"]
        assert data["strings"][data["columns"]["gold"][row]] == expected["gold"]
        assert data["pictures"]["key"][data["columns"]["picture"][row]] == expected["image"]
    found = pd.read_parquet(small_run / "diagnostics.parquet")
    teacher = found[(found["student"] == "teacher") & (found["protocol"] == "gqa@miniature")].set_index("id")
    column = answers["confidence"]["0"][start : start + len(asked)]
    assert np.allclose(np.array(column) / 1000, teacher.loc[asked["id"], "confidence"], atol=5e-4)
    assert "0" not in answers["teacher_kl"]  # the teacher is not compared with itself


def test_weights_are_those_of_the_last_record(written, small_run):
    out, context = written
    data = loaded(out / "samples" / "training-0.js")
    names = [(w["student"], w["channel"]) for w in data["weights"]]
    assert names == [("ce+fkl@task", "fkl"), ("ce+fkl@instance", "fkl")]  # a fixed weight is a given constant
    frame = pd.read_parquet(small_run / "students" / "ce+fkl@instance" / "seed0" / "betas.parquet")
    last = frame.sort_values("step", kind="stable").drop_duplicates("id", keep="last").set_index("id")
    ids = [data["strings"][i] for i in data["columns"]["id"]]
    assert context["training"] == len(ids)
    recorded = {i: b for i, b in zip(ids, data["weights"][1]["beta"], strict=True) if b is not None}
    assert set(recorded) == set(last.index)
    assert all(recorded[i] == pytest.approx(last.loc[i, "beta"], rel=1e-3) for i in recorded)


def test_no_question_is_given_a_weight(written):
    out, _ = written
    for name in ("questions", "answers-0"):
        assert "beta" not in (out / "samples" / f"{name}.js").read_text()


def test_training_samples_show_what_was_taught(planted_run, tmp_path):
    explorer.write(frames.load(planted_run), tmp_path)
    data = loaded(tmp_path / "samples" / "training-0.js")
    truth = pd.read_parquet(planted_run / "data" / "train.parquet").set_index("id")
    for k in range(0, len(data["columns"]["id"]), 97):
        row = truth.loc[data["strings"][data["columns"]["id"][k]]]
        assert data["columns"]["noisy"][k] == row["noisy"]
        assert data["columns"]["blind"][k] == row["blind"]
        assert data["strings"][data["columns"]["clean"][k]] == row["clean_answer"]
    oracle = next(w for w in data["weights"] if w["student"] == "ce+fkl@oracle")
    assert {0.0, 1.0} <= set(oracle["beta"])
    assert (tmp_path / "samples" / "training-1.js").is_file()


def test_recorded_weights_of_an_unknown_sample_are_an_error(planted_copy, tmp_path):
    path = planted_copy / "data" / "train.parquet"
    recorded = pd.read_parquet(planted_copy / "students" / "ce+fkl@analytic" / "seed0" / "betas.parquet")
    frame = pd.read_parquet(path)
    frame[frame["id"] != recorded["id"].iloc[0]].to_parquet(path)
    with pytest.raises(UserError, match=r"train\.parquet lacks the sample"):
        explorer.write(frames.load(planted_copy), tmp_path)


def test_more_samples_than_shown_are_thinned_and_said(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.explorer_training.MOST", 50)
    explorer.write(frames.load(small_run), tmp_path)
    data = loaded(tmp_path / "samples" / "training-0.js")
    frame = pd.read_parquet(small_run / "students" / "ce+fkl@task" / "seed0" / "betas.parquet")
    other = pd.read_parquet(small_run / "students" / "ce+fkl@instance" / "seed0" / "betas.parquet")
    recorded = len(set(frame["id"]) | set(other["id"]))
    shown = len(data["columns"]["id"])
    assert shown <= 50
    assert data["left_out"] == recorded - shown


# ---- several runs, several seeds -------------------------------------------------------------------------------------------


def test_each_seed_has_its_answers(tmp_path):
    run = simulate.write_run(tmp_path / "run", (0, 3), clusters=4, students=["ce", "ce+fkl@task"], steps=20)
    context = explorer.write(frames.load(run), tmp_path / "out")
    assert context["seeds"] == [0, 3]
    scores = pd.read_parquet(run / "scores.parquet")
    data = loaded(tmp_path / "out" / "samples" / "questions.js")
    for seed in (0, 3):
        answers = loaded(tmp_path / "out" / "samples" / f"answers-{seed}.js")
        own = scores[(scores["student"] == "ce") & (scores["seed"] == seed)]
        for row in own.sample(20, random_state=1).itertuples():
            assert said(data, answers, "ce", row.protocol, row.id)[2] == row.score
        assert len(answers["answers"]) == 4  # given models have no seed and stand in each


def test_two_runs_share_equal_questions_and_keep_others_apart(small_run, small_copy, tmp_path):
    path = small_copy / "questions" / "gqa@miniature.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, "prompt"] = "Another question?"
    frame.to_parquet(path)
    one, other = runs.load([small_run, small_copy])
    alone = explorer.write(one, tmp_path / "one")["questions"]
    context = explorer.write([one, other], tmp_path / "both")
    assert context["questions"] == alone + 1
    assert len(context["students"]) == 2 * len(one.students)
    assert {name.split(": ")[0] for name in context["students"]} == {one.name, other.name}
    data, answers = (loaded(tmp_path / "both" / "samples" / f"{n}.js") for n in ("questions", "answers-0"))
    changed = len(data["columns"]["id"]) - 1
    assert answers["answers"]["0"][changed] is None
    assert answers["answers"][str(len(one.students))][changed] is not None


# ---- pictures --------------------------------------------------------------------------------------------------------------


def test_thumbnails_are_small_and_whole_pictures_are_linked_from_inside_the_run_only(small_copy, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    key = "0000000000000000"
    Image.fromarray(noise).save(small_copy / "images" / f"{key}.png")
    run = frames.load(small_copy)
    for folder, places, notes in ((small_copy / "report", ["../images"], 0), (tmp_path / "out", [None], 1)):
        context = explorer.write(run, folder)
        data = loaded(folder / "samples" / "questions.js")["pictures"]
        assert data["places"] == places
        assert sum("thumbnails of at most" in note for note in context["notes"]) == notes
        at = data["key"].index(key)
        assert (data["width"][at], data["height"][at]) == (640, 480)
        with Image.open(folder / data["folder"] / f"{key}.webp") as thumbnail:
            assert max(thumbnail.size) == explorer_pictures.LONGEST
        assert all(path.stat().st_size < 60_000 for path in (folder / data["folder"]).iterdir())
    assert (small_copy / "report" / "../images" / f"{key}.png").is_file()


def test_a_picture_that_is_not_kept_is_said(small_copy, tmp_path):
    for path in sorted((small_copy / "images").glob("*.png"))[:3]:
        path.unlink()
    context = explorer.write(frames.load(small_copy), tmp_path)
    assert any("3 pictures are not kept" in note for note in context["notes"])
    assert -2 in loaded(tmp_path / "samples" / "questions.js")["columns"]["picture"]


def test_a_key_that_leaves_the_folder_is_refused(small_copy, tmp_path):
    path = small_copy / "questions" / "gqa@miniature.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, "image"] = "../../secret"
    frame.to_parquet(path)
    with pytest.raises(UserError, match="is no file name"):
        explorer.write(frames.load(small_copy), tmp_path)


def test_arrays_that_are_no_pictures_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"float64 \[4, 4\], expected uint8"):
        explorer_pictures.from_arrays(["a"], {"a": np.zeros((4, 4))}, tmp_path, Path("images.npz"))


# ---- missing and stale -----------------------------------------------------------------------------------------------------


def test_without_replies_the_parsed_answer_stands_and_is_said(small_copy, tmp_path):
    shutil.rmtree(small_copy / "replies" / "ce")
    context = explorer.write(frames.load(small_copy), tmp_path)
    assert any("parsed answer" in note and "`ce`" in note for note in context["notes"])


def test_a_student_without_scores_is_said(small_copy, tmp_path):
    path = small_copy / "scores.parquet"
    scores = pd.read_parquet(path)
    scores[scores["student"] != "ce+fkl@task"].to_parquet(path)
    context = explorer.write(frames.load(small_copy), tmp_path)
    assert any("Without scores" in note and "`ce+fkl@task`" in note for note in context["notes"])
    assert "ce+fkl@task" not in context["students"]


def test_without_learned_weights_the_page_says_so(tmp_path):
    run = simulate.write_run(tmp_path / "run", clusters=4, students=["ce", "ce+fkl@fixed"], steps=20)
    context = explorer.write(frames.load(run), tmp_path / "out")
    assert context["training"] == 0
    assert "No student of this run learns a weight" in context["training_missing"]
    text = pages.bare(frames.load(run), tmp_path / "out").read_text()
    assert "No student of this run learns a weight" in text
    assert "tab-training" not in text


def test_what_an_older_report_left_is_swept(small_copy, tmp_path):
    explorer.write(frames.load(small_copy), tmp_path)
    stale = tmp_path / "samples" / "answers-7.js"
    stale.write_text("old")
    (tmp_path / "samples" / "pictures" / "older.webp").write_bytes(b"old")
    context = explorer.write(frames.load(small_copy), tmp_path)
    assert not stale.exists()
    assert set((tmp_path / "samples").glob("*.js")) == set(context["files"])
    assert not (tmp_path / "samples" / "pictures" / "older.webp").exists()
    shutil.rmtree(small_copy / "questions")
    assert "no questions/" in explorer.write(frames.load(small_copy), tmp_path)["missing"]
    assert not (tmp_path / "samples").exists()


def test_a_line_without_a_reply_is_named(small_copy, tmp_path):
    path = small_copy / "replies" / "ce" / "seed0" / "gqa@miniature.jsonl"
    path.write_text(path.read_text().replace('"reply"', '"replied"', 1))
    with pytest.raises(UserError, match=r"gqa@miniature\.jsonl: a line lacks the field 'reply'"):
        explorer.write(frames.load(small_copy), tmp_path)


# ---- text ------------------------------------------------------------------------------------------------------------------


def test_nothing_from_data_is_markup(small_copy, tmp_path, monkeypatch):
    pages.poison(small_copy)
    text = pages.built(small_copy, tmp_path, monkeypatch).read_text()
    parser = Links()
    parser.feed(text)
    assert parser.tags.count("script") == 2  # ours
    assert "<script>window" not in text
    assert "<!--" not in text
    for script in (tmp_path / "samples").glob("*.js"):
        assert "<" not in script.read_text()
        assert "\u2028" not in script.read_text()


def test_the_page_needs_nothing_from_outside(small_run, tmp_path, monkeypatch):
    text = pages.built(small_run, tmp_path, monkeypatch).read_text()
    found = Links()
    found.feed(text)
    for link in found.links:
        assert not re.match(r"(https?:)?//", link), link
        if not link.startswith("#"):
            assert (tmp_path / link).is_file(), link
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    assert {link[1:] for link in found.links if link.startswith("#")} <= ids
    assert len(ids) == len(re.findall(r'\bid="([^"]+)"', text))  # none twice
    assert "url(" not in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\(", text)


def test_measured_numbers_and_differences_have_axes_of_their_own():
    def row(cell):
        return Row("s", None, "student", "1", (cell,))

    measured = [Cell(60.0, 50.0, 70.0, 1), Cell(80.0, 75.0, 90.0, 1)]
    apart = Cell(-20.0, -30.0, -10.0, 1, signed=True, what="measured - reported")
    limits = page.tracks(Table("t", "", "", (), (None,), tuple(row(c) for c in [*measured, None, apart]), difference=False))
    assert limits == [{"measured": (50.0, 90.0), "measured - reported": (-30.0, 30.0)}]
    assert page.track(measured[1], limits[0]) == {"low": "62.50%", "width": "37.50%", "at": "75.00%"}
    assert page.track(apart, limits[0])["low"] == "0.00%"


def test_two_runs_stand_in_one_table_with_their_names(small_run, small_copy, tmp_path, monkeypatch):
    text = pages.built([small_run, small_copy], tmp_path, monkeypatch, layouts=("accuracy",)).read_text()
    names = [run.name for run in runs.load([small_run, small_copy])]
    for name in names:
        assert f'<td class="run" data-text="{name}"><code>{name}</code></td>' in text
    table = text[text.index('<figure id="table-accuracy">') :]
    head, row = table[table.index("<thead>") : table.index("</thead>")], table[table.index('<tr class="teacher') :]
    row = row[: row.index("</tr>")]
    assert head.count("<th ") == row.count("<td") + row.count("<th ")
    data = loaded(tmp_path / "samples" / "questions.js")
    assert data["students"][0]["name"] == f"{names[0]}: teacher"


def test_columns_round_trip(tmp_path):
    words = Interned()
    assert [words.at(w) for w in ("a", "b", "a")] == [0, 1, 0]
    assert words.kept == ["a", "b"]
    texts = Texts()
    assert [texts.at(t) for t in ("x\ny", "z\ny", "x\ny\n")] == [0, 1, 0]
    assert texts.lines.kept == ["x", "y", "z"]
    assert thousandths([0.12345, None, float("nan")]) == [123, None, None]
    assert significant(0.000123456) == 0.0001235
    target = write_script(tmp_path / "a.js", "a", {"text": "</script>\u2028"})
    assert "<" not in target.read_text()
    assert loaded(target) == {"text": "</script>\u2028"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_script(tmp_path / "b.js", "b", float("nan"))
