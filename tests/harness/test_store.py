"""The ledger: what is complete is kept, what is half-written or changed is never taken for a result."""

import multiprocessing
import os

import filelock
import pytest
from fake_plan import stage

from harness import base, plan, store
from harness.base import UserError, write_json
from harness.execute import StageError


@pytest.fixture
def chain():
    return [stage("a"), stage("b", reads=["a.txt"]), stage("c", reads=["b.txt"])]


def test_second_pass_does_nothing(carry_out, chain):
    assert carry_out(chain).worked == ["a", "b", "c"]
    assert plan.survey(carry_out.root, chain) == {"a", "b", "c"}
    assert (carry_out.root / "c.txt").read_text() == "cba"
    assert carry_out(chain).worked == []


def test_changed_configuration_repeats_what_is_behind_it(carry_out, chain):
    carry_out(chain)
    chain[1] = stage("b", reads=["a.txt"], text="B")
    assert carry_out(chain).worked == ["b", "c"]
    assert (carry_out.root / "c.txt").read_text() == "cBa"


def test_raised_version_repeats_the_stage_but_not_what_reads_the_same_bytes(carry_out, chain):
    carry_out(chain)
    chain[0] = stage("a", version=2)
    log = carry_out(chain)
    assert log.worked == ["a"]
    assert log.unchanged == ["b", "c"]


def test_missing_output_is_made_again(carry_out, chain):
    carry_out(chain)
    (carry_out.root / "b.txt").unlink()
    assert carry_out(chain).worked == ["b"]


@pytest.mark.parametrize("damage", ["", "cb", "xba"])
def test_damaged_output_is_named_and_nothing_is_touched(carry_out, chain, damage):
    carry_out(chain)
    path = carry_out.root / "c.txt"
    path.write_text(damage)
    with pytest.raises(UserError, match=f"{path} is damaged.*Delete it and run the same command again"):
        carry_out(chain)
    assert path.read_text() == damage


def test_whole_files_are_read_once_and_not_at_every_plan(carry_out, chain, monkeypatch):
    carry_out(chain)
    read = []
    monkeypatch.setattr(store, "digest_file", lambda path: read.append(path.name) or base.digest_file(path))
    assert plan.survey(carry_out.root, chain) == {"a", "b", "c"}
    assert read == []
    path = carry_out.root / "b.txt"
    os.utime(path, ns=(0, 0))  # of a copied run folder, say
    assert plan.survey(carry_out.root, chain) == {"a", "b", "c"}
    assert read == ["b.txt"]
    store.renew_times(carry_out.root, store.read_entry(carry_out.root, "b"))
    assert plan.survey(carry_out.root, chain) == {"a", "b", "c"}
    assert read == ["b.txt"]


def test_entries_written_before_times_were_recorded_are_still_known(carry_out, chain):
    carry_out(chain)
    path = store.entry_path(carry_out.root, "b")
    entry = base.read_json(path)
    del entry["cache"], entry["outputs"]["b.txt"]["mtime_ns"]
    write_json(path, entry)
    assert carry_out(chain).worked == []


def test_damaged_ledger_entry_is_named(carry_out, chain):
    carry_out(chain)
    store.entry_path(carry_out.root, "b").write_text("{")
    with pytest.raises(UserError, match=r"stages/b\.json is damaged"):
        plan.survey(carry_out.root, chain)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_dead_worker_leaves_nothing_that_counts(carry_out, tmp_path, how):
    stages = [stage("f", run="folder", targets=("f",), how=how)]
    with pytest.raises(StageError, match="f failed: its worker died"):
        carry_out(stages)
    assert not (carry_out.root / "f").exists()
    assert (carry_out.root / "f.partial" / "first.txt").exists()
    assert plan.survey(carry_out.root, stages) == set()
    (tmp_path / "survive").touch()
    assert carry_out(stages).worked == ["f"]  # mkdir without exist_ok: the partial folder was cleared
    assert not (carry_out.root / "f.partial").exists()


def test_resuming_stage_finds_its_partial_output(carry_out):
    stages = [stage("r", run="resume", resumes=True)]
    with pytest.raises(StageError):
        carry_out(stages, attempts=1)
    carry_out(stages)
    assert (carry_out.root / "r.txt").read_text() == "first second"


