"""Do importers give what the files say, sessions what they promise, and bad files one line that says where?"""

import csv
import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.bundled import folder
from ghostsim.cli import main
from ghostsim.config.catalogue import names
from ghostsim.errors import TraceError, UsageError
from ghostsim.trace.agent_sessions import AgentTurns, agent_sessions
from ghostsim.trace.request_forms import import_requests, read_requests, write_requests
from ghostsim.trace.requests import Requests, blocks_of, format_summary, prefix_hits, summary

ROOM = folder("traces") / "requests"
MOONCAKE = ROOM / "mooncake_conversation_200.jsonl"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
GOOD = '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
OWN = "arrival_ps,prompt_tokens,output_tokens,session,blocks_512\n"


def lines_of(name):
    return (ROOM / name).read_text(encoding="utf-8").splitlines()


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def same(a, b):
    left, right = (list(requests) for requests in (a, b))
    sizes = [None if requests.blocks is None else requests.blocks.block_tokens for requests in (a, b)]
    return left == right and sizes[0] == sizes[1] and (a.session is None) == (b.session is None)


def naive_hits(per_request):
    seen, hits = set(), []
    for ids in per_request:
        hits.append(next((i for i, block in enumerate(ids) if block not in seen), len(ids)))
        seen.update(ids)
    return hits


# --- the shipped excerpts --------------------------------------------------------------------------------------


def test_mooncake_columns_are_those_of_the_file():
    rows, found = [json.loads(line) for line in MOONCAKE.read_text().splitlines()], list(import_requests(MOONCAKE))
    assert len(found) == 200
    assert [(r.arrival_ps, r.prompt_tokens, r.output_tokens, list(r.blocks)) for r in found] == [
        (row["timestamp"] * 10**9, row["input_length"], row["output_length"], row["hash_ids"]) for row in rows
    ]


@pytest.mark.parametrize("name", ["azure_code_500", "azure_conv_500"])
def test_azure_arrivals_keep_every_tick(name):
    rows = list(csv.DictReader(lines_of(f"{name}.csv")))
    ticks = []
    for row in rows:
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        since = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) - datetime(2023, 11, 1, tzinfo=UTC)
        ticks.append((since.days * 86400 + since.seconds) * 10**7 + int(fraction))
    found = import_requests(name)
    assert found.arrival_ps.tolist() == [(tick - ticks[0]) * 10**5 for tick in ticks]
    assert found.prompt_tokens.tolist() == [int(row["ContextTokens"]) for row in rows]
    assert found.output_tokens.tolist() == [int(row["GeneratedTokens"]) for row in rows]


def test_summary_of_azure_is_recomputed_from_the_text():
    rows = [line.split(",") for line in lines_of("azure_code_500.csv")[1:]]
    prompts = [int(row[1]) for row in rows]
    found = summary(import_requests("azure_code_500"))
    assert found["prompt_tokens"]["mean"] == pytest.approx(mean(prompts), rel=1e-12)
    assert found["prompt_tokens"]["p50"] == median(prompts)
    assert found["output_tokens"]["mean"] == pytest.approx(mean(int(row[2]) for row in rows), rel=1e-12)
    assert found["span_s"] == pytest.approx(232.801087, abs=1e-9)
    assert found["requests_per_s"] == pytest.approx(499 / 232.801087, rel=1e-9)
    assert (found["sessions"], found["blocks"], found["without_output"]) == (None, None, 0)


def test_prefix_hits_of_mooncake_are_those_of_a_set_of_seen_blocks():
    per_request = [json.loads(line)["hash_ids"] for line in lines_of(MOONCAKE.name)]
    found = summary(import_requests(MOONCAKE))["blocks"]
    total = sum(map(len, per_request))
    assert (found["total"], found["distinct"]) == (total, len({block for ids in per_request for block in ids}))
    assert found["prefix_hit_share"] == sum(naive_hits(per_request)) / total
    assert found["prefix_hit_share"] == pytest.approx(0.05815, abs=1e-5)


