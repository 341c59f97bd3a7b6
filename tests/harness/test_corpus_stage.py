"""The stage that indexes a corpus: LLaVA's files, ScienceQA's training rows and the embedded suite."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tasks
from harness import plan, store
from harness.base import UserError, write_json
from harness.stages import corpus as stage
from harness.workers import Context, Settings
from students.data.corpus import IndexedCorpus

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
import tiny_corpus


def context(root, source, places=None, protocols=(), skip=0, name="c"):
    """What a worker would hand to the stage."""
    config = {"name": name, "source": source, "protocols": [{"name": each} for each in protocols]}
    made = plan.Stage(
        id=f"corpus/{name}", kind="corpus", run="harness.stages.corpus:index", version=stage.STAGE_VERSION, config=config,
        targets=(stage.target(name),), places={key: str(value) for key, value in (places or {}).items()},
    )  # fmt: skip
    progress = []
    settings = Settings(root, "cpu", 2, skip_unreadable=skip)
    found = Context(made, settings, {}, lambda done, total: progress.append((done, total)))
    found.memory["progress"] = progress
    return found


def carry_out(found):
    """Do the stage and move its files into place, as a worker does."""
    made = found.stage
    store.begin(found.root, made.id, "digest", made.targets, made.resumes)
    stage.index(found)
    store.commit(found.root, made.id, "digest", made.version, made.targets, 1.0)
    return found.root / made.targets[0]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "manifest.json", {})
    return tmp_path / "run"


# ---- LLaVA ----------------


def test_a_llava_file_becomes_a_corpus(root, tmp_path):
    tiny = tiny_corpus.llava_corpus(tmp_path / "data", rows=600, seed=1)
    found = context(root, {"format": "llava", "options": {"rows": 600}}, {"file": tiny.json, "images": tiny.images})
    folder = carry_out(found)
    corpus = IndexedCorpus(folder, tiny.images)
    assert (len(corpus), corpus.name, corpus.facts.format) == (600, "c", "llava")
    assert sorted(path.name for path in folder.iterdir()) == [
        "corpus.json", "lengths.npy", "offsets.npy", "rows.jsonl", "shows.npy",
    ]  # fmt: skip
    assert [path.name for path in (root / "corpora").iterdir()] == ["c"], "nothing else is left"
    progress = found.memory["progress"]
    assert progress == sorted(progress)
    assert progress[-1] == (1000, 1000)
    before = {name: file.sha256 for name, file in store.read_entry(root, "corpus/c").outputs.items()}
    carry_out(context(root, found.config["source"], found.stage.places))
    after = {name: file.sha256 for name, file in store.read_entry(root, "corpus/c").outputs.items()}
    assert after == before, "the same data give the same files"


def test_unreadable_images_stop_the_stage_unless_they_are_allowed(root, tmp_path):
    tiny = tiny_corpus.llava_corpus(tmp_path / "data", rows=20, seed=1, text_only=0.0)
    broken = sorted(tiny.images.rglob("*.jpg"))[:2]
    broken[0].write_bytes(broken[0].read_bytes()[:-40])
    broken[1].unlink()
    places = {"file": tiny.json, "images": tiny.images}
    with pytest.raises(UserError, match=r"2 of its images cannot be read \(allowed: 1\).*--skip-unreadable 2"):
        carry_out(context(root, {"format": "llava"}, places, skip=1))
    assert not (root / "corpora" / "c").exists()
    checked = root / "corpora" / ".c.checked.sqlite3"
    assert checked.is_file(), "kept for the next attempt"
    facts = IndexedCorpus(carry_out(context(root, {"format": "llava"}, places, skip=2)), tiny.images).facts
    assert (facts.source_rows, facts.rows, facts.images, len(facts.unreadable)) == (20, 18, 18, 2)
    assert not checked.exists()


def test_bad_configurations_are_one_line(root, tmp_path):
    tiny = tiny_corpus.llava_corpus(tmp_path / "data")
    places = {"file": tiny.json, "images": tiny.images}
    with pytest.raises(UserError, match=r"corpus 'c', field 'options': unknown field 'row'. Did you mean 'rows'"):
        stage.index(context(root, {"format": "llava", "options": {"row": 3}}, places))
    with pytest.raises(UserError, match=r"has 12 rows, expected 13"):
        stage.index(context(root, {"format": "llava", "options": {"rows": 13}}, places))
    with pytest.raises(UserError, match=r"nothing.json does not exist"):
        stage.index(context(root, {"format": "llava"}, {**places, "file": tmp_path / "nothing.json"}))
    with pytest.raises(UserError, match="unknown format 'csv'"):
        stage.index(context(root, {"format": "csv"}))
    with pytest.raises(UserError, match="add one to 'protocols'"):
        stage.index(context(root, {"format": "scienceqa"}))
    with pytest.raises(UserError, match="scienceqa@all and scienceqa@lmms prompt the same questions differently"):
        stage.index(context(root, {"format": "scienceqa"}, protocols=["scienceqa@all", "scienceqa@lmms"]))


# ---- ScienceQA ----------------


def png(seed, side=9):
    picture = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture, "PNG")
    return picture.getvalue()


ROWS = [
    {"question": "Which is red?", "choices": ["a rose", "the sky"], "answer": 0, "hint": "", "image": png(0), "subject": "n"},
    {"question": "Two plus two?", "choices": ["3", "5", "4"], "answer": 2, "hint": "Count.", "image": None, "subject": "n"},
    {"question": "What is it?", "choices": ["x", "y"], "answer": 1, "hint": "Look.", "image": png(0), "subject": "s"},
    {"question": "And this?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": png(1), "subject": "s"},
]


def table(path, rows):
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{**row, "image": None if row["image"] is None else {"bytes": row["image"], "path": None}} for row in rows]
    features = datasets.Features({
        "question": datasets.Value("string"), "choices": datasets.Sequence(datasets.Value("string")),
        "answer": datasets.Value("int8"), "hint": datasets.Value("string"), "image": datasets.Image(),
        "subject": datasets.Value("string"),
    })  # fmt: skip
    datasets.Dataset.from_list(cells, features=features).to_parquet(path)
    return path


def problems(folder, rows):
    """The authors' own layout."""
    made = {}
    for number, row in enumerate(rows):
        image = row["image"]
        made[str(number)] = {**row, "image": None if image is None else "image.png", "split": "train"}
        if image is not None:
            home = folder / "images" / "train" / str(number)
            home.mkdir(parents=True)
            (home / "image.png").write_bytes(image)
    made["99"] = {**rows[1], "split": "test"}
    folder.mkdir(exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(made))


