"""The Triton kernels of a calibration.

Words are 32 bits. What a kernel reads must be zero where a sum steers the next address: a compiler cannot know it, so
that loads stay dependent.
"""

import triton
import triton.language as tl


@triton.jit
def touch(flag):
    """Store one word: a kernel that is all launch."""
    tl.store(flag, 1)


@triton.jit
def read_stream(source, sums, BLOCK: tl.constexpr):
    """Each program reads one block once."""
    block = tl.program_id(0).to(tl.int64)
    words = tl.load(source + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + block, tl.sum(words))


@triton.jit
def write_stream(target, BLOCK: tl.constexpr):
    """Each program writes zeros to one block."""
    block = tl.program_id(0).to(tl.int64)
    tl.store(target + block * BLOCK + tl.arange(0, BLOCK), tl.zeros([BLOCK], tl.int32))


@triton.jit
def copy_stream(source, target, BLOCK: tl.constexpr):
    """Each program copies one block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def read_resident(source, sums, blocks, rounds, BLOCK: tl.constexpr):
    """Each program reads `rounds` blocks of a small set, past the L1, in an order of its own."""
    program = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for turn in range(rounds):
        block = (program + turn * 37) % blocks
        total += tl.load(source + block * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(sums + program, tl.sum(total))


@triton.jit
def scattered(i, mask, half):
    """Permute the numbers up to `mask`, 2**bits - 1, where `half` is half of the bits: each is hit once, in no order.

    Shifts fold high bits onto low ones and odd factors carry low bits up; each step has an inverse.
    """
    i = i ^ (i >> half)
    i = (i * 2654435761) & mask
    i = i ^ (i >> half)
    i = (i * 2246822507) & mask
    return i ^ (i >> half)


@triton.jit
def gather(source, sums, mask, half, RECORDS: tl.constexpr, WORDS: tl.constexpr):
    """Each program reads some records of a large set once."""
    program = tl.program_id(0).to(tl.int64)
    record = scattered(program * RECORDS + tl.arange(0, RECORDS), mask, half)
    words = tl.load(source + record[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
    tl.store(sums + program, tl.sum(tl.sum(words, axis=1)))


@triton.jit
def read_in_steps(source, sums, steps, mask, half, RECORDS: tl.constexpr, WORDS: tl.constexpr):
    """Each program keeps `RECORDS` records outstanding: the next ones wait for all of them."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    total = tl.load(sums + program)
    for step in range(steps):
        first = (step * programs + program) * RECORDS + total
        record = scattered(first + tl.arange(0, RECORDS), mask, half)
        words = tl.load(source + record[:, None] * WORDS + tl.arange(0, WORDS)[None, :])
        total += tl.sum(tl.sum(words, axis=1))
    tl.store(sums + program, total)


@triton.jit
def chase(source, place, loads):
    """Follow a chain: each word says where the next one is."""
    at = tl.load(place)
    for _ in range(loads):
        at = tl.load(source + at)
    tl.store(place, at)


@triton.jit
def score(records, queries, scores, asked, DIMS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program scores a block of int8 records for `asked` queries and keeps the best score of each record."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dims = tl.arange(0, DIMS)
    values = tl.load(records + rows[:, None] * DIMS + dims[None, :]).to(tl.float32)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for query in range(asked):
        weights = tl.load(queries + query * DIMS + dims)
        best = tl.maximum(best, tl.sum(values * weights[None, :], axis=1))
    tl.store(scores + rows, best)
