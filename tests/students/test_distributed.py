"""Two processes that share a step's rows learn what one process learns, and write the same records."""

import pytest
import together
from tiny_corpus import indexed
from together import Case
from twin_families import twin

from students.distil import Inputs, StreamInputs
from students.options import DistilOptions
from students.recipe import Variant

PACKED = DistilOptions(
    steps=12, rows=6, turns=3, warmup=1, betas_every=3, flush_every=4, optimiser="adamw", lr=1e-3, weighting_lr=1e-2
)
STREAM = DistilOptions(
    steps=12, rows=5, warmup=1, betas_every=3, flush_every=4, optimiser="adamw", lr=1e-3, max_length=400, overlong="replace"
)  # fmt: skip


def case(recipe, inputs="packed", micro=None, variant=None, **changes):
    options = (STREAM if "stream" in inputs else PACKED).model_copy(update={"live_teacher": inputs == "live", **changes})
    one, two = (options.model_copy(update={"micro_rows": rows}) for rows in ((2 * micro, micro) if micro else (None, None)))
    return Case(f"{inputs} {recipe} {micro or 'whole'}", recipe, inputs, two, one, variant)


CASES = [
    case("ce"),
    case("ce", micro=2, optimiser="muon"),
    case("ce+fkl@task", micro=1),
    case("ce+fkl@instance"),
    case("ce+fkl@instance", "live", micro=2),
    case("ce+taid@famo", micro=1, variant=Variant(energies={"taid": {"alpha": 0.1}})),
    case("ce+ctkd+fd@instance"),
    case("ce+ctkd+fd@instance", "live", micro=1),
    case("ce+fkl@gradnorm", micro=1),
    case("ce+fkl@rlw"),
    case("ce+fkl@released_instance", micro=1),
    case("ce+fkl+fd@dwa", variant=Variant(weighting={"window": 3})),
    case("ce+fkl@gls", micro=2),
    case("ce+fkl@uwso"),
    case("ce+fd+fkl@instance", "stream", rows=6, micro=1),
    case("ce+taid@famo", "stream", variant=Variant(energies={"taid": {"alpha": 0.1}})),
    case("ce", "stream", rows=8, micro=1, grouping="modality_length"),
]


@pytest.fixture(scope="module")
def given(folders, data, encoded, signal, tmp_path_factory):
    where = tmp_path_factory.mktemp("stream")
    corpus = indexed(where / "corpus", rows=14, seed=3, text_only=0.3)
    student, teacher = (twin("llava_qwen", where / size, size, k) for k, size in enumerate(("student", "teacher")))
    packed = Inputs(folders / "base", data, encoded, signal, folders / "teacher")
    return {"packed": packed, "live": packed, "stream": StreamInputs(student, corpus, teacher)}


def _all(ranks, cases, given, out):
    for number, each in enumerate(cases):
        together.train(each, given[each.inputs], out / str(number))


@pytest.fixture(scope="module")
def shared(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    together.run(_all, CASES, given, out)
    return out


@pytest.mark.parametrize("number", range(len(CASES)), ids=[each.name for each in CASES])
def test_two_processes_do_what_one_does(shared, given, tmp_path, number):
    each = CASES[number]
    together.train(each, given[each.inputs], tmp_path / "alone", each.alone)
    together.same(tmp_path / "alone", shared / str(number))
