"""Request workloads: when requests arrive, how long their prompts and outputs are, and which prompts share a prefix.

Importers read the forms in which others publish such traces, and `agent_sessions` makes multi-turn sessions. Arrivals
count from the first request of a file; requests stand in the order of arrival, ties in the order of the file.

The project's own form is a CSV file with the columns ``arrival_ps,prompt_tokens,output_tokens`` and, where known,
``session`` (empty for a request of no session) and ``blocks_N``: the ids, separated by spaces, of the prompt's blocks
of N tokens. Two prompts share a prefix as far as their ids agree from the first on; the last block may be partial.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ghostsim.bundled import folder
from ghostsim.errors import Location, TraceError, UsageError
from ghostsim.seeding import generator

Form = Literal["auto", "mooncake", "azure", "burstgpt", "ghostsim"]
Ints = npt.NDArray[np.int64]

MOONCAKE_BLOCK_TOKENS = 512  # Qin et al., "Mooncake", FAST 2025
LARGEST_TOKENS = 10**9
_LARGEST = 2**63 - 1
_PS_PER_S = 10**12
_PS_PER_MS = 10**9
_OWN = ("arrival_ps", "prompt_tokens", "output_tokens")
_COLUMNS: Mapping[Form, tuple[str, ...]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "ghostsim": _OWN,
}
"""The columns that each CSV form needs; others are ignored, as are their places."""
_WHOLE = re.compile(r"[0-9]{1,19}\Z")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?\Z")
_CLOCK = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,12}))?(Z|[+-][0-9]{2}:[0-9]{2})?\Z"
)
_BLOCKS = re.compile(r"blocks_([1-9][0-9]{0,8})\Z")


@dataclass(frozen=True)
class Request:
    """One request; `blocks` and `session` are None where the source does not say."""

    arrival_ps: int
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None
    session: int | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """Ids of the prompt blocks of all requests: those of request i are ids[offsets[i] : offsets[i + 1]]."""

    block_tokens: int
    ids: Ints
    offsets: Ints


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order of arrival, as int64 columns [n]; `session` holds -1 for a request of no session.

    An `output_tokens` of 0 is a request that failed in the recorded system.
    """

    arrival_ps: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return len(self.arrival_ps)

    def __getitem__(self, index: int) -> Request:
        at = range(len(self))[index]
        blocks, session = self.blocks, None if self.session is None else int(self.session[at])
        ids = None if blocks is None else blocks.ids[blocks.offsets[at] : blocks.offsets[at + 1]]
        return Request(
            int(self.arrival_ps[at]),
            int(self.prompt_tokens[at]),
            int(self.output_tokens[at]),
            None if ids is None else tuple(ids.tolist()),
            None if session is None or session < 0 else session,
        )

    def __iter__(self) -> Iterator[Request]:
        return (self[index] for index in range(len(self)))


# --- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A request as its line gives it; the label of a session may be any text."""

    at: Location
    arrival_ps: int
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    blocks: Sequence[int] = ()


@dataclass(frozen=True)
class _Record:
    """The fields of one CSV line by column name."""

    at: Location
    fields: Mapping[str, str]

    def wrong(self, name: str, expected: str) -> TraceError:
        """Return the error that a field is not as expected."""
        return _wrong(name, self.fields[name], expected, self.place(name))

    def place(self, name: str) -> Location:
        """Return where a field stands; the column counts fields."""
        return Location(self.at.file, self.at.line, list(self.fields).index(name) + 1)

    def whole(self, name: str, largest: int, example: str) -> int:
        """Return a field as a whole number."""
        text = self.fields[name]
        value = int(text) if _WHOLE.match(text) else -1
        if not 0 <= value <= largest:
            raise self.wrong(name, f"a whole number from 0 to {largest}, e.g. {example}")
        return value

    def tokens(self, name: str) -> int:
        """Return a field as a number of tokens."""
        return self.whole(name, LARGEST_TOKENS, "4808")


