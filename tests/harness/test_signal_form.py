"""In what form the teacher's signal is kept, which stages ask the teacher, and who needs it live."""

import math
import subprocess
import sys

import pytest
from small_models import model

from harness import caching, config, plan, selection
from harness.base import UserError, write_json
from harness.blueprint import Blueprint, cells
from harness.caching import GB
from harness.signal_form import AUTO_GB, SHARE, TOKENS_SHARE, Signal, choose
from harness.signal_plan import SignalPlan
from harness.sources import Sources
from harness.stages import corpus, encode, signal
from students import energies
from students.recipe import Variant
from students.teacher_signal import declared
from students.teacher_signal.forms import LARGEST_K, SMALLEST_K, Form, Size

AUTO = Signal()
LLAVA = Size(tokens=100_000, samples=10_000, vocabulary=32_000, hidden=2048)


def gb(size, form):
    return size.total(form) / GB


# ---- the choice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_gb", "expected"),
    [
        (None, Form("exact", "float32")),
        (2.1 * gb(LLAVA, Form("exact", "float32")), Form("exact", "float32")),
        (1.9 * gb(LLAVA, Form("exact", "float32")), Form("half", "float16")),
        (1.9 * gb(LLAVA, Form("half", "float16")), Form("topk", "float16", LARGEST_K)),
        (2.1 * gb(LLAVA, Form("topk", "float16", 64)), Form("topk", "float16", 64)),
        (2.1 * gb(LLAVA, Form("topk", "float16", SMALLEST_K)), Form("topk", "float16", SMALLEST_K)),
    ],
)
def test_auto_takes_the_first_form_that_fits(cache_gb, expected):
    found = choose(AUTO, LLAVA, cache_gb, whole=False)
    assert found.form == expected
    assert found.bytes == LLAVA.total(expected)
    assert found.bytes <= (AUTO_GB if cache_gb is None else SHARE * cache_gb) * GB
    assert "--cache-gb" in found.why
    assert found == choose(AUTO, LLAVA, cache_gb, whole=False)


def test_without_a_bound_auto_does_not_fill_the_disk():
    size = Size(10**8, 10**6, 32_000, 2048)
    found = choose(AUTO, size, None, whole=False)
    assert found.form.k is not None and found.bytes <= AUTO_GB * GB
    assert "exact, float32 would take 1.28e+04 GB, half, float16 6.42e+03 GB" in found.why
    assert choose(Signal(form="exact"), size, None, whole=False).form == Form("exact", "float32")


def test_half_of_a_teacher_in_bfloat16_is_no_smaller():
    size = Size(100_000, 10_000, 32_000, 2048, "bfloat16")
    assert choose(AUTO, size, 2.1 * gb(size, Form("exact", "bfloat16")), whole=False).form == Form("exact", "bfloat16")
    assert choose(AUTO, size, 1.9 * gb(size, Form("exact", "bfloat16")), whole=False).form.k == LARGEST_K


def test_small_vocabularies_have_few_likeliest_tokens():
    size = Size(10**6, 10**4, 172, 64)
    assert choose(AUTO, size, 1.9 * gb(size, Form("half", "float16")), whole=False).form == Form("topk", "float16", 32)


def test_what_does_not_fit_names_both_ways_out():
    tiny = 0.5 * gb(LLAVA, Form("topk", "float16", SMALLEST_K))
    halves = 1.9 * gb(LLAVA, Form("half", "float16"))
    words = r"too large to be kept: exact, float32 would take 13 GB.*--cache-gb.*--live-teacher"
    for whole, wanted, bound in ((False, AUTO, tiny), (True, AUTO, halves), (False, Signal(form="topk"), tiny)):
        with pytest.raises(UserError, match=words) as error:
            choose(wanted, LLAVA, bound, whole)
        assert ("every token" in str(error.value)) == whole
        assert "\n" not in str(error.value)


