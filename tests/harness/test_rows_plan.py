"""Whose rows and pictures are kept: decided by reads and disk, with a reason, planned before it is written, in no digest."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness import blueprint, caching, config, manifest, plan, selection, store
from harness.base import remove
from harness.stages import rows
from harness.workers import Context, Settings

sys.path.insert(0, str(Path(harness.__file__).parents[1] / "tests" / "students"))

from tiny_corpus import indexed
from twin_families import FAMILIES, twin
from twins import mobilevlm_twin

PRESET = """
name: rows
title: t
description: d
protocols: [pope@miniature]
models: {{ teacher: {base}, base: {base} }}
corpora: {{ tiny: {{ format: embedded }} }}
stages:
  - {{ name: one, corpus: tiny, training: {{ {steps}, rows: 4{template} }} }}
  - {{ name: two, corpus: tiny, training: {{ {steps}, rows: 4 }} }}
recipes: [ce, ce+fkl@task]
"""
ROWS = 30


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    where, made = tmp_path_factory.mktemp("twins"), {}

    def get(family):
        if family not in made:
            make = mobilevlm_twin if family == "mobilevlm" else lambda folder: twin(family, folder)
            made[family] = make(where / family)
        return made[family]

    return get


@pytest.fixture
def planned(tmp_path, twins):
    """Plan a run: the blueprint, its stages, and the stages without what only saves work."""

    def go(family="llava", recipes="all", bound=None, steps="epochs: 1", template="", root=None):
        path = tmp_path / "rows.yaml"
        path.write_text(PRESET.format(base=twins(family), steps=steps, template=template))
        preset = config.load_preset(str(path))
        wanted = blueprint.cells(selection.students(recipes, preset), [0], list(preset.protocols))
        made = blueprint.Blueprint(preset, preset.models, None, wanted)
        plain = made.stages()
        return made, made.settled(root or tmp_path / "run", plain, bound), plain

    return go


@pytest.fixture
def root(tmp_path):
    """A run folder with the corpus."""
    corpus = indexed(tmp_path / "corpora", ROWS, name="tiny", side=40)
    (tmp_path / "run" / "corpora").mkdir(parents=True)
    corpus.folder.rename(tmp_path / "run" / "corpora" / "tiny")
    return tmp_path / "run"


def decisions(made):
    return {each.what: (each.once, each.why) for each in made.rows.decisions}


def kept(stages):
    return {stage.id: stage for stage in stages if stage.kind == rows.KIND}


# ---- the plan --------------------------------------------------------------------------------------------------------------


def test_every_training_of_a_corpus_shares_its_tokens(planned):
    made, stages, _ = planned()
    assert set(kept(stages)) == {"encode/tiny"}  # images are features, so nobody decodes them again
    target = rows.tokens_target("tiny")
    users = {stage.id for stage in stages if target in stage.uses}
    assert users == {
        "teacher/count/tiny", "teacher/signal/tiny", "student/ce/seed0/one", "student/ce/seed0",
        "student/ce+fkl@task/seed0/one", "student/ce+fkl@task/seed0",
    }  # fmt: skip
    seen = set()
    for stage in stages:
        assert {each.id for each in plan.upstream(stage, stages)} <= seen
        seen.add(stage.id)
        assert ("tokens" in stage.places) == (stage.id in users)
    assert decisions(made)["tokens of corpus tiny"] == (True, "6 stage(s) read all rows 5 time(s) and 512 of them")


def test_a_format_of_its_own_has_tokens_of_its_own(planned):
    _, stages, _ = planned("mobilevlm", template=", template: plain")
    assert set(kept(stages)) == {"encode/tiny", "encode/tiny-own"}
    assert [kept(stages)[name].config.get("template") for name in ("encode/tiny", "encode/tiny-own")] == ["plain", None]
    used = {stage.id: stage.places.get("tokens") for stage in stages if stage.kind == "student"}
    assert used["student/ce/seed0/one"] == rows.tokens_target("tiny")
    assert used["student/ce/seed0"] == rows.tokens_target("tiny-own")


def test_no_digest_knows_of_it(planned):
    _, whole, plain = planned("qwen2_vl")
    assert set(kept(whole)) == {"encode/tiny", "pictures/tiny"}
    others = [stage for stage in whole if stage.kind not in (rows.KIND, "vision")]
    base = [stage for stage in plain if stage.kind != "vision"]
    assert [stage.id for stage in others] == [stage.id for stage in base]
    for one, other in zip(others, base, strict=True):
        assert (one.config, one.reads, one.given, one.version) == (other.config, other.reads, other.given, other.version)


def test_images_are_decoded_once_where_they_are_no_features(planned):
    """For trainings, the teacher's pass, and the tokens of a family that needs the images for them."""
    made, stages, _ = planned("qwen2_vl")
    target = rows.pictures_target("tiny")
    users = {stage.kind for stage in stages if target in stage.uses}
    assert users == {"student", "signal", rows.KIND}
    ids = [stage.id for stage in stages]
    assert ids.index("corpus/tiny") < ids.index("pictures/tiny") < ids.index("encode/tiny") < ids.index("student/ce/seed0/one")
    assert decisions(made)["pictures of corpus tiny"] == (True, "6 stage(s) read all images 6 time(s)")


