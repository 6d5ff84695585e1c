"""The workload a policy is judged on: recorded attention as it is, or composed to a longer context and a bigger model.

Composition puts segments of recorded tokens between the beginning and the rest of a request's own prompt. Keys are
recorded before rotation, so any token can stand at any position; distances inside the own document stay as recorded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.errors import ConfigError, Location, TraceError
from ghostsim.seeding import generator
from ghostsim.trace.format import Rope, Trace
from ghostsim.trace.rope import Turner, rotate

SEGMENT = 512
SINKS = 4
MIN_CONTEXT = SINKS + 64  # the shortest q_prompt of the format must fit behind the sinks

Array = npt.NDArray[Any]
Kind = Literal["recorded", "composed", "synthetic"]


@dataclass(frozen=True)
class Shape:
    """Attention shape of the target model."""

    layers: int
    kv_heads: int
    q_per_kv: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class Head:
    """One distinct (request, kept layer, recorded KV head) with rotated queries and keys.

    `keys`, `values` [context + steps, d]; `queries`, `q_ahead` [steps, g, d], rotated to context + s;
    `prompt_queries` [W, g, d], the last one at position context - 1. float64 without composition, float32 with.
    """

    request: int
    kept_layer: int
    kv_head: int
    context: int
    keys: Array
    queries: Array
    prompt_queries: Array
    values: Array | None
    q_ahead: Array | None
    scale: float
    softcap: float | None
    window: int | None
    inv_freq: Array | None = None
    rope: Rope | None = None
    token_class: Array | None = None
    """[context + steps] uint8, where it was recorded."""


@dataclass(frozen=True)
class Piece:
    """Consecutive recorded tokens start .. start + length of trace number `trace`, standing at `position` onwards."""

    trace: int
    start: int
    length: int
    position: int


@dataclass(frozen=True)
class Request:
    """One request: its own trace, how many recorded steps its prompt has swallowed, and its tokens in order."""

    trace: int
    offset: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Predictor:
    """How the query of a step is foretold before the step.

    ``last_query`` takes the query of `ahead` steps ago, ``linear`` goes on as the two before that did, ``layer_ahead``
    is the recorded query that the layer before made (`q_ahead`), ``oracle`` knows it. Queries are foretold before
    rotation and turned to the position where they will be asked.
    """

    by: Literal["last_query", "linear", "layer_ahead", "oracle"]
    ahead: int = 1


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests made of recorded attention; arrays are made per head, on demand.

    `heads` lists the distinct (request, kept layer index, recorded KV head); a row is a *unit*. `unit_of` int32
    [requests, layers, kv_heads] maps the target model's heads to units. `reshaped` says that the trace's own head shape
    replaces the model's. With a `predictor` the queries are those that it foretells.
    """

    traces: tuple[Trace, ...]
    shape: Shape
    requests: int
    steps: int
    context: int
    kind: Kind
    seed: int
    content_hash: str
    heads: tuple[tuple[int, int, int], ...]
    unit_of: npt.NDArray[np.int32]
    sequences: tuple[Request, ...]
    dtype: type[np.floating[Any]]
    reshaped: bool
    predictor: Predictor | None = None

    def predicting(self, predictor: Predictor) -> Workload:
        """Return the same workload asked with foretold queries.

        Raises
        ------
        TraceError
            If a trace lacks the queries that the predictor needs.
        """
        for trace in self.traces[: self.requests]:
            if predictor.by == "layer_ahead" and trace.q_ahead is None:
                message = "q_ahead: found a trace without it, expected one that can foretell queries a layer ahead"
                raise TraceError(message, Location(trace.path))
        text = f"{self.content_hash} {predictor}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return dataclasses.replace(self, predictor=predictor, content_hash=digest)

    def trace_of(self, request: int) -> Trace:
        """Return the own trace of a request."""
        return self.traces[self.sequences[request].trace]

    def head(self, unit: int) -> Head:
        """Make the arrays of one unit."""
        request, layer, kv_head = self.heads[unit]
        sequence, own = self.sequences[request], self.trace_of(request)
        group = slice(kv_head * own.model.q_per_kv, (kv_head + 1) * own.model.q_per_kv)
        steps = slice(sequence.offset, sequence.offset + self.steps)
        now = np.arange(self.context, self.context + self.steps)[:, None]
        return Head(
            request=request,
            kept_layer=layer,
            kv_head=kv_head,
            context=self.context,
            keys=self._keys(request, layer, kv_head),
            queries=self._rotated(own, self._asked(request, layer, group), now, layer),
            prompt_queries=self._prompt_queries(request, layer, group),
            values=self._values(request, layer, kv_head),
            q_ahead=None if own.q_ahead is None else self._rotated(own, own.q_ahead[steps, layer, group], now, layer),
            scale=own.model.scale,
            softcap=own.model.softcap,
            window=own.model.window[layer],
            inv_freq=None if own.inv_freq is None else np.asarray(own.inv_freq[layer]),
            rope=own.rope,
            token_class=self._token_class(request),
        )

    def _asked(self, request: int, layer: int, group: slice) -> Array:
        """Return the queries [steps, g, d] before rotation."""
        own, sequence, predictor = self.trace_of(request), self.sequences[request], self.predictor
        steps = slice(sequence.offset, sequence.offset + self.steps)
        if predictor is None or predictor.by == "oracle":
            return np.asarray(own.q[steps, layer, group])
        if predictor.by == "layer_ahead":
            assert own.q_ahead is not None
            return np.asarray(own.q_ahead[steps, layer, group])
        before = self.prompt_rows(request, layer, group).swapaxes(0, 1)
        known = np.concatenate([before, own.q[steps, layer, group]]).astype(self.dtype)
        last = np.maximum(len(before) + np.arange(self.steps) - predictor.ahead, 0)
        if predictor.by == "last_query":
            return np.asarray(known[last])
        return np.asarray(known[last] + predictor.ahead * (known[last] - known[np.maximum(last - 1, 0)]))

    def _token_class(self, request: int) -> Array | None:
        if not self.holds(request, "token_class"):
            return None
        pieces = self.sequences[request].pieces
        found = [(self.traces[p.trace].token_class, p) for p in pieces]
        return np.concatenate([rows[p.start : p.start + p.length] for rows, p in found if rows is not None])

    def token_ids(self, request: int) -> npt.NDArray[np.int32]:
        """Return the recorded token ids of a request, int32 [context + steps]."""
        pieces = self.sequences[request].pieces
        return np.concatenate([self.traces[p.trace].token_ids[p.start : p.start + p.length] for p in pieces])

    def token_repeats(self) -> float:
        """Return how often a recorded token that is used stands in one context, mean over requests (1: never again)."""
        return float(np.mean([self._repeats(sequence) for sequence in self.sequences]))

    def _repeats(self, sequence: Request) -> float:
        documents = _documents(self.traces)
        used: dict[int, npt.NDArray[np.bool_]] = {}
        for piece in sequence.pieces:
            document = documents[piece.trace]
            seen = used.setdefault(document, np.zeros(max(t.tokens for t in self.traces), dtype=bool))
            seen[piece.start : piece.start + piece.length] = True
        distinct = sum(int(seen.sum()) for seen in used.values())
        return sum(piece.length for piece in sequence.pieces) / distinct

    def gather(self, request: int, name: str, layer: int, kv_head: int, out: Array) -> Array:
        """Fill `out` [context + steps, d] with the recorded rows of `k` or `v`, before rotation, and return it."""
        for piece in self.sequences[request].pieces:
            recorded = getattr(self.traces[piece.trace], name)[layer, kv_head]
            out[piece.position : piece.position + piece.length] = recorded[piece.start : piece.start + piece.length]
        return out

    def prompt_rows(self, request: int, layer: int, heads: slice) -> Array:
        """Return the queries [heads, W, d] of the last tokens before step 0, before rotation."""
        own, sequence = self.trace_of(request), self.sequences[request]
        decoded = own.q[: sequence.offset, layer, heads].swapaxes(0, 1)
        return np.concatenate([own.q_prompt[layer, heads], decoded], axis=1)[:, -self.prompt_queries(request) :]

    def prompt_queries(self, request: int) -> int:
        """Return how many queries of the last tokens before step 0 a request holds."""
        # Only the queries of the own document's last piece have their place in the context.
        return min(self.trace_of(request).prompt_queries, self.sequences[request].pieces[-1].length - self.steps)

    def _rows(self) -> Array:
        return np.empty((self.context + self.steps, self.shape.head_dim), dtype=self.dtype)

    def _keys(self, request: int, layer: int, kv_head: int) -> Array:
        own, keys = self.trace_of(request), self._rows()
        if own.rope is None or own.inv_freq is None or self.dtype is np.float64:
            return self._rotated(own, self.gather(request, "k", layer, kv_head, keys), np.arange(len(keys)), layer)
        turner = Turner(own.inv_freq[layer], own.rope)
        for piece in self.sequences[request].pieces:
            rows = keys[piece.position : piece.position + piece.length]
            rows[...] = self.traces[piece.trace].k[layer, kv_head, piece.start : piece.start + piece.length]
            turner.turn_run(rows, piece.position)
        return keys

    def _values(self, request: int, layer: int, kv_head: int) -> Array | None:
        return self.gather(request, "v", layer, kv_head, self._rows()) if self.holds(request, "v") else None

    def holds(self, request: int, name: str) -> bool:
        """Whether every trace that a request takes tokens from recorded the array `name`."""
        return all(getattr(self.traces[piece.trace], name) is not None for piece in self.sequences[request].pieces)

    def _prompt_queries(self, request: int, layer: int, group: slice) -> Array:
        rows = self.prompt_rows(request, layer, group).swapaxes(0, 1)
        positions = np.arange(self.context - len(rows), self.context)[:, None]
        return self._rotated(self.trace_of(request), rows, positions, layer)

    def _rotated(self, own: Trace, x: Array, positions: Array, layer: int) -> Array:
        inv_freq = None if own.inv_freq is None else own.inv_freq[layer]
        return rotate(x, positions, inv_freq, own.rope, self.dtype)


