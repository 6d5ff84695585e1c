"""Do the kernel constants in the catalogue come from the fit they name, and do they hold on rows it did not see?"""

from dataclasses import astuple, replace

import pytest
import yaml

from ghostsim import bundled
from ghostsim.accuracy import fit
from ghostsim.accuracy.kernels import gpu, gpu_names
from ghostsim.accuracy.predict import SCHEMAS
from ghostsim.accuracy.table import read
from ghostsim.config.load import load_part
from ghostsim.devices.gpu_arch import attention_of, gemm_params
from ghostsim.timing.loaded import DRAM
from ghostsim.timing.upmem import UPMEM_350MHZ


def rows_of(probe):
    return read(bundled.folder("hwmodels") / "reference" / f"{probe}.csv", SCHEMAS)


@pytest.fixture(scope="module")
def fitted():
    return fit.fit_attention(rows_of("gpu_decode_attention")), fit.fit_gemm(rows_of("gpu_gemm"))


@pytest.mark.slow
def test_fit_finds_the_constants_of_the_catalogue(fitted):
    attention, gemm = fitted
    for (arch, name), found in attention.items():
        kernel = attention_of(load_part(arch).value.attention[name])
        shipped = astuple(replace(kernel, l2_bytes_per_s_per_sm=kernel.l2_bytes_per_s_per_sm / 1e9))
        constants = [value / 1e9 if value > 1e6 else value for value in found.constants]
        assert shipped[: len(constants)] == pytest.approx(constants, rel=0.1, abs=0.1)
    for arch, found in gemm.items():
        assert astuple(gemm_params(load_part(arch).value)) == pytest.approx(tuple(found.constants), rel=0.1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("held_out", ["held_out", "left_out"])
def test_constants_hold_on_rows_and_shapes_they_were_not_fitted_to(fitted, held_out):
    attention, gemm = ({key: each for key, each in some.items() if getattr(each, held_out)} for some in fitted)
    rows = sum(each.rows for each in attention.values())
    for index, bar in ((0, 0.06), (1, 0.18)):
        assert sum(getattr(each, held_out)[index] * each.rows for each in attention.values()) / rows <= bar
        assert max(getattr(each, held_out)[index] for each in gemm.values()) <= bar


@pytest.mark.slow
def test_sources_quote_the_errors_that_the_fit_finds(fitted):
    attention, gemm = fitted
    for (arch, name), found in attention.items():
        assert source_of(arch, "attention", name) == fit.source(found, "gpu_decode_attention.csv")
    for arch, found in gemm.items():
        assert source_of(arch, "gemm", "dense") == fit.source(found, "gpu_gemm.csv")


def source_of(arch, kind, name):
    text = (bundled.folder("hwmodels") / "gpu" / "arch" / f"{arch}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[kind][name]["source"]


def test_memory_systems_hold_on_machines_they_were_not_fitted_to():
    found = fit.fit_system_latency(rows_of("memory_system_latency"))
    assert astuple(DRAM) == pytest.approx(tuple(found.constants), rel=0.05, abs=0.01)
    assert (found.left_out[0] <= 0.05, found.left_out[1] <= 0.16) == (True, True)


def test_dma_holds_on_transfer_sizes_it_was_not_fitted_to():
    found = fit.fit_dma(rows_of("upmem_mram_dma"))
    spec = UPMEM_350MHZ
    shipped = (spec.read_setup_cycles, spec.write_setup_cycles, spec.engine_setup_cycles, spec.engine_cycles_per_byte)
    assert shipped == pytest.approx(tuple(found.constants), rel=0.05)
    assert (found.left_out[0] <= 0.05, found.left_out[1] <= 0.15) == (True, True)


@pytest.mark.parametrize("name", sorted(set(gpu_names().values())))
def test_every_gpu_of_the_catalogue_has_an_architecture_with_constants(name):
    arch = gpu(name).architecture
    assert {"vllm", "sglang", "trtllm_bf16", "trtllm_fp8"} <= set(arch.attention)
    assert "dense" in arch.gemm


def test_no_two_gpus_share_a_name():
    owners = [name for stem in set(gpu_names().values()) for name in (stem, *gpu(stem).aliases)]
    assert len(owners) == len(set(owners)) == len(gpu_names())
