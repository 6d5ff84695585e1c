"""Do the forms in which survivors come back cost what they say, and lose what they must?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.config.formats import ResidualFormat
from ghostsim.config.load import load_policy, load_scenario
from ghostsim.errors import ConfigError
from ghostsim.policy.costs import anchor_bytes, format_bytes, parts_of, rebuild_flops, side_bytes
from ghostsim.policy.formats import decoded
from ghostsim.simulation import simulate

D = 128
FORMS = {"ghostkv": 512, "ghostkv_fragment": 160, "ghostkv_anchor_residual": 140, "ghostkv_lowrank": 192}
"""Bytes of K and V of one token and head of 128 channels, by hand."""


def of(name):
    return load_policy(name).value


def residual(tokens, bits):
    return ResidualFormat.model_validate({"residual": {"tokens": tokens, "bits": bits}})


@pytest.mark.parametrize(("name", "nbytes"), FORMS.items())
def test_bytes_of_a_token(name, nbytes):
    assert format_bytes(of(name).keep[0].format, D) == nbytes


def test_an_anchor_is_shared_by_its_tokens():
    assert anchor_bytes(of("ghostkv_anchor_residual").keep[0].format, D) == 2 * D * 2 / 16


def test_survivors_read_their_anchors_in_hbm_each_once():
    """Keys and values of 256 bytes each; 3,840 cold tokens have 240 anchors of each."""
    (part,) = parts_of(of("ghostkv_anchor_residual"))
    assert [part.met_anchor_bytes(tokens, 3840, D) for tokens in (100, 3000)] == [100 * 512, 240 * 512]


def test_anchors_are_counted_as_kv_of_hbm(runs):
    """Besides them, of a survivor only its difference of 140 bytes lands there instead of 512."""
    whole, anchored = (runs[label]["bytes_per_step"] for label in ("whole", "anchor_residual"))
    survivors = anchored["dram"]["kv"] / 140
    assert whole["dram"]["kv"] == pytest.approx(survivors * 512)
    anchors = anchored["hbm"]["kv"] - whole["hbm"]["kv"] + survivors * (512 - 140)
    heads, cold = 4 * 4 * 2, 3968 - 256
    assert 0.5 * heads * cold / 16 * 512 < anchors <= heads * (cold / 16 + 1) * 512


def test_cores_that_do_not_reach_hbm_do_not_attend_by_anchors():
    with pytest.raises(ConfigError, match="whose anchors are in HBM, expected dma"):
        load_scenario("resurrection", ["runs.anchor_residual.fetch=cpu"])


@pytest.mark.parametrize(
    ("name", "flops"), [("ghostkv", 0), ("ghostkv_fragment", 4 * D), ("ghostkv_anchor_residual", 6 * D),
                        ("ghostkv_lowrank", 2 * (2 * 32 * D + 3 * D))],
)  # fmt: skip
def test_operations_to_rebuild_a_token(name, flops):
    assert rebuild_flops(of(name).keep[0].format, D) == flops


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), bits=st.sampled_from([2, 4, 8]))
def test_a_difference_to_an_anchor_is_off_by_half_a_step_at_most(seed, bits):
    rows = np.random.default_rng(seed).standard_normal((200, 32))
    back = decoded(rows, residual(16, bits))
    widest = 2 * np.abs(rows).max() * 2
    assert np.abs(back - rows).max() <= widest / (2**bits - 1) / 2 + 2e-2


def test_rows_that_are_their_anchor_come_back_as_fp16():
    rows = np.repeat(np.random.default_rng(0).standard_normal((4, 32)), 16, axis=0)
    assert np.allclose(decoded(rows, residual(16, 4)), rows, atol=2e-3)


def test_anchors_help_where_rows_are_alike():
    rng = np.random.default_rng(1)
    rows = np.repeat(5 * rng.standard_normal((16, 64)), 16, axis=0) + 0.1 * rng.standard_normal((256, 64))
    integers = load_policy("ghostkv_fragment").value.keep[0].format.k

    def error(side):
        return np.square(decoded(rows, side) - rows).mean()

    assert side_bytes(residual(16, 4), 64) < side_bytes(integers, 64)
    assert error(residual(16, 4)) < error(integers)


def test_a_staged_certificate_does_not_stand_on_decoded_keys():
    with pytest.raises(ConfigError, match="found certify over a lossy format"):
        load_policy("ghostkv_fragment", ["read.rule.form=staged"])


@pytest.fixture(scope="module")
def runs():
    return simulate(load_scenario("resurrection", ["workload.steps=4"]).scenario).metrics["runs"]


def test_the_form_changes_no_set(runs):
    reads = {(each["quality"]["resurrection_rate"], each["quality"]["lost_mass"]["max"]) for each in runs.values()}
    assert len(reads) == 1


def test_smaller_forms_move_fewer_bytes_and_err_more(runs):
    whole = runs["whole"]
    for label in ("fragment", "anchor_residual", "lowrank"):
        assert runs[label]["bytes_per_step"]["dram"]["kv"] < 0.5 * whole["bytes_per_step"]["dram"]["kv"]
        assert runs[label]["quality"]["output_error"]["mean"] > whole["quality"]["output_error"]["mean"]
        assert runs[label]["step_ms"]["mean"] < whole["step_ms"]["mean"]
