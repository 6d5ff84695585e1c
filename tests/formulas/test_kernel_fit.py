"""Do the kernel constants in the catalogue come from the fit they name, and do they hold on rows it did not see?"""

from dataclasses import astuple

import pytest

from ghostsim import bundled
from ghostsim.accuracy import fit
from ghostsim.accuracy.kernels import COLUMNS, UNITS, gpu, gpu_names
from ghostsim.accuracy.table import read, schemas
from ghostsim.config.load import load_part
from ghostsim.devices.gpu_arch import attention_of, gemm_params


@pytest.fixture(scope="module")
def fitted():
    folder = bundled.folder("hwmodels") / "reference"
    known = schemas(COLUMNS, UNITS)
    attention = read(folder / "gpu_decode_attention.csv", known)
    return fit.fit_attention(attention), fit.fit_gemm(read(folder / "gpu_gemm.csv", known))


@pytest.mark.slow
def test_fit_finds_the_constants_of_the_catalogue(fitted):
    attention, gemm = fitted
    for (arch, name), found in attention.items():
        shipped = astuple(attention_of(load_part(arch).value.attention[name]))[: len(found.constants)]
        assert shipped == pytest.approx(tuple(found.constants), rel=0.1, abs=0.1)
    for arch, found in gemm.items():
        assert astuple(gemm_params(load_part(arch).value)) == pytest.approx(tuple(found.constants), rel=0.1, abs=0.1)


@pytest.mark.slow
def test_constants_hold_on_the_half_they_were_not_fitted_to(fitted):
    attention, gemm = fitted
    rows = sum(each.rows for each in attention.values())
    for index, bar in ((0, 0.06), (1, 0.18)):
        assert sum(each.held_out[index] * each.rows for each in attention.values()) / rows <= bar
        assert max(each.held_out[index] for each in gemm.values()) <= bar


@pytest.mark.parametrize("name", sorted(set(gpu_names().values())))
def test_every_gpu_of_the_catalogue_has_an_architecture_with_constants(name):
    arch = gpu(name).architecture
    assert {"vllm", "sglang", "trtllm_bf16", "trtllm_fp8"} <= set(arch.attention)
    assert "dense" in arch.gemm


def test_no_two_gpus_share_a_name():
    owners = [name for stem in set(gpu_names().values()) for name in (stem, *gpu(stem).aliases)]
    assert len(owners) == len(set(owners)) == len(gpu_names())
