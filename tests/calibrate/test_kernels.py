"""Do the kernels read and compute what their points say? Triton's interpreter runs them on the CPU."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from ghostsim.calibrate import works as works_module  # noqa: E402
from ghostsim.calibrate.points import LATENCY, Point  # noqa: E402

KIB = 1024


def test_a_stream_reads_every_word(works, monkeypatch):
    works.buffer[:] = torch.arange(len(works.buffer), device=works.device) % 7
    sums = works.sums(16)
    monkeypatch.setattr(works, "sums", lambda _: sums)
    works.build(Point("gpu_stream", {"op": "read", "working_set_bytes": 256 * KIB})).run()
    assert torch.equal(sums, works.buffer.view(16, -1).sum(1).int())


def test_a_copy_moves_one_half_onto_the_other(works):
    works.buffer[:] = torch.arange(len(works.buffer), device=works.device)
    works.build(Point("gpu_stream", {"op": "copy", "working_set_bytes": 256 * KIB})).run()
    assert torch.equal(*works.buffer.view(2, -1))


def test_a_write_reaches_every_word(works):
    works.buffer[:] = 1
    works.build(Point("gpu_stream", {"op": "write", "working_set_bytes": 256 * KIB})).run()
    assert not works.buffer.any()


@pytest.mark.parametrize("record_bytes", [64, 128, 1024, 4096])
def test_a_gather_of_all_records_reads_each_once(works, monkeypatch, record_bytes):
    """Powers of two that do not collide: record r holds 1 where r is drawn, so the sum counts distinct records."""
    records = 256 * KIB // record_bytes
    values = torch.randint(0, 1000, (records,), dtype=torch.int32)
    works.buffer.view(records, -1)[:, 0] = values.to(works.device)
    sums = works.sums(records * record_bytes // (16 * KIB))
    monkeypatch.setattr(works, "sums", lambda _: sums)
    works.build(Point("gpu_gather", {"record_bytes": record_bytes, "n_records": records})).run()
    assert int(sums.sum()) == int(values.sum())


def test_the_scatter_is_as_uneven_as_chance():
    """Of 64 draws among 64 low values, about 64 / e are missing; an even spread would flatter a gather."""
    words, drawn = 2**16, 1024
    mask, half = works_module._permutation(4 * words, 4)
    source, found = torch.arange(words, dtype=torch.int32), torch.zeros(drawn, dtype=torch.int32)
    works_module.kernels.gather[(drawn,)](source, found, mask, half, RECORDS=1, WORDS=1)
    assert len(found.unique()) == drawn
    for low in (found % 64, found >> 10):
        distinct = [len(window.unique()) for window in low.view(-1, 64)]
        assert 38 < sum(distinct) / len(distinct) < 43


def test_reads_in_steps_cover_their_bytes(works, monkeypatch):
    monkeypatch.setattr(works_module, "zero_copy_steps", lambda _: 4)
    sums = works.sums(4)
    monkeypatch.setattr(works, "sums", lambda _: sums)
    works.build(Point("gpu_zero_copy", {"record_bytes": 128, "outstanding_bytes": 16 * KIB})).run()
    assert not sums.any()
    works.host[:] = 0
    works.host.view(-1, 32)[:, 0] = 1  # a sum that is not zero steers the reads elsewhere, and is kept
    works.build(Point("gpu_zero_copy", {"record_bytes": 128, "outstanding_bytes": 16 * KIB})).run()
    assert sums.tolist() == [4 * 32] * 4


def test_a_chase_follows_the_whole_cycle(works):
    place = works.sums(1)
    works.sums = lambda _: place
    work = works.build(Point(LATENCY, {"loads": 1}))
    seen = []
    for _ in range(64):
        work.run()
        seen.append(int(place))
    assert sorted(seen) == list(range(64))


@pytest.mark.parametrize(("record_bytes", "queries"), [(64, 1), (128, 4)])
def test_scores_are_the_best_products(works, record_bytes, queries):
    n = 128
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-100, 100, (n, record_bytes), dtype=torch.int8, generator=generator)
    works.buffer.view(torch.int8)[: n * record_bytes] = values.flatten().to(works.device)
    asked = torch.randn(queries, record_bytes, generator=generator)
    scores = torch.empty(n, device=works.device)
    kernel = works_module.kernels.score
    kernel[(n // 64,)](works.buffer.view(torch.int8), asked.flatten().to(works.device), scores, queries,
                       DIMS=record_bytes, BLOCK=64)  # fmt: skip
    assert torch.allclose(scores.cpu(), (values.float() @ asked.T).amax(1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("probe", "conditions"),
    [
        ("gpu_launch", {"n_kernels": 3}),
        ("gpu_host_dma", {"direction": "h2d", "transfer_bytes": 4096}),
        ("gpu_host_dma", {"direction": "d2h", "transfer_bytes": 4096}),
        ("gpu_sketch_score", {"record_bytes": 64, "queries": 2, "n_records": 128}),
        ("gpu_gemm", {"dtype": "bfloat16", "m": 2, "n": 8, "k": 16}),
        ("gpu_decode_attention", {"framework": "torch 2.13 sdpa", "q_heads": 4, "kv_heads": 2, "head_dim": 16,
                                  "kv_dtype": "bfloat16", "batch": 2, "kv_len": 32, "warm_l2": "yes"}),
    ],
)  # fmt: skip
def test_every_other_point_has_work_that_runs(works, probe, conditions):
    works.build(Point(probe, conditions)).run()


def test_an_l2_set_is_read_over_and_over(works, monkeypatch):
    monkeypatch.setattr(works_module, "l2_rounds", lambda _: 3)
    works.buffer[:] = 1
    sums = works.sums(16)
    monkeypatch.setattr(works, "sums", lambda _: sums)
    works.build(Point("gpu_l2", {"working_set_bytes": 256 * KIB})).run()
    assert sums.tolist() == [3 * 4096] * 16
