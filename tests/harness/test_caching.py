"""Caches: deleted and damaged ones are made again when something needs them, and together they never exceed their bound."""

import os
import subprocess

import pytest
from fake_plan import stage

from harness import caching, cli, disk, plan, store
from harness.base import UserError, open_array, write_text
from harness.execute import DiskFull, StageError

SIZE = 1000


def cache(name, text=None, reads=(), run="write"):
    return stage(f"cache{name}", cache=True, text=text or name * SIZE, reads=reads, run=run)


@pytest.fixture
def chain():
    """A cache, and two students that read it."""
    return [cache("a"), stage("one", reads=["cachea.txt"]), stage("two", reads=["cachea.txt"])]


def deleted(root, name):
    (cache,) = (each for each in caching.held(root) if each.stage == name)
    caching.delete(cache)


# ---- deleted and damaged ---------------------------------------------------------------------------------------------------


def test_a_deleted_cache_is_made_again_only_when_something_needs_it(carry_out, chain):
    assert carry_out(chain).worked == ["cachea", "one", "two"]
    deleted(carry_out.root, "cachea")
    assert plan.survey(carry_out.root, chain) == {"cachea", "one", "two"}
    assert carry_out(chain).worked == []
    assert not (carry_out.root / "cachea.txt").exists()
    chain.append(stage("three", reads=["cachea.txt"]))
    assert plan.survey(carry_out.root, chain) == {"one", "two"}
    log = carry_out(chain)
    assert (log.worked, log.unchanged) == (["cachea", "three"], [])


def test_a_deleted_cache_of_a_cache_is_made_again_with_it(carry_out):
    stages = [cache("a"), cache("b", "b", reads=["cachea.txt"]), stage("one", reads=["cacheb.txt"])]
    carry_out(stages)
    deleted(carry_out.root, "cachea")
    assert carry_out([*stages, stage("two", reads=["cacheb.txt"])]).worked == ["two"]
    deleted(carry_out.root, "cacheb")
    found = carry_out([*stages, stage("three", reads=["cacheb.txt"])])
    assert found.worked == ["cachea", "cacheb", "three"]


@pytest.mark.parametrize("damage", ["a", "", "x" * SIZE])
def test_a_damaged_cache_is_made_again_and_said_in_one_line(carry_out, chain, damage):
    carry_out(chain)
    path = carry_out.root / "cachea.txt"
    path.write_text(damage)
    assert plan.look(carry_out.root, chain).damaged == (), "nobody needs it"
    assert carry_out(chain).worked == []
    chain.append(stage("three", reads=["cachea.txt"]))
    (line,) = plan.look(carry_out.root, chain).damaged
    assert line.startswith(f"{path} is damaged") and line.endswith("the cache is made again")
    assert carry_out(chain).worked == ["cachea", "three"]
    assert path.read_text() == "a" * SIZE
    path.with_name("one.txt").write_text("edited")
    with pytest.raises(UserError, match=r"one\.txt is damaged"):
        carry_out(chain)


def test_a_stale_cache_is_deleted_before_it_is_made_again(carry_out, chain):
    chain[0] = cache("a", run="watch")
    carry_out(chain)
    chain[0] = cache("a", "b" * SIZE, run="watch")
    assert carry_out(chain).worked == ["cachea", "one", "two"]
    held = (carry_out.root.parent / "held.log").read_text().split()
    assert held == ["cachea", str(SIZE)] * 2


def test_a_cache_that_was_being_made_again_when_killed_takes_nothing_with_it(carry_out, chain, tmp_path):
    chain[0] = stage("f", run="folder", targets=("f",), how="kill", cache=True)
    chain[1] = stage("one", reads=["f/second.txt"])
    (tmp_path / "survive").touch()
    carry_out(chain[:2])
    deleted(carry_out.root, "f")
    (tmp_path / "survive").unlink()
    with pytest.raises(StageError):
        carry_out([*chain[:2], stage("three", reads=["f/second.txt"])])
    assert plan.survey(carry_out.root, chain[:2]) == {"f", "one"}


def test_a_cache_that_comes_out_otherwise_repeats_what_read_it(carry_out, chain, monkeypatch):
    carry_out(chain)
    deleted(carry_out.root, "cachea")
    entry = store.read_entry(carry_out.root, "cachea")
    store.write_json(
        store.entry_path(carry_out.root, "cachea"),
        entry.model_copy(update={"outputs": {"cachea.txt": store.Output(sha256="0", size=1)}}).model_dump(),
    )
    log = carry_out(chain)  # as if it had been made otherwise: nothing that read it can be trusted to be of this one
    assert log.worked == ["cachea"] and log.unchanged == ["one", "two"]


