"""Does calibrating a GPU whose constants are known give them back, in a part and a table that the program reads?"""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ghostsim.accuracy.report import accuracy
from ghostsim.calibrate.derive import copy_fit
from ghostsim.calibrate.gpu import calibrate
from ghostsim.calibrate.measure import measure
from ghostsim.calibrate.output import architecture
from ghostsim.calibrate.points import LATENCY, Machine, Point, points
from ghostsim.config.load import load_gpu, load_platform
from ghostsim.errors import GhostsimError

MACHINE = Machine(
    name="NVIDIA Known 9000", architecture="sm_90", sms=120, l2_bytes=60 * 2**20, memory_bytes=90 * 10**9,
    driver="550.54.15", torch="2.13.0+cu130", date="2026-11-26",
)  # fmt: skip
STREAM, L2, LAUNCH_US = 3.1e12, 8.2e12, 1.4
COPY_START_US, COPY = 2.6, 53e9
WINDOW, LATENCY_NS = 40_000, 1150
VECTOR, FLOPS = 21e12, 700e12


class KnownGpu:
    """A clock of closed forms; each reading is off by up to half a per cent."""

    def __init__(self, stream=STREAM):
        self.stream, self.random = stream, np.random.default_rng(1)

    def __call__(self, point):
        return getattr(self, point.probe)(point.work, **point.conditions) * self.random.uniform(0.995, 1.005)

    def host_latency(self, work, loads):
        return loads * LATENCY_NS / 1e3

    def gpu_launch(self, work, n_kernels):
        return n_kernels * LAUNCH_US

    def gpu_stream(self, work, op, working_set_bytes):
        return working_set_bytes / self.stream * {"read": 1, "write": 1.05, "copy": 1.1}[op] * 1e6

    def gpu_gather(self, work, record_bytes, n_records):
        return record_bytes * n_records / (self.stream * min(1, record_bytes / 512)) * 1e6

    def gpu_l2(self, work, working_set_bytes):
        return work / L2 * 1e6

    def gpu_host_dma(self, work, direction, transfer_bytes):
        return COPY_START_US + transfer_bytes / COPY * 1e6

    def gpu_zero_copy(self, work, record_bytes, outstanding_bytes):
        return work / (min(outstanding_bytes, WINDOW) / LATENCY_NS) / 1e3

    def gpu_sketch_score(self, work, record_bytes, queries, n_records):
        nbytes = record_bytes * n_records
        return LAUNCH_US + max(nbytes / self.stream, nbytes * queries / VECTOR) * 1e6

    def gpu_gemm(self, work, dtype, m, n, k):
        return 3 + max(2 * m * n * k / FLOPS, 2 * n * k / self.stream) * 1e6

    def gpu_decode_attention(self, work, q_heads, kv_heads, head_dim, batch, kv_len, **names):
        return 12 + 4 * batch * kv_heads * kv_len * head_dim / self.stream * 1e6


def calibrated(folder, machine=MACHINE, **known):
    found = calibrate(KnownGpu(**known), machine, folder, machine.part, lambda _: None)
    return load_gpu(folder / "gpu.yaml"), found


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    return *calibrated(folder), folder


def near(value):
    return pytest.approx(value, rel=0.02)


def test_the_part_has_the_constants_of_the_gpu(known):
    part, _, _ = known
    engines = part.copy_engines
    assert (part.sms, part.l2, part.capacity) == (120, 60 * 2**20, 90 * 10**9)
    assert part.l2_bandwidth == near(L2)
    assert part.launch / 1e6 == near(LAUNCH_US)
    assert engines.start / 1e6 == near(COPY_START_US)
    assert engines.bandwidth == near(COPY)
    assert part.read_window == near(WINDOW)
    assert part.vector_macs == near(VECTOR)
    assert part.tensor * part.architecture.gemm["dense"].flop_efficiency == near(FLOPS)


@pytest.mark.parametrize("probe", ["gpu_launch", "gpu_l2", "gpu_host_dma", "gpu_zero_copy", "gpu_sketch_score"])
def test_the_part_predicts_the_table(known, probe):
    _, found, _ = known
    assert found.as_json()["probes"][probe]["max"] < 0.02