def test_a_named_form_is_taken():
    assert choose(Signal(form="half"), LLAVA, 0.001, whole=True).form == Form("half", "float16")
    assert choose(Signal(form="topk", k=100), LLAVA, None, whole=False).form == Form("topk", "float16", 100)
    assert choose(Signal(form="topk"), LLAVA, None, whole=False).form.k == LARGEST_K
    with pytest.raises(UserError, match="k is 32000"):
        choose(Signal(form="topk", k=32_000), LLAVA, None, whole=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{form: quarter}", "signal.form"),
        ("{k: 8}", "k belongs to form topk"),
        ("{form: topk, k: 0}", "signal.k"),
        ("{shape: topk}", "unknown field 'signal.shape'"),
    ],
)
def test_bad_forms_are_refused(tmp_path, text, words):
    path = tmp_path / "p.yaml"
    path.write_text(f"extends: miniature\nname: p\nsignal: {text}\n")
    with pytest.raises(UserError, match=words):
        config.load_preset(str(path))


# ---- what energies declare -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", energies.names())
def test_declarations_are_read_from_files(name):
    widths = dict.fromkeys(("attention", "vision", "vision_logits"), (2, 2))
    built = energies.build(name, widths=widths)
    found = declared.declared(name)
    assert found.taps == built.needs - {"labels"}
    assert found.bins == built.bins
    hot = Variant(energies={name: {"temperature": 2.0}})
    assert (declared.whole((name,), hot) == [name]) or built.bins


def test_a_plan_with_signals_imports_no_torch():
    code = "import sys, harness.signal_plan, harness.stages.signal, harness.blueprint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_energies_are_unknown_here_too():
    with pytest.raises(UserError, match="fkl"):
        declared.declared("fkll")


# ---- stages of packed data -------------------------------------------------------------------------------------------------


def stages(preset, students, seeds=(0,), data_root=None):
    chosen = [config.load_recipe(word) for word in students.split(",")]
    wanted = cells(chosen, list(seeds), list(preset.protocols)[:1], preset.models.names)
    return {s.id: s for s in Blueprint(preset, preset.models, None, wanted, data_root).stages()}


@pytest.fixture(scope="module")
def preset():
    return config.load_preset("miniature")


def test_the_usual_signal_has_the_digest_that_it_always_had(preset):
    found = stages(preset, "ce,ce+fkl@task")["teacher/signal"]
    assert set(found.config) == {"training", "threads", "blind"}
    assert found.version == 2
    assert (found.kind, found.reads) == ("signal", ("data",))
    bounded = stages(selection.bounded(preset, 3.0), "ce")["teacher/signal"]
    assert (bounded.config, bounded.choice["cache_gb"], found.choice["cache_gb"]) == (found.config, 3.0, None)
    half = preset.model_copy(update={"signal": Signal(form="half")})
    assert stages(half, "ce")["teacher/signal"].config["signal"] == {"form": "half", "k": None}


def test_whole_distributions_are_asked_for_where_an_energy_needs_them(preset):
    for recipes, whole in (("ce", "ce+fkl@task"), False), (("ce", "mse_logits"), True):
        found = preset.model_copy(update={"recipes": recipes})
        assert stages(found, "ce")["teacher/signal"].choice["whole"] == whole


def test_a_student_asked_for_beside_the_presets_counts_too(preset):
    few = preset.model_copy(update={"recipes": ("ce", "ce+fkl@task")})
    assert not stages(few, "ce")["teacher/signal"].choice["whole"]
    assert stages(few, "ce,mse_logits")["teacher/signal"].choice["whole"]


def refused(preset, students, root, done=()):
    """What the plan says before anything runs."""
    chosen = [config.load_recipe(word) for word in students.split(",")]
    blueprint = Blueprint(preset, preset.models, None, cells(chosen, [0], ["pope@miniature"], preset.models.names))
    blueprint.training.signal.check(root, blueprint.stages(), set(done))


