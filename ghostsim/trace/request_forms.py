"""Reads request workloads in the forms in which others publish them, and reads and writes the project's own form.

Arrivals count from the first request of a published file; requests stand in the order of arrival, ties in the order of
the file.

The project's own form is a CSV file with the columns ``arrival_ps,prompt_tokens,output_tokens`` and, where known,
``session`` (empty for a request of no session) and ``blocks_N``: the ids, separated by spaces, of the prompt's blocks
of N tokens. Two prompts share a prefix as far as their ids agree from the first on; the last block may be partial.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from ghostsim.bundled import folder
from ghostsim.errors import Location, TraceError, UsageError
from ghostsim.trace.requests import (
    LARGEST_INT,
    LARGEST_TOKENS,
    MOONCAKE_BLOCK_TOKENS,
    PS_PER_MS,
    PS_PER_S,
    Requests,
    blocks_of,
    int64,
)

Form = Literal["auto", "mooncake", "azure", "burstgpt", "ghostsim"]

_OWN = ("arrival_ps", "prompt_tokens", "output_tokens")
_COLUMNS: Mapping[Form, tuple[str, ...]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "ghostsim": _OWN,
}
"""The columns that each CSV form needs; others are ignored, as are their places."""
_OPTIONAL: Mapping[Form, tuple[str, ...]] = {"burstgpt": ("Session ID",)}
_WHOLE = re.compile(r"[0-9]{1,19}\Z")
_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?\Z")
_CLOCK = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,12}))?(Z|[+-][0-9]{2}:[0-9]{2})?\Z"
)
_BLOCKS = re.compile(r"blocks_([1-9][0-9]{0,8})\Z")


@dataclass(frozen=True, slots=True)
class _Row:
    """A request as its line gives it; the label of a session may be any text."""

    line: int
    arrival_ps: int
    prompt_tokens: int
    output_tokens: int
    session: str = ""
    blocks: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Record:
    """The fields of one CSV line by column name."""

    path: Path
    line: int
    fields: Mapping[str, str]

    def wrong(self, name: str, expected: str) -> TraceError:
        """Return the error that a field is not as expected."""
        return _wrong(name, _shown(self.fields[name]), expected, self.place(name))

    def place(self, name: str) -> Location:
        """Return where a field stands; the column counts fields."""
        return Location(self.path, self.line, list(self.fields).index(name) + 1)

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


def _wrong(name: str, found: str, expected: str, at: Location) -> TraceError:
    return TraceError(f"{name}: found {found}, expected {expected}", at)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    block_tokens = MOONCAKE_BLOCK_TOKENS if chosen == "mooncake" else None
    rows = _mooncake(file, lines) if chosen == "mooncake" else _csv_rows(file, lines, chosen)
    return _columns(file, sorted(rows, key=lambda row: row.arrival_ps), block_tokens)


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
    as_written = set(next(_split(path, lines[:1]))[1])
    known = {form: set(_header(path, lines, form)) & set(names) for form, names in _COLUMNS.items()}
    nearest = max(_COLUMNS, key=lambda form: (len(known[form]), len(known[form] & as_written)))
    if not known[nearest]:
        raise _wrong(
            "header", _shown(first), f"JSON lines, or CSV with the columns {_known_columns()}", Location(path, line, 1)
        )
    return nearest


def _known_columns() -> str:
    return "; or ".join(f"{', '.join(names)} ({form})" for form, names in _COLUMNS.items())


def _header(path: Path, lines: list[tuple[int, str]], form: Form) -> list[str]:
    """Return the names of the columns; copies of a published file differ in case and in spaces or underscores."""
    as_published = {_plain(name): name for name in (*_COLUMNS[form], *_OPTIONAL.get(form, ()))}
    return [as_published.get(_plain(name), name.strip()) for name in next(_split(path, lines[:1]))[1]]


def _plain(name: str) -> str:
    return name.replace("_", "").replace(" ", "").casefold()


def _split(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line; none of the forms has fields that span lines."""
    for number, line in lines:
        if '"' not in line:
            yield number, line.split(",")
            continue
        try:
            yield number, next(csv.reader(io.StringIO(line, newline=""), strict=True))
        except csv.Error as error:
            raise TraceError(
                f"row: found {error}, expected comma-separated values", Location(path, number, 1)
            ) from None


