"""Which runs start beside one another, and how the pool waits for what another driver has."""

import json
import os
import time
from pathlib import Path

import pytest

from prehab_lib.runs import keys, launch, machine, plan, pool, store
from prehab_lib.runs.plan import Price, Run
from prehab_lib.runs.slots import BESIDE_MB, UNPRICED_MB, Slots


def one(name: str, memory_mb=100, **given) -> Run:
    return Run(name, Path(f"{name}.ipynb"), "lab", {}, price=Price(memory_mb=memory_mb), **given)


def started(slots: Slots, runs: list[Run]) -> list[str]:
    return [run.name for run in runs if slots.take(run)]


@pytest.mark.parametrize(
    "room, runs, names",
    [
        (dict(width=2), [one("a"), one("b"), one("c")], ["a", "b"]),
        (dict(width=9, cores=5), [one("a", threads=3), one("b", threads=3), one("c", threads=2)], ["a", "c"]),
        (dict(width=9, memory_mb=1300), [one("a", 600), one("b", 600), one("c", 200)], ["a", "c"]),
        (dict(width=9, memory_mb=2 * UNPRICED_MB), [one("a", None), one("b", None), one("c", 10)], ["a", "c"]),
        (dict(width=9, cores=2), [one("a", threads=8), one("b")], ["a"]),
        (dict(width=9, memory_mb=1000), [one("a", 5000), one("b")], ["a"]),
        (dict(width=9, memory_mb=1000), [one("b"), one("a", 5000)], ["b"]),
        (dict(width=9, gpus=["3"]), [one("a", gpu=1), one("b", gpu=1), one("c")], ["a", "c"]),
        (dict(width=9, gpus=[]), [one("a", gpu=1), one("b", gpu=1)], ["a", "b"]),
    ],
)
def test_what_fits_starts_and_what_is_too_large_is_alone(room, runs, names):
    slots = Slots(**dict(cores=64, memory_mb=10**6, gpus=[]) | room)
    assert started(slots, runs) == names
    for run in runs:
        if run.name in names:
            slots.leave(run)
    left = [run for run in runs if run.name not in names]
    assert not left or started(slots, left)[0] == left[0].name


def test_each_gpu_has_one_run_and_comes_back():
    slots = Slots(9, 64, 10**6, ["3", "5"])
    first, second, third = one("a", gpu=1), one("b", gpu=1), one("c", gpu=1)
    assert started(slots, [first, second, third]) == ["a", "b"]
    assert (slots.gpu_of(first), slots.gpu_of(second)) == ("3", "5")
    slots.leave(second)
    assert slots.take(third) and slots.gpu_of(third) == "5"


def test_two_drivers_never_share_a_gpu(tmp_path):
    mine, other = (Slots(9, 64, 10**6, ["0"], store.Store(tmp_path).lock) for _ in range(2))
    run = one("a", gpu=1)
    assert mine.take(run) and not other.fits(one("b", gpu=1)) and other.take(one("c"))
    mine.leave(run)
    assert other.take(one("b", gpu=1))


def test_a_reader_is_told_what_shapes_the_run():
    slots = Slots(4, 16, 8000, [])
    assert slots.notes([one("a", threads=8)]) == []
    assert slots.notes([one("a", 9000)]) == [
        f"a needs 1 thread and about {9000 + BESIDE_MB:,} MB, where 16 cores and 8,000 MB are free: it runs alone"
    ]
    (line,) = slots.notes([one(name, threads=8) for name in "abcd"])
    assert line == "16 cores have room for 2 runs of 8 threads at a time: --threads 4 plans for 4"
    assert Slots(4, 2, 8000, []).notes([one(name) for name in "abcd"]) == [
        "2 cores have room for 2 runs of 1 thread at a time"
    ]


