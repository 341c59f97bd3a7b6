"""Published data sets from a folder per benchmark and from the hub: rows, images, counts and pins; nothing is guessed."""

from __future__ import annotations

import base64
import io
import json
import sys
import types

import golds
import numpy as np
import pytest
from PIL import Image
from real import GIVEN, needs_data

import tasks
from harness.base import UserError
from tasks import pins
from tasks.sources import _hub, published


def png(seed, side=8):
    picture = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    return picture.getvalue()


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_PINS", str(tmp_path / "pins"))


@pytest.fixture
def root(tmp_path):
    """Every benchmark's original files with images."""
    folder = tmp_path / "data"
    folder.mkdir()
    paths = golds.write(folder)
    homes = {
        "scienceqa": ("llava_test_CQM-A.json", ["4/image.png"]), "gqa": ("testdev_balanced_questions.json", ["images/n1.jpg"]),
        "textvqa": ("TextVQA_0.5.1_val.json", ["train_images/a.jpg"]), "pope": ("coco", ["val2014/1.jpg"]),
        "mmbench": ("docs.jsonl", ["7.png"]),
        "mme": ("Your_Results", ["count/1.jpg", "code_reasoning/images/1.jpg"]),
    }  # fmt: skip
    for number, (benchmark, (name, pictures)) in enumerate(homes.items()):
        home = folder / "root" / benchmark
        home.mkdir(parents=True)
        paths[benchmark].rename(home / name)
        for offset, picture in enumerate(pictures):
            (home / picture).parent.mkdir(parents=True, exist_ok=True)
            (home / picture).write_bytes(png(10 * number + offset))
    documents = folder / "root" / "mmbench" / "docs.jsonl"
    rows = [{**json.loads(line), "image": "7.png"} for line in documents.read_text().splitlines()]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "root"


ROWS = {"scienceqa@all": 2, "scienceqa@img": 1, "gqa@llava": 2, "textvqa@ocr": 2, "pope@mean-f1": 6, "mmbench@circular": 2,
        "mme@perception": 2, "mme@cognition": 2}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_original_files_with_images(root, name):
    protocol = tasks.protocol(name)
    questions = tasks.load(protocol, data_root=root, partial=True)
    assert len(questions.questions) == ROWS[name]
    assert len(tasks.prompts(protocol, questions)) == ROWS[name]
    for question in questions.questions:
        if protocol.benchmark != "scienceqa" or question.id == "4":
            assert questions.images[question.image].shape == (8, 8, 3)
        else:
            assert question.image is None
    gold = [{"id": q.id, "reply": q.answer} for q in questions.questions]
    best = {"mme@perception": 200.0, "mme@cognition": 200.0}.get(name, 100.0)
    assert tasks.score(protocol, gold, questions, partial=True).value == pytest.approx(best, abs=10)


def test_equally_named_images_of_two_categories_are_told_apart(root):
    found = [tasks.load(tasks.protocol(f"mme@{part}"), data_root=root, partial=True) for part in ("perception", "cognition")]
    assert set(found[0].images).isdisjoint(found[1].images)


def test_row_counts_are_checked_and_the_first_load_is_pinned(root, monkeypatch):
    protocol = tasks.protocol("gqa@llava")
    with pytest.raises(UserError, match="the data hold 2 questions, expected 12578"):
        tasks.load(protocol, data_root=root)
    assert not pins.folder().exists(), "a load that fails pins nothing"
    small = protocol.model_copy(update={"data": protocol.data.model_copy(update={"rows": 2})})
    tasks.load(small, data_root=root)
    tasks.load(small, data_root=root, limit=1)
    (root / "gqa" / "images" / "n1.jpg").write_bytes(png(99))
    with pytest.raises(UserError, match="scores would not be comparable"):
        tasks.load(small, data_root=root)
    tasks.load(small, data_root=root, partial=True)


def test_a_limit_keeps_images_undecoded(root):
    questions = tasks.load(tasks.protocol("mme@lmms"), data_root=root, limit=1, partial=True)
    assert (len(questions.questions), len(questions.images)) == (2, 1)
    (root / "mme" / "count" / "1.jpg").write_bytes(b"broken")
    (root / "mme" / "code_reasoning" / "images" / "1.jpg").write_bytes(b"broken")
    assert len(questions.images) == 1
    with pytest.raises(UserError, match=r"1\.jpg is truncated or damaged"):
        questions.images[questions.questions[0].image]


