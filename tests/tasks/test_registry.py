"""The official protocols: complete, exact, sourced; lmms-eval's are those that lmms-eval ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from real import GOLD, ROOT, needs_data

import tasks
from harness.base import UnknownName, UserError
from tasks import catalogue, rules

REQUIRED = [
    "scienceqa@all",
    "scienceqa@img",
    "scienceqa@lmms",
    "gqa@llava",
    "gqa@lmms",
    "textvqa@ocr",
    "textvqa@no-ocr",
    "textvqa@lmms",
    "pope@mean-f1",
    "pope@lmms",
    "mmbench@circular",
    "mmbench@vanilla",
    "mmbench@lmms",
    "mme@perception",
    "mme@cognition",
]
OFFICIAL = [name for name in tasks.names() if tasks.protocol(name).official]
LMMS = [name for name in OFFICIAL if tasks.protocol(name).scorer == "lmms"]
PUBLISHED = [name for name in OFFICIAL if name not in LMMS]
#: Number of questions that count, of each release.
ROWS = {
    "scienceqa@all": 4241, "scienceqa@img": 2017, "gqa@llava": 12578, "textvqa@ocr": 5000, "pope@mean-f1": 8910,
    "pope@lmms": 9000, "mmbench@circular": 4329, "mmbench@vanilla": 1164, "mme@perception": 2114, "mme@cognition": 260,
}  # fmt: skip


def test_every_required_protocol_is_there():
    assert set(REQUIRED) <= set(OFFICIAL)
    benchmarks = {name.split("@")[0] for name in OFFICIAL}
    assert {name.split("@")[0] for name in LMMS} == benchmarks, "lmms-eval's protocol of every benchmark"
    assert {name.split("@")[0] for name in PUBLISHED} == benchmarks, "the papers' protocol of every benchmark"


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_protocol_says_everything(name):
    protocol = tasks.protocol(name)
    assert protocol.dataset is not None
    assert protocol.dataset.split == protocol.data.split
    assert protocol.data.rows is not None
    assert protocol.sources
    assert all(protocol.sources)
    assert "\n" not in protocol.description
    assert protocol.description
    assert protocol.cluster in ("image", "question", "question group", "pair")
    assert protocol.range[0] == 0
    assert protocol.range[1] == {"percent": 100}.get(protocol.unit, protocol.range[1])
    if protocol.benchmark in ("gqa", "textvqa"):
        assert protocol.chance is None
    else:
        assert 0 < protocol.chance < protocol.range[1]
    assert ROWS.get(name, protocol.data.rows) == protocol.data.rows


def test_titles_tell_protocols_apart():
    titles = [tasks.protocol(name).title for name in tasks.names()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", LMMS)
def test_lmms_protocols_are_what_lmms_eval_ships(name):
    from tasks import engine

    protocol = tasks.protocol(name)
    shipped = engine.packaged(protocol.task)
    assert (protocol.dataset.id, protocol.dataset.config) == (shipped["dataset_path"], shipped.get("dataset_name"))
    assert protocol.dataset.split == shipped["test_split"]
    told = shipped["generation_kwargs"]
    assert protocol.generation.max_new_tokens == told.get("max_new_tokens", 1024)  # 1024 is its models' own fallback
    assert protocol.generation.until == tuple(told.get("until", ["\n\n"]))
    assert not told.get("do_sample")
    assert {metric["metric"] for metric in shipped["metric_list"]} >= set(protocol.metrics)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("sciqa", "scienceqa@"),
        ("pope@f1", "pope@mean-f1"),
        ("mmbench@circ", "mmbench@circular"),
        ("mme@perc", "mme@perception"),
    ],
)
def test_near_misses_are_understood(wrong, meant):
    with pytest.raises(UnknownName) as caught:
        tasks.protocol(wrong)
    assert f"'{meant}" in str(caught.value).split("Known:")[0]


def test_protocols_with_equal_data_prompt_and_decoding_share_one_generation():
    key = {name: tasks.protocol(name).replies_key for name in OFFICIAL}
    assert key["pope@mean-f1"] == key["pope@accuracy"] != key["pope@mean-f1-3000"]
    assert key["textvqa@ocr"] != key["textvqa@no-ocr"]
    assert key["scienceqa@all"] != key["scienceqa@img"]


def test_new_fields_change_no_digest_of_a_protocol_without_them():
    """The miniature suite's run folders stay valid: its facts hold the fields they always held, and no other."""
    old = {
        "name", "version", "benchmark", "title", "description", "data", "task", "columns", "prompt", "parser", "generation",
        "score", "metrics", "scale", "aggregation", "cluster", "unit", "range", "direction", "chance", "official",
    }  # fmt: skip
    for name in tasks.names():
        if not tasks.protocol(name).official:
            assert set(tasks.protocol(name).model_dump(mode="json")) == old


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)

    def write(name, drop=(), base="pope@mean-f1", **changes):
        facts = yaml.safe_load((Path(rules._FOLDER) / f"{base}.yaml").read_text(encoding="utf-8"))
        facts.update({"name": name}, **changes)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({k: v for k, v in facts.items() if k not in drop}))
        return name

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "pope.promt"}, "unknown published prompt rule 'pope.promt'. Did you mean 'pope.prompt'"),
        ({"parser": "poep.first_sentence"}, "unknown published parser rule"),
        ({"score": "right"}, "unknown published score rule"),
        ({"keep": "scienceqa.with_imag"}, "Did you mean 'scienceqa.with_image'"),
        ({"sources": []}, "names its sources"),
        ({"metrics": ["pope_accuracy"]}, "none of lmms-eval's metrics"),
        ({"task": "pope/pope.yaml"}, "scorer published has none"),
        ({"scorer": "lmms"}, "scorer lmms names lmms-eval's task file"),
        ({"scorer": "gpt"}, "field 'scorer'"),
        ({"official": False}, "only an official one does"),
        ({"dataset": {"id": "lmms-lab/POPE", "config": None, "split": "test"}}, "field 'dataset.revision'"),
        (
            {"dataset": {"id": "a/b", "config": None, "split": "test", "revision": "abc", "source_of_revision": None}},
            "a revision needs its public source",
        ),
    ],
)
def test_a_wrong_file_is_one_clear_error(folder, changes, message):
    folder("pope@x", **changes)
    with pytest.raises(UserError) as caught:
        tasks.protocol("pope@x")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_more_file_is_one_more_protocol(folder):
    folder("pope@mine", aggregation="pope_accuracy")
    assert tasks.names() == ["pope@mine"]
    assert tasks.protocol("pope@mine").aggregation == "pope_accuracy"


