"""Does the heading say what won, by how much, why, and what it costs?"""

import copy

import pytest

from ghostsim.report.verdict import BoundCheck, Facts, contender, verdict


def run(policy, batch, p95, *, kv=0.0, tier="hbm", lost=0.0, violations=None, certified=None, busy=0.97):
    return {
        "policy": policy,
        "platform": "h100_cxl_pim",
        "batch": batch,
        "step_ms": {"mean": p95, "p50": p95, "p95": p95, "p99": p95, "max": p95, "n": 4},
        "tokens_per_s": batch / p95 * 1000,
        "bytes_per_step": {tier: {"kv": kv}},
        "utilisation": {"pcie0": busy, "gpu0.hbm.bus": 0.2},
        "critical_path_ms": {"fetch_queue": 0.8 * p95, "gemm": 0.2 * p95},
        "quality": {
            "elimination_rate": 0.7,
            "resurrection_rate": 0.3,
            "lost_mass": {"mean": lost, "p99": lost, "max": lost},
            "certified_mass": None if certified is None else {"mean": certified, "max": certified},
            "violations": violations,
        },
    }


def ghost(batch, p95, **more):
    return run("ghostkv", batch, p95, **({"lost": 0.0041, "violations": 0, "certified": 0.0099} | more))


def metrics(runs, baselines=()):
    compare = {
        base: {
            label: {
                "tokens_per_s": each["tokens_per_s"] / runs[base]["tokens_per_s"],
                "step_p50": runs[base]["step_ms"]["p50"] / each["step_ms"]["p50"],
                "step_p95": runs[base]["step_ms"]["p95"] / each["step_ms"]["p95"],
            }
            for label, each in runs.items()
            if label != base
        }
        for base in baselines
    }
    trace = {"name": "natural_4k", "kind": "composed", "context_tokens": 131072, "steps": 4}
    return {"schema": 1, "scenario": "s", "seed": 1, "trace": trace, "runs": runs, "compare": compare}


def test_a_win_names_label_factor_percentile_limit_and_lost_mass():
    runs = {"full_offload": run("full", 8, 180.0), "ghostkv_cxl": ghost(8, 100.0)}
    found = verdict(metrics(runs, ["full_offload"]))
    assert found.heading == (
        "On h100_cxl_pim, ghostkv_cxl is 1.8x faster at p95 than full_offload at the same batch of 8. "
        "It loses at most 0.41 % of attention mass (certified: 0.99 %); the limit is pcie0 (97 % busy), "
        "and 80 % of the step goes to fetches that wait for other traffic."
    )
    assert found.pays is True
    assert found.summary["What won"] == "ghostkv_cxl"


def test_where_it_does_not_pay_the_heading_says_so_and_why():
    runs = {
        "full_fits": run("full", 3, 21.1, kv=3e9),
        "full_offload": run("full", 8, 2000.0, kv=8e9, tier="dram"),
        "ghostkv_cxl": ghost(8, 1143.0, kv=2.48e9, tier="cxl"),
    }
    found = verdict(metrics(runs, ["full_fits", "full_offload"]))
    assert found.heading == (
        "ghostkv_cxl does not pay on h100_cxl_pim: it gives 20x fewer tokens/s at batch 8 than full_fits at batch 3 "
        "(7 against 142), but is 1.75x faster at p95 than full_offload at the same batch of 8. It loses at most "
        "0.41 % of attention mass (certified: 0.99 %); it still reads 31 % of the KV at every step; the limit is "
        "pcie0 (97 % busy), and 80 % of the step goes to fetches that wait for other traffic."
    )
    assert found.pays is False
    assert found.summary["What won"] == "full_fits"


def test_slower_at_the_same_batch_is_said_as_slower():
    runs = {"full": run("full", 1, 10.0), "ghostkv_cxl": ghost(1, 25.0)}
    assert "is 2.5x slower at p95 than full at the same batch of 1" in verdict(metrics(runs, ["full"])).heading


def test_differences_below_two_percent_are_a_draw():
    runs = {"full": run("full", 1, 10.0), "ghostkv_cxl": ghost(1, 9.9)}
    found = verdict(metrics(runs, ["full"]))
    assert "is as fast at p95 as full at the same batch of 1" in found.heading
    assert found.pays is False


def test_without_a_baseline_nothing_is_claimed():
    found = verdict(metrics({"only": ghost(4, 20.0)}))
    assert found.heading.startswith("On h100_cxl_pim, only gives 200 tokens/s at batch 4, step p95 20 ms; there is no")
    assert found.pays is None


def test_a_single_baseline_run_is_its_own_subject():
    found = verdict(metrics({"full": run("full", 1, 10.0)}, ["full"]))
    assert "full gives 100 tokens/s" in found.heading