def test_missing_and_ambiguous_images_are_named(root):
    home = root / "gqa"
    (home / "again").mkdir()
    (home / "again" / "n1.png").write_bytes(png(1))
    with pytest.raises(UserError, match=r"the image 'n1' fits 2 files"):
        tasks.load(tasks.protocol("gqa@llava"), data_root=root, partial=True)
    for path in (home / "again" / "n1.png", home / "images" / "n1.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"the image 'n1' is not there"):
        tasks.load(tasks.protocol("gqa@llava"), data_root=root, partial=True)


def test_what_is_missing_is_said(root, tmp_path):
    with pytest.raises(UserError, match="holds a folder per benchmark"):
        tasks.load(tasks.protocol("gqa@llava"), data_root=tmp_path / "nowhere")
    (root / "gqa" / "testdev_balanced_questions.json").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.parquet, docs\.jsonl or testdev_balanced_questions\.json"):
        tasks.load(tasks.protocol("gqa@llava"), data_root=root)
    with pytest.raises(UserError, match="only the split 'testdev'"):
        tasks.load(tasks.protocol("gqa@llava"), data_root=root, split="train")


def test_ocr_tokens_are_joined_by_question(root):
    path = root / "textvqa" / "TextVQA_0.5.1_val.json"
    value = json.loads(path.read_text())
    for row in value["data"]:
        del row["ocr_tokens"]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="lacks the column\\(s\\) ocr_tokens"):
        tasks.prompts(tasks.protocol("textvqa@ocr"), tasks.load(tasks.protocol("textvqa@ocr"), data_root=root, partial=True))
    tokens = root / "textvqa" / "ocr_tokens.jsonl"
    tokens.write_text('{"question_id": 0, "ocr_tokens": ["GO", "ON"]}\n')
    with pytest.raises(UserError, match="1 of 2 questions have no OCR tokens, first '4'"):
        tasks.load(tasks.protocol("textvqa@ocr"), data_root=root, partial=True)
    with tokens.open("a") as file:
        file.write('{"question_id": 4, "ocr_tokens": []}\n')
    questions = tasks.load(tasks.protocol("textvqa@ocr"), data_root=root, partial=True)
    assert "\nReference OCR token: GO, ON\n" in tasks.prompts(tasks.protocol("textvqa@ocr"), questions)[0]


def test_mmbenchs_own_table_holds_its_images(root):
    for path in (root / "mmbench").iterdir():
        path.unlink()
    table = root / "mmbench" / "mmbench_dev_en_20231003.tsv"
    image = base64.b64encode(png(5, side=16)).decode()
    table.write_text(
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n"
        f"7\tWhich?\tnan\tx\ty\t\t\tA\tocr\t{image}\ts\tl2\tnan\tdev\n"
        "1000007\tWhich?\tnan\ty\tx\t\t\tB\tocr\t7\ts\tl2\tnan\tdev\n"
    )
    for name in ("mmbench@circular", "mmbench@lmms"):
        protocol = tasks.protocol(name)
        questions = tasks.load(protocol, data_root=root, partial=True)
        assert [questions.images[q.image].shape for q in questions.questions] == [(16, 16, 3)] * 2
        assert len(questions.images) == 1
        assert tasks.prompts(protocol, questions)[0].startswith("Which?")
        assert "nan" not in tasks.prompts(protocol, questions)[0]


def cell(seed):
    return {"bytes": png(seed), "path": None}


GQA = [{"id": "20", "imageId": "n1", "question": "What?", "answer": "couch"}]


def test_gqas_images_are_joined_by_id(root):
    import pandas as pd

    for path in (root / "gqa").rglob("*"):
        if path.is_file():
            path.unlink()
    pd.DataFrame(GQA).to_parquet(root / "gqa" / "instructions.parquet")
    with pytest.raises(UserError, match="row 1 has no image"):
        tasks.load(tasks.protocol("gqa@lmms"), data_root=root, partial=True)
    pd.DataFrame([{"id": "n1", "image": cell(3)}]).to_parquet(root / "gqa" / "images.parquet")
    questions = tasks.load(tasks.protocol("gqa@lmms"), data_root=root, partial=True)
    assert questions.images[questions.questions[0].image].shape == (8, 8, 3)
    assert questions.questions[0].cluster == "n1"


# ---- the hub ----------------


class Table:
    """As much of a ``datasets.Dataset`` as is used."""

    def __init__(self, rows):
        self.rows, self.column_names, self.decoded = rows, list(rows[0]), True

    def cast_column(self, name, feature):
        assert (name, feature) == ("image", ("image", False))
        self.decoded = False
        return self

    def to_list(self):
        assert not self.decoded or "image" not in self.column_names
        return self.rows


def hub(monkeypatch, tables, fail=None):
    asked = []

    def load_dataset(name, config, split, revision):
        asked.append((name, config, split, revision))
        if fail is not None:
            raise fail
        return Table(tables[config])

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=lambda decode: ("image", decode))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