@pytest.mark.parametrize(("steps", "once"), [("steps: 3", False), ("steps: 4", True)])
def test_rows_that_are_hardly_read_are_left_alone(planned, root, steps, once):
    """Two stages of one student, four rows a step, thirty rows."""
    made, stages, _ = planned("qwen2_vl", recipes="ce", steps=steps)
    reads = 24 if steps == "steps: 3" else 32
    assert decisions(made)["tokens of corpus tiny"] == (once, f"2 stage(s) read 30 rows {reads} times in all")
    assert ("encode/tiny" in kept(stages)) == once
    alone, _, _ = planned("qwen2_vl", recipes="ce", steps="epochs: 0.5", root=root / "nowhere")
    assert decisions(alone)["tokens of corpus tiny"] == (False, "2 stage(s) read all rows 1 time(s)")


def test_what_does_not_fit_is_left_out_with_the_reason(planned, root, monkeypatch):
    made, stages, _ = planned("qwen2_vl", bound=1000)
    assert kept(stages) == {}
    once, why = decisions(made)["pictures of corpus tiny"]
    assert not once
    assert why.startswith("they would take ") and "--cache-gb 1e-06 (beside other caches) leaves" in why
    empty, _, _ = planned("qwen2_vl", bound=1000, root=root / "nowhere")
    assert "not known before the corpus is there" in decisions(empty)["tokens of corpus tiny"][1]
    made, stages, _ = planned("qwen2_vl", bound=10**9)
    assert set(kept(stages)) == {"encode/tiny", "pictures/tiny"}
    caching.Keeper(root, stages, 10**9).check(set())
    monkeypatch.setattr("harness.worth.SHARE_OF_FREE", 1e-12)
    assert "free on the disk" in decisions(planned("qwen2_vl")[0])["tokens of corpus tiny"][1]


def test_a_corpus_of_an_earlier_version_is_read_as_it_was(planned, root):
    path = root / "corpora" / "tiny" / "corpus.json"
    facts = json.loads(path.read_text())
    del facts["sizes"]
    path.write_text(json.dumps(facts))
    made, stages, _ = planned("qwen2_vl")
    assert kept(stages) == {}
    assert {why for _, why in decisions(made).values()} == {
        "the corpus was indexed by an earlier version, which did not record its sizes"
    }


def test_the_manifest_and_the_dry_run_say_so(planned, root):
    made, stages, _ = planned("qwen2_vl")
    assert manifest.build(root, made, "cpu", {}, "")["rows"] == [
        "tokens of corpus tiny: made once, because 6 stage(s) read 30 rows 662 times in all",
        f"pictures of corpus tiny: made once, because 6 stage(s) read {images(root)} images {6 * images(root)} times in all",
    ]
    said = caching.lines(root, stages, set(), None)
    assert any(line.startswith("cache encode tiny: tokens int32, ") and "MB to write" in line for line in said)
    assert any(line.startswith("cache pictures tiny: pictures uint8, ") for line in said)


def images(root):
    return json.loads((root / "corpora" / "tiny" / "corpus.json").read_text())["images"]


# ---- what is written -------------------------------------------------------------------------------------------------------


def do(stage, root, corpus):
    stage.places["images"] = str(corpus)
    work = {"tokens": rows.tokens, "pictures": rows.pictures}[stage.run.partition(":")[2]]
    context = Context(stage, Settings(root, "cpu", 1), {}, lambda *_: None)
    work(context)
    context.out(stage.targets[0]).rename(root / stage.targets[0])
    return sum(path.stat().st_size for path in (root / stage.targets[0]).iterdir())