@needs_data
@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("scienceqa@all", 1e-4), ("scienceqa@img", 1e-4), ("mmbench@circular-20230712", 1e-4),
        ("mmbench@vanilla-20230712", 1e-4), ("mmbench@circular", 0.1), ("mmbench@vanilla", 0.1),
    ],
)  # fmt: skip
def test_chance_levels_are_those_of_the_gold(name, within):
    """A valid answer at random, question by question; the release of 2023-10-03 is bounded by the older one's."""
    protocol = tasks.protocol(name)
    gold = tasks.gold(protocol, ROOT / GOLD[protocol.benchmark])
    level: dict[str, float] = {}
    for question in gold.questions:
        doc = question.doc
        options = len(doc["choices"]) if "choices" in doc else sum(doc[letter] is not None for letter in "ABCD")
        level[question.cluster] = level.get(question.cluster, 1.0) / options
    assert protocol.chance == pytest.approx(100 * sum(level.values()) / len(level), abs=within)


@needs_data
def test_expected_rows_are_those_of_the_gold():
    for name, path in {
        "scienceqa@all": GOLD["scienceqa"], "scienceqa@img": GOLD["scienceqa"], "textvqa@ocr": GOLD["textvqa"],
        "pope@mean-f1": GOLD["pope"], "pope@mean-f1-3000": "pope/common/labels_main_3000x3",
        "pope@lmms": "pope/common/labels_main_3000x3", "mmbench@circular-20230712": GOLD["mmbench"],
        "mmbench@vanilla-20230712": GOLD["mmbench"], "mme@perception": GOLD["mme"], "mme@cognition": GOLD["mme"],
        "mme@lmms": GOLD["mme"],
    }.items():  # fmt: skip
        protocol = tasks.protocol(name)
        assert len(tasks.gold(protocol, ROOT / path).questions) == protocol.data.rows, name