# ---- the bound -------------------------------------------------------------------------------------------------------------


def test_the_bound_holds_at_every_moment_and_what_nobody_needs_goes_first(carry_out):
    names = "abcd"
    stages = [each for n in names for each in (cache(n, run="watch"), stage(n, run="watch", reads=[f"cache{n}.txt"]))]
    carry_out(stages, count=2, bound=2 * SIZE)
    held = [int(line.split()[1]) for line in (carry_out.root.parent / "held.log").read_text().splitlines()]
    assert len(held) == 8 and max(held) <= 2 * SIZE
    assert all((carry_out.root / f"{n}.txt").exists() for n in names)
    assert sum(each.bytes for each in caching.held(carry_out.root)) <= 2 * SIZE
    assert carry_out(stages, bound=2 * SIZE).worked == []


def test_students_of_one_cache_go_first_where_two_do_not_fit(carry_out):
    """A student needs cache a, then cache b; done student by student, each cache would be made three times."""
    stages = [cache("a"), cache("b")]
    for n in "123":
        stages += [stage(f"first{n}", reads=["cachea.txt"]), stage(f"then{n}", reads=["cacheb.txt", f"first{n}.txt"])]
    log = carry_out(stages, count=2, bound=SIZE)
    assert sorted(log.worked) == sorted(each.id for each in stages), "nothing is made twice"


def test_the_least_recently_used_goes_first(carry_out):
    old = [cache(n) for n in "abc"]
    carry_out(old)
    for age, name in ((30, "a"), (10, "b"), (20, "c")):
        path = store.entry_path(carry_out.root, f"cache{name}")
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - age * 10**9))
    user = stage("user", reads=["cachea.txt"])
    carry_out([*old, user])  # a is used now
    carry_out([*old, user, cache("d", "d" * SIZE)], bound=2 * SIZE)
    assert {each.stage for each in caching.held(carry_out.root)} == {"cachea", "cached"}


def test_caches_of_earlier_plans_count_and_go(carry_out):
    carry_out([cache("a"), cache("b")])
    carry_out([cache("c")], bound=SIZE)
    assert {each.stage for each in caching.held(carry_out.root)} == {"cachec"}


def test_a_smaller_bound_deletes_what_nothing_needs_though_there_is_nothing_to_make(carry_out):
    stages = [cache(n) for n in "abc"]
    carry_out(stages)
    todo = [*stages, stage("user", reads=["cachea.txt"])]
    done = plan.survey(carry_out.root, todo)
    for bound, gone in ((None, []), (3 * SIZE, []), (2 * SIZE, ["cacheb"]), (SIZE, ["cacheb", "cachec"])):
        found = caching.Keeper(carry_out.root, todo, bound).surplus(done)
        assert sorted(each.stage for each in found) == gone, "the one that is needed stays"


def test_a_stage_that_needs_more_at_once_than_the_bound_is_refused_before_anything_is_written(carry_out):
    stages = [cache("a"), cache("b"), stage("both", reads=["cachea.txt", "cacheb.txt"])]
    with pytest.raises(UserError, match=r"stage both needs caches of 2e-06 GB at once \(cachea 1e-06, cacheb 1e-06\)"):
        caching.Keeper(carry_out.root, stages, 2 * SIZE - 1).check(set())
    caching.Keeper(carry_out.root, stages, 2 * SIZE).check(set())
    caching.Keeper(carry_out.root, stages, SIZE).check({"both"})


def test_a_cache_larger_than_it_planned_stops_the_run_at_the_bound(carry_out):
    stages = [stage("s"), cache("a", reads=["s.txt"])]  # it plans its own text, and writes what it reads as well
    with pytest.raises(UserError, match="caches hold 1e-06 GB after stage cachea"):
        carry_out(stages, bound=SIZE)


