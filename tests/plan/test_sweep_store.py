"""Does the store of a sweep say what is finished, whoever wrote it and however that ended?"""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghostsim.errors import GhostsimError, StoreError, UsageError
from ghostsim.sweep import store
from ghostsim.sweep.executor import _Queue

SWEEP = {"schema": 1, "scenario": "cxl_pim", "grid": {"workload.batch": [1, 2]}}
NAMES = ["00000000000000aa", "00000000000000bb", "00000000000000cc"]


@pytest.fixture
def folder(tmp_path):
    store.create(tmp_path / "store", SWEEP)
    return tmp_path / "store"


def finish(folder, name, p50, **more):
    metrics = {"runs": {"full": {"step_ms": {"p50": p50}, "violations": None} | more}, "compare": {}}
    with store.claimed(folder, name), store.new_point(folder, name) as point:
        (point / "metrics.json").write_text(json.dumps(metrics))


def table(folder, names=NAMES, settings=None):
    points = settings or [{"workload.batch": i} for i in range(len(names))]
    return store.Table(folder, names, ["workload.batch"], points)


def rows(folder):
    with (folder / store.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_store_continues_its_own_sweep_and_no_other(folder):
    store.check(folder, SWEEP | {"summary": "said otherwise"})
    with pytest.raises(UsageError, match="another sweep"):
        store.check(folder, SWEEP | {"grid": {"workload.batch": [1, 3]}})


def test_the_order_of_the_points_is_part_of_a_sweep(folder):
    with pytest.raises(UsageError):
        store.check(folder, SWEEP | {"grid": {"workload.batch": [2, 1]}})


@pytest.mark.parametrize("missing", ["sweep.yaml", "points", ""])
def test_a_folder_that_is_no_store_is_refused(folder, missing):
    (folder / missing).rename(folder.parent / "elsewhere")
    with pytest.raises(StoreError, match="expected a store"):
        store.check(folder, SWEEP)


def test_a_broken_sweep_file_is_refused_with_its_place(folder):
    (folder / store.SWEEP).write_text("schema: [1\n")
    with pytest.raises(StoreError, match=r"sweep.yaml:\d+:\d+: "):
        store.check(folder, SWEEP)


def test_an_existing_folder_is_not_overwritten(folder):
    with pytest.raises(UsageError, match="--out"):
        store.create(folder, SWEEP)


def fail_in(folder):
    with store.new_point(folder, NAMES[0]) as point:
        assert not store.is_done(folder, NAMES[0])
        (point / "metrics.json").write_text("{}")
        raise ZeroDivisionError


def test_a_point_appears_when_it_is_complete_or_not_at_all(folder):
    with pytest.raises(ZeroDivisionError):
        fail_in(folder)
    assert list((folder / store.POINTS).iterdir()) == []
    finish(folder, NAMES[0], 1.0)
    assert [path.name for path in (folder / store.POINTS).iterdir()] == [NAMES[0]]


def test_two_threads_of_one_process_exclude_each_other(folder):
    with store.claimed(folder, NAMES[0]), store.claimed(folder, NAMES[0], wait=False) as mine:
        assert not mine


def test_the_end_of_one_claim_frees_no_other(folder):
    with store.claimed(folder, NAMES[0]):
        with store.claimed(folder, NAMES[1]) as other:
            assert other
        with store.claimed(folder, NAMES[0], wait=False) as mine:
            assert not mine


def test_a_store_that_cannot_be_written_is_refused(folder):
    (folder / ".lock").mkdir()
    with pytest.raises(UsageError, match="expected a folder that can be written"):
        store.check(folder, SWEEP)


HOLD = """
import sys, pathlib
from ghostsim.sweep import store
folder = pathlib.Path(sys.argv[1])
with store.claimed(folder, sys.argv[2]) as mine:
    (folder / "points" / f".tmp-{sys.argv[2]}").mkdir()
    print(mine, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, NAMES[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_point_belongs_to_one_process_until_that_dies(folder, holder):
    with store.claimed(folder, NAMES[0], wait=False) as mine, store.claimed(folder, NAMES[1], wait=False) as other:
        assert (mine, other) == (False, True)
    holder.kill()
    with store.claimed(folder, NAMES[0]) as mine:
        assert mine


def test_only_what_dead_processes_left_is_cleaned(folder, holder):
    (folder / store.POINTS / f".tmp-{NAMES[1]}").mkdir()
    store.clean(folder)
    assert [path.name for path in (folder / store.POINTS).iterdir()] == [f".tmp-{NAMES[0]}"]
    holder.kill()
    holder.wait()
    store.clean(folder)
    assert list((folder / store.POINTS).iterdir()) == []


def test_rows_keep_the_order_of_the_sweep(folder):
    found = table(folder)
    finish(folder, NAMES[2], 3.0)
    finish(folder, NAMES[0], 1.5)
    found.put(NAMES[2])
    found.put(NAMES[0])
    found.put(NAMES[1], 'out of "memory", really')
    found.write(last=True)
    assert [(row["point"], row["status"], row["error"], row["full.step_ms.p50"]) for row in rows(folder)] == [
        (NAMES[0], "done", "", "1.5"),
        (NAMES[1], "failed", 'out of "memory", really', ""),
        (NAMES[2], "done", "", "3.0"),
    ]
    assert [row["workload.batch"] for row in rows(folder)] == ["0", "1", "2"]


def test_a_point_that_is_not_finished_is_pending(folder):
    table(folder).write(last=True)
    assert [row["status"] for row in rows(folder)] == ["pending"] * 3


def test_equal_points_share_one_folder_and_have_a_row_each(folder):
    found = table(folder, [NAMES[0], NAMES[0]])
    finish(folder, NAMES[0], 1.0)
    found.put(NAMES[0])
    found.write(last=True)
    assert [(row["status"], row["workload.batch"]) for row in rows(folder)] == [("done", "0"), ("done", "1")]
    assert found.count("done") == 2


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_columns_do_not_depend_on_which_point_ends_first(folder, order):
    finish(folder, NAMES[0], 1.0, zeta=1)
    finish(folder, NAMES[1], 1.0, alpha=2)
    finish(folder, NAMES[2], 1.0, zeta=3, beta=4)
    found = table(folder)
    for index in order:
        found.put(NAMES[index])
        found.write(last=True)
    assert list(rows(folder)[0])[5:] == ["full.step_ms.p50", "full.violations", "full.zeta", "full.alpha", "full.beta"]
    assert [row["full.zeta"] for row in rows(folder)] == ["1", "", "3"]


def test_values_with_units_lists_and_nothing_are_cells(folder):
    settings = [{"workload.batch": value} for value in ("26 GB/s", ["a", "b"])] + [{}]
    table(folder, settings=settings).write(last=True)
    assert [row["workload.batch"] for row in rows(folder)] == ["26 GB/s", '["a", "b"]', ""]


def test_a_damaged_point_is_named(folder):
    (folder / store.POINTS / NAMES[0]).mkdir()
    with pytest.raises(StoreError, match=rf"{NAMES[0]}/metrics.json: "):
        table(folder).put(NAMES[0])


def test_the_table_is_replaced_and_never_half_written(folder):
    found = table(folder)
    found.write(last=True)
    before = (folder / store.TABLE).stat().st_ino
    found.write(last=True)
    assert (folder / store.TABLE).stat().st_ino != before
    assert sorted(path.name for path in folder.iterdir()) == ["points", "points.csv", "sweep.yaml"]


def test_a_table_without_room_is_one_line_and_the_old_one_stays(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = table(folder)
    found.write(last=True)
    before = (folder / store.TABLE).read_bytes()
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(GhostsimError, match=f"{folder / store.TABLE}: No space left on device.*then --resume"):
        found.write(last=True)
    assert (folder / store.TABLE).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["points", "points.csv", "sweep.yaml"]


def test_a_selection_is_computed_for_one_point_at_a_time():
    queue = _Queue({"a": frozenset("x"), "b": frozenset("xy"), "c": frozenset("z")})
    assert [queue.take(), queue.take(), queue.take()] == ["a", "c", None]
    queue.ended("a", again=False)
    assert (queue.take(), bool(queue)) == ("b", False)


def test_a_point_that_another_program_computes_comes_back():
    queue = _Queue({"a": frozenset("x"), "b": frozenset("x")})
    assert queue.take() == "a"
    queue.ended("a", again=True)
    assert queue.take() == "b"
    queue.ended("b", again=False)
    assert queue.take() == "a"