def _records(path: Path, lines: list[tuple[int, str]], form: Form) -> Iterator[_Record]:
    names = _check_header(path, lines, form)
    if len(lines) == 1:
        raise TraceError("requests: found a header without rows, expected at least one", Location(path, lines[0][0], 1))
    for number, fields in _split(path, lines[1:]):
        if len(fields) != len(names):
            message = f"row: found {len(fields)} fields, expected {len(names)} as in the header"
            raise TraceError(message, Location(path, number, min(len(fields), len(names))))
        yield _Record(path, number, dict(zip(names, fields, strict=True)))


def _check_header(path: Path, lines: list[tuple[int, str]], form: Form) -> list[str]:
    names, line = _header(path, lines, form), lines[0][0]
    for number, name in enumerate(names, start=1):
        if names.index(name) != number - 1:
            raise TraceError(f"{name}: found this column twice, expected it once", Location(path, line, number))
    missing = [name for name in _COLUMNS[form] if name not in names]
    if missing:
        needed = ", ".join(_COLUMNS[form])
        message = f"found no column {' and no column '.join(missing)}, expected {needed} as in the {form} form"
        raise TraceError(f"header: {message}", Location(path, line, 1))
    return names


def _csv_rows(path: Path, lines: list[tuple[int, str]], form: Form) -> Iterator[_Row]:
    parse = {"azure": _azure, "burstgpt": _burstgpt}.get(form)
    if parse is None:
        raise UsageError(f"--form: found {form!r}, expected one of {', '.join(get_args(Form))}")
    return map(parse, _records(path, lines, form))


def _azure(record: _Record) -> _Row:
    arrival = _clock_ps(record, "TIMESTAMP")
    return _Row(record.line, arrival, record.tokens("ContextTokens"), record.tokens("GeneratedTokens"))


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
    return round(whole.timestamp()) * PS_PER_S + int((found[2] or "0").ljust(12, "0"))


def _burstgpt(record: _Record) -> _Row:
    text = record.fields["Timestamp"]
    if not _SECONDS.match(text):
        raise record.wrong("Timestamp", "seconds, e.g. 5 or 19440110.0")
    tokens = record.tokens("Request tokens"), record.tokens("Response tokens")
    return _Row(record.line, round(Decimal(text) * PS_PER_S), *tokens, session=record.fields.get("Session ID", ""))


# --- Mooncake -------------------------------------------------------------------------------------------------------