def test_what_a_plan_says_of_its_caches(carry_out, chain):
    stages = [*chain, cache("b", "b" * 300_000)]
    carry_out(chain)
    lines = caching.lines(carry_out.root, stages, plan.survey(carry_out.root, stages), None)
    assert lines == [
        "cache cachea: there, 0.0 MB",
        "cache cacheb: text, 0.3 MB to write",
        "caches: 0.3 MB; no bound (--cache-gb)",
    ]
    assert caching.to_write(carry_out.root, stages, {"cachea"}, None) == 300_000
    assert caching.to_write(carry_out.root, stages, {"cachea"}, 200_000) == 200_000 - SIZE
    deleted(carry_out.root, "cachea")
    lines = caching.lines(carry_out.root, stages, plan.survey(carry_out.root, stages), 10**9)
    assert lines[0] == "cache cachea: not there, not needed"
    assert lines[-1] == "caches: 0.3 MB; --cache-gb allows 1.00 GB at once"


# ---- a full disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resumes", "as_input"), [(False, False), (True, False), (False, True)])
def test_a_full_disk_is_one_error_and_the_run_goes_on_after_room_was_made(carry_out, tmp_path, resumes, as_input):
    stages = [stage("a"), stage("f", run="full", targets=("f",), reads=["a.txt"], resumes=resumes, as_input=as_input)]
    with pytest.raises(DiskFull, match=f"no space left on the disk of {carry_out.root} for stage f .*Make room there"):
        carry_out(stages)
    assert plan.survey(carry_out.root, stages) == {"a"}
    assert (carry_out.root / "f.partial").exists() == resumes, "what nobody can go on from is room for others"
    (tmp_path / "room").touch()
    assert carry_out(stages).worked == ["f"]


def test_a_cache_that_the_disk_has_no_room_for_is_not_begun(carry_out, tmp_path):
    (tmp_path / "size").write_text(str(10**18))
    with pytest.raises(DiskFull, match=r"for cache cachea, which takes 1000000000\.00 GB"):
        carry_out([cache("a")])
    assert not (tmp_path / "calls.log").exists()


def _written(folder, how):
    """Write eight megabytes into ``folder`` the way the stages do."""
    import sqlite3

    import numpy as np
    import pandas as pd
    import safetensors.torch
    import torch

    values = np.random.default_rng(0).random(1_000_000)
    {
        "safetensors": lambda: safetensors.torch.save_file({"a": torch.from_numpy(values)}, folder / "a"),
        "torch": lambda: torch.save(torch.from_numpy(values), folder / "a"),
        "npy": lambda: np.save(folder / "a.npy", values),
        "npz": lambda: np.savez(folder / "a.npz", a=values),
        "parquet": lambda: pd.DataFrame({"a": values}).to_parquet(folder / "a"),
        "text": lambda: write_text(folder / "a", "x" * 8_000_000),
        "array": lambda: open_array(folder / "a.npy", "float64", values.shape),
        "sqlite": lambda: sqlite3.connect(folder / "a").execute("create table t as select randomblob(8000000)"),
    }[how]()


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of four megabytes."""
    folder = tmp_path_factory.mktemp("small")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("how", ["safetensors", "torch", "npy", "npz", "parquet", "text", "array", "sqlite"])
def test_what_each_library_raises_on_a_full_disk_is_known(small_disk, how):
    with pytest.raises(Exception) as caught:  # each its own
        _written(small_disk, how)
    for path in small_disk.iterdir():
        path.unlink()
    assert disk.is_full(caught.value), repr(caught.value)


def test_other_failures_are_no_full_disk():
    wrapped = RuntimeError("failed")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert disk.is_full(wrapped)
    assert not disk.is_full(OSError(13, "Permission denied"))
    assert not disk.is_full(RuntimeError("expected 3 tensors, 2 written"))


def test_an_array_takes_its_space_when_it_is_opened_or_touches_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    array = open_array(path, "float32", (100_000, 5))
    assert array.shape == (100_000, 5) and not array.any()
    assert path.stat().st_blocks * 512 >= 2_000_000
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    # whatever else writes to the disk would fail while it is filled in vain
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("space was taken"))
    with pytest.raises(OSError) as caught:
        open_array(tmp_path / "b.npy", "float32", (free // 2, 5))
    assert disk.is_full(caught.value) and not (tmp_path / "b.npy").exists()


def test_a_full_disk_ends_the_command_with_4_and_no_traceback(capsys):
    def app(**_):
        raise DiskFull("no space left on the disk", "Traceback ...")

    with pytest.raises(SystemExit) as caught:
        cli.main(app, "harness.run")
    assert caught.value.code == cli.FAILED == 4
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: no space left on the disk"
    assert second.startswith("to continue: python -m harness.run")