def test_resuming_stage_with_another_digest_starts_afresh(carry_out):
    with pytest.raises(StageError):
        carry_out([stage("r", run="resume", resumes=True)], attempts=1)
    with pytest.raises(StageError):  # it finds nothing, and so dies again
        carry_out([stage("r", run="resume", resumes=True, text="other")], attempts=1)


def test_killed_between_rename_and_ledger_repeats_the_stage(carry_out, chain):
    carry_out(chain)
    (carry_out.root / "b.txt").write_text("of an attempt whose entry was never written")
    store.entry_path(carry_out.root, "b").unlink()
    assert carry_out(chain).worked == ["b"]
    assert (carry_out.root / "b.txt").read_text() == "ba"


def test_every_prefix_of_a_commit_is_safe(tmp_path, monkeypatch):
    """Stop a commit before each of its file operations: afterwards the stage is either undone or complete and whole."""
    targets = ("one.txt", "two")
    reached_end = False
    for stop_at in range(20):
        root = tmp_path / str(stop_at)
        for attempt in ("old", "new"):
            store.begin(root, "s", attempt, targets, resumes=False)
            store.partial(root, "one.txt").write_text(attempt)
            store.partial(root, "two").mkdir()
            (store.partial(root, "two") / "file").write_text(attempt)
            if attempt == "old":
                store.commit(root, "s", attempt, 1, targets, 0.0)
        reached_end = _commit_until(root, targets, stop_at, monkeypatch)
        entry = store.read_entry(root, "s")
        assert entry is None or (entry.digest == "new" and store.is_complete(root, entry))
        if reached_end:
            break
    assert reached_end and stop_at > 2


def _commit_until(root, targets, stop_at, monkeypatch):
    class Stopped(Exception):
        pass

    count = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            if count == stop_at:
                raise Stopped
            count += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", counted(store.Path.replace))
        patch.setattr(store, "remove", counted(store.remove))
        try:
            store.commit(root, "s", "new", 1, targets, 0.0)
        except Stopped:
            return False
    return True


def test_stage_that_writes_nothing_is_a_failure(tmp_path):
    store.begin(tmp_path, "s", "d", ("out.txt",), resumes=False)
    with pytest.raises(RuntimeError, match="wrote nothing"):
        store.commit(tmp_path, "s", "d", 1, ("out.txt",), 0.0)


# ---- whose folder it is ----


def test_foreign_folders_are_refused_and_untouched(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not a run folder: it holds 'thesis\.tex'"), store.locked(other, "fake"):
        pass
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]

    run = tmp_path / "run"
    write_json(run / "manifest.json", {"preset": {"name": "easyvqa"}})
    with pytest.raises(UserError, match="holds a run of preset 'easyvqa', not 'fake'"), store.locked(run, "fake"):
        pass
    assert [p.name for p in run.iterdir()] == ["manifest.json"]

    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file"), store.locked(file, "fake"):
        pass


def test_folder_of_a_run_killed_before_its_manifest_is_ours(tmp_path):
    root = tmp_path / "run"
    with store.locked(root, "fake"):
        (root / ".manifest.json.abc.tmp").touch()
    with store.locked(root, "fake"):
        assert not list(root.glob(".*.tmp"))


def test_lost_manifest_does_not_lose_the_run(carry_out, chain):
    carry_out(chain)
    (carry_out.root / "manifest.json").unlink()
    assert carry_out(chain).worked == []


def _hold(root, ready, release):
    with store.locked(root, "fake"):
        ready.set()
        release.wait(10)


def test_second_process_is_told_who_holds_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", ready, release))
    process.start()
    assert ready.wait(20)
    with pytest.raises(UserError, match=f"in use by process {process.pid} "), store.locked(tmp_path / "run", "fake"):
        pass
    release.set()
    process.join()
    with store.locked(tmp_path / "run", "fake"):
        pass


def test_new_run_waits_for_workers_of_a_dead_one(tmp_path, monkeypatch):
    root = tmp_path / "run"
    root.mkdir()
    monkeypatch.setattr(store, "_ORPHAN_SECONDS", 0.1)
    with (
        store.worker_lock(root, 0),
        pytest.raises(UserError, match="still alive"),
        store.locked(root, "fake"),
    ):
        pass
    assert isinstance(store.worker_lock(root, 0), filelock.BaseFileLock)
    with store.locked(root, "fake"):
        assert root.is_dir()
