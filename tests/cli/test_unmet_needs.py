"""Is a policy that needs every prompt query refused in one line on a trace with some of them?"""

import pytest
import yaml

from ghostsim.config.load import load_policy
from ghostsim.study.frontier import frontier
from ghostsim.trace.format import open_trace
from ghostsim.trace.write import TraceWriter


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """Return tutorial_4k, which has token classes, with the last 64 of its prompt queries."""
    trace = open_trace("tutorial_4k")
    manifest = yaml.safe_load((trace.path / "manifest.yaml").read_text())
    with TraceWriter(tmp_path_factory.mktemp("partial") / "partial") as writer:
        for name, array in trace.arrays().items():
            writer.put(name, array[:, :, -64:] if name == "q_prompt" else array)
        return writer.finish({k: v for k, v in manifest.items() if k not in ("format", "arrays", "checks")})


LINE = "fastgen: needs every prompt query (q_prompt), the trace holds the last 64 of 4032"


def test_evaluate_refuses_fastgen_without_every_prompt_query(partial, refused):
    assert LINE in refused(4, "evaluate", "fastgen", "--trace", partial.path)


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_scenario_with_fastgen_without_every_prompt_query_is_refused_where_it_says_so(
    partial, refused, tmp_path, command
):
    scenario = {
        "schema": 1,
        "name": "partial",
        "model": "llama_3_1_8b",
        "platform": "h100_cxl_pim",
        "workload": {"trace": str(partial.path), "batch": 1, "steps": 2},
        "runs": {"a": {"policy": "fastgen"}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario))
    told = refused(4, command, "s.yaml")
    assert LINE in told
    assert "s.yaml:" in told


def test_frontier_lists_fastgen_as_skipped_with_the_reason(partial):
    found = frontier(partial, [load_policy(name).value for name in ("fastgen", "streaming_llm")], steps=1, jobs=1)
    assert found.skipped == {"fastgen": LINE.removeprefix("fastgen: ")}