def test_the_part_streams_as_measured(known):
    _, found, _ = known
    reads = [each for each in found.predictions if each.measured.row["op"] == "read"]
    assert [abs(each.error) < 0.02 for each in reads] == [True]


def test_a_faster_memory_gets_more_channels(tmp_path):
    part, found = calibrated(tmp_path, replace(MACHINE, architecture="sm_100"), stream=7.4e12)
    assert part.memory.channels == 160
    assert part.tensor * part.architecture.gemm["dense"].flop_efficiency == near(FLOPS)
    assert found.as_json()["probes"]["gpu_sketch_score"]["max"] < 0.02


def test_every_probe_has_rows_and_the_host_latency_is_a_condition(known):
    *_, folder = known
    with (folder / "gpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    probes = {row["probe"] for row in rows}
    assert probes == {point.probe for point in points(MACHINE)} - {LATENCY}
    latencies = {float(row["latency_ns"]) for row in rows if row["probe"] == "gpu_zero_copy"}
    assert list(latencies) == [near(LATENCY_NS)]


def test_the_source_says_when_and_with_what(known):
    *_, folder = known
    text = (folder / "gpu.yaml").read_text()
    assert "measured on 2026-11-26, NVIDIA Known 9000, driver 550.54.15, torch 2.13.0+cu130" in text
    assert "confidence: measured" in text


def test_the_command_replays_the_table_with_the_part(known):
    *_, folder = known
    asked = [sys.executable, "-m", "ghostsim", "accuracy", "gpu.csv", "--part", "gpu.yaml", "--json"]
    done = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["probes"]["gpu_launch"]["parts"]["known_9000"]["max"] < 0.02


def test_the_part_serves_a_platform(known):
    *_, folder = known
    platform = load_platform("h100_hbm_only", [f"devices.gpu0={folder / 'gpu.yaml'}"]).value
    assert platform.devices["gpu0"].name == "known_9000"


def test_a_table_without_its_part_is_refused(known):
    *_, folder = known
    with pytest.raises(GhostsimError, match="found 'known_9000', expected a part that the models know"):
        accuracy([folder / "gpu.csv"])


def test_a_fit_of_copies_is_exact_without_noise():
    start_s, rate = copy_fit([(n, 2.5 + n / 50e9 * 1e6) for n in (4096, 65536, 2**20, 2**26)])
    assert (start_s * 1e6, rate / 1e9) == (pytest.approx(2.5), pytest.approx(50))


@pytest.mark.parametrize(("found", "taken"), [("sm_90", "sm_90"), ("sm_86", "sm_80"), ("sm_120", "sm_100")])
def test_kernel_constants_are_of_the_same_or_the_next_older_architecture(found, taken):
    assert architecture(found) == taken


def test_a_gpu_older_than_all_constants_is_refused():
    with pytest.raises(GhostsimError, match="expected sm_80 or later"):
        architecture("sm_75")


@pytest.mark.parametrize("us", [0.0, float("nan"), float("inf")])
def test_a_broken_clock_is_an_error(us):
    with pytest.raises(GhostsimError, match="expected one above zero"):
        measure(lambda _: us, MACHINE, lambda _: None)


def test_an_error_of_the_gpu_is_one_line():
    def exhausted(_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 4 GiB")

    with pytest.raises(GhostsimError, match=r"host_latency: found CUDA out of memory. Tried .*, expected an idle GPU"):
        measure(exhausted, MACHINE, lambda _: None)


@pytest.mark.parametrize("gb", [16, 24, 80, 192])
def test_points_fit_the_memory(gb):
    machine = replace(MACHINE, memory_bytes=gb * 10**9)
    assert max(_footprint(point) for point in points(machine)) < gb * 10**9 / 2


def _footprint(point: Point):
    c = point.conditions
    if point.probe == "gpu_decode_attention":
        return 4 * c["batch"] * c["kv_heads"] * c["kv_len"] * c["head_dim"]
    if point.probe == "gpu_gemm":
        return 2 * (c["m"] * c["k"] + c["k"] * c["n"] + c["m"] * c["n"])
    return c.get("working_set_bytes", c.get("record_bytes", 0) * c.get("n_records", 0))