@pytest.mark.parametrize("free, quota, cores", [(2, "max 100000", 7), (5, "250000 100000", 2), (3, "50000 100000", 1)])
def test_a_container_has_what_it_is_given(tmp_path, monkeypatch, free, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9999999 kB\nMemAvailable: 4194304 kB\n")
    (tmp_path / "cpu.max").write_text(quota)
    (tmp_path / "memory.current").write_text(str(2**30))
    assert machine.free_memory_mb() == 4096  # no bound of its own yet
    (tmp_path / "memory.max").write_text(str((1 + free) * 2**30))
    assert machine.cores() == cores and machine.free_memory_mb() == min(free, 4) * 1024


def test_threads_and_gpus_are_the_plans_own(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 12)
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1", parameters='device: str = "auto"  # where\n')
    write_notebook(tmp_path / "notebooks" / "01_b.ipynb", "1")

    def got(gpus: list[str], **given):
        monkeypatch.setattr(machine, "gpus", lambda: gpus)
        return [(run.threads, run.gpu) for run in plan.runs(tmp_path, "smoke", [], {}, **given)]

    assert got([]) == [(6, 0), (6, 0)]
    assert got(["0"]) == [(6, 1), (6, 0)]
    assert got(["0", "1", "2", "3"]) == [(3, 1), (3, 0)]
    assert got(["0"], threads=5) == [(5, 1), (5, 0)]
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert got([]) == [(1, 0), (1, 0)]
    assert [run.gpu for run in plan.runs(tmp_path, "smoke", ["00"], {"device": "cuda"})] == [1]


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A pool with one run, its store, and what it says; the run's key is its name."""
    monkeypatch.setattr(keys, "key", lambda run, upstream: run.name)
    monkeypatch.setattr(pool, "LOOK_AGAIN", 0.0)
    said, begun = [], []
    monkeypatch.setattr(pool.Pool, "_start", lambda self, run, key: begun.append(key))
    kept = store.Store(tmp_path)
    made = pool.Pool(kept, [one("00_a")], 1, lambda line, done=False: said.append(line), slots=Slots(1, 1, 9999, []))
    return made, kept, said, begun


def look(made) -> None:
    for run in list(made.waiting):
        made._consider(run)


def test_a_run_that_another_driver_has_is_waited_for(waiting, tmp_path):
    made, kept, said, begun = waiting
    with kept.lock("00_a"):
        part = kept.begin("00_a")
        (part / "work").mkdir()
        (part / "work" / "holder.json").write_text(json.dumps({"process": 1234, "host": "there"}))
        for _ in range(3):
            look(made)
        assert said == ["waiting   00_a: process 1234 on there has it"] and not begun
        (part / "run.json").write_text(json.dumps({"key": "00_a", "files": []}))
        (part / "work" / "holder.json").unlink()
        kept.finish("00_a", good=True)
    look(made)
    assert made.outcomes["00_a"].status == "cached" and not begun and not made.waiting


def test_a_run_that_failed_with_another_driver_is_not_tried_again_at_once(waiting):
    made, kept, said, begun = waiting

    def fail(error: str) -> None:
        part = kept.begin("00_a")
        (part / "run.json").write_text(json.dumps({"error": error}))
        kept.finish("00_a", good=False)

    fail("of long ago")
    os.utime(kept.failed("00_a") / "run.json", (1, 1))
    with kept.lock("00_a"):
        look(made)
        assert said == ["waiting   00_a: another process has it"]
        fail("KeyError: late")
    look(made)
    assert made.outcomes["00_a"].error == "KeyError: late" and not begun
    assert said[1].startswith("failed    00_a after 0 s: KeyError: late")


@pytest.mark.parametrize("old_failure", [False, True])
def test_a_run_whose_driver_died_is_taken_over(waiting, old_failure):
    made, kept, said, begun = waiting
    if old_failure:
        (kept.begin("00_a") / "run.json").write_text('{"error": "of long ago"}')
        os.utime(kept.finish("00_a", good=False) / "run.json", (1, 1))
    with kept.lock("00_a"):
        look(made)
    look(made)
    assert begun == ["00_a"] and len(said) == 1


def test_another_drivers_run_is_looked_at_once_a_second(waiting, monkeypatch):
    made, kept, _, begun = waiting
    monkeypatch.setattr(pool, "LOOK_AGAIN", 0.2)
    with kept.lock("00_a"):
        look(made)
    look(made)
    assert not begun
    time.sleep(0.25)
    look(made)
    assert begun == ["00_a"]


def test_what_was_found_stored_is_not_looked_up_again_but_what_reads_all_is(tmp_path, monkeypatch):
    """Publishing the others changes what the last run reads, so its key from before is none."""
    asked = []
    monkeypatch.setattr(keys, "key", lambda run, upstream: asked.append(run.name) or f"{run.name}-now")
    kept = store.Store(tmp_path)
    for key in ("00_a-before", "10_audit-before", "10_audit-now"):
        (kept.begin(key) / "run.json").write_text(json.dumps({"key": key, "files": []}))
        kept.finish(key, good=True)
    before = {"00_a": "00_a-before", "10_audit": "10_audit-before"}
    runs = [one("00_a"), one("10_audit", last=True)]
    outcomes = pool.Pool(kept, runs, 1, lambda line, done=False: None, stored=before).work()
    assert {name: outcome.key for name, outcome in outcomes.items()} == {
        "00_a": "00_a-before",
        "10_audit": "10_audit-now",
    }
    assert asked == ["10_audit"]


class Ended:
    def __init__(self, code: int):
        self.returncode = code


KILLED = "its process was killed (signal 9): out of memory, or by hand"
NO_ROOM = "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    "said, printed, code, status, error",
    [
        ('{"cell": 1, "cells": 2}\n{"status": "failed", "error": "E: x"}', "", 0, "failed", "E: x"),
        ('{"cell": 1, "cells": 2}\n', "a\nMemoryError\n\n", 1, "failed", "MemoryError"),
        ('{"cell": 1, "cells": 2}\n', "a\nthe notebook printed this\n", -9, "failed", KILLED),
        ('{"cell": 1, "ce', "", 1, "failed", "its process ended with code 1"),
        ("", NO_ROOM, 1, "full", NO_ROOM),
    ],
)
def test_what_became_of_a_process_that_ended(tmp_path, said, printed, code, status, error):
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text(said)
    err.write_text("x" * launch.TAIL + "\n" + printed)
    if not printed:
        err.write_text("")
    with out.open("rb") as told, err.open("rb") as log:
        outcome = launch.outcome(Ended(code), "key", told, log)
        assert (outcome.status, outcome.error, outcome.key) == (status, error, "key")
        if said.endswith("\n"):
            assert launch.cell(told) == (1, 2)
