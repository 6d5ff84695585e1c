"""Are the GPU kernel times the closed forms they claim to be, and do they move the right way?"""

from dataclasses import astuple, replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.config.load import load_part
from ghostsim.devices.gpu_arch import attention_of, attention_params, gemm_params
from ghostsim.errors import ConfigError
from ghostsim.timing.gpu_kernels import (
    AttentionParams,
    AttentionShape,
    GemmParams,
    GemmShape,
    GpuSpec,
    attention_split,
    decode_attention_us,
    gemm_split,
    gemm_us,
    kv_splits,
)

H100 = GpuSpec(sms=132, peak_flops=989e12, hbm_bytes_per_s=3.35e12, l2_bytes=50_000_000)
PLAIN = AttentionParams(1, 0, 2, 0, 0, 3, 1.0, 6.7e12 / 132, 1.0, slots_per_sm=1, split_rule="one_wave", max_splits=128)
ARCHES = ("sm_80", "sm_90", "sm_100")


@cache
def load_arch(name):
    return load_part(name).value


ATTENTION = {arch: {name: attention_of(k) for name, k in load_arch(arch).attention.items()} for arch in ARCHES}

shapes = st.builds(
    AttentionShape,
    q_heads=st.just(32),
    kv_heads=st.sampled_from([1, 2, 8, 32]),
    head_dim=st.sampled_from([64, 128]),
    kv_bytes_per_element=st.sampled_from([1.0, 2.0]),
    batch=st.integers(1, 256),
    kv_len=st.integers(1, 200_000),
)
products = st.builds(
    GemmShape,
    m=st.integers(1, 8192),
    n=st.integers(64, 20000),
    k=st.integers(64, 20000),
    bytes_per_element=st.just(2.0),
)
families = st.sampled_from([(arch, params) for arch in ARCHES for params in ATTENTION[arch].values()]).map(
    lambda pair: pair[1]
)


def shape(batch, kv_len, kv_heads=8):
    return AttentionShape(32, kv_heads, 128, 2.0, batch, kv_len)


def test_bytes_are_keys_and_values_of_every_kv_head_once():
    assert shape(8, 1000).nbytes == 2 * 8 * 8 * 1000 * 128 * 2


@pytest.mark.parametrize(
    ("items", "slots", "kv_len", "expected"),
    [(64, 132, 65536, 2), (132, 132, 65536, 1), (1000, 132, 65536, 1), (1, 132, 65536, 132), (1, 132, 300, 3)],
)
def test_splits_fill_the_slots_but_never_cut_below_a_block(items, slots, kv_len, expected):
    assert kv_splits(items, slots, kv_len, 512) == expected


@pytest.mark.parametrize(
    ("items", "slots", "kv_len", "expected"),
    [(64, 132, 65536, 2), (96, 132, 65536, 4), (106, 132, 65536, 1), (67, 132, 65536, 7), (96, 132, 100, 1)],
)
def test_splits_by_occupancy_leave_no_wave_half_empty(items, slots, kv_len, expected):
    assert kv_splits(items, slots, kv_len, 128, "occupancy") == expected


def test_splits_stop_at_the_family_limit():
    assert kv_splits(1, 132, 65536, 16) == 16


def test_large_cold_kernel_is_start_plus_ramp_plus_bytes_over_bandwidth():
    work = shape(132, 65536)  # 1,056 items: exactly eight waves
    expected = 2 + 3 + work.nbytes / 3.35e12 * 1e6
    assert decode_attention_us(H100, PLAIN, work) == pytest.approx(expected, rel=1e-6)


def test_warm_kernel_reads_at_l2_speed():
    work = shape(33, 128)  # 264 items: exactly two waves, a third of L2
    assert decode_attention_us(H100, PLAIN, work) == pytest.approx(2 + work.nbytes / 6.7e12 * 1e6, rel=1e-2)


def test_smallest_kernel_takes_the_floor():
    params = replace(PLAIN, floor_us=20.0)
    assert decode_attention_us(H100, params, shape(1, 1)) == pytest.approx(20.0, rel=1e-3)


def test_one_item_more_than_the_slots_costs_a_wave():
    full, over = shape(16, 100_000), shape(17, 100_000)  # 128 and 136 items on 132 SMs
    gain = decode_attention_us(H100, PLAIN, over) / decode_attention_us(H100, PLAIN, full)
    assert gain > 1.7


@given(shapes, families)
def test_split_form_equals_the_full_form_when_nothing_is_in_l2(work, params):
    split = attention_split(H100, params, work)
    tiny_l2 = replace(H100, l2_bytes=1)
    whole = split.fixed_ps * 1e-6 + work.nbytes / split.bytes_per_s * 1e6
    assert whole == pytest.approx(decode_attention_us(tiny_l2, params, work), rel=1e-3)


