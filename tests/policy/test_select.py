"""Does a workload's Selection hold the right rows, come back from the cache, and stay the same for any jobs?"""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ghostsim.plan import store
from ghostsim.plan.selection import Selection
from ghostsim.policy import evaluate
from ghostsim.policy.head import evaluate_head
from ghostsim.policy.output import positions_read, write_evaluation
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace

ARRAYS = [item.name for item in fields(Selection) if item.name not in ("policy", "workload_hash", "stages", "streams")]


@pytest.fixture(scope="module")
def small():
    """Return the recorded trace, three steps."""
    return compose([open_trace("natural_4k")], None, requests=1, steps=3, context=None, seed=1)


def digest(selection):
    parts = [getattr(selection, name) for name in ARRAYS]
    return hashlib.sha256(b"".join(b"-" if part is None else part.tobytes() for part in parts)).hexdigest()


def test_rows_are_those_of_the_heads(shipped, small, own_cache):
    names = ("ghostkv", "snapkv")
    selections = evaluate.select({name: shipped[name] for name in names}, small, jobs=1)
    for name in names:
        selection = selections[name]
        assert selection.policy == name
        for unit in (0, 7):
            rows = evaluate_head(shipped[name], small.head(unit))
            assert (selection.sets[unit] == rows.sets).all()
            np.testing.assert_allclose(selection.lost_mass[unit], rows.lost_mass, rtol=1e-9)
    assert selections["snapkv"].certified_mass is None
    assert selections["ghostkv"].output_error is not None


def test_dense_layers_are_layers_of_the_target_model(shipped, own_cache):
    trace = open_trace("natural_4k")
    workload = compose([trace], Shape(8, 2, 4, 128), requests=1, steps=2, context=512, seed=1)
    selection = evaluate.select({"quest": shipped["quest"]}, workload, jobs=1)["quest"]
    dense, sparse = selection.unit_of[0, :2].ravel(), selection.unit_of[0, 2:].ravel()
    assert not set(dense.tolist()) & set(sparse.tolist())
    assert not selection.lost_mass[dense].any()
    assert not selection.scanned[0, dense].any()
    assert (selection.scanned[0, sparse] == 33).all()
    assert selection.weights().sum() == 16


def test_a_second_select_computes_nothing(shipped, small, own_cache, monkeypatch):
    policy = {"streaming_llm": shipped["streaming_llm"]}
    first = evaluate.select(policy, small, jobs=1)
    monkeypatch.setattr(evaluate, "_compute", None)
    other = {"other": shipped["streaming_llm"].model_copy(update={"name": "x", "summary": "y"})}
    again = evaluate.select(other, small)["other"]
    assert again.policy == "other"
    assert digest(again) == digest(first["streaming_llm"])


def test_a_damaged_cache_entry_is_computed_again(shipped, small, own_cache):
    policy = {"streaming_llm": shipped["streaming_llm"]}
    first = evaluate.select(policy, small, jobs=1)["streaming_llm"]
    before = digest(first)
    folder = next((own_cache / store.KIND).iterdir())
    (folder / "lost_mass.npy").write_bytes(b"damaged")
    assert digest(evaluate.select(policy, small, jobs=1)["streaming_llm"]) == before


def test_a_selection_survives_saving(shipped, small, own_cache, tmp_path):
    selection = evaluate.select({"ghostkv": shipped["ghostkv"]}, small, jobs=1)["ghostkv"]
    folder = tmp_path / "saved"
    folder.mkdir()
    store.save(selection, folder)
    loaded = store.load(folder, "ghostkv")
    assert digest(loaded) == digest(selection)
    assert loaded.stages == selection.stages
    assert isinstance(loaded.sets, np.memmap)


def test_progress_counts_heads(shipped, small, own_cache):
    seen = []
    evaluate.select({"full": shipped["full"]}, small, jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]


def test_evaluation_files_agree_with_each_other(shipped, small, own_cache, tmp_path):
    policy = shipped["ghostkv"]
    selection = evaluate.select({"ghostkv": policy}, small, jobs=1)["ghostkv"]
    write_evaluation(policy, small, selection, tmp_path)
    reads, offsets = np.load(tmp_path / "reads.npy"), np.load(tmp_path / "reads_offsets.npy")
    assert reads.dtype == np.int32
    assert offsets.dtype == np.int64
    assert len(offsets) == 3 * 4 * 2 + 1
    quality = list(csv.DictReader((tmp_path / "quality.csv").read_text().splitlines()))
    assert len(quality) == 3 * 4 * 8
    for row in quality:
        step, layer, q_head = (int(row[name]) for name in ("step", "layer", "q_head"))
        i = (step * 4 + layer) * 2 + q_head // 4
        part = reads[offsets[i] : offsets[i + 1]]
        assert (np.diff(part) > 0).all()
        assert part[-1] == 3968 + step
        assert len(part) == int(row["read_tokens"])
        unit = int(selection.unit_of[0, layer, q_head // 4])
        assert part.tolist() == positions_read(selection, unit, step).tolist()
        assert float(row["lost_mass"]) <= float(row["certified_mass"]) <= 0.01
        assert row["violations"] == "0"
    moved = list(csv.DictReader((tmp_path / "bytes.csv").read_text().splitlines()))
    kv = sum(int(row["nbytes"]) for row in moved if row["op"] in ("read", "attend"))
    assert kv == len(reads) * 512
    scans = [int(row["nbytes"]) for row in moved if row["op"] == "scan"]
    assert scans == [66 * (3968 + s + 1 - 260) for s in range(3) for _ in range(8)]


SCRIPT = """
import sys, hashlib, pathlib, yaml
from dataclasses import fields
from ghostsim.config.policy import Policy
from ghostsim.policy.evaluate import select
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace
if __name__ == "__main__":
    names = ("ghostkv", "quest", "ghostkv_published", "ghostkv_sketch")
    from ghostsim import bundled
    folder = bundled.folder("scenarios") / "policies"
    policies = {n: Policy.model_validate(yaml.safe_load((folder / f"{n}.yaml").read_text())) for n in names}
    for context in (None, 6000):
        workload = compose([open_trace("manual_4k")], None, requests=2, steps=2, context=context, seed=3)
        for name, selection in select(policies, workload, jobs=int(sys.argv[1])).items():
            arrays = [getattr(selection, f.name) for f in fields(selection)]
            data = b"".join(a.tobytes() for a in arrays if hasattr(a, "tobytes"))
            print(name, hashlib.sha256(data).hexdigest())
"""


@pytest.mark.slow
def test_same_bytes_for_any_jobs_and_hash_seed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    outputs = []
    for jobs, hash_seed in (("1", "0"), ("2", "1")):
        own = {"GHOSTSIM_CACHE": str(tmp_path / jobs), "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path.cwd())}
        run = subprocess.run(
            [sys.executable, script, jobs], env=os.environ | own, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 8


def test_a_selection_has_its_room_on_disk_before_it_is_filled(tmp_path):
    store.Writer(tmp_path, store.Sizes(units=4, steps=2, q_per_kv=4, stages=1, streams=1, tokens=1 << 16), frozenset())
    files = [path.stat() for path in tmp_path.iterdir()]
    assert sum(file.st_blocks * 512 for file in files) >= sum(file.st_size for file in files) > 1 << 16
