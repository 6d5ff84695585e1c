"""What holds of every serving run: nothing is lost, served twice or out of turn, and Little's law is exact."""

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_rig import UNIT_PS, Synthetic, jobs_of, roomy, serve

from ghostsim.config.serving import Speculation
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.errors import InvariantError
from ghostsim.pipeline.prefix_cache import PrefixCache
from ghostsim.pipeline.serving import Memory, Server, check, closed_loop
from ghostsim.pipeline.step_cost import SETTLE
from ghostsim.serving import gains_of

WAYS = [SETTLE, *((tier, write) for tier in ("dram", "ssd") for write in (False, True))]
BLOCK = 16


class Growing(Synthetic):
    """Iterations that grow with batch, context and prompt tokens."""

    def __call__(self, batch, contexts, chunks):
        added = 1000 * sum(tokens for tokens, _ in chunks)
        return (1000 * batch + contexts + added + 1).astype(np.int64), {
            ("dram", False): 0.5,
            ("dram", True): 0.25,
            SETTLE: 0.3,
        }


def paged(token_bytes):
    """Return what settles of tokens: KV of each, and a record per 16."""
    return lambda begin, end: token_bytes * (16 * (end - begin) + (-(-end // 16) - -(-begin // 16)))


@st.composite
def loads(draw):
    """Requests with shared beginnings, their arrivals, and how they are served."""
    count = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prompts, outputs = rng.integers(1, 200, count), rng.integers(1, 120, count)
    blocks = [tuple(range(100 * family, 100 * family + 30)) for family in rng.integers(0, 4, count)]
    jobs = jobs_of(prompts, outputs, [ids[: p // BLOCK] for ids, p in zip(blocks, prompts, strict=True)])
    for job, ids in zip(jobs, blocks, strict=True):
        job.kept_blocks = ids[: (job.prompt_tokens + job.output_tokens - 1) // BLOCK]
    arrivals = np.cumsum(rng.integers(0, 200_000, count)).tolist()
    options = {
        "max_batch": draw(st.integers(1, 6)),
        "prefill_chunk": draw(st.integers(1, 128)),
        "recompute": draw(st.booleans()),
        "gains": gains_of(draw(st.sampled_from([None, Speculation(draft=3, acceptance=0.6)])), 1),
        "memory": roomy(draw(st.integers(330, 1500))),
        "settled_bytes": paged(draw(st.sampled_from([0, 1, 40]))),
    }
    if draw(st.booleans()):
        room = {"dram": draw(st.integers(0, 20)) * BLOCK, "ssd": draw(st.integers(0, 20)) * BLOCK}
        options |= {"cache": PrefixCache(BLOCK, room), "block_tokens": BLOCK, "ways": WAYS}
        options["spill"] = draw(st.sampled_from(["", "dram"]))
    return jobs, arrivals, options


def served(load):
    jobs, arrivals, options = load
    ways = options.pop("ways", WAYS)
    return jobs, serve(jobs, arrivals, Growing(), ways=ways, **options)


@settings(max_examples=150, deadline=None)
@given(loads())
def test_every_token_is_made_once(load):
    jobs, _ = served(load)
    assert [job.decoded_tokens for job in jobs] == [job.output_tokens for job in jobs]


@settings(max_examples=100, deadline=None)
@given(loads())
def test_little_holds_to_the_picosecond(load):
    jobs, server = served(load)
    assert server.log.area == sum(job.finish_ps - job.arrival_ps for job in jobs)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_the_recorded_queue_integrates_to_the_same(load):
    _, server = served(load)
    rows = np.array(server.log.rows)
    assert ((rows[:-1, 1] + rows[:-1, 2]) * np.diff(rows[:, 0])).sum() == server.log.area


@settings(max_examples=100, deadline=None)
@given(loads())
def test_memory_is_never_overfull(load):
    _, server = served(load)
    assert max(row[3] for row in server.log.rows) <= server.memory.capacity["hbm"]


@settings(max_examples=100, deadline=None)
@given(loads())
def test_first_come_is_first_served(load):
    jobs, _ = served(load)
    admitted = [job.admitted_ps for job in jobs]
    assert admitted == sorted(admitted)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_every_prompt_token_is_computed_or_found(load):
    jobs, _ = served(load)
    once = [job for job in jobs if not job.preemptions]
    assert all(job.hit_tokens + job.prefilled_tokens == job.prompt_tokens for job in once)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_what_settles_is_what_was_computed(load):
    settles = load[2]["settled_bytes"]
    jobs, server = served(load)
    once = [settles(job.hit_tokens, job.prompt_tokens) for job in jobs if not job.preemptions]
    found = server.channels[SETTLE].nbytes
    assert found == sum(once) if len(once) == len(jobs) else found > sum(once) or not settles(0, 1)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_nobody_decodes_before_its_prompt_has_settled(load):
    jobs, _ = served(load)
    assert all(job.admitted_ps <= job.prefilled_ps <= job.first_token_ps <= job.finish_ps for job in jobs)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_blocks_are_conserved(load):
    _, server = served(load)
    cache = server.cache
    if cache is not None:
        assert cache.counts["added"] == cache.counts["evicted"] + len(cache.free)


@settings(max_examples=100, deadline=None)
@given(loads())
def test_bytes_loaded_are_the_blocks_found_below(load):
    _, server = served(load)
    if server.cache is not None:
        for tier in ("dram", "ssd"):
            spilled = server.cache.counts["returned"] if tier == "dram" else 0
            assert server.channels[tier, False].nbytes == (server.cache.hits[tier] + spilled) * BLOCK


def test_a_request_larger_than_memory_is_refused_and_counted():
    jobs = jobs_of([10, 500, 10], [5, 5, 5])
    server = serve(jobs, [0, 0, 0], memory=roomy(100))
    assert [job.rejected for job in jobs] == [False, True, False]
    assert server.log.present == 0


def test_an_iteration_of_several_is_that_many_of_one():
    """A jump over equal iterations ends when they would have ended one by one."""

    class OneByOne(Growing):
        def __call__(self, batch, contexts, chunks):
            times, conflict = super().__call__(batch, contexts, chunks)
            self.calls = getattr(self, "calls", 0) + 1
            return times, conflict

    jumping = jobs_of([50, 30], [100, 40])
    serve(jumping, [0, 10], OneByOne(), ways=WAYS)
    total = 0
    context = [0, 0]
    costs = Growing()
    stepping = jobs_of([50, 30], [100, 40])
    total += int(costs(0, np.zeros(1), [(50, 0)])[0][0])  # the first prefills alone, the second arrives meanwhile
    context[0] = 50
    total += int(costs(1, np.array([50.0]), [(30, 0)])[0][0])
    context = [51, 30]
    for _ in range(39):
        total += int(costs(2, np.array([float(sum(context))]), [])[0][0])
        context = [context[0] + 1, context[1] + 1]
    assert jumping[1].finish_ps == total
    for _ in range(stepping[0].output_tokens - 1 - 40):
        total += int(costs(1, np.array([float(context[0])]), [])[0][0])
        context[0] += 1
    assert jumping[0].finish_ps == total


def test_an_arrival_cuts_a_jump_at_the_end_of_an_iteration():
    jobs = jobs_of([1, 1], [1000, 1])
    serve(jobs, [0, 10 * UNIT_PS + 1])
    assert jobs[1].admitted_ps == 11 * UNIT_PS


def test_prefill_of_a_long_prompt_takes_its_chunks():
    jobs = jobs_of([1000], [1])
    serve(jobs, [0], prefill_chunk=100)
    assert jobs[0].first_token_ps == 10 * UNIT_PS


def test_a_prompt_that_settles_has_its_first_token_later():
    """Chunks of 100 tokens leave 10 KB each, at 1 GB/s after 1 ns, one behind the other."""
    jobs = jobs_of([300], [1])
    serve(jobs, [0], Synthetic(unit_ps=1_000_000), prefill_chunk=100, ways=[SETTLE],
          settled_bytes=lambda begin, end: 100 * (end - begin))  # fmt: skip
    assert jobs[0].prefilled_ps == 3_000_000
    assert jobs[0].first_token_ps == 1_000_000 + 3 * (10_000_000 + 1000)


def test_others_decode_while_a_prompt_settles():
    jobs = jobs_of([1, 100], [1000, 2])
    slow = {"ways": [SETTLE], "settled_bytes": lambda begin, end: 50_000 * (end - begin) if end > 1 else 0}
    serve(jobs, [0, UNIT_PS], **slow)
    assert jobs[1].prefilled_ps == 2 * UNIT_PS
    assert jobs[1].first_token_ps == 8 * UNIT_PS
    assert jobs[0].finish_ps == 1000 * UNIT_PS


def test_without_room_the_youngest_gives_way_and_all_end():
    jobs = jobs_of([10, 10, 10], [600, 600, 600])
    serve(jobs, [0, 0, 0], memory=roomy(1000), recompute=True)
    assert jobs[0].preemptions == 0
    assert jobs[2].preemptions > 0


def test_a_spilled_request_comes_back_without_computing_anything_twice():
    jobs = jobs_of([10, 10, 10], [600, 600, 600])
    cache = PrefixCache(BLOCK, {"dram": 10_000})
    options = {"cache": cache, "block_tokens": BLOCK, "ways": WAYS, "spill": "dram"}
    server = serve(jobs, [0, 0, 0], memory=roomy(1000), recompute=True, **options)
    assert jobs[2].preemptions > 0
    assert jobs[2].prefilled_tokens == 10 + jobs[2].preemptions
    assert server.channels["dram", False].nbytes == server.channels["dram", True].nbytes


def test_without_preemption_a_request_waits_for_room():
    jobs = jobs_of([10, 10], [600, 600])
    serve(jobs, [0, 0], memory=roomy(1000))
    assert jobs[1].admitted_ps == jobs[0].finish_ps


def test_closed_loop_clients_have_one_request_each():
    env = CountingEnvironment()
    server = Server(env, Synthetic(), roomy(), max_batch=8, prefill_chunk=64)
    jobs = jobs_of([1] * 9, [10] * 9)
    closed_loop(env, server, deque([job] for job in jobs), 3, UNIT_PS)
    env.run()
    assert max(row[2] for row in server.log.rows) == 3


def test_a_history_below_is_loaded_before_the_prompt_is_taken_in():
    """The second turn finds its blocks in DRAM, as another request has filled HBM meanwhile."""
    memory = Memory(lambda tokens: {"hbm": tokens}, {"hbm": 100})
    jobs = jobs_of([64, 90, 80], [1, 1, 1], [(1, 2, 3, 4), (), (1, 2, 3, 4, 5)])
    cache = PrefixCache(BLOCK, {"dram": 1600})
    ways = [("dram", False), ("dram", True)]
    server = serve(jobs, [0, 10 * UNIT_PS, 20 * UNIT_PS], memory=memory, cache=cache, block_tokens=BLOCK, ways=ways)
    assert jobs[2].hit_tokens == 64
    assert server.channels["dram", False].nbytes == 64
    assert jobs[2].first_token_ps - jobs[2].admitted_ps > UNIT_PS


def test_speculation_gains_as_many_tokens_as_a_truncated_geometric():
    """Leviathan et al. 2023: (1 - a^(t + 1)) / (1 - a) tokens per iteration."""
    gained = gains_of(Speculation(draft=4, acceptance=0.7), 1)(0, 0, 100_000)
    assert 100_000 / (len(gained) - 1) == pytest.approx((1 - 0.7**5) / 0.3, rel=0.01)


def test_lost_tokens_are_an_error():
    jobs = jobs_of([1], [2])
    server = serve(jobs, [0])
    jobs[0].decoded_tokens = 1
    with pytest.raises(InvariantError, match="found 1 tokens"):
        check(server, jobs)
