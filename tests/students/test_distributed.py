"""Two processes that share a step's rows learn what one process learns, write the same records, and end together."""

import os
import signal
import time

import pytest
import together
from killing import identical
from tiny_corpus import indexed
from together import Case
from twin_families import twin

from harness.base import UserError
from students import resume
from students.distil import Inputs, StreamInputs
from students.options import DistilOptions, Lora
from students.recipe import Variant

PACKED = DistilOptions(
    steps=12, rows=6, turns=3, warmup=1, betas_every=3, flush_every=4, optimiser="adamw", lr=1e-3, weighting_lr=1e-2
)
STREAM = DistilOptions(
    steps=12, rows=5, warmup=1, betas_every=3, flush_every=4, optimiser="adamw", lr=1e-3, max_length=400, overlong="replace"
)
FAST_TAID = Variant(energies={"taid": {"alpha": 0.1}})
#: Features that a gate reads of logits, also where there are none at once.
LOOKING = Variant(weighting={"features": ("student_prompt", "scalars")})
CHUNK = 680


def case(recipe, inputs="packed", micro=None, variant=None, limit=None, **changes):
    options = (STREAM if inputs in ("stream", "untied") else PACKED).model_copy(
        update={"live_teacher": inputs == "live", **changes}
    )
    one, two = (options.model_copy(update={"micro_rows": rows}) for rows in ((2 * micro, micro) if micro else (None, None)))
    name = f"{inputs} {recipe} {micro or 'whole'}" + (f" chunks of {limit}" if limit else "")
    return Case(name, recipe, inputs, two, one, variant, limit=limit)


FAST = [
    case("ce+ctkd+fd@instance", micro=1),
    case("ce+taid@famo", variant=FAST_TAID),
    case("ce+fkl@gradnorm", micro=2),
    case("ce+fkl@released_instance", "live", micro=1),
    case("ce+fd+fkl@instance", "stream", rows=6, micro=1),
    # the head in chunks on two processes, at once on one: a tied head, then one of its own
    case("ce+fkl@instance", limit=CHUNK, variant=LOOKING),
    case("ce+taid@famo", "untied", rows=6, micro=2, limit=3000, variant=FAST_TAID),
]
SLOW = [
    case("ce"),
    case("ce+fkl@task", micro=1),
    case("ce+fkl@instance", "live", micro=2),
    case("ce+ctkd+fd@instance", "live"),
    case("ce+taid@famo", micro=1, variant=FAST_TAID),
    case("ce+fkl@rlw"),
    case("ce+fkl+fd@dwa", variant=Variant(weighting={"window": 3})),
    case("ce+fkl@gls", micro=2),
    case("ce+fkl@uwso"),
    case("ce+taid@famo", "stream", rows=6, micro=2, variant=FAST_TAID),
    case("ce", "stream", rows=8, micro=1, grouping="modality_length"),
    case("ce+fkl@task", micro=1, gradient_checkpointing=True),
    case("ce+fkl@task", micro=1, optimiser="muon", lr=3e-3),
    case("ce+taid@famo", micro=1, limit=CHUNK, variant=FAST_TAID),
    case("ce+fkl@instance", "untied", rows=6, limit=3000, variant=LOOKING),
    case("ce+fkl@gradnorm", "live", micro=2, limit=CHUNK),
    case("ce+ctkd+fd@instance", "stream", rows=6, micro=1, limit=3000, gradient_checkpointing="selective"),
    case("ce+fkl@task", "stream", rows=6, lora=Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj",))),
]
#: What is killed at step 7 and resumed after step 6, and the same in one go.
KILLED = case("ce+taid@famo", "stream", rows=4, micro=1, save_every=3, flush_every=3, steps=12, variant=FAST_TAID,
              lora=Lora(rank=2, alpha=4, dropout=0.2, targets=("q_proj", "v_proj")))  # fmt: skip

#: Autocast, with rows of one shape in both: losses and the teacher's weights are in float32, whoever runs the model.
HALF = Case("half", "ce+fd+fkl@task", "live", *[PACKED.model_copy(update={"live_teacher": True, "micro_rows": 3,
            "precision": "bf16", "betas_every": 1})] * 2)  # fmt: skip

#: What two processes begin, and one finishes.
ALONE = case("ce+taid@famo", micro=1, save_every=3, flush_every=3, variant=FAST_TAID)


@pytest.fixture(scope="module")
def given(folders, data, encoded, signal, tmp_path_factory):
    where = tmp_path_factory.mktemp("stream")
    corpus = indexed(where / "corpus", rows=14, seed=3, text_only=0.3)
    packed = Inputs(folders / "base", data, encoded, signal, folders / "teacher")
    streams = {}
    for name, family in (("stream", "llava_qwen"), ("untied", "llava")):
        student, teacher = (twin(family, where / name / size, size, k) for k, size in enumerate(("student", "teacher")))
        streams[name] = StreamInputs(student, corpus, teacher)
    return {"packed": packed, "live": packed, **streams}


def _all(ranks, cases, given, out):
    for number, each in enumerate(cases):
        together.train(each, given[each.inputs], out / str(number))


def _wrong(ranks, given, out, what):
    """The error of a training in which something is wrong on rank 1 alone, on each of the ranks."""
    from students import feed, losses

    def fails(self, members):
        raise UserError("the row is bad")

    def floods(self, *given):
        found = forward(self, *given)
        found.by_channel["fkl"] = found.by_channel["fkl"] * float("nan")
        return found

    part, forward = feed.PackedFeed.part, losses.Losses.forward
    try:
        if ranks.rank == 1 and what == "row":
            feed.PackedFeed.part = fails
        if ranks.rank == 1 and what == "nan":
            losses.Losses.forward = floods
        micro = 5 if what == "few" else None  # a micro-batch of 10 rows and one of 1
        options = PACKED.model_copy(update={"rows": 11, "micro_rows": micro} if what == "few" else {})
        try:
            together.train(case("ce+fkl@task"), given["packed"], out / what, options)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return type(error).__name__, str(error)
    finally:
        feed.PackedFeed.part, losses.Losses.forward = part, forward
    return None


def _mixed(ranks, given, out):
    """Everything of the fast tests in one start: trainings, errors between them, and a killed one that goes on."""
    _all(ranks, FAST[:2], given, out)
    errors = {what: _wrong(ranks, given, out, what) for what in ("row", "nan", "few")}
    _all(ranks, FAST, given, out)
    together.train(KILLED, given["stream"], out / "killed")
    together.train(KILLED, given["stream"], out / "unbroken")
    together.leave_after(7, ALONE, given["packed"], out / "alone")  # for one process to go on from
    together.train(HALF, given["live"], out / "half")
    return errors


def _dies(ranks, given, out):
    """Train until rank 1 kills itself in step 8; return what rank 0 then says."""
    from students.training import Training

    step = Training.step

    def mortal(self, number, members):
        if number == 8 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, number, members)

    Training.step = mortal
    try:
        together.train(KILLED, given["stream"], out / "killed")
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__, str(error)