@pytest.fixture(params=["parquet", "problems", "hub"])
def science(request, tmp_path, monkeypatch):
    """ScienceQA's rows in each of the three places; returns the data root, None for the hub."""
    data = tmp_path / "data"
    home = data / "scienceqa"
    if request.param == "parquet":
        table(home / "ScienceQA-FULL" / "train-00000-of-00002.parquet", ROWS[:3])
        table(home / "ScienceQA-FULL" / "train-00001-of-00002.parquet", ROWS[3:])
        table(home / "ScienceQA-FULL" / "test-00000-of-00001.parquet", ROWS[:1])
        return data
    if request.param == "problems":
        problems(home, ROWS)
        return data
    import datasets

    path = table(tmp_path / "hub" / "train-00000-of-00001.parquet", ROWS)
    real = datasets.load_dataset

    def load_dataset(path, data_files, split, revision):
        assert (path, split) == ("lmms-lab/ScienceQA", "train")
        assert data_files == {"train": "ScienceQA-FULL/train-*.parquet"}
        assert revision == tasks.protocol("scienceqa@all").dataset.revision, "the evaluation's"
        return real("parquet", data_files={"train": [str(hub)]}, split="train", streaming=True)

    hub = path
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return None


def test_scienceqas_rows_are_prompted_as_in_the_evaluation(root, science):
    places = {} if science is None else {"data_root": science}
    source = {"format": "scienceqa", "options": {"rows": 4}}
    corpus = IndexedCorpus(carry_out(context(root, source, places, ["scienceqa@all", "scienceqa@img"])))
    assert len(corpus) == 4, "rows without image are learned from as well"
    prompts = [
        "Which is red?\nA. a rose\nB. the sky\nAnswer with the option's letter from the given choices directly.",
        "Context: Count.\nTwo plus two?\nA. 3\nB. 5\nC. 4\nAnswer with the option's letter from the given choices directly.",
    ]
    assert [row.turns[0].user for row in corpus][:2] == [f"<image>\n{prompts[0]}", prompts[1]]
    assert [row.turns[0].assistant for row in corpus] == ["A", "C", "B", "A"]
    assert [len(row.images) for row in corpus] == corpus.shows.tolist() == [1, 0, 1, 1]
    assert corpus[0].images == corpus[2].images != corpus[3].images, "equal images are kept once"
    assert {row.source for row in corpus} == {"scienceqa"}
    assert corpus.facts.images == len(list((corpus.folder / "images").iterdir())) == 2
    for row, given in zip(corpus, ROWS, strict=True):
        if given["image"] is not None:
            expected = np.asarray(Image.open(io.BytesIO(given["image"])))
            assert (corpus.picture(row.images[0]) == expected).all()