def test_who_cannot_hear_bins_is_refused_before_anything_runs(preset, tmp_path):
    """Hours before its training would: a wished form, and one that was taken when nobody minded."""
    wished = preset.model_copy(update={"signal": Signal(form="topk", k=8)})
    words = r"student ce\+mse_logits@fixed seed0: mse_logits .*form topk.*--live-teacher.*exact or half"
    refused(wished, "ce,ce+fkl@task", tmp_path)
    with pytest.raises(UserError, match=words) as error:
        refused(wished, "ce,ce+mse_logits@fixed", tmp_path)
    assert "\n" not in str(error.value)
    refused(wished, "ce,ce+mse_logits@fixed", tmp_path, ["student/ce+mse_logits@fixed/seed0"])
    refused(selection.live(wished), "ce+mse_logits@fixed", tmp_path)
    record = tmp_path / signal.record(signal.SIGNAL)
    for form, fits in (("half, float16", True), ("topk, k = 8, float16", False)):
        write_json(record, {"form": form, "bytes": 1, "why": "", "errors": None})
        if fits:
            refused(preset, "mse_logits", tmp_path, [signal.SIGNAL])
            continue
        refused(preset, "mse_logits", tmp_path)  # it is made again, in a form that is chosen anew
        with pytest.raises(UserError, match="student mse_logits seed0"):
            refused(preset, "mse_logits", tmp_path, [signal.SIGNAL])


def test_a_bound_too_small_for_a_signal_that_nobody_needs_is_no_error(preset, tmp_path, monkeypatch):
    """Students that are done need no signal, and one that is there was not chosen by this bound."""

    def too_large(root, stage):
        raise UserError("the teacher's signal is too large to be kept")

    monkeypatch.setattr(signal, "planned", too_large)
    blueprint = Blueprint(
        preset, preset.models, None, cells([config.load_recipe("ce")], [0], ["pope@miniature"], preset.models.names)
    )
    found = blueprint.vision.settled(tmp_path, blueprint.stages(), 10**6)
    made = [stage for stage in found if stage.kind == "signal"]
    done = {stage.id for stage in found}
    caching.Keeper(tmp_path, found, 10**6).check(done)
    assert caching.lines(tmp_path, found, done, 10**6)[0].endswith("not there, not needed")
    with pytest.raises(UserError, match="too large to be kept"):
        caching.Keeper(tmp_path, found, 10**6).check(done - {made[0].id})


def test_the_published_presets_say_what_their_live_teachers_signal_would_take():
    def said(name, students):
        preset = config.load_preset(name)
        return SignalPlan(preset, Sources(preset.models)).beside(students)

    captions, instructions = said("paper-table4", ["ce", "ce+cosine_probs@fixed"])
    assert captions.startswith("stage captions: the teacher runs beside each student")
    assert "exact, bfloat16 19," in captions and "1,246,000 rows of about 243 tokens" in captions
    assert instructions.startswith("stage instructions")
    assert said("paper-table4", ["ce", "ce+align_kd@fixed"]) == [], "they need it live anyway, and the plan says so"
    for name in ("paper-table1", "paper-table2", "paper-table3"):
        assert said(name, config.load_preset(name).recipes) == [], "answers of a letter or a sentence are kept"
        assert not any(stage.training.live_teacher for stage in config.load_preset(name).stages)


def test_vision_tokens_are_kept_for_those_who_read_nothing_else(preset):
    plain, with_fd = stages(preset, "ce,fkl"), stages(preset, "fd,align_kd,ce+fd+fkl@task")
    assert signal.KEPT not in plain
    assert with_fd[signal.KEPT].cache
    for name, uses in (("fd", True), ("align_kd", False), ("ce+fd+fkl@task", True)):
        stage = with_fd[f"student/{name}/seed0"]
        assert (signal.KEPT in stage.uses) == uses == ("kept" in stage.places)
    live = stages(selection.live(preset), "fd,fkl")
    assert signal.KEPT not in live
    assert "teacher/signal" not in live
    said = Blueprint(preset, preset.models, None, [], None).training.signal
    assert said.live(["ce", "fd", "align_kd@fixed@focus4"]) == [
        "align_kd@fixed@focus4: the teacher runs beside it, because it reads attention of it"
    ]


