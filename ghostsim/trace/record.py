"""Records the attention of a causal language model as a trace of format 1 and proves it against the model.

The model runs once over the whole text, teacher-forced, in float32 with eager attention. Each layer's queries and keys
go to disk as it ends; an interrupted recording goes on at the layer it had reached when it is asked for again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ghostsim.errors import InputError, InvariantError, UsageError
from ghostsim.trace.format import Rope, Trace
from ghostsim.trace.record_check import OUTPUT, PROBABILITY, LayerRule, Replay, band
from ghostsim.trace.record_rope import Layout, frequencies, identify, same
from ghostsim.trace.record_store import LayerRecord, Store
from ghostsim.trace.write import TraceWriter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghostsim.trace.record_capture import Call, Seen, Start

Array = npt.NDArray[Any]
Say = Callable[[str], None]
MIN_QUERIES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PRECISIONS = (np.float16, np.float32)
_NOT_UNDONE = "the model's rotary embedding could not be undone; queries and keys hold their positions"


@dataclass(frozen=True)
class Recording:
    """What to record.

    `model` is a folder or a name that transformers loads, `text` a text file or token ids (.npy, .json). `layers` are
    those to keep (None: all); `q_prompt` counts the last prompt queries to keep (None: all). `title` and `licence` go
    into the provenance.
    """

    model: str
    text: Path
    out: Path
    prompt_len: int
    steps: int
    generate: bool = False
    layers: tuple[int, ...] | None = None
    values: bool = False
    ahead: bool = False
    q_prompt: int | None = 256
    title: str | None = None
    licence: str = "NOASSERTION"
    device: str = "cpu"
    force: bool = False

    @property
    def tokens(self) -> int:
        """Positions that are recorded."""
        return self.prompt_len + self.steps

    @property
    def queries(self) -> int:
        """Prompt queries that are recorded."""
        return self.prompt_len if self.q_prompt is None else min(self.q_prompt, self.prompt_len)


@dataclass(frozen=True)
class Geometry:
    """What all kept layers have in common, and how each of them rotates (None: not at all)."""

    kept: tuple[int, ...]
    q_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    softcap: float | None
    rope: Rope | None
    layouts: dict[int, Layout | None]
    note: str | None


def record(asked: Recording, say: Say = lambda _: None) -> Trace:
    """Record a trace.

    Raises
    ------
    UsageError
        If options are wrong, or torch and transformers are not installed.
    InputError
        If the model or the text cannot be read or is too short.
    InvariantError
        If recomputed probabilities differ from the model's by more than 2e-3, or outputs by more than 0.5 % of the
        largest value, in float16 and in float32.
    """
    _check_options(asked)
    with TraceWriter(asked.out, force=asked.force) as writer:
        recorder = Recorder(asked, say)
        try:
            recorder.run()
        except InvariantError:
            recorder.store.drop()
            raise
        trace = recorder.finish(writer)
    recorder.store.drop()
    return trace


def _check_options(asked: Recording) -> None:
    if not _NAME.fullmatch(asked.out.name):
        raise UsageError(f"--out: found {asked.out.name!r}, expected letters, digits, '.', '_', '-', e.g. my_trace")
    if asked.prompt_len < MIN_QUERIES or asked.steps < 1:
        raise UsageError(
            f"found --prompt {asked.prompt_len} and --steps {asked.steps}, expected at least {MIN_QUERIES} and 1"
        )
    if asked.queries < MIN_QUERIES:
        raise UsageError(f"--q-prompt: found {asked.queries}, expected at least {MIN_QUERIES}, or all")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"found no {' and no '.join(missing)}, which recording needs, expected: pip install 'ghostsim[record]'"
        )


class Recorder:
    """One recording under way: the model, its geometry, and the working folder beside the trace."""

    def __init__(self, asked: Recording, say: Say) -> None:
        from ghostsim.trace import record_capture, record_model

        self.asked, self.say, self.loader, self.capture = asked, say, record_model, record_capture
        say("load the model")
        self.model: nn.Module = record_model.load_model(asked.model, asked.device)
        self.layers = record_capture.decoder_layers(self.model)
        self.config = self.model.config.get_text_config()
        self.sha256 = record_model.weights_sha256(record_model.model_folder(asked.model))
        given = record_model.read_ids(asked.text, asked.model, self.config.vocab_size)
        _check_length(asked, len(given))
        self.store = Store(asked.out.with_name(f".{asked.out.name}.recording"), self._key(given))
        self.ids = self._all_ids(given)
        self.geometry = self._survey()
        self.trained_context = int(getattr(self.config, "max_position_embeddings", None) or asked.tokens)
        self._check_positions()

    def _key(self, given: Array) -> str:
        """Return what must be equal for an interrupted recording to go on."""
        asked, used = self.asked, given[: self.asked.prompt_len if self.asked.generate else self.asked.tokens + 1]
        fields = [self.sha256, hashlib.sha256(used.tobytes()).hexdigest(), self.config.to_json_string()]
        fields += [asked.prompt_len, asked.steps, asked.generate, asked.layers, asked.values, asked.ahead]
        return hashlib.sha256(json.dumps([*fields, asked.queries]).encode()).hexdigest()

    def _all_ids(self, given: Array) -> Array:
        """Return prompt, steps and, where there is one, the token after the last step."""
        if not self.asked.generate:
            return given[: self.asked.tokens + 1]
        found = self.store.load("generated")
        if found is None:
            prompt = given[: self.asked.prompt_len]
            found = self.loader.generate(self.model, prompt, self.asked.steps + 1, self.say)
            self.store.save("generated", found)
        return found

    def _check_positions(self) -> None:
        if self.geometry.rope is None and self.geometry.note is None and self.asked.tokens > self.trained_context:
            raise InputError(
                f"--prompt and --steps: found {self.asked.tokens} tokens, expected at most the "
                f"{self.trained_context} positions that the model has learned"
            )

    def _tensor(self, ids: Array) -> Tensor:
        import torch

        return torch.tensor(ids, dtype=torch.long, device=self.asked.device)

    # --- a first look at a few tokens -----------------------------------------------------------------------------

    def _survey(self) -> Geometry:
        self.say("look at the model")
        seen: dict[int, Seen] = {}
        listener = self.capture.Listener(
            self.model, self.layers, lambda layer: seen.update({layer.layer: layer}), kept=self.asked.layers
        )
        listener.run(self._tensor(self.ids[:MIN_QUERIES]))
        _check_kept(self.asked.layers, seen, len(self.layers), type(self.model).__name__)
        return _geometry(seen, hidden_rope=any("inv_freq" in name for name, _ in self.model.named_buffers()))

    # --- the pass -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the model over the text and fill the working folder."""
        asked, geometry = self.asked, self.geometry
        listener = self.capture.Listener(
            self.model,
            self.layers,
            self._take,
            kept=[layer for layer in geometry.kept if layer >= self.store.done],
            rotated=geometry.rope is None,
            ahead=asked.ahead,
            after_layer=self._reached,
        )
        logits = listener.run(self._tensor(self.ids[: asked.tokens]), logits=asked.steps, start=self._start())
        if len(self.ids) > asked.tokens:
            self.store.save("loss", self.loader.losses(logits, self.ids[asked.prompt_len + 1 :]))

    def _start(self) -> Start | None:
        done = self.store.done
        hidden = self.store.load(f"hidden_{done}") if done else None
        if hidden is None:
            return None
        self.say(f"go on at layer {done}")
        import torch

        inputs, outputs = torch.tensor(hidden, device=self.asked.device)
        return self.capture.Start(done, inputs, outputs)

    def _reached(self, layer: int, inputs: Tensor, outputs: Tensor) -> None:
        # The new states are complete on disk before the old ones go, whenever an interruption comes.
        self.store.save(f"hidden_{layer + 1}", np.stack([_numpy(inputs), _numpy(outputs)]))
        self.store.reached(layer + 1)
        self.store.remove(f"hidden_{layer}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        asked, g = self.asked, self.geometry
        kept = len(g.kept)
        shapes = {
            "q": (asked.steps, kept, g.q_heads, g.head_dim),
            "k": (kept, g.kv_heads, asked.tokens, g.head_dim),
            "q_prompt": (kept, g.q_heads, asked.queries, g.head_dim),
        }
        extra = {"v": shapes["k"]} if asked.values else {}
        return shapes | extra | ({"q_ahead": shapes["q"]} if asked.ahead else {})

    def _take(self, seen: Seen) -> None:
        at = self.geometry.kept.index(seen.layer)
        self.say(f"record layer {at + 1} of {len(self.geometry.kept)}")
        inv_freq, factor = self._turning(seen)
        query, key = _numpy(seen.query), _numpy(seen.key)
        ahead = query if seen.ahead is None else _numpy(seen.ahead)
        query, key, ahead = self._fold(seen.call, factor, query, key, ahead)
        self._write(at, query, key, _numpy(seen.call.value), ahead)
        rule = LayerRule(
            scale=self.geometry.scale,
            softcap=self.geometry.softcap,
            window=_window(seen.layer, seen.call, self.asked.prompt_len),
            rope=self.geometry.rope,
            inv_freq=inv_freq,
        )
        self._prove(seen, rule, query, key)

    def _turning(self, seen: Seen) -> tuple[Array | None, float]:
        """Return inv_freq and the attention factor of a layer; a layer that does not turn has frequency 0."""
        rope, layout = self.geometry.rope, self.geometry.layouts[seen.layer]
        if rope is None:
            return None, 1.0
        if layout is None or seen.tables is None:
            return np.zeros(rope.dims // 2), 1.0
        cos, sin = (layout.pick(_numpy(table)) for table in seen.tables)
        return frequencies(cos, sin)

    def _fold(self, call: Call, factor: float, query: Array, key: Array, ahead: Array) -> tuple[Array, Array, Array]:
        """Put what differs between layers, but has one place in the manifest, into queries and keys."""
        rope, scale = self.geometry.rope, call.scale / self.geometry.scale
        query, ahead = (x if scale == 1.0 else x * np.float32(scale) for x in (query, ahead))
        ratio = 1.0 if rope is None else factor / rope.attention_factor
        if rope is None or abs(ratio - 1.0) < 1e-6:
            return query, key, ahead
        weight = np.ones(query.shape[-1], dtype=np.float32)
        weight[: rope.dims] = ratio
        return query * weight, key * weight, ahead * weight

    def _write(self, at: int, query: Array, key: Array, value: Array, ahead: Array) -> None:
        prompt = self.asked.prompt_len
        rows = {"k": key, "v": value, "q_prompt": query[:, prompt - self.asked.queries : prompt]}
        steps = {"q": query[:, prompt:].swapaxes(0, 1), "q_ahead": ahead[:, prompt:].swapaxes(0, 1)}
        for name, shape in self._shapes().items():
            array = self.store.array(name, shape)
            if name in steps:
                array[:, at] = steps[name]
            else:
                array[at] = rows[name]
            array.flush()

    def _prove(self, seen: Seen, rule: LayerRule, query: Array, key: Array) -> None:
        replays = [Replay(key, _numpy(seen.call.value), rule, dtype) for dtype in _PRECISIONS]
        worst, prompt = np.zeros((2, len(replays))), self.asked.prompt_len
        for start, outputs, weights in seen.call.blocks():
            skip = max(prompt - start, 0)
            if skip >= weights.shape[1]:
                continue
            rows = slice(start + skip, start + weights.shape[1])
            model = _numpy(weights[:, skip:]), _numpy(outputs[:, skip:])
            found = [replay.errors(query[:, rows], rows.start, *model) for replay in replays]
            worst = np.maximum(worst, np.transpose(found))
        if worst[0, 1] > PROBABILITY or worst[1, 1] > OUTPUT:
            raise InvariantError(
                f"layer {seen.layer}: found probabilities up to {worst[0, 1]:.3g} and outputs up to {worst[1, 1]:.3g} "
                f"of the largest value off the model's, expected at most {PROBABILITY} and {OUTPUT}: this attention "
                "is more than format 1 holds (a bias on scores, sink logits, ...)"
            )
        inv_freq = None if rule.inv_freq is None else [float(x) for x in rule.inv_freq]
        self.store.keep(seen.layer, LayerRecord(rule.window, inv_freq, worst[0].tolist(), worst[1].tolist()))

    # --- the trace ------------------------------------------------------------------------------------------------

    def finish(self, writer: TraceWriter) -> Trace:
        """Write the trace from the working folder, as float16 where that passes the proof in all layers."""
        self.say("write the trace")
        layers = [self.store.layers()[layer] for layer in self.geometry.kept]
        half = all(x.probability_errors[0] <= PROBABILITY and x.output_errors[0] <= OUTPUT for x in layers)
        half = half and self._fits_half()
        for name, shape in self._shapes().items():
            out, source = writer.array(name, np.float16 if half else np.float32, shape), self.store.array(name, shape)
            for row in range(shape[0]):
                out[row] = source[row]
        writer.put("token_ids", self.ids[: self.asked.tokens].astype(np.int32))
        if self.geometry.rope is not None:
            writer.put("inv_freq", np.asarray([x.inv_freq for x in layers], dtype=np.float64))
        loss = self.store.load("loss")
        if loss is not None:
            writer.put("loss", loss)
        return writer.finish(self._fields(layers, half=half))

    def _fits_half(self) -> bool:
        """Whether no array, proven or not, leaves the range of float16."""
        limit = float(np.finfo(np.float16).max)
        arrays = [self.store.array(name, shape) for name, shape in self._shapes().items()]
        return all(float(np.abs(row).max()) <= limit for array in arrays for row in array)

    def _fields(self, layers: list[LayerRecord], *, half: bool) -> dict[str, Any]:
        asked, g = self.asked, self.geometry
        windows = [x.window for x in layers]
        return {
            "name": asked.out.name,
            "kind": "recorded",
            "model": {
                "name": Path(asked.model).name,
                "sha256": self.sha256,
                "layers": len(self.layers),
                "kept_layers": list(g.kept),
                "q_heads": g.q_heads,
                "kv_heads": g.kv_heads,
                "head_dim": g.head_dim,
                "scale": g.scale,
                "softcap": g.softcap,
                "window": windows[0] if len(set(windows)) == 1 else windows,
                "trained_context": self.trained_context,
            },
            "rope": None if g.rope is None else vars(g.rope),
            "prompt_len": asked.prompt_len,
            "steps": asked.steps,
            "tokens": asked.tokens,
            "provenance": {
                "recorder": f"ghostsim trace record, steps {'generated' if asked.generate else 'teacher-forced'}",
                "text": (asked.title or asked.text.name) + (", then the model's own words" if asked.generate else ""),
                "licence": asked.licence,
                "seed": 0,
            },
            "checks": self._checks(layers, half=half),
        }

    def _checks(self, layers: list[LayerRecord], *, half: bool) -> dict[str, Any]:
        which = 0 if half else 1
        notes = {} if self.geometry.note is None else {"positions": self.geometry.note}
        if not half:
            notes["float32"] = "float16 cannot hold these queries and keys"
        return {
            "precision": "float16" if half else "float32",
            "architecture": type(self.model).__name__,
            "probability_max_abs": max(x.probability_errors[which] for x in layers),
            "output_max_of_largest_value": max(x.output_errors[which] for x in layers),
        } | notes


def _numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().float().cpu().numpy())


def _check_length(asked: Recording, found: int) -> None:
    needed = asked.prompt_len if asked.generate else asked.tokens
    if found < needed:
        raise InputError(
            f"{asked.text}: found {found} tokens, expected at least {needed} "
            f"({'--prompt' if asked.generate else '--prompt + --steps'})"
        )


def _check_kept(asked: tuple[int, ...] | None, seen: dict[int, Seen], layers: int, model: str) -> None:
    missing = sorted(set(asked or ()) - set(seen))
    if missing:
        raise UsageError(
            f"--layers: found {missing[0]}, expected layers with attention from 0 to {layers - 1}, e.g. 0,2-5"
        )
    if not seen:
        raise InputError(f"MODEL: found {model}, none of whose layers calls transformers' eager attention")


def _geometry(seen: dict[int, Seen], *, hidden_rope: bool) -> Geometry:
    kept = tuple(sorted(seen))
    calls = [seen[layer].call for layer in kept]
    shapes = {(*c.query.shape[::2], *c.key.shape[::2], c.value.shape[2], c.softcap) for c in calls}
    if len(shapes) > 1:
        raise InputError("MODEL: found layers with different heads or softcap, expected one kind; choose with --layers")
    layouts = {layer: _layout(seen[layer]) for layer in kept}
    rope = _common_rope(seen, layouts)
    stays = rope is None and (hidden_rope or any(layout is not None for layout in layouts.values()))
    first = calls[0]
    return Geometry(
        kept=kept,
        q_heads=first.query.shape[0],
        kv_heads=first.key.shape[0],
        head_dim=first.query.shape[2],
        value_dim=first.value.shape[2],
        scale=first.scale,
        softcap=None if first.softcap is None else float(first.softcap),
        rope=rope,
        layouts={layer: layout or None for layer, layout in layouts.items()},
        note=_NOT_UNDONE if stays else None,
    )


def _layout(seen: Seen) -> Layout | bool | None:
    """Return how a layer turns: None if it does not, False if it does in a way that is not known."""
    pairs = [(seen.query, seen.call.query), (seen.key, seen.call.key)]
    before_after = [(_numpy(before), _numpy(after)) for before, after in pairs]
    if all(same(before, after) for before, after in before_after):
        return None
    if seen.tables is None:
        return False
    cos, sin = (_numpy(table) for table in seen.tables)
    found = {identify(before, after, cos, sin) for before, after in before_after}
    return found.pop() or False if len(found) == 1 else False


def _common_rope(seen: dict[int, Seen], layouts: dict[int, Layout | bool | None]) -> Rope | None:
    """Return what the layers that turn have in common; None if nothing turns or the format cannot say how."""
    turning = {layer: layout for layer, layout in layouts.items() if layout is not None}
    kinds = {(x.dims, x.pairing) for x in turning.values() if isinstance(x, Layout)}
    if len(kinds) != 1 or False in turning.values():
        return None
    (dims, pairing) = kinds.pop()
    layer, layout = next(iter(turning.items()))
    tables = seen[layer].tables
    assert isinstance(layout, Layout)
    assert tables is not None
    try:
        _, factor = frequencies(*(layout.pick(_numpy(table)) for table in tables))
    except InvariantError:
        return None
    return Rope(dims, pairing, factor)


def _window(layer: int, call: Call, prompt_len: int) -> int | None:
    """Return the sliding window that a layer's mask shows over the decode steps.

    Raises
    ------
    InvariantError
        If the mask is neither causal nor a sliding window.
    """
    tokens = call.key.shape[1]
    if call.mask is None:
        return None
    mask = _numpy(call.mask)[0, prompt_len:] if call.mask.ndim == 3 else _numpy(call.mask)[prompt_len:]
    allowed = mask.astype(bool) if str(call.mask.dtype) == "torch.bool" else mask == 0
    hidden = int(np.argmax(allowed[-1]))
    beyond = call.declared_window if (call.declared_window or 0) >= tokens else None
    window = tokens - hidden if hidden else beyond
    if not np.array_equal(allowed, band(np.arange(prompt_len, tokens), tokens, window)):
        raise InvariantError(f"layer {layer}: found a mask that is neither causal nor a sliding window")
    return window