def compose(
    traces: Sequence[Trace],
    shape: Shape | None,
    *,
    requests: int,
    steps: int | None,
    context: int | None,
    seed: int,
    trace_shape: bool = False,
) -> Workload:
    """Build the workload: request r decodes trace r mod n.

    Parameters
    ----------
    traces
        The traces named by the scenario; all of them also give the segments of a composed context.
    shape
        Target model; None: the kept layers and heads of the trace itself.
    steps
        Decode steps; None: all that are recorded.
    context
        Tokens in the cache before step 0; None: the recorded trace as it is.
    trace_shape
        Keep the trace's own head_dim and query heads per KV head where the model's differ.

    Raises
    ------
    ConfigError
        If shapes disagree, more steps are asked for than are recorded, or the traces cannot be composed.
    """
    traces = tuple(traces)
    _check_request(traces, requests, steps, context)
    steps = steps if steps is not None else min(trace.steps for trace in traces[:requests])
    own = _own_shape(traces[0])
    target = _target(traces[0], shape, trace_shape)
    sequences = tuple(_request(traces, r, steps, context, seed) for r in range(requests))
    identity = context is None and target == own
    heads, unit_of = _units(traces, sequences, target, shared=context is None, identity=identity)
    return Workload(
        traces=traces,
        shape=target,
        requests=requests,
        steps=steps,
        context=traces[0].prompt_len if context is None else context,
        kind=_kind(traces, context),
        seed=seed,
        content_hash=_content_hash(
            traces, target, requests=requests, steps=steps, context=context, seed=None if context is None else seed
        ),
        heads=heads,
        unit_of=unit_of,
        sequences=sequences,
        dtype=np.float64 if context is None else np.float32,
        reshaped=shape is not None and target != shape,
    )