def _wrong(name: str, found: object, expected: str, at: Location) -> TraceError:
    text = repr(found) if isinstance(found, str) else str(found)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return TraceError(f"{name}: found {shown}, expected {expected}", at)


def find_requests(name: str | Path) -> Path:
    """Return the file of a request workload that is named by file or by bundled name (azure_code_500)."""
    given, room = Path(name), folder("traces") / "requests"
    bundled = sorted(path for path in room.glob("*") if path.suffix in {".csv", ".jsonl"})
    shipped = [path for path in bundled if str(name) in {path.name, path.stem}]
    if given.exists() or not shipped:
        return given
    return shipped[0]


def import_requests(path: str | Path, form: Form = "auto") -> Requests:
    """Read a request trace in one of the published forms.

    ``mooncake``: JSON lines with timestamp (ms), input_length, output_length, hash_ids (blocks of 512 tokens).
    ``azure``: CSV with TIMESTAMP, ContextTokens, GeneratedTokens. ``burstgpt``: CSV with Timestamp (s), Request tokens,
    Response tokens and perhaps Session ID. ``ghostsim``: see `read_requests`. CSV columns are found by name. ``auto``
    looks at the first line.

    Raises
    ------
    TraceError
        If the file is missing or not of this form; the message says line and column (CSV: the number of the field).
    """
    file = find_requests(path)
    lines = _lines(file)
    chosen = _detect(file, lines) if form == "auto" else form
    if chosen == "ghostsim":
        return _own(file, lines)
    parse = _mooncake if chosen == "mooncake" else _csv_parser(chosen)
    return _columns(file, sorted(parse(file, lines), key=lambda row: row.arrival_ps), _block_tokens(chosen))


def _block_tokens(form: Form) -> int | None:
    return MOONCAKE_BLOCK_TOKENS if form == "mooncake" else None


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines that are not blank, with their numbers."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TraceError("requests: found bytes that are not UTF-8, expected a text file", Location(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        expected = "a readable file (CSV or JSON lines) or a bundled name, e.g. azure_code_500"
        raise TraceError(f"requests: found {reason}, expected {expected}", Location(path)) from None
    found = [(number, line) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line.strip()]
    if not found:
        raise TraceError("requests: found an empty file, expected CSV or JSON lines", Location(path))
    return found


def _detect(path: Path, lines: list[tuple[int, str]]) -> Form:
    line, first = lines[0]
    if first.lstrip().startswith("{"):
        return "mooncake"
    names = _header(path, lines)
    nearest = max(_COLUMNS, key=lambda form: len(set(_COLUMNS[form]) & set(names)))
    if not set(names) & set(_COLUMNS[nearest]):
        raise _wrong(
            "header", first, f"JSON lines, or CSV with the columns {_known_columns()}", Location(path, line, 1)
        )
    return nearest


def _known_columns() -> str:
    return "; or ".join(f"{', '.join(names)} ({form})" for form, names in _COLUMNS.items())


def _header(path: Path, lines: list[tuple[int, str]]) -> list[str]:
    return [name.strip() for name in next(_split(path, lines[:1]))[1]]