def test_different_batches_only_still_name_a_percentile():
    runs = {"full_fits": run("full", 2, 20.0), "ghostkv_cxl": ghost(8, 20.0)}
    heading = verdict(metrics(runs, ["full_fits"])).heading
    assert "4x more tokens/s at batch 8 than full_fits at batch 2 (400 against 100), step p95 20 ms" in heading


def test_subject_is_the_fastest_sound_ghostkv_run():
    runs = {
        "full": run("full", 8, 100.0),
        "quest": run("quest", 8, 10.0, lost=0.9, violations=0),
        "ghostkv_published": run("ghostkv_published", 8, 20.0, lost=0.5, violations=9),
        "ghostkv_cxl": ghost(8, 50.0),
        "ghostkv_gpu": ghost(8, 40.0),
    }
    assert contender(metrics(runs, ["full"])) == "ghostkv_gpu"


def test_without_ghostkv_the_fastest_other_run_is_the_subject():
    runs = {"full": run("full", 8, 100.0), "quest": run("quest", 8, 50.0, lost=0.9), "h2o": run("h2o", 8, 60.0)}
    assert contender(metrics(runs, ["full"])) == "quest"


def test_an_idle_limit_is_not_called_a_bottleneck():
    runs = {"full": run("full", 8, 100.0), "ghostkv_cxl": ghost(8, 50.0, busy=0.4)}
    heading = verdict(metrics(runs, ["full"])).heading
    assert "the limit is one thing waiting for another, as the busiest resource, pcie0, is 40 % busy" in heading


def test_format_that_changes_scores_is_not_lossless():
    runs = {"full": run("full", 8, 100.0), "int4": run("int4", 8, 50.0)}
    found = verdict(metrics(runs, ["full"]), Facts(not_lossless=frozenset({"int4"})))
    assert "is not lossless, because its format changes scores" in found.heading
    assert "Not lossless, because the format changes scores: int4." in found.sentences


def test_unsound_bound_is_set_beside_the_sound_one_at_equal_bytes():
    runs = {
        "full": run("full", 8, 100.0),
        "ghostkv_published": run("ghostkv_published", 8, 20.0, kv=100.0, lost=0.93, violations=1234),
        "ghostkv_cxl": ghost(8, 40.0, kv=10.0),
        "ghostkv_sketch": run("ghostkv_sketch", 8, 50.0, kv=104.0, lost=0.0002, violations=0, certified=0.01),
    }
    facts = Facts(bounds={"ghostkv_published": BoundCheck(0.12, 0.3)})
    assert verdict(metrics(runs, ["full"]), facts).warnings == [
        (
            "ghostkv_published is not sound: its bound lies below the true score for 12 % of the tokens checked "
            "(1,234 times), and it loses up to 93 % of attention mass; the sound bound of ghostkv_sketch at as many "
            "bytes loses at most 0.02 % and was never below a score."
        )
    ]


@pytest.mark.parametrize(("lost", "text"), [(0.00411, "0.42 %"), (0.009999, "1 %"), (0.0012, "0.12 %")])
def test_what_is_promised_is_rounded_up(lost, text):
    runs = {"full": run("full", 8, 100.0), "ghostkv_cxl": ghost(8, 50.0, lost=lost)}
    assert f"loses at most {text} of attention mass" in verdict(metrics(runs, ["full"])).heading


def test_nothing_lost_is_said_in_words():
    runs = {"full": run("full", 8, 100.0), "ghostkv_cxl": ghost(8, 50.0, lost=0.0)}
    assert "It loses no attention mass; " in verdict(metrics(runs, ["full"])).heading


def test_trust_names_trace_context_repeats_and_assumptions():
    facts = Facts(workload={"trained_context": 4096, "token_repeats": 31.5}, assumed=23)
    answer = verdict(metrics({"full": run("full", 1, 10.0)}), facts).summary["How far to trust it"]
    for expected in (
        "composed",
        "131,072 tokens",
        "trained at 4,096",
        "stands for 31.5",
        "23 hardware numbers",
        "open loop",
    ):
        assert expected in answer


def test_a_trace_as_it_was_recorded_repeats_nothing():
    facts = Facts(workload={"trained_context": 4096, "token_repeats": 1.0})
    assert "stands for" not in verdict(metrics({"full": run("full", 1, 10.0)}), facts).summary["How far to trust it"]


def test_verdict_leaves_its_input_alone():
    found = metrics({"full": run("full", 8, 100.0), "ghostkv_cxl": ghost(8, 50.0)}, ["full"])
    before = copy.deepcopy(found)
    verdict(found)
    assert found == before
