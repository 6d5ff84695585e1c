"""GPU kernels: launch, rooflines, what they share, and reads of other memories."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.config.load import load_model
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.gpu_arch import gemm_params
from ghostsim.devices.leg import Leg
from ghostsim.timing.gpu_kernels import GemmShape, gemm_us

H100 = part("h100_sxm")
LLAMA = load_model("llama_3_1_8b").value
GB = 10**9
FLOPS_PER_TOKEN = 4 * 128 * 4


def gpu(rig):
    return GpuDevice(rig.network, "gpu0", H100)


def gemm(rig, m):
    return gpu(rig).gemm(m, 28672, 4096, 2, 2 * 28672 * 4096)


def attention(tokens, batch=8, runs=None, token_bytes=512):
    return lambda rig: gpu(rig).attention(LLAMA, batch, tokens, tokens * token_bytes, tokens * FLOPS_PER_TOKEN, runs)


def test_a_small_gemm_takes_its_launch():
    took = alone_ps(lambda rig: gpu(rig).gemm(1, 64, 64, 2, 2 * 64 * 64))
    assert took == pytest.approx(3.01e6, rel=0.02)


def test_a_decode_gemm_reads_weights_at_the_measured_share_of_hbm():
    took = alone_ps(lambda rig: gemm(rig, 8))
    panels = 1 + 0.0598 * min(1, -(-448 // 132) * 132 / 448 - 1)
    assert took == pytest.approx(3.01e6 + 2 * 28672 * 4096 / (0.893 * 3350e9) * panels * PS, rel=0.01)


def test_a_large_gemm_is_limited_by_the_tensor_cores():
    took = alone_ps(lambda rig: gemm(rig, 8192))
    flops = 2 * 8192 * 28672 * 4096
    assert 0.75 * 989e12 < flops / took * PS < 0.823 * 989e12


@pytest.mark.parametrize("m", [1, 8, 64, 512, 4096])
def test_gemm_device_agrees_with_the_kernel_model(m):
    device = gpu(Rig())
    expected = gemm_us(device.spec, gemm_params(H100.architecture), GemmShape(m, 28672, 4096, 2))
    # The plan charges weights alone; activations are the rest of the kernel's bytes.
    assert alone_ps(lambda rig: gemm(rig, m)) == pytest.approx(expected * 1e6, rel=0.03 if m <= 64 else 0.1)


def test_attention_over_little_takes_the_floor():
    took = alone_ps(attention(8 * 8 * 128))
    assert 7.23e6 < took < 30e6


def test_attention_over_much_reads_at_the_measured_share_of_hbm():
    tokens = 8 * 8 * 131072
    took = alone_ps(attention(tokens))
    assert tokens * 512 / took * PS == pytest.approx(0.957 * 3350e9, rel=0.03)


def test_attention_over_scattered_tokens_is_no_faster():
    tokens = 8 * 8 * 4096
    assert alone_ps(attention(tokens, runs=tokens)) >= alone_ps(attention(tokens))


def test_attention_over_integers_pays_for_dequantisation():
    """4-bit KV (136 B) needs 256 operations a token: the vector units take longer than HBM where they are slow."""
    tokens = 8 * 8 * 131072
    slow = part("h100_sxm", "vector_macs=0.5 TMAC/s")
    took = alone_ps(
        lambda rig: GpuDevice(rig.network, "g", slow).attention(
            LLAMA, 8, tokens, tokens * 136, tokens * FLOPS_PER_TOKEN
        )
    )
    assert took == pytest.approx(tokens * 256 / 0.5e12 * PS, rel=0.02)


def test_scan_streams_the_index():
    took = alone_ps(lambda rig: gpu(rig).scan(4 * GB, 0))
    assert 4 * GB / took * PS == pytest.approx(3350e9, rel=0.05)


def test_scan_of_a_heavy_index_is_limited_by_the_vector_units():
    macs = 10**12
    took = alone_ps(lambda rig: gpu(rig).scan(GB, macs))
    assert took == pytest.approx(1.26e6 + macs / 33.5e12 * PS, rel=1e-4)


def test_selection_passes_half_a_tera_scores():
    took = alone_ps(lambda rig: gpu(rig).select(10**9))
    assert took == pytest.approx(1.26e6 + 1e9 / 0.5e12 * PS, rel=1e-4)


def test_arithmetic_on_the_chip_needs_no_hbm():
    rig = Rig()
    device = gpu(rig)
    rig.job("only", device.multiply(10**12))
    assert rig.run()["only"] == pytest.approx(1.26e6 + 1e12 / 989e12 * PS, rel=1e-3)
    assert rig.units(device.hbm.bus) == 0


def test_scan_and_attention_share_hbm():
    rig = Rig()
    device = gpu(rig)
    tokens = 8 * 8 * 32768
    rig.job("attend", device.attention(LLAMA, 8, tokens, tokens * 512, tokens * FLOPS_PER_TOKEN))
    rig.job("scan", device.scan(tokens * 512, 0))
    both = max(rig.run().values())
    one = alone_ps(attention(tokens))
    other = alone_ps(lambda rig: gpu(rig).scan(tokens * 512, 0))
    assert 0.95 * (one + other) < both <= one + other


def test_reads_in_place_are_limited_by_their_window():
    """35.2 GB/s of zero-copy reads at 910 ns were measured (nvbandwidth)."""
    source = Leg((), 910_000)
    rig = Rig()
    leg, _ = gpu(rig).read_in_place(source)
    rig.flow("only", leg, 10 * GB)
    assert 10 * GB / rig.run()["only"] * PS == pytest.approx(35.2e9, rel=0.001)


def test_two_readers_in_place_share_one_window():
    rig = Rig()
    leg, weight = gpu(rig).read_in_place(Leg((), 910_000))
    rig.flow("a", leg, GB, weight)
    rig.flow("b", leg, GB, weight)
    assert 2 * GB / rig.run()["b"] * PS == pytest.approx(35.2e9, rel=0.001)


INDEX = 66 * 10**6


def test_an_index_that_l2_keeps_is_scanned_at_the_bandwidth_of_l2():
    """7 TB/s; the scoring of 66 B records for 4 heads takes longer, so a lighter index is asked for."""
    took = alone_ps(lambda rig: gpu(rig).scan(INDEX, INDEX, resident=True))
    assert took == pytest.approx(1.26e6 + INDEX / 7e12 * PS, rel=1e-4)
    rig = Rig()
    device = gpu(rig)
    rig.job("only", device.scan(INDEX, INDEX, resident=True))
    rig.run()
    assert rig.units(device.hbm.bus) == 0


@pytest.mark.parametrize(("nbytes", "kept"), [(37_500_000, True), (37_500_001, False)])
def test_l2_keeps_an_index_of_three_quarters_of_its_size(nbytes, kept):
    assert gpu(Rig()).keeps(nbytes) is kept


def test_a_gpu_of_unknown_l2_bandwidth_keeps_no_index():
    assert not GpuDevice(Rig().network, "g", part("h100_sxm", "l2_bandwidth=null")).keeps(1)


def test_scoring_and_attention_share_the_time_of_the_sms():
    """A scan and attention of much arithmetic each: neither overlaps the other, whatever HBM has left."""
    rig = Rig()
    device = gpu(rig)
    flops, macs = 989 * 10**9, 33_500 * 10**6
    rig.job("attend", device.attention(LLAMA, 8, 8 * 8 * 4096, 8 * 8 * 4096 * 512, flops))
    rig.job("scan", device.scan(GB // 100, macs))
    both = max(rig.run().values())
    assert both == pytest.approx(1e9 + 1e9, rel=0.03)
    assert rig.probe.utilisation()["gpu0.sms"] > 0.95


def test_attention_leaves_the_sms_to_a_scan_while_hbm_is_its_limit():
    tokens = 8 * 8 * 65536
    rig = Rig()
    device = gpu(rig)
    rig.job("attend", device.attention(LLAMA, 8, tokens, tokens * 512, tokens * FLOPS_PER_TOKEN))
    rig.run()
    assert rig.probe.utilisation()["gpu0.sms"] < 0.02


LAUNCHES = {
    "scan": (lambda device: device.scan(64, 64), 1_260_000),
    "select": (lambda device: device.select(1), 1_260_000),
    "multiply": (lambda device: device.multiply(1), 1_260_000),
    "write": (lambda device: device.write(64), 0),
    "gemm": (lambda device: device.gemm(1, 64, 64, 2, 2 * 64 * 64), 3_010_000),
}


@pytest.mark.parametrize("kernel", list(LAUNCHES))
def test_every_kernel_pays_for_its_launch_but_one_fused_into_another(kernel):
    make, launch = LAUNCHES[kernel]
    assert make(gpu(Rig())).delay_ps == pytest.approx(launch, rel=0.02)


@pytest.mark.parametrize("latency_ps", [586_000, 773_000, 1_400_000])
def test_reads_in_place_get_window_over_latency(latency_ps):
    """Load latencies of host memory measured on GB200, C2C-class and PCIe 4 x8 GPUs: fewer bytes a second with each."""
    rig = Rig()
    leg, _ = gpu(rig).read_in_place(Leg((), latency_ps))
    rig.flow("only", leg, GB)
    assert GB / (rig.run()["only"] - leg.latency_ps) * PS == pytest.approx(32032 / latency_ps * PS, rel=1e-4)