@pytest.mark.parametrize("family", [*FAMILIES, "mobilevlm"])
def test_they_take_no_more_than_was_planned(planned, root, tmp_path, family):
    made = kept(planned(family)[1])
    assert ("pictures/tiny" in made) == (family not in ("llava", "llava_qwen", "mobilevlm"))
    for stage in made.values():  # in the order of the plan: tokens may need the pictures
        plans = rows.planned_pictures if stage.id == "pictures/tiny" else rows.planned_tokens
        assert plans(root / "elsewhere", stage).bytes is None
        takes = do(stage, root, tmp_path / "corpora" / "source" / "images")
        assert takes <= plans(root, stage).bytes < (2 if stage.id == "pictures/tiny" else 20) * takes


def done(root, stage, stages, work):
    digest = plan.stage_digest(root, stage, plan.Producers(stages))
    store.begin(root, stage.id, digest, stage.targets, stage.resumes)
    for target in stage.targets:
        store.partial(root, target).parent.mkdir(parents=True, exist_ok=True)
    work(stage)
    store.commit(root, stage.id, digest, stage.version, stage.targets, 0.0, stage.cache)


def with_corpus(root, stages):
    """Put the corpus into the ledger."""
    (root / "corpora" / "tiny").rename(root / "made")
    (stage,) = (each for each in stages if each.id == "corpus/tiny")
    done(root, stage, stages, lambda s: (root / "made").rename(store.partial(root, s.targets[0])))


def tokenise(root, stage, stages, source):
    stage.places["images"] = str(source)
    done(root, stage, stages, lambda s: rows.tokens(Context(s, Settings(root, "cpu", 1), {}, lambda *_: None)))


def test_a_cache_that_is_cut_off_or_stale_is_made_again(planned, root, tmp_path):
    """By the ledger, before anybody opens it; another corpus or base is another digest."""
    _, stages, _ = planned("llava", recipes="ce")
    source = tmp_path / "corpora" / "source" / "images"
    by_id = {stage.id: stage for stage in stages}
    with_corpus(root, stages)
    stage = by_id["encode/tiny"]
    tokenise(root, stage, stages, source)
    found = plan.look(root, stages)
    assert stage.id in found.done and not found.damaged
    path = root / stage.targets[0] / "ids.npy"
    path.write_bytes(path.read_bytes()[:-4])
    found = plan.look(root, stages)
    assert stage.id not in found.done
    assert any("ids.npy" in line and "the cache is made again" in line for line in found.damaged)
    changed = [replace(s, given={"base": "other"}) if s.id == stage.id else s for s in stages]
    found = plan.look(root, changed)
    assert stage.id not in found.done and not found.damaged


@pytest.fixture
def stored(planned, root, tmp_path):
    """The stage of a llava's tokens, which are stored; the corpus is in the ledger too."""
    _, stages, _ = planned("llava", recipes="ce")
    by_id = {stage.id: stage for stage in stages}
    with_corpus(root, stages)
    stage = by_id["encode/tiny"]
    tokenise(root, stage, stages, tmp_path / "corpora" / "source" / "images")
    return stage