def test_every_shipped_file_has_its_source_and_its_figures_written_down():
    text = (ROOM / "SOURCES.md").read_text(encoding="utf-8")
    for path in sorted(ROOM.glob("*_*")):
        found = summary(import_requests(path))
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{path.name}` | ") and " s | " in line]
        assert f"{found['span_s']:.1f} s | {found['requests_per_s']:.3f}" in row
        for lengths in (found["prompt_tokens"], found["output_tokens"]):
            assert f"{lengths['mean']:,.1f}, {lengths['p50']:,.0f}, {lengths['p95']:,.0f}" in row


def test_request_traces_are_not_listed_as_attention_traces():
    assert "requests" not in [entry.name for entry in names("traces")]


# --- BurstGPT --------------------------------------------------------------------------------------------------


def test_burstgpt_columns_are_found_by_name(tmp_path):
    rows = [("5", "ChatGPT", 472, 18), ("45.25", "GPT-4", 1087, 0)]
    short = BURST + "".join(f"{t},{m},{p},{o},{p + o},Conversation log\n" for t, m, p, o in rows)
    turned = "Log Type,Response tokens,Request tokens,Timestamp\n" + "".join(f"x,{o},{p},{t}\n" for t, _, p, o in rows)
    for text in (short, turned):
        found = import_requests(written(tmp_path, text))
        assert [(r.arrival_ps, r.prompt_tokens, r.output_tokens) for r in found] == [
            (0, 472, 18),
            (40_250_000_000_000, 1087, 0),
        ]
        assert (found.session, found.blocks, summary(found)["without_output"]) == (None, None, 1)


def test_burstgpt_sessions_are_numbered_as_they_appear(tmp_path):
    labels = ["d59-b", "", "172-a", "d59-b"]
    text = BURST_3 + "".join(f"{i}.0,{label},3,GPT-4,9,1,10,x\n" for i, label in enumerate(labels))
    found = import_requests(written(tmp_path, text))
    assert [request.session for request in found] == [0, None, 1, 0]
    assert summary(found)["sessions"] == {"count": 2, "requests": 3, "longest": 2}


def test_out_of_order_lines_are_sorted_and_ties_keep_their_order(tmp_path):
    text = BURST + "9,m,1,1,2,x\n4,m,2,1,3,x\n9,m,3,1,4,x\n4,m,4,1,5,x\n"
    assert import_requests(written(tmp_path, text)).prompt_tokens.tolist() == [2, 4, 1, 3]


def test_forms_survive_marks_and_line_ends(tmp_path):
    text = "\ufeff" + BURST.replace("\n", "\r\n") + '\r\n5,"Chat, GPT",7,1,8,x\r\n\r\n'
    assert import_requests(written(tmp_path, text)).prompt_tokens.tolist() == [7]


@pytest.mark.parametrize(
    "header", ["timestamp,model,request_tokens,RESPONSE TOKENS", "TIMESTAMP,x,RequestTokens,response tokens"]
)
def test_columns_are_found_whatever_their_case_and_spaces(tmp_path, header):
    found = import_requests(written(tmp_path, f"{header},session_id\n5,GPT-4,7,1,a\n6,GPT-4,8,2,a\n"))
    assert (found.prompt_tokens.tolist(), found.output_tokens.tolist()) == ([7, 8], [1, 2])
    assert found.session.tolist() == [0, 0]


@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
def test_azure_times_may_have_a_zone_and_no_fraction(tmp_path, zone):
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 23:59:59{zone},7,1\n2024-05-11 00:00:00.5{zone},8,1\n"
    assert import_requests(written(tmp_path, text)).arrival_ps.tolist() == [0, 1_500_000_000_000]


# --- the project's own form ------------------------------------------------------------------------------------


@st.composite
def workloads(draw):
    size = draw(st.integers(1, 12))
    column = lambda top: np.array(draw(st.lists(st.integers(0, top), min_size=size, max_size=size)), dtype=np.int64)  # noqa: E731
    prompts, block_tokens = column(40), draw(st.sampled_from([None, 1, 7, 16]))
    counts = [] if block_tokens is None else [-(-int(prompt) // block_tokens) for prompt in prompts]
    ids = [draw(st.lists(st.integers(0, 2**63 - 1), min_size=count, max_size=count)) for count in counts]
    return Requests(
        np.sort(column(2**63 - 1)),
        prompts,
        column(10**9),
        column(5) - 1 if draw(st.booleans()) else None,
        None if block_tokens is None else blocks_of(block_tokens, ids),
    )


@settings(max_examples=60, deadline=None)
@given(requests=workloads())
def test_what_is_written_is_read_back(tmp_path_factory, requests):
    path = tmp_path_factory.mktemp("requests") / "own.csv"
    write_requests(requests, path)
    assert same(read_requests(path), requests)


def test_imported_mooncake_survives_the_own_form_and_auto_knows_it(tmp_path):
    found = import_requests(MOONCAKE)
    write_requests(found, tmp_path / "a.csv")
    again = import_requests(tmp_path / "a.csv")
    write_requests(again, tmp_path / "b.csv")
    assert same(found, again)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_file_is_replaced_only_by_force(tmp_path):
    found, path = import_requests(MOONCAKE), tmp_path / "a.csv"
    path.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        write_requests(found, path)
    assert path.read_text() == "mine"
    write_requests(found, path, force=True)
    assert same(read_requests(path), found)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


# --- malformed files -------------------------------------------------------------------------------------------

MALFORMED = {
    "an empty file": (b"", "trace.csv: requests: found an empty file"),
    "bytes that are no text": (b"\xff\xfe\x00", "trace.csv: requests: found bytes that are not UTF-8"),
    "an unknown header": ("a,b\n1,2\n", "trace.csv:1:1: header: found 'a,b', expected JSON lines, or CSV"),
    "missing columns": (
        "Timestamp,Model\n5,GPT-4\n",
        "1:1: header: found no column Request tokens and no column Response",
    ),
    "a column twice": (BURST.replace("Model", "Timestamp"), "1:2: Timestamp: found this column twice"),
    "a header alone": (BURST, "1:1: requests: found a header without rows"),
    "a cut row": (BURST + "5,GPT-4,7,1,8,x\n6,GPT-4,7\n", "3:3: row: found 3 fields, expected 6"),
    "an open quote": (BURST + '5,"GPT-4,7,1,8,x\n', "2:1: row: found unexpected end of data"),
    "a negative length": (
        BURST + "5,m,-7,1,8,x\n",
        "2:3: Request tokens: found '-7', expected a whole number from 0 to",
    ),
    "a fractional length": (BURST + "5,m,7,1.5,8,x\n", "2:4: Response tokens: found '1.5', expected a whole number"),
    "digits that are not ASCII": (BURST + "5,m,\u0667,1,8,x\n", "2:3: Request tokens: found '\u0667'"),
    "an endless time": (BURST + "inf,m,7,1,8,x\n", "2:1: Timestamp: found 'inf', expected seconds, e.g. 5"),
    "more days than the clock has": (BURST + "0,m,7,1,8,x\n9300000,m,7,1,8,x\n", "3:1: arrival: found 107.6 days"),
    "a day that is none": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-02-30 00:00:00,1,1\n",
        "2:1: TIMESTAMP: found '2023-02-30 00:00:00', expected a date and time",
    ),
    "JSON that is cut": (GOOD + GOOD[:20], "trace.csv:2:"),
    "JSON of a list": (GOOD + "[1]\n", "2:1: line: found a list, expected a JSON object"),
    "a missing key": (GOOD.replace("output_length", "output"), "1:1: line: found no output_length, expected a JSON"),
    "a key twice": (GOOD.replace("output_length", "timestamp"), "1:1: line: found a key twice"),
    "a text for a number": (GOOD.replace("700", '"700"'), "1:18: input_length: found '700', expected a whole number"),
    "true for a number": (GOOD.replace(" 5,", " true,"), "1:39: output_length: found True, expected a whole number"),
    "a time before the start": (GOOD.replace(": 0,", ": -1,"), "1:2: timestamp: found -1, expected milliseconds"),
    "NaN": (GOOD.replace(": 0,", ": NaN,"), "1:1: line: found NaN, which is no JSON number"),
    "a block too few": (GOOD.replace("[0, 1]", "[0]"), "1:59: hash_ids: found 1 ids, expected 2 for 700 tokens"),
    "a block id that is none": (GOOD.replace("[0, 1]", "[0, -1]"), "1:59: hash_ids[1]: found -1, expected a whole"),
    "blocks that are no list": (GOOD.replace("[0, 1]", "2"), "1:59: hash_ids: found 2, expected a list of block ids"),
    "a number without end": (GOOD.replace("700", "7" * 5000), "1:1: line: found Exceeds the limit"),
    "brackets without end": (GOOD + '{"a":' * 100_000, "2:1: line: found"),
    "arrivals that go back": (OWN + "5,1,1,,0\n4,1,1,,0\n", "3:1: arrival_ps: found '4', expected at least 5"),
    "a column of no form": (
        OWN.replace("session", "user") + "5,1,1,,0\n",
        "1:4: header: found 'user', expected arrival_ps",
    ),
    "a column without a name": (
        OWN.replace("session", "") + "5,1,1,,0\n",
        "1:4: header: found '', expected arrival_ps",
    ),
    "a session that is no number": (OWN + "5,1,1,a,0\n", "2:4: session: found 'a', expected a whole number"),
    "ids that do not fill the prompt": (
        OWN + "5,513,1,,0\n",
        "2:5: blocks_512: found '0', expected 2 ids for a prompt of 513",
    ),
    "an id that is no number": (OWN + "5,513,1,,0 x\n", "2:5: blocks_512: found 'x', expected block ids separated"),
    "an id too large": (OWN + f"5,1,1,,{2**63}\n", "2:5: blocks_512: found '9223372036854775808'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_in_one_line_that_says_where(tmp_path, case):
    text, expected = MALFORMED[case]
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        import_requests(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "expected" in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none.csv", "No such file")):
        with pytest.raises(TraceError, match=reason):
            import_requests(path)


def test_form_that_is_asked_for_is_held_to():
    with pytest.raises(TraceError, match="found no column TIMESTAMP"):
        import_requests(MOONCAKE, "azure")
    with pytest.raises(TraceError, match="1:1: line: found Expecting value"):
        import_requests("azure_code_500", "mooncake")


@settings(max_examples=60, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, junk):
    path = written(tmp_path_factory.mktemp("junk"), BURST.encode() + junk)
    try:
        rows = len(import_requests(path))
    except TraceError as error:
        rows, message = 0, str(error)
    assert rows or message.startswith(f"{path}:")


# --- prefix hits and sessions ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(per_request=st.lists(st.lists(st.integers(0, 6), unique=True, max_size=5), min_size=1, max_size=12))
def test_prefix_hits_agree_with_a_set_of_seen_blocks(per_request):
    assert prefix_hits(blocks_of(512, per_request)).tolist() == naive_hits(per_request)


FIXED = AgentTurns(
    system_tokens=1100, task_tokens=300, result_tokens=700, output_tokens=200, spread=0, block_tokens=512
)


def test_sessions_without_spread_grow_by_output_and_result():
    for turns in by_session(agent_sessions(3, 5, 4, FIXED)):
        assert [turn.prompt_tokens for turn in turns] == [1400, 2300, 3200, 4100]
        assert [turn.output_tokens for turn in turns] == [200] * 4


def test_hits_of_sessions_without_spread_follow_from_their_lengths():
    shape = AgentTurns(1100, 300, 700, 200, 0, session_gap_ps=10**16, block_tokens=512)
    found = agent_sessions(3, 5, 4, shape)
    assert (np.diff(found.session) >= 0).all()  # sessions so far apart that none begins before another ends
    first, later = [1100 // 512] * 5, [1400 // 512, 2300 // 512, 3200 // 512]
    first[0] = 0
    assert prefix_hits(found.blocks).tolist() == [hits for start in first for hits in (start, *later)]


def by_session(requests):
    numbers = sorted({request.session for request in requests})
    return [[request for request in requests if request.session == number] for number in numbers]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sessions=st.integers(1, 6),
    turns=st.integers(1, 6),
    system=st.integers(0, 100),
    block_tokens=st.sampled_from([1, 16, 64]),
)
def test_history_persists_and_the_system_prompt_is_shared(seed, sessions, turns, system, block_tokens):
    shape = AgentTurns(system, 50, 40, 30, block_tokens=block_tokens)
    found = agent_sessions(seed, sessions, turns, shape)
    assert (np.diff(found.arrival_ps) >= 0).all()
    assert found.arrival_ps[0] == 0
    assert all(len(request.blocks) == -(-request.prompt_tokens // block_tokens) for request in found)
    grouped = by_session(found)
    assert [len(turns_) for turns_ in grouped] == [turns] * sessions
    for before, after in (pair for group in grouped for pair in pairwise(group)):
        full = before.prompt_tokens // block_tokens
        assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
        assert after.arrival_ps >= before.arrival_ps + before.output_tokens * shape.output_token_ps
        assert after.blocks[:full] == before.blocks[:full]
        assert not set(after.blocks[full:]) & set(before.blocks)
    shared = system // block_tokens
    assert len({request.blocks[:shared] for request in found}) == 1
    own = [{block for request in group for block in request.blocks[shared:]} for group in grouped]
    assert sum(map(len, own)) == len(set().union(*own))
    ids = found.blocks.ids
    assert list(dict.fromkeys(ids.tolist())) == list(range(int(ids.max()) + 1))


def test_lengths_have_the_means_that_are_asked_for():
    found = agent_sessions(7, 2000, 3, AgentTurns(0, 1000, 500, 300))
    first, _, _ = np.array([[turn.prompt_tokens for turn in group] for group in by_session_fast(found)]).T
    assert first.mean() == pytest.approx(1000, rel=0.12)
    assert found.output_tokens.mean() == pytest.approx(300, rel=0.07)
    starts = np.unique(found.session, return_index=True)[1]
    assert np.diff(np.sort(found.arrival_ps[starts])).mean() == pytest.approx(2e12, rel=0.1)


def by_session_fast(requests):
    order = np.argsort(requests.session, kind="stable")
    return [[requests[index] for index in group] for group in order.reshape(-1, 3).tolist()]


def test_more_sessions_leave_the_first_ones_alone():
    few, many = agent_sessions(5, 3, 4), agent_sessions(5, 9, 4)
    lengths = lambda requests: [  # noqa: E731
        [(turn.arrival_ps, turn.prompt_tokens, turn.output_tokens) for turn in group] for group in by_session(requests)
    ]
    assert lengths(many)[:3] == lengths(few)


def test_sessions_are_the_same_bytes_in_another_process(tmp_path):
    write_requests(agent_sessions(11, 4, 5), tmp_path / "here.csv")
    command = "from pathlib import Path; from ghostsim.cli import main; main(['trace', 'sessions', '--seed', '11', "
    command += f"'--sessions', '4', '--turns', '5', '--out', {str(tmp_path / 'there.csv')!r}])"
    subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, env={"PYTHONHASHSEED": "7"})
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"task_tokens": 0}, "--task-tokens"),
        ({"spread": -1.0}, "--spread"),
        ({"spread": float("nan")}, "--spread"),
        ({"tool_ps": -5}, "--tool-ps"),
        ({"block_tokens": 0}, "--block-tokens"),
    ],
)
def test_shape_out_of_range_is_refused(change, option):
    with pytest.raises(UsageError, match=f"^{option}: found .*, expected a number from"):
        AgentTurns(**change)


def test_sessions_beyond_the_clock_are_refused():
    with pytest.raises(UsageError, match=r"days of sessions, expected at most 106\.7"):
        agent_sessions(1, 500, 2, AgentTurns(session_gap_ps=10**17))


# --- command ---------------------------------------------------------------------------------------------------


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["trace", *map(str, arguments)])
    return ended.value.code or 0


def test_import_prints_the_summary_and_writes_the_file(tmp_path, capsys):
    out = tmp_path / "new" / "own.csv"
    assert command("import", "mooncake_conversation_200", "--form", "auto", "--out", out) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == format_summary(summary(import_requests(MOONCAKE)))
    assert shown.err.strip() == str(out)
    assert same(read_requests(out), import_requests(MOONCAKE))
    assert command("import", MOONCAKE, "--out", out) == 2


def test_import_prints_json(capsys):
    assert command("import", "azure_conv_500", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, **summary(import_requests("azure_conv_500"))}


def test_import_of_a_bad_file_ends_with_4(tmp_path, capsys):
    assert command("import", written(tmp_path, BURST + "x,m,1,1,2,y\n")) == 4
    assert "trace.csv:2:1: Timestamp: found 'x', expected seconds" in capsys.readouterr().err
