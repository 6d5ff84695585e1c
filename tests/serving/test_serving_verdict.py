"""The heading of a report on runs that serve requests."""

import pytest

from ghostsim.report.verdict import verdict


def latency(p95):
    return {"mean": p95 / 2, "mean_ci95": None, "p50": p95 / 2, "p95": p95, "p99": p95, "max": p95, "n": 100}


def run(policy, good, p95):
    serving = {
        "requests": 100, "completed": 100, "rejected": 0, "requests_per_s": 2.0, "output_tokens_per_s": 100.0,
        "goodput_per_s": good, "slo_share": good / 2, "busy_share": 0.5, "step_surface": {"max_error": 0.012},
        "ttft_ms": latency(p95), "tpot_ms": latency(p95 / 100), "e2e_ms": latency(10 * p95),
    }  # fmt: skip
    quality = {
        "elimination_rate": 0.0, "resurrection_rate": 1.0, "lost_mass": {"mean": 0.0, "p99": 0.0, "max": 0.0},
        "certified_mass": None, "false_elimination_rate": 0.0, "false_resurrection_rate": 0.0, "violations": None,
    }  # fmt: skip
    return {
        "policy": policy, "platform": "h100", "batch": 8, "step_ms": latency(10.0), "tokens_per_s": 800.0,
        "bytes_per_step": {"hbm": {"index": 0, "kv": 1e9, "weights": 1e9, "write": 0, "migrate": 0}},
        "utilisation": {"gpu0.hbm.bus": 0.9}, "critical_path_ms": {"gemm": 5.0, "attend_hot": 5.0}, "quality": quality,
        "serving": serving,
    }  # fmt: skip


def metrics(base, other, policy="quest"):
    runs = {"full": run("full", *base), "other": run(policy, *other)}
    trace = {"name": "t", "kind": "composed", "context_tokens": 1024, "steps": 2}
    ratios = {"tokens_per_s": 1.0, "step_p50": 1.0, "step_p95": 1.0}
    return {"scenario": "s", "trace": trace, "runs": runs, "compare": {"full": {"other": ratios}}}


def test_the_heading_names_who_serves_most_in_time():
    found = verdict(metrics((0.5, 4000.0), (1.5, 1000.0)))
    assert found.heading == (
        "On h100, other serves most requests in time, 1.5 requests/s (75 % of all): first token after 1 s and 10 ms "
        "per token at p95. full serves 3x fewer (first token after 4 s and 40 ms per token at p95)."
    )


def test_a_baseline_that_wins_is_set_beside_a_ghostkv_run():
    found = verdict(metrics((1.5, 1000.0), (0.0, 9000.0), policy="ghostkv"))
    assert "full serves most requests in time" in found.heading
    assert "other serves none (first token after 9 s" in found.heading


def test_where_none_is_in_time_the_heading_says_so():
    found = verdict(metrics((0.0, 4000.0), (0.0, 9000.0)))
    assert found.heading == "On h100, no run serves a request in time; the first token comes soonest from full."


def test_the_decode_step_comes_after():
    assert verdict(metrics((0.5, 4000.0), (1.5, 1000.0))).sentences[0].startswith("The decode step alone: ")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What won", "other"),
        ("By how much", "3x full in requests served in time"),
        ("How far to trust it", "off by at most 1.2 % where that was checked"),
    ],
)
def test_the_answers_are_about_serving(question, answer):
    assert answer in verdict(metrics((0.5, 4000.0), (1.5, 1000.0))).summary[question]