def test_what_is_stored_goes_where_a_smaller_bound_has_no_room_for_it(planned, root, stored):
    bytes_there = sum(path.stat().st_size for path in (root / stored.targets[0]).iterdir())
    made, stages, _ = planned("llava", recipes="ce", bound=bytes_there // 2)
    once, why = decisions(made)["tokens of corpus tiny"]
    assert not once and "--cache-gb" in why
    keeper = caching.Keeper(root, stages, bytes_there // 2)
    keeper.check(plan.look(root, stages).done)  # nobody needs it
    assert [cache.stage for cache in keeper.surplus(set())] == [stored.id]
    made, stages, _ = planned("llava", recipes="ce", bound=10**9)
    assert decisions(made)["tokens of corpus tiny"][0] and stored.id in plan.look(root, stages).done


def test_another_version_of_the_tokenizers_makes_them_again(planned, root, stored, monkeypatch):
    assert stored.id in plan.look(root, planned("llava", recipes="ce")[1]).done
    monkeypatch.setattr("harness.rows_plan.version", lambda package: f"9.9 of {package}")
    stages = planned("llava", recipes="ce")[1]
    assert stored.id in kept(stages) and stored.id not in plan.look(root, stages).done


def test_what_did_not_fit_once_is_not_said_to_be_there(planned, root, stored):
    folder = root / stored.targets[0]
    for path in folder.iterdir():
        path.unlink()
    (folder / rows.WHY).write_text(json.dumps({"why": "no room"}))
    entry = store.entry_path(root, stored.id)
    entry.unlink()
    stages = planned("llava", recipes="ce")[1]
    (root / "why").mkdir()
    (folder / rows.WHY).rename(root / "why" / rows.WHY)
    folder.rmdir()
    done(root, kept(stages)[stored.id], stages, lambda s: (root / "why").rename(store.partial(root, s.targets[0])))
    made, stages, _ = planned("llava", recipes="ce")
    assert decisions(made)["tokens of corpus tiny"] == (False, f"no room (to try again, remove {folder})")
    assert kept(stages) == {}
    remove(folder)
    assert decisions(planned("llava", recipes="ce")[0])["tokens of corpus tiny"][0]


def test_a_signal_whose_size_is_not_known_yet_has_its_share_of_the_bound(planned, root):
    """So that a run is not refused in its middle, when the teacher's tokens are counted."""
    stages = kept(planned("qwen2_vl")[1])
    need = rows.planned_tokens(root, stages["encode/tiny"]).bytes + rows.planned_pictures(root, stages["pictures/tiny"]).bytes
    assert set(kept(planned("qwen2_vl", bound=int(1.02 * need))[1])) != set(stages)
    assert set(kept(planned("qwen2_vl", bound=int(2.1 * need))[1])) == set(stages)


def test_the_stages_of_a_run_find_them(planned, root, tmp_path):
    """Tokens from stored pictures; the count of the teacher's tokens; a first stage, and one that starts from it."""
    _, stages, _ = planned("qwen2_vl", steps="steps: 4")
    source = tmp_path / "corpora" / "source" / "images"
    _, plain, _ = planned("qwen2_vl", steps="steps: 4", bound=1)
    said = {}
    for name, found in (("fed", stages), ("plain", plain)):
        by_id = {stage.id: stage for stage in found}
        for id in ("pictures/tiny", "encode/tiny", "teacher/count/tiny", "student/ce/seed0/one", "student/ce/seed0"):
            if id not in by_id:
                continue
            stage = by_id[id]
            stage.places["images"] = str(source)
            module, _, function = stage.run.partition(":")
            context = Context(stage, Settings(root, "cpu", 1), {}, lambda *_: None)
            context.out(stage.targets[0]).parent.mkdir(parents=True, exist_ok=True)
            getattr(importlib.import_module(module), function)(context)
            remove(root / stage.targets[0])
            context.out(stage.targets[0]).rename(root / stage.targets[0])
        counted = (root / "teacher" / "count" / "tiny.json").read_text()
        paths = [root / by_id[id].targets[0] for id in ("student/ce/seed0/one", "student/ce/seed0")]
        facts = [json.loads((path / "training.json").read_text()) for path in paths]
        weights = [(path / "student" / "model.safetensors").read_bytes() for path in paths]
        said[name] = (counted, facts, weights)
    read = {"tokens": {"student": f"tokens of {ROWS} rows, made once"}}
    read["pictures"] = {"images": f"{images(root)} pictures, decoded once"}
    assert said["fed"][1] == [{**facts, **read} for facts in said["plain"][1]]
    assert (said["fed"][0], said["fed"][2]) == (said["plain"][0], said["plain"][2])


def test_a_running_student_keeps_the_tokens_that_it_maps(planned, root, tmp_path):
    """Though they are the least recently used, and another cache has no room beside them."""
    _, stages, _ = planned("qwen2_vl", recipes="ce")
    source = tmp_path / "corpora" / "source" / "images"
    by_id = {stage.id: stage for stage in stages}
    with_corpus(root, stages)
    tokens, other = by_id["encode/tiny"], by_id["pictures/tiny"]
    place = tokens.places.pop("pictures")
    tokenise(root, tokens, stages, source)
    tokens.places["pictures"] = place
    keeper = caching.Keeper(root, stages, rows.planned_pictures(root, other).bytes + 100)
    finished = {"corpus/tiny", tokens.id}
    assert [cache.stage for cache in keeper.to_delete([other], finished, [])] == [tokens.id]
    assert keeper.to_delete([other], finished, ["student/ce/seed0"]) is None


def test_what_turns_out_not_to_fit_says_so_in_its_place(planned, root, tmp_path, monkeypatch):
    """The plan was made before the corpus was there."""
    from students.data.corpus import IndexedCorpus
    from students.data.decoded import Decoded

    stage, source = kept(planned("qwen2_vl")[1])["pictures/tiny"], tmp_path / "corpora" / "source" / "images"
    monkeypatch.setattr("harness.worth.SHARE_OF_FREE", 1e-12)
    assert do(stage, root, source) <= rows.planned_pictures(root, stage).bytes
    corpus = IndexedCorpus(root / "corpora" / "tiny", source)
    shown = Decoded(corpus, root / stage.targets[0])
    assert "are more than 0% of what is free on the disk" in shown.why
    key = next(row.images[0] for row in corpus if row.images)
    assert (shown.picture(key) == corpus.picture(key)).all()