def test_the_hub_is_asked_for_what_the_protocol_names(monkeypatch):
    protocol = tasks.protocol("gqa@llava")
    tables = {"testdev_balanced_instructions": GQA, _hub.IMAGES["gqa"]: [{"id": "n1", "image": cell(3)}]}
    asked = hub(monkeypatch, tables)
    questions = tasks.load(protocol, partial=True)
    assert asked == [
        ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev", protocol.dataset.revision),
        ("lmms-lab/GQA", "testdev_balanced_images", "testdev", protocol.dataset.revision),
    ]
    assert [q.answer for q in questions.questions] == ["couch"]
    pinned = {**protocol.dataset.model_dump(), "revision": "abc"}
    published.load("gqa", "testdev", name="gqa@llava", dataset=pinned)
    assert asked[-1][-1] == "abc"


def test_only_hub_data_without_a_revision_are_pinned(monkeypatch):
    protocol = tasks.protocol("scienceqa@all")
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None}
    hub(monkeypatch, {"ScienceQA-FULL": [row]})
    small = protocol.model_copy(update={"data": protocol.data.model_copy(update={"rows": 1})})
    assert protocol.dataset.revision is not None
    tasks.load(small)
    assert not pins.folder().exists()
    dataset = protocol.dataset.model_copy(update={"revision": None, "source_of_revision": None})
    tasks.load(small.model_copy(update={"dataset": dataset}))
    assert len(list(pins.folder().iterdir())) == 1
    hub(monkeypatch, {"ScienceQA-FULL": [{**row, "answer": 0}]})
    tasks.load(small)
    with pytest.raises(UserError, match="scores would not be comparable"):
        tasks.load(small.model_copy(update={"dataset": dataset}))


def test_hub_rows_of_scienceqa_may_have_no_image(monkeypatch):
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "subject": "natural science"}
    hub(monkeypatch, {"ScienceQA-FULL": [{**row, "image": None}, {**row, "image": cell(1)}]})
    questions = tasks.load(tasks.protocol("scienceqa@img"), partial=True)
    assert ([q.id for q in questions.questions], questions.questions[0].group) == (["1"], "natural science")
    assert questions.left_out == {"0": "outside scienceqa@img"}


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    hub(monkeypatch, {}, fail=ConnectionError("Couldn't reach 'lmms-lab/MME' on the Hub\nmore"))
    with pytest.raises(UserError) as caught:
        tasks.load(tasks.protocol("mme@perception"))
    assert "lmms-lab/MME cannot be loaded from the hub" in str(caught.value)
    assert "--data-root" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- real images ----------------


@needs_data
def test_the_real_samples_of_all_six_are_read_with_their_images():
    counts = {"scienceqa@img": 25, "gqa@llava": 222, "textvqa@ocr": 3, "pope@mean-f1": 18, "mmbench@circular": 10,
              "mme@perception": 120}  # fmt: skip
    for name, count in counts.items():
        protocol = tasks.protocol(name)
        questions = tasks.load(protocol, data_root=GIVEN, partial=True)
        assert len(questions.questions) == len(tasks.prompts(protocol, questions)) == count
        first = questions.images[questions.questions[0].image]
        assert first.ndim == 3
        assert first.shape[2] == 3


def test_a_checkpoint_answers_a_published_protocol(model, checkpoint, root, tmp_path):
    """Through the code that answers the miniature suite: prompts of the rule, the protocol's decoding, image or none."""
    from tasks.evaluate import diagnose, evaluate

    for name in ("scienceqa@all", "mme@perception", "textvqa@no-ocr"):
        protocol = tasks.protocol(name).model_copy(update={"generation": tasks.catalogue.Generation(max_new_tokens=3)})
        questions = tasks.load(protocol, data_root=root, partial=True)
        bigger = {key: np.asarray(Image.fromarray(questions.images[key]).resize((60, 60))) for key in questions.images}
        questions = tasks.QuestionSet(questions.questions, bigger, questions.digest)
        rows = evaluate(checkpoint, protocol, questions, model=model, replies_path=tmp_path / "replies.jsonl")
        assert [row["id"] for row in rows] == [q.id for q in questions.questions]
        assert all(1 <= row["tokens"] <= 3 for row in rows)
        scores = tasks.score(protocol, rows, questions)
        assert protocol.range[0] <= scores.value <= protocol.range[1]
        assert len(diagnose(model, protocol, questions).rows) == len(rows)
        with pytest.raises(UserError, match="another prompt"):
            tasks.score(protocol, [{**rows[0], "prompt_sha256": "0"}, *rows[1:]], questions)