def test_the_answers_prompt_is_the_protocols_for_lmms_too(root, tmp_path):
    table(tmp_path / "data" / "scienceqa" / "train" / "0000.parquet", ROWS)
    source = {"format": "scienceqa", "options": {"rows": 4}}
    corpus = IndexedCorpus(carry_out(context(root, source, {"data_root": tmp_path / "data"}, ["scienceqa@lmms-full"])))
    docs = [{key: value for key, value in row.items() if key != "image"} for row in ROWS]
    asked = tuple(tasks.Question(str(n), doc, None, "A", str(n), "") for n, doc in enumerate(docs))
    expected = tasks.prompts(tasks.protocol("scienceqa@lmms-full"), tasks.QuestionSet(asked, {}, "x"), scored=False)
    assert [row.turns[0].user.removeprefix("<image>\n") for row in corpus] == expected


def test_the_evaluation_leaves_training_files_alone(tmp_path):
    home = tmp_path / "data" / "scienceqa"
    table(home / "ScienceQA-FULL" / "train-00000-of-00001.parquet", ROWS)
    table(home / "ScienceQA-FULL" / "test-00000-of-00001.parquet", ROWS[1:2])
    questions = tasks.load(tasks.protocol("scienceqa@all"), data_root=tmp_path / "data", partial=True)
    assert [question.doc["question"] for question in questions.questions] == ["Two plus two?"]


def test_scienceqa_that_is_not_there_or_not_whole_is_named(root, tmp_path):
    data = tmp_path / "data"
    found = context(root, {"format": "scienceqa"}, {"data_root": data}, ["scienceqa@all"])
    with pytest.raises(UserError, match="scienceqa does not exist: --data-root holds a folder per benchmark"):
        stage.index(found)
    (data / "scienceqa").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no train-\*.parquet and no problems.json"):
        stage.index(found)
    path = table(data / "scienceqa" / "train-00000-of-00001.parquet", ROWS)
    with pytest.raises(UserError, match="ScienceQA's train split has 4 rows, expected 12726"):
        stage.index(found)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet cannot be read .*Download it again"):
        stage.index(found)
    path.unlink()
    problems(data / "scienceqa", ROWS)
    (data / "scienceqa" / "images" / "train" / "0" / "image.png").unlink()
    with pytest.raises(UserError, match=r"question '0' shows train/0/image.png, which is neither in"):
        stage.index(found)
    rows = json.loads((data / "scienceqa" / "problems.json").read_text())
    rows["0"]["image"] = "../../../etc/passwd"
    (data / "scienceqa" / "problems.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="expected the name of a file"):
        stage.index(found)
    with pytest.raises(UserError, match="scienceqa has no split 'trian'; allowed: train, validation, test"):
        stage.index(context(root, {"format": "scienceqa", "options": {"split": "trian"}}, {}, ["scienceqa@all"]))


def test_a_damaged_image_of_a_table_is_counted_like_any_other(root, tmp_path):
    rows = [{**ROWS[0], "image": png(0)[:60]}, *ROWS[1:], {**ROWS[0], "image": b"no image"}]
    table(tmp_path / "data" / "scienceqa" / "train-00000-of-00001.parquet", rows)
    source = {"format": "scienceqa", "options": {"rows": 5}}
    with pytest.raises(UserError, match=r"2 of its images cannot be read .*\.damaged is no image that PIL knows"):
        carry_out(context(root, source, {"data_root": tmp_path / "data"}, ["scienceqa@all"]))
    folder = carry_out(context(root, source, {"data_root": tmp_path / "data"}, ["scienceqa@all"], skip=2))
    facts = IndexedCorpus(folder).facts
    assert facts.rows == 3
    assert facts.skipped["shows an unreadable image"].first == ("0", "4")


# ---- the embedded suite ----------------


def test_the_embedded_suites_training_rows_are_a_corpus(root):
    names = [f"{benchmark}@miniature" for benchmark in ("scienceqa", "gqa", "pope")]
    corpus = IndexedCorpus(carry_out(context(root, {"format": "embedded", "options": {"images": 8}}, {}, names)))
    made = tasks.training_rows([tasks.protocol(name) for name in names], images=8)
    rows = made.rows.to_dict("records")
    assert [row.id for row in corpus] == [row["id"] for row in rows]
    for conversation, row in zip(corpus, rows, strict=True):
        assert conversation.source == row["benchmark"]
        assert conversation.turns[0].user.removeprefix("<image>\n") == row["prompt"]
        assert conversation.turns[0].assistant == row["answer"]
        assert bool(conversation.images) == isinstance(row["image"], str)
        for key, pixels in zip(conversation.images, corpus.pictures(conversation), strict=True):
            assert (pixels == made.images[key.removesuffix(".png")]).all()
    assert (corpus.shows == 0).any()