def _own_shape(trace: Trace) -> Shape:
    model = trace.model
    return Shape(len(model.kept_layers), model.kv_heads, model.q_per_kv, model.head_dim)


def _target(trace: Trace, shape: Shape | None, trace_shape: bool) -> Shape:
    own = _own_shape(trace)
    if shape is None:
        return own
    if (shape.head_dim, shape.q_per_kv) == (own.head_dim, own.q_per_kv):
        return shape
    if trace_shape:
        return Shape(shape.layers, shape.kv_heads, own.q_per_kv, own.head_dim)
    raise ConfigError(
        f"workload.trace: found {trace.name} with head_dim {own.head_dim} and {own.q_per_kv} query heads per KV head, "
        f"expected the model's {shape.head_dim} and {shape.q_per_kv}; take another trace or set workload.shape: trace"
    )


def _kind(traces: tuple[Trace, ...], context: int | None) -> Kind:
    kinds = {trace.kind for trace in traces}
    if "synthetic" in kinds:
        return "synthetic"
    return "composed" if context is not None or "composed" in kinds else "recorded"


def _check_request(traces: tuple[Trace, ...], requests: int, steps: int | None, context: int | None) -> None:
    if not traces:
        raise ConfigError("workload.trace: found no trace, expected at least one, e.g. natural_4k")
    if requests < 1:
        raise ConfigError(f"workload.batch: found {requests}, expected at least 1")
    if steps is not None and steps < 1:
        raise ConfigError(f"workload.steps: found {steps}, expected at least 1")
    for trace in traces[:requests]:
        if steps is not None and steps > trace.steps:
            raise ConfigError(
                f"workload.steps: found {steps}, expected at most the {trace.steps} recorded in {trace.name}"
            )
    for trace in traces[1:]:
        _check_alike(traces[0], trace, composed=context is not None)
    if context is not None:
        _check_composable(traces[0], context)


def _check_alike(first: Trace, other: Trace, *, composed: bool) -> None:
    if _own_shape(first) != _own_shape(other):
        raise ConfigError(
            f"workload.trace: found {other.name} with another shape than {first.name}, expected one shape"
        )
    if not composed and first.prompt_len != other.prompt_len:
        raise ConfigError(
            f"workload.trace: found prompts of {first.prompt_len} ({first.name}) and {other.prompt_len} ({other.name}) "
            "tokens, expected one length; set workload.context to compose both to the same"
        )
    if composed and not same_model(first, other):
        raise ConfigError(
            f"workload.trace: found {first.name} and {other.name} of different models, expected one to compose"
        )