@pytest.fixture(scope="module")
def died(given, tmp_path_factory):
    """The folder of a training of which a process was killed, what the other said, and after how many seconds."""
    out = tmp_path_factory.mktemp("shared")
    made, answers = together.start(_dies, given, out)
    made[1].join(100)
    killed = time.monotonic()
    try:
        _, said, failed = answers.get(timeout=60)
    finally:
        for process in made:
            process.kill()
    assert failed is None, failed
    return out, said, time.monotonic() - killed


@pytest.fixture(scope="module")
def shared(given, died):
    """The folder of the fast trainings, and the errors of those that went wrong."""
    out = died[0]
    return out, together.run(_mixed, given, out)


@pytest.mark.parametrize("number", range(len(FAST)), ids=[each.name for each in FAST])
def test_two_processes_do_what_one_does(shared, given, tmp_path, number):
    each = FAST[number]
    together.train(each, given[each.inputs], tmp_path / "alone", each.alone)
    together.same(tmp_path / "alone", shared[0] / str(number))


def test_half_precision_is_that_of_one_process(shared, given, tmp_path):
    together.train(HALF, given["live"], tmp_path)
    one, other = (together.lines(out)[0] for out in (tmp_path, shared[0] / "half"))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert other["teacher_entropy"] == pytest.approx(one["teacher_entropy"], rel=1e-6)


def test_a_killed_process_ends_the_other_at_once(died):
    _, (kind, message), seconds = died
    assert kind == "LostRank"
    assert "another process of this run ended" in message
    assert "\n" not in message
    assert seconds < 20


def test_a_killed_training_goes_on_to_the_same_bits(shared):
    """Each process has its own generator, whose state is in the point: dropout draws from it."""
    out = shared[0]
    identical(out / "killed", out / "unbroken")
    assert not resume.points(out / "killed")


def test_one_process_goes_on_where_two_were(shared, given, tmp_path):
    out = shared[0] / "alone"
    assert [path.name for path in resume.points(out)] == ["step-000000006.pt"]
    together.train(ALONE, given["packed"], out)
    together.train(ALONE, given["packed"], tmp_path / "whole")
    together.same(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("row", "UserError", "the row is bad"),
        ("nan", "FloatingPointError", "channel 'fkl' is not finite at step 1;"),
        ("few", "UserError", "a step has 11 rows in micro-batches of 10, which leaves 1 to 2 processes at once"),
    ],
)
def test_what_fails_on_one_process_fails_on_all_with_one_error(shared, what, kind, words):
    """And the processes go on to the next training: these ran between others."""
    out, errors = shared
    first, second = (each[what] for each in errors)
    assert first == second
    assert first[0] == kind
    assert words in first[1]
    assert not (out / what / "student").exists()
    if what == "nan":  # the logits of each process's own rows are beside its samples
        found = {path.name for path in (out / "nan" / "failure").iterdir()}
        assert found == {"failure.json", "failure.safetensors", "failure-rank1.safetensors"}


@pytest.fixture(scope="module")
def shared_slow(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("slow")
    together.run(_all, SLOW, given, out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SLOW)), ids=[each.name for each in SLOW])
def test_two_processes_do_what_one_does_for_all(shared_slow, given, tmp_path, number):
    each = SLOW[number]
    together.train(each, given[each.inputs], tmp_path / "alone", each.alone)
    together.same(tmp_path / "alone", shared_slow / str(number))