@given(shapes, families)
def test_split_form_agrees_with_the_full_form_well_beyond_l2(work, params):
    if work.nbytes < 3 * H100.l2_bytes:
        return
    split = attention_split(H100, params, work)
    whole = split.fixed_ps * 1e-6 + work.nbytes / split.bytes_per_s * 1e6
    assert whole == pytest.approx(decode_attention_us(H100, params, work), rel=0.02)


@given(shapes, families)
def test_no_kernel_draws_more_than_hbm_gives(work, params):
    split = attention_split(H100, params, work)
    assert 0 < split.bytes_per_s <= H100.hbm_bytes_per_s * (1 + 1e-12)
    assert split.fixed_ps > 0


@given(shapes, families, st.floats(1.0, 4.0))
def test_more_bandwidth_never_slows_attention(work, params, factor):
    faster = replace(H100, hbm_bytes_per_s=H100.hbm_bytes_per_s * factor)
    assert decode_attention_us(faster, params, work) <= decode_attention_us(H100, params, work) * (1 + 1e-12)


@given(shapes, families)
def test_wider_elements_never_speed_up_cold_attention(work, params):
    wide = replace(work, kv_bytes_per_element=2 * work.kv_bytes_per_element)
    assert attention_split(H100, params, wide).fixed_ps >= 0
    cold = replace(H100, l2_bytes=1)
    assert decode_attention_us(cold, params, wide) >= decode_attention_us(cold, params, work)


def test_memory_bound_gemm_is_launch_plus_weights_over_bandwidth():
    params = GemmParams(3.0, 0.9, 0.8, 0.0, 0.0)
    product = GemmShape(1, 8192, 8192, 2.0)
    assert gemm_us(H100, params, product) == pytest.approx(3 + product.nbytes / (0.9 * 3.35e12) * 1e6, rel=1e-6)


def test_arithmetic_bound_gemm_is_launch_plus_flops_over_peak():
    params = GemmParams(3.0, 0.9, 0.8, 0.0, 0.0)
    product = GemmShape(8192, 8192, 8192, 2.0)
    assert gemm_us(H100, params, product) == pytest.approx(3 + product.flops / (0.8 * 989e12) * 1e6, rel=1e-2)


def test_last_wave_of_tiles_is_paid_in_full_at_weight_one():
    params = GemmParams(0.0, 0.9, 0.8, 1.0, 0.0)
    one_wave = gemm_us(H100, params, GemmShape(128, 132 * 128, 65536, 2.0))
    two_waves = gemm_us(replace(H100, hbm_bytes_per_s=1e18), params, GemmShape(128, 133 * 128, 65536, 2.0))
    lone = gemm_us(replace(H100, hbm_bytes_per_s=1e18), params, GemmShape(128, 132 * 128, 65536, 2.0))
    assert two_waves == pytest.approx(2 * lone, rel=1e-9)
    assert one_wave > lone


@given(products, st.sampled_from(ARCHES))
def test_gemm_split_equals_the_full_form(product, arch):
    params = gemm_params(load_arch(arch))
    split = gemm_split(H100, params, product)
    seconds = split.fixed_ps * 1e-12 + max(product.nbytes / split.bytes_per_s, product.flops / split.flops_per_s)
    assert seconds * 1e6 == pytest.approx(gemm_us(H100, params, product), rel=1e-4)


@given(products, st.sampled_from(ARCHES))
def test_gemm_never_beats_the_roofline_of_the_datasheet(product, arch):
    seconds = gemm_us(H100, gemm_params(load_arch(arch)), product) * 1e-6
    assert seconds >= product.nbytes / H100.hbm_bytes_per_s
    assert seconds >= product.flops / H100.peak_flops


@pytest.mark.parametrize("arch", ARCHES)
def test_every_architecture_knows_every_family(arch):
    assert {"vllm", "sglang", "trtllm_bf16", "trtllm_fp8"} <= set(load_arch(arch).attention)


@pytest.mark.parametrize("arch", ARCHES)
def test_fitted_constants_are_possible(arch):
    for params in ATTENTION[arch].values():
        assert all(value >= 0 for value in astuple(params) if not isinstance(value, str))
        assert params.hbm_efficiency <= 1


def test_single_query_head_kernels_have_constants_of_their_own():
    arch = load_arch("sm_90")
    assert attention_params(arch, "trtllm_fp8", 32, 32) == ATTENTION["sm_90"]["trtllm_fp8_mha"]
    assert attention_params(arch, "trtllm_fp8", 32, 8) == ATTENTION["sm_90"]["trtllm_fp8"]


def test_architecture_without_rows_borrows_constants():
    borrowed = {name: attention_of(kernel) for name, kernel in load_arch("sm_89").attention.items()}
    assert borrowed == ATTENTION["sm_80"]


def test_unknown_architecture_names_the_known_ones():
    with pytest.raises(ConfigError, match="sm_70"):
        load_arch("sm_70")