def _split(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line; none of the forms has fields that span lines."""
    for number, line in lines:
        if '"' not in line:
            yield number, line.split(",")
            continue
        try:
            yield number, next(csv.reader(io.StringIO(line, newline=""), strict=True))
        except csv.Error as error:
            raise TraceError(f"row: found {error}, expected comma-separated values", Location(path, number)) from None


def _records(path: Path, lines: list[tuple[int, str]], form: Form) -> Iterator[_Record]:
    names = _check_header(path, lines, form)
    if len(lines) == 1:
        raise TraceError("requests: found a header without rows, expected at least one", Location(path, lines[0][0]))
    for number, fields in _split(path, lines[1:]):
        if len(fields) != len(names):
            message = f"row: found {len(fields)} fields, expected {len(names)} as in the header"
            raise TraceError(message, Location(path, number, min(len(fields), len(names))))
        yield _Record(Location(path, number), dict(zip(names, fields, strict=True)))


def _check_header(path: Path, lines: list[tuple[int, str]], form: Form) -> list[str]:
    names, line = _header(path, lines), lines[0][0]
    for number, name in enumerate(names, start=1):
        if names.index(name) != number - 1:
            raise TraceError(f"{name}: found this column twice, expected it once", Location(path, line, number))
    missing = [name for name in _COLUMNS[form] if name not in names]
    if missing:
        needed = ", ".join(_COLUMNS[form])
        message = f"found no column {' and no column '.join(missing)}, expected {needed} as in the {form} form"
        raise TraceError(f"header: {message}", Location(path, line, 1))
    return names


def _csv_parser(form: Form) -> Callable[[Path, list[tuple[int, str]]], Iterator[_Row]]:
    parse = {"azure": _azure, "burstgpt": _burstgpt}.get(form)
    if parse is None:
        raise UsageError(f"--form: found {form!r}, expected one of {', '.join(get_args(Form))}")
    return lambda path, lines: map(parse, _records(path, lines, form))


def _azure(record: _Record) -> _Row:
    arrival = _clock_ps(record, "TIMESTAMP")
    return _Row(record.at, arrival, record.tokens("ContextTokens"), record.tokens("GeneratedTokens"))


def _clock_ps(record: _Record, name: str) -> int:
    """Return picoseconds since 1970; a time without a zone counts as UTC."""
    found = _CLOCK.match(record.fields[name])
    try:
        whole = datetime.fromisoformat(f"{found[1]}{found[3] or 'Z'}") if found else None
    except ValueError:
        whole = None
    if found is None or whole is None:
        raise record.wrong(name, "a date and time, e.g. '2023-11-16 18:17:03.9799600'")
    # datetime keeps microseconds; the traces have ticks of 100 ns.
    return round(whole.timestamp()) * _PS_PER_S + int((found[2] or "0").ljust(12, "0"))


def _burstgpt(record: _Record) -> _Row:
    text = record.fields["Timestamp"]
    if not _SECONDS.match(text):
        raise record.wrong("Timestamp", "seconds, e.g. 5 or 19440110.0")
    tokens = record.tokens("Request tokens"), record.tokens("Response tokens")
    return _Row(record.at, round(Decimal(text) * _PS_PER_S), *tokens, session=record.fields.get("Session ID", ""))


# --- Mooncake --------------------------------------------------------------------------------------------------


def _mooncake(path: Path, lines: list[tuple[int, str]]) -> Iterator[_Row]:
    return (_mooncake_row(_Line(Location(path, number), line)) for number, line in lines)


@dataclass(frozen=True)
class _Line:
    """One line of JSON."""

    at: Location
    text: str

    def wrong(self, name: str, found: object, expected: str) -> TraceError:
        """Return the error that a value is not as expected, placed at the key."""
        column = self.text.find(f'"{name.partition("[")[0]}"') + 1
        return _wrong(name, found, expected, Location(self.at.file, self.at.line, column or 1))

    def fields(self) -> Mapping[str, Any]:
        """Return the object of the line."""
        try:
            found = json.loads(self.text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise _wrong("line", error.msg, _OBJECT, Location(self.at.file, self.at.line, error.colno)) from None
        except (ValueError, RecursionError) as error:
            raise self.wrong("line", str(error), _OBJECT) from None
        if not isinstance(found, dict):
            raise self.wrong("line", type(found).__name__, _OBJECT)
        return found


_OBJECT = 'a JSON object, e.g. {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}'


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _mooncake_row(line: _Line) -> _Row:
    fields = line.fields()
    missing = [name for name in ("timestamp", "input_length", "output_length", "hash_ids") if name not in fields]
    if missing:
        raise line.wrong("line", f"no {' and no '.join(missing)}", _OBJECT)
    prompt = _whole(line, "input_length", fields["input_length"], LARGEST_TOKENS)
    output = _whole(line, "output_length", fields["output_length"], LARGEST_TOKENS)
    ids = fields["hash_ids"]
    if not isinstance(ids, list):
        raise line.wrong("hash_ids", ids, "a list of block ids, e.g. [0, 1]")
    blocks = [_whole(line, f"hash_ids[{i}]", value, _LARGEST) for i, value in enumerate(ids)]
    expected = -(-prompt // MOONCAKE_BLOCK_TOKENS)
    if len(blocks) != expected:
        raise line.wrong("hash_ids", f"{len(blocks)} ids", f"{expected} for {prompt} tokens in blocks of 512")
    return _Row(line.at, _milliseconds(line, fields["timestamp"]), prompt, output, blocks=blocks)


def _whole(line: _Line, name: str, value: object, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise line.wrong(name, value, f"a whole number from 0 to {largest}, e.g. 6758")
    return value


def _milliseconds(line: _Line, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 10**15:
        raise line.wrong("timestamp", value, "milliseconds from 0 to 1e15, e.g. 669000")
    return round(value * _PS_PER_MS)


# --- columns ---------------------------------------------------------------------------------------------------


def _columns(path: Path, rows: list[_Row], block_tokens: int | None) -> Requests:
    """Return the rows, which stand in the order of arrival, as columns; the first one arrives at 0."""
    first, last = rows[0], rows[-1]
    if last.arrival_ps - first.arrival_ps > _LARGEST:
        days = (last.arrival_ps - first.arrival_ps) / _PS_PER_S / 86400
        message = f"found {days:.1f} days after the first, expected at most 106.7 (64-bit picoseconds); import a part"
        raise TraceError(f"arrival: {message}", last.at)
    labels = dict.fromkeys(row.session for row in rows if row.session)
    number = {label: index for index, label in enumerate(labels)} | {"": -1}
    return Requests(
        _int64(row.arrival_ps - first.arrival_ps for row in rows),
        _int64(row.prompt_tokens for row in rows),
        _int64(row.output_tokens for row in rows),
        _int64(number[row.session] for row in rows) if labels else None,
        None if block_tokens is None else _blocks(block_tokens, [row.blocks for row in rows]),
    )


def _int64(values: Iterator[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)


def _blocks(block_tokens: int, per_request: Sequence[Sequence[int]]) -> Blocks:
    offsets = np.zeros(len(per_request) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in per_request], out=offsets[1:])
    return Blocks(block_tokens, _int64(id_ for ids in per_request for id_ in ids), offsets)


# --- the project's own form ------------------------------------------------------------------------------------


def write_requests(requests: Requests, path: Path, *, force: bool = False) -> None:
    """Write requests in the project's own form (see the module); the same requests give the same bytes.

    Raises
    ------
    UsageError
        If the file exists and `force` is not set.
    """
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"--out: found {path}, which exists, expected a new file; --force replaces a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as out:
        temporary = Path(out.name)
        try:
            out.writelines(_own_lines(requests))
            out.flush()
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _own_lines(requests: Requests) -> Iterator[str]:
    columns = [*_OWN]
    if requests.session is not None:
        columns.append("session")
    if requests.blocks is not None:
        columns.append(f"blocks_{requests.blocks.block_tokens}")
    yield ",".join(columns) + "\n"
    for request in requests:
        fields = [str(request.arrival_ps), str(request.prompt_tokens), str(request.output_tokens)]
        if requests.session is not None:
            fields.append("" if request.session is None else str(request.session))
        if request.blocks is not None:
            fields.append(" ".join(map(str, request.blocks)))
        yield ",".join(fields) + "\n"


def read_requests(path: str | Path) -> Requests:
    """Read the project's own form; what `write_requests` wrote comes back as it was.

    Raises
    ------
    TraceError
        If the file is missing or anything in it is not as the form says.
    """
    file = find_requests(path)
    return _own(file, _lines(file))


def _own(path: Path, lines: list[tuple[int, str]]) -> Requests:
    records = list(_records(path, lines, "ghostsim"))
    names = list(records[0].fields)
    column = _check_own_columns(path, lines[0][0], names)
    block_tokens = int(column.partition("_")[2]) if column else None
    for before, record in pairwise(records):
        if _arrival(record) < _arrival(before):
            raise record.wrong("arrival_ps", f"at least {before.fields['arrival_ps']}, that of the request before")
    return Requests(
        _int64(map(_arrival, records)),
        _int64(record.tokens("prompt_tokens") for record in records),
        _int64(record.tokens("output_tokens") for record in records),
        _int64(map(_session_number, records)) if "session" in names else None,
        _blocks(block_tokens, [_own_blocks(record, column, block_tokens) for record in records])
        if block_tokens
        else None,
    )


def _check_own_columns(path: Path, line: int, names: list[str]) -> str:
    """Return the name of the column of blocks, empty if there is none."""
    column = next((name for name in names if _BLOCKS.match(name)), "")
    for number, name in enumerate(names, start=1):
        if name not in {*_OWN, "session", column}:
            raise _wrong("header", name, f"{', '.join(_OWN)}, session, blocks_512", Location(path, line, number))
    return column


def _arrival(record: _Record) -> int:
    return record.whole("arrival_ps", _LARGEST, "669000000000000")


def _session_number(record: _Record) -> int:
    return record.whole("session", _LARGEST, "12 (or nothing)") if record.fields["session"] else -1


def _own_blocks(record: _Record, column: str, block_tokens: int) -> list[int]:
    texts = record.fields[column].split()
    for text in texts:
        if not _WHOLE.match(text) or int(text) > _LARGEST:
            raise _wrong(column, text, "block ids separated by spaces, e.g. '0 1 2'", record.place(column))
    expected = -(-record.tokens("prompt_tokens") // block_tokens)
    if len(texts) != expected:
        raise record.wrong(column, f"{expected} ids for a prompt of {record.fields['prompt_tokens']} tokens")
    return [int(text) for text in texts]


# --- multi-turn sessions ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentTurns:
    """How long the turns of an agent are; the defaults are assumptions, of no recorded origin.

    Parameters
    ----------
    system_tokens
        Length of the system prompt, which all sessions share.
    task_tokens, result_tokens, output_tokens
        Mean lengths of the task, of a tool's result and of the model's output; lognormal, at least one token each.
    spread
        Standard deviation of the logarithm of these lengths; 0 gives the means themselves.
    session_gap_ps, tool_ps
        Mean time between the starts of sessions, and of a tool; exponential.
    output_token_ps
        Assumed time to generate a token of output.
    block_tokens
        Tokens per prefix block.
    """

    system_tokens: int = 2048
    task_tokens: int = 2048
    result_tokens: int = 1024
    output_tokens: int = 256
    spread: float = 1.0
    session_gap_ps: int = 2 * _PS_PER_S
    tool_ps: int = 5 * _PS_PER_S
    output_token_ps: int = 20 * _PS_PER_MS
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        for name in ("task_tokens", "result_tokens", "output_tokens", "block_tokens"):
            _in_range(name, getattr(self, name), 1, LARGEST_TOKENS)
        for name in ("session_gap_ps", "tool_ps", "output_token_ps"):
            _in_range(name, getattr(self, name), 0, 10**17)
        _in_range("system_tokens", self.system_tokens, 0, LARGEST_TOKENS)
        _in_range("spread", self.spread, 0, 3)


def agent_sessions(seed: int, sessions: int, turns: int, shape: AgentTurns | None = None) -> Requests:
    """Make the requests of agents that call tools: every turn sends the whole history again, and the history grows.

    A session's first prompt is the system prompt and a task. Each further prompt is the one before, the model's output
    and the result of a tool. Sessions start as a Poisson process. The next turn comes when the output has been generated
    and the tool has run, at the times of `shape` whatever the simulated system does: arrivals are open loop. A session's
    draws are its own: more sessions leave those before them as they are.

    A full block keeps its id over the turns of its session, and over sessions if it holds system prompt alone; a partial
    last block gets a new id each turn. Ids count from 0 in the order in which they first arrive.

    Raises
    ------
    UsageError
        If a number is out of its range.
    """
    shape = shape or AgentTurns()
    _in_range("sessions", sessions, 1, 10**6)
    _in_range("turns", turns, 1, 10**6)
    made = [_session(generator(seed, f"requests/session{number}"), turns, shape) for number in range(sessions)]
    gaps = generator(seed, "requests/starts").exponential(shape.session_gap_ps, sessions)
    waits, prompts, outputs = (np.stack(column) for column in zip(*made, strict=True))
    arrivals = _arrivals(gaps, waits)
    order = np.argsort(arrivals.ravel(), kind="stable")
    blocks = _session_blocks(prompts, shape.system_tokens // shape.block_tokens, shape.block_tokens)
    return Requests(
        arrivals.ravel()[order],
        prompts.ravel()[order],
        outputs.ravel()[order],
        np.repeat(np.arange(sessions, dtype=np.int64), turns)[order],
        _numbered(_blocks(shape.block_tokens, [blocks[index] for index in order.tolist()])),
    )


def _in_range(name: str, value: float, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        option = name.replace("_", "-")
        raise UsageError(f"--{option}: found {value}, expected a number from {smallest} to {largest}")


def _session(draw: np.random.Generator, turns: int, shape: AgentTurns) -> tuple[npt.NDArray[np.float64], Ints, Ints]:
    """Return the waiting time before each turn in ps, the prompt and the output lengths, each [turns]."""
    prompts, outputs, waits = np.empty(turns, np.int64), np.empty(turns, np.int64), np.zeros(turns)
    prompts[0] = shape.system_tokens + _length(draw, shape.task_tokens, shape.spread)
    for turn in range(turns):
        if turn:
            prompts[turn] = prompts[turn - 1] + outputs[turn - 1] + _length(draw, shape.result_tokens, shape.spread)
            waits[turn] = outputs[turn - 1] * shape.output_token_ps + draw.exponential(shape.tool_ps)
        outputs[turn] = _length(draw, shape.output_tokens, shape.spread)
    return waits, prompts, outputs


def _arrivals(gaps: npt.NDArray[np.float64], waits: npt.NDArray[np.float64]) -> Ints:
    """Return arrivals in ps [sessions, turns]; the first session starts at 0."""
    gaps[0] = 0.0
    last = gaps.sum() + waits.sum(axis=1).max()
    if last >= _LARGEST:
        message = f"found {last / _PS_PER_S / 86400:.3g} days of sessions, expected at most 106.7 (64-bit picoseconds)"
        raise UsageError(f"--sessions: {message}")
    starts, since = (np.cumsum(np.rint(times).astype(np.int64), axis=-1) for times in (gaps, waits))
    return np.asarray(starts[:, None] + since, dtype=np.int64)


def _length(draw: np.random.Generator, mean: int, spread: float) -> int:
    return max(1, round(math.exp(math.log(mean) - spread**2 / 2 + spread * draw.standard_normal())))


def _session_blocks(prompts: Ints, shared: int, block_tokens: int) -> list[list[int]]:
    """Return ids for each (session, turn) in row-major order; the first `shared` are those of all sessions."""
    free, made = shared, []
    for lengths in prompts:
        first, free = free, free + int(lengths[-1]) // block_tokens - shared
        for length in lengths.tolist():
            full, partial = divmod(length, block_tokens)
            own = range(first, first + full - shared)
            made.append([*range(shared), *own, *([free] if partial else [])])
            free += bool(partial)
    return made


def _numbered(blocks: Blocks) -> Blocks:
    """Number the ids from 0 in the order in which they first appear."""
    _, first, inverse = np.unique(blocks.ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return Blocks(blocks.block_tokens, rank[inverse], blocks.offsets)


# --- summary ---------------------------------------------------------------------------------------------------


def prefix_hits(blocks: Blocks) -> Ints:
    """Return for each request how many of its leading blocks an unbounded cache holds when it comes, [n].

    The cache holds every prompt block of the requests before it; a block behind one that is missing is no hit.
    """
    counts = np.diff(blocks.offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    _, first, inverse = np.unique(blocks.ids, return_index=True, return_inverse=True)
    misses = np.cumsum(owner[first][inverse] == owner)
    before = np.concatenate([[0], misses])[blocks.offsets[:-1]]
    leading = misses == np.repeat(before, counts)
    return np.bincount(owner[leading], minlength=len(counts)).astype(np.int64)


def summary(requests: Requests) -> dict[str, Any]:
    """Describe requests: rate, lengths, sessions, and the share of prompt blocks that an unbounded cache would hold."""
    span_s = float(requests.arrival_ps[-1] - requests.arrival_ps[0]) / _PS_PER_S
    return {
        "requests": len(requests),
        "span_s": span_s,
        "requests_per_s": (len(requests) - 1) / span_s if span_s else None,
        "prompt_tokens": _spread_of(requests.prompt_tokens),
        "output_tokens": _spread_of(requests.output_tokens),
        "without_output": int((requests.output_tokens == 0).sum()),
        "sessions": None if requests.session is None else _session_summary(requests.session),
        "blocks": None if requests.blocks is None else _block_summary(requests.blocks),
    }


def _spread_of(values: Ints) -> dict[str, float]:
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "max": int(values.max())}


def _session_summary(session: Ints) -> dict[str, float]:
    _, turns = np.unique(session[session >= 0], return_counts=True)
    return {"count": len(turns), "requests": int(turns.sum()), "longest": int(turns.max(initial=0))}


def _block_summary(blocks: Blocks) -> dict[str, float]:
    total, hits = len(blocks.ids), int(prefix_hits(blocks).sum())
    return {
        "block_tokens": blocks.block_tokens,
        "total": total,
        "distinct": len(np.unique(blocks.ids)),
        "prefix_hit_share": hits / total if total else 0.0,
    }


def format_summary(found: Mapping[str, Any]) -> str:
    """Lay out the result of `summary` as text."""
    rate, sessions, blocks = found["requests_per_s"], found["sessions"], found["blocks"]
    lines = [
        f"requests  {found['requests']} in {found['span_s']:.1f} s" + (f", {rate:.3f} per second" if rate else ""),
        *(f"{name:<9} {_lengths_text(found[f'{name}_tokens'])}" for name in ("prompt", "output")),
        f"failed    {found['without_output']} requests without output",
        f"sessions  {_sessions_text(sessions)}",
        f"blocks    {_blocks_text(blocks)}",
    ]
    return "\n".join(lines)


def _lengths_text(found: Mapping[str, float]) -> str:
    return f"mean {found['mean']:.1f}, median {found['p50']:.0f}, p95 {found['p95']:.0f}, max {found['max']} tokens"


def _sessions_text(found: Mapping[str, int] | None) -> str:
    if found is None:
        return "not recorded"
    return f"{found['count']} with {found['requests']} requests, at most {found['longest']} in one"


def _blocks_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not recorded"
    share = f"{found['prefix_hit_share']:.1%} hits in an unbounded prefix cache"
    return f"{found['total']} of {found['block_tokens']} tokens, {found['distinct']} distinct, {share}"