def fake(tmp_path, **settings):
    """A signal stage of packed data in a run folder that holds what its size is counted from."""
    write_json(tmp_path / encode.TARGET / "meta.json", {"tokens": {"answers": 1000}, "ids": ["a"] * 400})
    place = model(tmp_path / "teacher", "llava")
    write_json(
        tmp_path / "teacher" / "config.json", {"model_type": "llava", "text_config": {"vocab_size": 500, "hidden_size": 8}}
    )
    facts = {"blind": {"says": "mean_image", "seed": 0}, **settings.pop("config", {})}
    return plan.Stage("teacher/signal", "signal", "", 2, facts, (signal.SIGNAL,), places={"teacher": place}, **settings)


def test_the_plan_and_the_stage_choose_alike_and_the_plan_knows_the_bytes(tmp_path):
    stage = fake(tmp_path)
    expected = Size(1000, 400, 500, 8)
    assert signal.size_of(tmp_path, stage) == expected
    assert signal.planned(tmp_path, stage).bytes == expected.total(Form())
    assert signal.decide(tmp_path, stage).form == Form()
    small = fake_again(stage, choice={"cache_gb": 1.5 * expected.total(Form()) / GB})
    assert signal.decide(tmp_path, small).form == Form("half", "float16")
    (tmp_path / encode.TARGET / "meta.json").unlink()
    assert signal.planned(tmp_path, stage).bytes is None


def fake_again(stage, **changes):
    from dataclasses import replace

    return replace(stage, **changes)


def test_a_mixture_is_kept_in_float32_whatever_the_teacher_is_in(tmp_path):
    stage = fake(tmp_path, config={"dtype": "bfloat16"})
    assert signal.size_of(tmp_path, stage).dtype == "bfloat16"
    mixed = fake_again(stage, config={**stage.config, "blind": {"says": "shuffled", "seed": 0}})
    assert signal.size_of(tmp_path, mixed).dtype == "float32"


def test_the_run_says_the_form_the_reason_and_what_was_measured(preset, tmp_path):
    errors = {
        "log_p": {"max": 0.5, "mean": 0.25, "expected": 0.1}, "kl": {"max": 1.0, "mean": 0.125},
        "rest": {"max": 1.0, "mean": 0.01},
        "losses": {"fkl": {"even": {"exact": 2.0, "kept": 1.5}, "softer": {"exact": 0.0, "kept": 0.0}}},
    }  # fmt: skip
    blueprint = Blueprint(preset, preset.models, None, cells([config.load_recipe("align_kd")], [0], ["pope@miniature"], ()))
    blueprint.stages()
    beside = "align_kd: the teacher runs beside it, because it reads attention of it"
    assert blueprint.training.signal.lines(tmp_path, ["ce", "align_kd"]) == [beside]
    record = {"form": "topk, k = 8, float16", "bytes": 2_000_000, "why": "nothing else fits", "errors": errors}
    write_json(tmp_path / signal.record(signal.SIGNAL), record)
    assert blueprint.training.signal.lines(tmp_path, ["ce"]) == [
        "teacher signal: topk, k = 8, float16, 0.002 GB at most, because nothing else fits; measured against exact: |d log p|"
        " at most 0.5, 0.25 in the mean; KL 0.12; 1 % of probability without a bin of its own; losses change by at most 25 %"
    ]
    (said,) = blueprint.training.signal.lines(tmp_path, ["ce"])
    (tmp_path / signal.record(signal.SIGNAL)).unlink()
    assert blueprint.training.signal.lines(tmp_path, ["ce"]) == []
    write_json(tmp_path / "manifest.json", {"signal": [said, "another: exact"]})
    assert blueprint.training.signal.lines(tmp_path, ["ce"]) == [said], "it was deleted, and students learned from it"


# ---- stages of corpora -----------------------------------------------------------------------------------------------------

STREAMED = """
name: streamed
title: t
description: d
protocols: [pope@miniature]
models: {{ teacher: {folder}/teacher, base: {folder}/base }}
corpora: {{ rows: {{ format: embedded }} }}
stages:
  - {{ name: one, corpus: rows, training: {{ steps: 2, rows: 4, micro_rows: 2, max_length: 100, template: plain }} }}
  - {{ name: two, corpus: rows, training: &two {{ steps: 2, rows: 4 }} }}
  - {{ name: three, corpus: rows, training: *two }}
recipes: [ce, ce+fkl@task, fd, align_kd]
"""


