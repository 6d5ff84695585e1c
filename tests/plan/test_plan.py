"""Does a plan move the bytes of its Selection, to the byte, and in an order that can be executed?"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented import CXL, HBM, OFFLOAD, PIM, llama, policy, selection, varied

from ghostsim.errors import InvariantError
from ghostsim.plan.plan import OPS, ROLES, Work, build
from ghostsim.policy.placement import place

SMALL = llama("layers=3", "kv_heads=2", "q_heads=8")
CHUNKED = replace(CXL, chunks=4)
PLACEMENTS = {
    "full": [HBM, OFFLOAD, replace(OFFLOAD, fetch="zero_copy"), replace(HBM, kv_tier="cxl")],
    "int4": [HBM, OFFLOAD],
    "h2o": [HBM],
    "quest": [HBM, OFFLOAD],
    "ghostkv": [HBM, OFFLOAD, CXL, CHUNKED, replace(CXL, result="ids"), replace(CXL, fetch="zero_copy"), PIM],
    "ghostkv_onepass": [HBM, CXL],
}
CASES = [(name, placement) for name, placements in PLACEMENTS.items() for placement in placements]
KV = {"full": 512, "int4": 136, "h2o": 512, "quest": 512, "ghostkv": 512, "ghostkv_onepass": 512}
RECORD = {"quest": (512, 16), "ghostkv": (66, 1), "ghostkv_onepass": (66, 1)}


def plan_of(name, placement, batch=2, steps=3, model=SMALL, **kwargs):
    chosen = varied(policy(name), model, context=5000, batch=batch, steps=steps, **kwargs)
    return chosen, place(chosen, policy(name), model, placement, batch)


def rows(plan, *names):
    """Return which rows of the plan are instances of these rows of the program."""
    wanted = [i for i, name in enumerate(plan.names) if name in names]
    return np.isin(np.arange(len(plan)) % len(plan.names), wanted)


def ops(plan, *wanted):
    return np.isin(plan.op, [OPS.index(op) for op in wanted])


def per_step(values):
    """Sum [heads, steps] over heads."""
    return values.sum(axis=0)


def bytes_of(plan, tier, cause):
    return plan.tier_bytes().get(tier, {}).get(cause, np.zeros(plan.steps, np.int64))


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_index_bytes_are_records_scanned_and_results(name, placement):
    chosen, plan = plan_of(name, placement)
    if name not in RECORD:
        assert all("index" not in causes for causes in plan.tier_bytes().values())
        return
    record, unit = RECORD[name]
    scanned = -(-chosen.cold_tokens // unit)
    expected = per_step(scanned) * record
    if placement.site != "gpu":
        expected = expected + 2 * 3 * 8 * 128  # queries: requests, layers, heads, dimensions at 8 bits
        expected = expected + _results(scanned, chosen.read_tokens, placement)
    assert bytes_of(plan, placement.index_tier, "index").tolist() == expected.tolist()


def _results(scanned, read, placement):
    """Return the bytes of ids, or of bitmaps in whole bytes per request and layer (PIM: per layer) and chunk."""
    shape = (2, 3, 2, 3)
    if placement.result == "ids":
        return per_step(read) * 4
    together = scanned.reshape(shape).sum(axis=2)
    if placement.site == "pim":
        together = together.sum(axis=0, keepdims=True)
    ends = [together * c // placement.chunks for c in range(placement.chunks + 1)]
    return sum((-(-(b - a) // 8)).sum(axis=(0, 1)) for a, b in pairwise(ends))


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_kv_bytes_of_the_cold_tier_are_what_is_read(name, placement):
    chosen, plan = plan_of(name, placement)
    read = per_step(chosen.read_tokens) * KV[name]
    hot = per_step(chosen.hot_tokens) * KV[name]
    if placement.kv_tier == "hbm":
        assert bytes_of(plan, "hbm", "kv").tolist() == (hot + read).tolist()
        return
    assert bytes_of(plan, placement.kv_tier, "kv").tolist() == read.tolist()
    copied = read if placement.fetch == "dma" else 0 * read
    assert bytes_of(plan, "hbm", "kv").tolist() == (hot + copied).tolist()


@pytest.mark.parametrize("placement", [HBM, OFFLOAD, replace(OFFLOAD, fetch="zero_copy")])
def test_what_a_cache_recalls_migrates_and_is_attended_in_hbm(placement):
    chosen, plan = plan_of("arkvale", placement)
    read, hot = per_step(chosen.read_tokens) * 512, per_step(chosen.hot_tokens) * 512
    aged = 2 * 3 * 2 * 512
    assert bytes_of(plan, "hbm", "kv").tolist() == (hot + read).tolist()
    assert not bytes_of(plan, "dram", "kv").any()
    away = placement.kv_tier != "hbm"
    assert bytes_of(plan, "dram", "migrate").tolist() == ((read + aged) * away).tolist()


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_weights_are_read_once_a_step(name, placement):
    plan = plan_of(name, placement)[1]
    layer = 4096 * (8 + 2 * 2) * 128 + 4096 * 8 * 128 + 3 * 4096 * 14336
    assert bytes_of(plan, "hbm", "weights").tolist() == [2 * (3 * layer + 4096 * 128256)] * 3


@pytest.mark.parametrize(("name", "placement"), [*CASES, ("arkvale", OFFLOAD), ("retroinfer", OFFLOAD)])
def test_the_new_token_is_written_once(name, placement):
    plan = plan_of(name, placement)[1]
    assert set(plan.nbytes[rows(plan, "write")]) == {2 * 2 * KV.get(name, 512)}
    assert rows(plan, "write").sum() == 3 * 3


def test_a_token_that_leaves_the_window_moves_to_cold_and_gets_its_record():
    plan = plan_of("ghostkv", CXL)[1]
    assert bytes_of(plan, "cxl", "migrate").tolist() == [2 * 3 * 2 * (512 + 66)] * 3


def test_nothing_leaves_a_window_that_is_not_full():
    chosen = selection(policy("ghostkv"), SMALL, hot=100, cold=0, read=0)
    plan = place(chosen, policy("ghostkv"), SMALL, CXL, 1)
    assert bytes_of(plan, "cxl", "migrate").tolist() == [0]


@pytest.mark.parametrize("chunks", [1, 4])
def test_bytes_of_a_step_are_index_kv_transitions_and_the_new_token(chunks):
    """The second law: nothing moves for any other reason."""
    chosen, plan = plan_of("ghostkv", replace(CXL, chunks=chunks, fetch="zero_copy"))
    terms = {
        "scan": per_step(chosen.cold_tokens) * 66,
        "query": 2 * 3 * 8 * 128,
        "bitmap": _results(chosen.cold_tokens, chosen.read_tokens, replace(CXL, chunks=chunks)),
        "hot": per_step(chosen.hot_tokens) * 512,
        "survivors": per_step(chosen.read_tokens) * 512,
        "new token": 2 * 3 * 2 * 512,
        "out of the window": 2 * 3 * 2 * (512 + 66),
    }
    moved = sum(b for causes in plan.tier_bytes().values() for cause, b in causes.items() if cause != "weights")
    assert moved.tolist() == sum(terms.values()).tolist()


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_a_plan_reads_only_what_is_stored(name, placement):
    """The first law, in tokens: cold rows never name more than is stored, and no more pieces than tokens."""
    chosen, plan = plan_of(name, placement)
    read = rows(plan, *(n for n in plan.names if n.startswith("read")))
    stored = (chosen.stored_tokens - chosen.hot_tokens).reshape(2, 3, 2, 3).sum(axis=2)
    for request in range(2):
        mine = read & (plan.request == request)
        tokens = np.zeros((3, 3), np.int64)
        np.add.at(tokens, (plan.layer[mine], plan.step[mine]), plan.records[mine])
        assert (tokens <= stored[request]).all()
    assert (plan.runs[read] <= plan.records[read]).all()


@pytest.mark.parametrize("tier", ["dram", "cxl", "pim", "ssd"])
def test_the_tier_of_kv_changes_no_size(tier):
    """The fourth law: another tier is another place for the same bytes."""
    one = plan_of("ghostkv", OFFLOAD)[1]
    two = plan_of("ghostkv", replace(OFFLOAD, kv_tier=tier))[1]
    assert one.names == two.names
    for column in ("nbytes", "records", "runs", "flops", "after", "offsets"):
        assert np.array_equal(getattr(one, column), getattr(two, column))


def test_the_filter_site_changes_neither_scan_nor_reads():
    plans = [plan_of("ghostkv", p)[1] for p in (OFFLOAD, replace(CXL, kv_tier="dram"), PIM)]
    scans = [[int(p.nbytes[ops(p, "scan") & (p.step == s)].sum()) for s in range(3)] for p in plans]
    reads = [[int(p.nbytes[ops(p, "read") & (p.step == s)].sum()) for s in range(3)] for p in plans]
    assert scans[0] == scans[1] == scans[2]
    assert reads[0] == reads[1] == reads[2]


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_every_row_waits_for_earlier_rows_only(name, placement):
    plan = plan_of(name, placement)[1]
    waiting = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    assert (plan.after < waiting).all()
    assert (plan.after >= 0).all()


@pytest.mark.parametrize(("name", "placement"), CASES)
def test_every_row_of_a_step_ends_before_the_next_steps_head(name, placement):
    """All reads, scans and attention of a layer are awaited by its output projection."""
    plan = plan_of(name, placement)[1]
    width, names = len(plan.names), list(plan.names)
    layer = 2 * width
    reached, open_rows = set(), [layer + names.index("output")]
    while open_rows:
        row = open_rows.pop()
        if row in reached or row < layer:
            continue
        reached.add(row)
        open_rows += plan.after[plan.offsets[row] : plan.offsets[row + 1]].tolist()
    needed = [i for i, name in enumerate(names) if name.startswith(("scan", "filter", "read", "hot", "surv", "qkv"))]
    assert {layer + i for i in needed} <= reached


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.integers(1, 9),
    read=st.lists(st.integers(0, 4000), min_size=12, max_size=12),
    result=st.sampled_from(["ids", "bitmap"]),
)
def test_chunks_conserve_bytes(chunks, read, result):
    shaped = np.array(read).reshape(2, 3, 2, 1)
    chosen = selection(policy("ghostkv"), SMALL, hot=260, cold=4000, read=shaped, batch=2)
    whole = place(chosen, policy("ghostkv"), SMALL, replace(CXL, result="ids"), 2)
    cut = place(chosen, policy("ghostkv"), SMALL, replace(CXL, chunks=chunks, result=result), 2)
    for op in ("scan", "read", *(("filter",) if result == "ids" else ())):
        for column in ("nbytes", "records", "flops"):
            assert getattr(cut, column)[ops(cut, op)].sum() == getattr(whole, column)[ops(whole, op)].sum()


@settings(max_examples=40, deadline=None)
@given(
    hot=st.integers(0, 500),
    cold=st.integers(0, 3000),
    share=st.floats(0, 1),
    name=st.sampled_from(["quest", "ghostkv", "full"]),
    placement=st.sampled_from([HBM, OFFLOAD, replace(OFFLOAD, fetch="zero_copy")]),
)
def test_no_size_is_negative_and_kv_is_conserved(hot, cold, share, name, placement):
    read = int(cold * share) if name in RECORD else cold
    chosen = selection(policy(name), SMALL, hot=hot, cold=cold, read=read)
    plan = place(chosen, policy(name), SMALL, placement, 1)
    for column in (plan.nbytes, plan.records, plan.runs, plan.flops):
        assert (column >= 0).all()
    attended = ops(plan, "attend", "decode")
    assert plan.records[attended].sum() == 6 * (hot + read)


def test_a_row_that_waits_for_a_later_one_is_refused():
    program = [Work("a", "gemm", "weights", nbytes=1, after=(("b", 0),)), Work("b", "gemm", "weights", nbytes=1)]
    with pytest.raises(InvariantError, match="waits for itself or for a later row"):
        build(program, {"weights": "hbm"}, 1, 2)


def test_a_negative_size_is_refused():
    with pytest.raises(InvariantError, match="negative nbytes"):
        build([Work("a", "gemm", "weights", nbytes=-1)], {"weights": "hbm"}, 1, 1)


def test_equal_plans_have_equal_hashes_and_others_do_not():
    hashes = [plan_of("ghostkv", p)[1].content_hash for p in (CXL, CXL, replace(CXL, kv_tier="dram"), OFFLOAD)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_a_small_batch_takes_the_first_requests():
    chosen = varied(policy("ghostkv"), SMALL, context=5000, batch=4, steps=2)
    plan = place(chosen, policy("ghostkv"), SMALL, CXL, 2)
    expected = chosen.read_tokens.reshape(4, 3, 2, 2)[:2].sum(axis=(0, 1, 2)) * 512
    assert bytes_of(plan, "cxl", "kv").tolist() == expected.tolist()


# --- published figures: Llama-3.1-8B, batch 1, 131,072 attended positions, bytes of one step ------------------

N = 131072
LLAMA = llama()


def golden(name, placement, *sets, **tokens):
    of = policy(name, *sets)
    chosen = selection(of, LLAMA, **tokens)
    return place(chosen, of, LLAMA, placement, 1)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("full", {"hot": 1, "cold": N - 1, "read": N - 1}, 17_179_869_184),
        ("int4", {"hot": 1, "cold": N - 1, "read": N - 1}, 4_563_402_752),
        ("streaming_llm", {"hot": 1, "cold": N - 1, "read": 2003}, 262_668_288),
        ("h2o", {"hot": 1, "cold": N - 1, "read": 2047}, 268_435_456),
        ("snapkv", {"hot": 1, "cold": N - 1, "read": 2048}, 268_566_528),
    ],
)
def test_golden_kv_bytes_of_policies_in_hbm(name, tokens, expected):
    plan = golden(name, HBM, **tokens)
    assert bytes_of(plan, "hbm", "kv").tolist() == [expected]
    assert "index" not in plan.tier_bytes()["hbm"]


def test_golden_score_state_of_h2o():
    plan = golden("h2o", HBM, hot=1, cold=N - 1, read=2047)
    assert bytes_of(plan, "hbm", "migrate").tolist() == [2_097_152]


def test_golden_bytes_of_quest():
    """Layers 0 and 1 read everything and scan nothing; the others read 128 pages, the last one included."""
    dense = np.zeros((1, 32, 8, 1), bool)
    dense[:, :2] = True
    read = np.where(dense, N - 16, 2048 - 16)
    plan = golden("quest", HBM, hot=16, cold=N - 16, read=read, runs=read // 16, scanned=np.where(dense, 0, N // 16))
    assert bytes_of(plan, "hbm", "index").tolist() == [1_006_632_960]
    assert bytes_of(plan, "hbm", "kv").tolist() == [1_325_400_064]


@pytest.mark.parametrize(("dims", "expected"), [(32, 1_105_199_104), (16, 585_105_408)])
def test_golden_bytes_of_ghostkv_with_a_sketch(dims, expected):
    """4,096 tokens hot; 2 % of the others are read over the link; the index stays near memory."""
    placement = replace(CXL, fetch="zero_copy")
    sets = (f"read.score.sketch.dims={dims}", "read.score.sketch.bits=8")
    plan = golden("ghostkv_sketch", placement, *sets, hot=4096, cold=N - 4096, read=(N - 4096) * 2 // 100)
    assert int(plan.nbytes[ops(plan, "scan")].sum()) == expected
    assert bytes_of(plan, "hbm", "kv").tolist() == [536_870_912]
    assert bytes_of(plan, "cxl", "kv").tolist() == [332_791_808]


def test_copied_survivors_are_read_from_hbm_once_more():
    plan = golden("ghostkv_sketch", CXL, hot=4096, cold=N - 4096, read=(N - 4096) * 2 // 100)
    assert bytes_of(plan, "hbm", "kv").tolist() == [536_870_912 + 332_791_808]


def test_roles_lie_where_the_placement_puts_them():
    plan = golden("ghostkv", replace(CXL, kv_tier="dram"), hot=260, cold=N - 260, read=5)
    assert plan.tiers == {"weights": "hbm", "hot": "hbm", "warm": "hbm", "cold": "dram", "index": "cxl"}
    assert {ROLES[r] for r in plan.role} == {"weights", "hot", "cold", "index"}