def same_model(first: Trace, other: Trace) -> bool:
    """Whether two traces are of the same model, kept layers and rotation."""
    same_rope = first.rope == other.rope and np.array_equal(first.inv_freq, other.inv_freq)  # type: ignore[arg-type]
    return same_rope and first.model == other.model


def _check_composable(trace: Trace, context: int) -> None:
    if trace.rope is None:
        raise ConfigError(
            f"workload.context: found {context} for {trace.name}, whose positions are inside its keys (rope: null), "
            "expected no context: such a trace runs only as recorded"
        )
    if context < MIN_CONTEXT:
        raise ConfigError(f"workload.context: found {context}, expected at least {MIN_CONTEXT}, e.g. 131072")


def _request(traces: tuple[Trace, ...], request: int, steps: int, context: int | None, seed: int) -> Request:
    index = request % len(traces)
    own = traces[index]
    if context is None:
        return Request(index, 0, (Piece(index, 0, own.prompt_len + steps, 0),))
    path = f"trace/compose/request{request}"
    offset = int(generator(seed, f"{path}/offset").integers(own.steps - steps + 1))
    end = own.prompt_len + offset
    # A context shorter than the own prompt drops its middle: the first four and the end stay.
    tail = min(end - SINKS, context - SINKS)
    pieces = [Piece(index, 0, SINKS, 0)]
    position, gap_end = SINKS, context - tail
    segments = _segments(traces, index, generator(seed, f"{path}/segments"))
    while position < gap_end:
        trace, start, length = next(segments)
        piece = Piece(trace, start, min(length, gap_end - position), position)
        pieces.append(piece)
        position += piece.length
    pieces.append(Piece(index, end - tail, tail + steps, position))
    return Request(index, offset, tuple(pieces))


def _documents(traces: tuple[Trace, ...]) -> list[int]:
    """Return for each trace the first one that recorded the same text: two recordings of it are one document."""
    ids = [trace.token_ids for trace in traces]
    return [next(j for j, other in enumerate(ids) if same_text(other, mine)) for mine in ids]


def same_text(a: Array, b: Array) -> bool:
    """Whether one of two rows of token ids begins with the other."""
    n = min(len(a), len(b))
    return np.array_equal(a[:n], b[:n])


def _segments(traces: tuple[Trace, ...], own: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """Yield (trace, start, length) for ever: the segments of the other documents, the own prompt's, then all again.

    Each round cuts the documents at another phase. The own document gives prompt tokens only: a copy of the recorded
    continuation would stand in the context before it is decoded.
    """
    documents = _documents(traces)
    others = [i for i in sorted(set(documents)) if i != documents[own]]
    while True:
        yield from _round([(i, traces[i].tokens) for i in others], rng)
        yield from _round([(own, traces[own].prompt_len)], rng)


def _round(sources: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int, int]]:
    cuts: list[tuple[int, int, int]] = []
    for trace, tokens in sources:
        length = min(SEGMENT, tokens - SINKS)
        first = SINKS + int(rng.integers((tokens - SINKS) % length + 1))
        cuts += [(trace, start, length) for start in range(first, tokens - length + 1, length)]
    return [cuts[i] for i in rng.permutation(len(cuts))]


def _units(
    traces: tuple[Trace, ...], sequences: tuple[Request, ...], shape: Shape, *, shared: bool, identity: bool
) -> tuple[tuple[tuple[int, int, int], ...], npt.NDArray[np.int32]]:
    kept, recorded = len(traces[0].model.kept_layers), traces[0].model.kv_heads
    layers, heads = np.arange(shape.layers), np.arange(shape.kv_heads)
    kept_of = layers * kept // shape.layers
    head_of = (heads[None, :] + (0 if identity else layers[:, None])) % recorded + 0 * layers[:, None]
    owner = [sequence.trace if shared else r for r, sequence in enumerate(sequences)]
    code = np.stack([(o * kept + kept_of[:, None]) * recorded + head_of for o in owner])
    distinct, unit_of = np.unique(code, return_inverse=True)
    first = {o: r for r, o in reversed(list(enumerate(owner)))}
    units = [(first[c // recorded // kept], c // recorded % kept, c % recorded) for c in distinct.tolist()]
    return tuple(units), unit_of.reshape(code.shape).astype(np.int32)


@functools.cache
def code_hash() -> str:
    """Return the SHA-256 of the code that makes a workload's arrays."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in ("rope.py", "compose.py"))).hexdigest()


def _content_hash(traces: tuple[Trace, ...], shape: Shape, **asked: int | None) -> str:
    defining = {
        "code": code_hash(),
        "traces": [trace.manifest_sha256 for trace in traces],
        "shape": dataclasses.asdict(shape),
        **asked,
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()