@pytest.fixture
def streamed(tmp_path):
    for name in ("teacher", "base"):
        model(tmp_path / name)
    path = tmp_path / "streamed.yaml"
    path.write_text(STREAMED.format(folder=tmp_path))
    return config.load_preset(str(path))


def test_each_reading_of_a_corpus_has_one_signal_for_all_students(streamed):
    found = stages(streamed, "ce,ce+fkl@task,fd,align_kd", (0, 1))
    asked = {name: stage for name, stage in found.items() if stage.kind == "signal"}
    assert set(asked) == {"teacher/signal/rows", "teacher/signal/rows-two"}
    first, rest = asked.values()
    assert (first.config["template"], first.config["limit"]) == ("plain", 100 + 4096)
    assert not {"template", "limit"} & set(rest.config)
    assert (first.config["training"], rest.config["training"]) == ({"rows": 2}, {"rows": 4})
    for stage in asked.values():
        assert stage.cache and stage.resumes
        assert corpus.target("rows") in stage.reads
        assert stage.places["count"] in stage.reads
    for seed in (0, 1):
        one, two, last = (found[f"student/ce+fkl@task/seed{seed}{name}"] for name in ("/one", "/two", ""))
        assert first.targets[0] in one.reads and rest.targets[0] in two.reads and rest.targets[0] in last.reads
        assert "teacher" not in one.given
        assert not [path for path in found[f"student/ce/seed{seed}"].reads if path.startswith("teacher")]
    assert signal.KEPT + "/rows" in found["student/fd/seed0/one"].uses
    beside = found["student/align_kd/seed0/one"]
    assert "teacher" in beside.given and "signal" not in beside.places


def test_nobody_asks_for_a_signal_that_nobody_hears(streamed):
    for students, preset in (("ce,align_kd", streamed), ("fd,ce+fkl@task", selection.live(streamed))):
        found = stages(preset, students)
        assert not [stage for stage in found.values() if stage.kind in ("signal", "count", "kept")]


def test_a_live_teacher_of_a_corpus_has_the_digests_that_it_always_had(streamed):
    found = stages(selection.live(streamed), "ce+fkl@task")["student/ce+fkl@task/seed0"]
    assert "live_teacher" not in found.config["training"]
    assert {"base", "corpus", "teacher"} <= set(found.places) <= {"base", "corpus", "teacher", "vision"}
    assert "teacher" in found.given
    assert not [path for path in found.uses if path.startswith("teacher")]


def test_room_beyond_a_students_limit_is_that_of_the_live_teacher():
    from students import feed_stream
    from students.options import DistilOptions

    assert DistilOptions(steps=1, max_length=7).teacher_limit == 7 + feed_stream.ROOM
    assert DistilOptions(steps=1).teacher_limit is None


def test_a_corpus_is_counted_before_its_form_is_chosen(streamed, tmp_path):
    stage = stages(streamed, "fd")["teacher/signal/rows"]
    write_json(tmp_path / "teacher" / "config.json", {"model_type": "mobilevlm", "vocab_size": 320, "hidden_size": 8})
    assert signal.planned(tmp_path, stage).bytes is None
    write_json(tmp_path / stage.places["count"], {"tokens": 7000, "rows": 90})
    assert signal.size_of(tmp_path, stage) == Size(7000, 90, 320, 8)
    write_json(tmp_path / corpus.target("rows") / "corpus.json", {"images": 50})
    kept = stages(streamed, "fd")["teacher/kept/rows"]
    found = signal.tokens_of(tmp_path, kept)
    assert found.fit
    assert found.bytes >= 50 * 144 * 8 * 4
    small = fake_again(kept, choice={"cache_gb": 0.5 * found.bytes / GB / TOKENS_SHARE})
    assert not signal.tokens_of(tmp_path, small).fit
    assert math.isclose(signal.planned_tokens(tmp_path, kept).bytes, found.bytes)