def _mooncake(path: Path, lines: list[tuple[int, str]]) -> Iterator[_Row]:
    return (_mooncake_row(_Line(path, number, line)) for number, line in lines)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of JSON."""

    path: Path
    line: int
    text: str

    def wrong(self, name: str, found: str, expected: str) -> TraceError:
        """Return the error that a value is not as expected, placed at the key."""
        column = self.text.find(f'"{name.partition("[")[0]}"') + 1
        return _wrong(name, found, expected, Location(self.path, self.line, column or 1))

    def fields(self) -> Mapping[str, Any]:
        """Return the object of the line."""
        try:
            found = json.loads(self.text, parse_float=Decimal, parse_constant=_no_constant, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise _wrong("line", error.msg, _OBJECT, Location(self.path, self.line, error.colno)) from None
        except (ValueError, RecursionError) as error:
            raise self.wrong("line", str(error).partition(";")[0], _OBJECT) from None
        if not isinstance(found, dict):
            raise self.wrong("line", f"a {type(found).__name__}", _OBJECT)
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
        raise line.wrong("hash_ids", _shown(ids), "a list of block ids, e.g. [0, 1]")
    blocks = [_whole(line, f"hash_ids[{i}]", value, LARGEST_INT) for i, value in enumerate(ids)]
    expected = -(-prompt // MOONCAKE_BLOCK_TOKENS)
    if len(blocks) != expected:
        raise line.wrong("hash_ids", f"{len(blocks)} ids", f"{expected} for {prompt} tokens in blocks of 512")
    return _Row(line.line, _milliseconds(line, fields["timestamp"]), prompt, output, blocks=blocks)


def _whole(line: _Line, name: str, value: object, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise line.wrong(name, _shown(value), f"a whole number from 0 to {largest}, e.g. 6758")
    return value


def _milliseconds(line: _Line, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 10**15:
        raise line.wrong("timestamp", _shown(value), "milliseconds from 0 to 1e15, e.g. 669000")
    return round(value * PS_PER_MS)


# --- columns --------------------------------------------------------------------------------------------------------


def _columns(path: Path, rows: list[_Row], block_tokens: int | None) -> Requests:
    """Return the rows, which stand in the order of arrival, as columns; the first one arrives at 0."""
    first, last = rows[0], rows[-1]
    if last.arrival_ps - first.arrival_ps > LARGEST_INT:
        days = (last.arrival_ps - first.arrival_ps) / PS_PER_S / 86400
        message = f"found {days:.1f} days after the first, expected at most 106.7 (64-bit picoseconds); import a part"
        raise TraceError(f"arrival: {message}", Location(path, last.line, 1))
    labels = dict.fromkeys(row.session for row in rows if row.session)
    number = {label: index for index, label in enumerate(labels)} | {"": -1}
    return Requests(
        int64(row.arrival_ps - first.arrival_ps for row in rows),
        int64(row.prompt_tokens for row in rows),
        int64(row.output_tokens for row in rows),
        int64(number[row.session] for row in rows) if labels else None,
        None if block_tokens is None else blocks_of(block_tokens, [row.blocks for row in rows]),
    )


# --- the project's own form -----------------------------------------------------------------------------------------


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
    ids = [_own_blocks(record, column, block_tokens) for record in records] if block_tokens else []
    return Requests(
        int64(map(_arrival, records)),
        int64(record.tokens("prompt_tokens") for record in records),
        int64(record.tokens("output_tokens") for record in records),
        int64(map(_session_number, records)) if "session" in names else None,
        blocks_of(block_tokens, ids) if block_tokens else None,
    )


def _check_own_columns(path: Path, line: int, names: list[str]) -> str:
    """Return the name of the column of blocks, empty if there is none."""
    column = next((name for name in names if _BLOCKS.match(name)), "")
    for number, name in enumerate(names, start=1):
        if name not in {*_OWN, "session", column} or not name:
            raise _wrong(
                "header", _shown(name), f"{', '.join(_OWN)}, session, blocks_512", Location(path, line, number)
            )
    return column


def _arrival(record: _Record) -> int:
    return record.whole("arrival_ps", LARGEST_INT, "669000000000000")


def _session_number(record: _Record) -> int:
    return record.whole("session", LARGEST_INT, "12 (or nothing)") if record.fields["session"] else -1


def _own_blocks(record: _Record, column: str, block_tokens: int) -> list[int]:
    texts = record.fields[column].split()
    for text in texts:
        if not _WHOLE.match(text) or int(text) > LARGEST_INT:
            raise _wrong(column, _shown(text), "block ids separated by spaces, e.g. '0 1 2'", record.place(column))
    expected = -(-record.tokens("prompt_tokens") // block_tokens)
    if len(texts) != expected:
        raise record.wrong(column, f"{expected} ids for a prompt of {record.fields['prompt_tokens']} tokens")
    return [int(text) for text in texts]
