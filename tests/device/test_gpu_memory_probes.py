"""Do the accuracy probes of a GPU's memories follow the closed forms of its part?"""

import pytest

from ghostsim.accuracy.report import SCHEMAS, accuracy
from ghostsim.config.load import load_gpu
from ghostsim.errors import ConfigError, TableError

H200 = load_gpu("h200_sxm")


def replayed(folder, probe, conditions, part="h200_sxm", parts=()):
    row = {"probe": probe, "part": part, **conditions, "value": 1, "unit": SCHEMAS[probe].unit, "source": "test"}
    table = folder / "table.csv"
    table.write_text("\n".join(",".join(map(str, line)) for line in (row, row.values())) + "\n")
    (found,) = accuracy([table], parts).predictions
    return found.predicted


@pytest.mark.parametrize(
    ("probe", "conditions", "expected"),
    [
        ("gpu_launch", {"n_kernels": 200}, 1.26),
        ("gpu_l2", {"working_set_bytes": 2**23}, 10_000),
        ("gpu_host_dma", {"direction": "h2d", "transfer_bytes": 4096}, 2.03 + 4096 / 55.4e3),
        ("gpu_host_dma", {"direction": "d2h", "transfer_bytes": 2**28}, 2.03 + 2**28 / 55.4e3),
        ("gpu_zero_copy", {"record_bytes": 128, "outstanding_bytes": 4096, "latency_ns": 1000}, 4.096),
        ("gpu_zero_copy", {"record_bytes": 128, "outstanding_bytes": 2**20, "latency_ns": 910}, 35.2),
        ("gpu_zero_copy", {"record_bytes": 128, "outstanding_bytes": 2**20, "latency_ns": 100}, 55.4),
        ("gpu_sketch_score", {"record_bytes": 128, "queries": 32, "n_records": 2**22},
         1.26 + 128 * 32 * 2**22 / 33.5e6),
    ],
)  # fmt: skip
def test_a_probe_follows_its_closed_form(tmp_path, probe, conditions, expected):
    assert replayed(tmp_path, probe, conditions) == pytest.approx(expected, rel=1e-4)


def test_a_sketch_of_one_query_waits_for_memory(tmp_path):
    stream = replayed(tmp_path, "gpu_stream", {"op": "read", "working_set_bytes": 2**30})
    us = replayed(tmp_path, "gpu_sketch_score", {"record_bytes": 128, "queries": 1, "n_records": 2**23})
    assert us == pytest.approx(1.26 + 2**30 / stream / 1e3, rel=1e-4)


def test_a_stream_reaches_its_share_of_the_bus(tmp_path):
    gbps = replayed(tmp_path, "gpu_stream", {"op": "read", "working_set_bytes": 2**30})
    assert 0.95 * 4800 < gbps <= 4810


def test_gathers_of_longer_records_are_faster_and_never_beat_a_stream(tmp_path):
    stream = replayed(tmp_path, "gpu_stream", {"op": "read", "working_set_bytes": 2**30})
    sizes = (64, 256, 1024, 4096)
    rates = [replayed(tmp_path, "gpu_gather", {"record_bytes": size, "n_records": 2**20}) for size in sizes]
    assert rates == sorted(rates)
    assert rates[0] < 0.9 * stream
    assert rates[-1] <= stream


def test_a_name_of_the_tables_stands_for_its_part(tmp_path):
    assert replayed(tmp_path, "gpu_launch", {"n_kernels": 1}, part="H200-141GB") == pytest.approx(1.26)


def test_a_part_of_the_user_is_taken_by_its_name(tmp_path):
    mine = H200.model_copy(update={"name": "mine", "launch": 3_000_000})
    assert replayed(tmp_path, "gpu_launch", {"n_kernels": 1}, part="mine", parts=[mine]) == 3


@pytest.mark.parametrize(
    ("probe", "conditions", "message"),
    [
        ("gpu_stream", {"op": "sum", "working_set_bytes": 1}, "op: found 'sum', expected one of read, write, copy"),
        ("gpu_l2", {"working_set_bytes": 2**40}, "working_set_bytes: .* expected at most the L2"),
        ("gpu_launch", {"n_kernels": 0}, "n_kernels: found '0', expected at least 1"),
        ("gpu_host_dma", {"direction": "up", "transfer_bytes": 1}, "direction: found 'up', expected one of h2d, d2h"),
        ("gpu_zero_copy", {"record_bytes": 64, "outstanding_bytes": 1, "latency_ns": 0}, "latency_ns: found '0'"),
    ],
)
def test_what_a_probe_does_not_know_is_refused(tmp_path, probe, conditions, message):
    with pytest.raises(TableError, match=message):
        replayed(tmp_path, probe, conditions)


def test_a_part_without_an_l2_bandwidth_is_not_guessed(tmp_path):
    silent = H200.model_copy(update={"name": "silent", "l2_bandwidth": None})
    with pytest.raises(TableError, match="expected a GPU that states its l2_bandwidth"):
        replayed(tmp_path, "gpu_l2", {"working_set_bytes": 1}, part="silent", parts=[silent])


def test_only_a_gpu_is_a_gpu():
    with pytest.raises(ConfigError, match="found a part that is no GPU"):
        load_gpu("nvme_pm1733")
