"""Runs a recording: one teacher-forced pass, each layer written and proven as it ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ghostsim.errors import InputError, InvariantError, UsageError
from ghostsim.trace.format import Trace
from ghostsim.trace.record_capture import Call, Listener, Seen, Start, decoder_layers
from ghostsim.trace.record_check import OUTPUT, PROBABILITY, LayerRule, Replay
from ghostsim.trace.record_geometry import Geometry, as_numpy, check_kept, geometry_of, window_of
from ghostsim.trace.record_model import (
    check_runs,
    generate,
    load_model,
    losses,
    model_folder,
    read_ids,
    token_classes,
    weights_sha256,
)
from ghostsim.trace.record_rope import frequencies, undo
from ghostsim.trace.record_store import LayerRecord, Store
from ghostsim.trace.write import TraceWriter

if TYPE_CHECKING:
    from ghostsim.trace.record import Recording

Array = npt.NDArray[Any]
LOOK = 64
_PRECISIONS = (np.float16, np.float32)


class Recorder:
    """One recording under way: the model, its geometry, and the working folder beside the trace."""

    def __init__(self, asked: Recording, say: Callable[[str], None]) -> None:
        self.asked, self.say = asked, say
        say("load the model")
        self.model = load_model(asked.model, asked.device)
        self.layers = decoder_layers(self.model)
        self.config = self.model.config.get_text_config()
        self.sha256 = weights_sha256(model_folder(asked.model))
        given = read_ids(asked.text, asked.model, self.config.vocab_size)
        _check_length(asked, len(given))
        self.trained_context = int(getattr(self.config, "max_position_embeddings", None) or asked.tokens)
        self.geometry = self._survey(given)
        self._check_geometry()
        self.store = Store(asked.out.with_name(f".{asked.out.name}.recording"), self._key(given))
        self.ids = self._all_ids(given)

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
            found = generate(self.model, prompt, self.asked.steps + 1, self.say)
            self.store.save("generated", found)
        return found

    def _check_geometry(self) -> None:
        if self.asked.values and self.geometry.value_dim != self.geometry.head_dim:
            raise UsageError(
                f"--v: found values of {self.geometry.value_dim} and keys of {self.geometry.head_dim} numbers, "
                "expected equal sizes, which is what a trace holds"
            )
        if self.geometry.rope is None and self.geometry.note is None and self.asked.tokens > self.trained_context:
            raise InputError(
                f"--prompt and --steps: found {self.asked.tokens} tokens, expected at most the "
                f"{self.trained_context} positions that the model has learned"
            )

    def _tensor(self, ids: Array) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.asked.device)

    # --- a first look at a few tokens -----------------------------------------------------------------------------

    def _survey(self, given: Array) -> Geometry:
        self.say("look at the model")
        look = self._tensor(given[:LOOK])
        check_runs(self.model, look)
        seen: dict[int, Seen] = {}
        listener = Listener(
            self.model, self.layers, lambda layer: seen.update({layer.layer: layer}), kept=self.asked.layers, bare=True
        )
        listener.run(look)
        check_kept(self.asked.layers, seen, len(self.layers), type(self.model).__name__)
        return geometry_of(seen, hidden_rope=any("inv_freq" in name for name, _ in self.model.named_buffers()))

    # --- the pass -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the model over the text and fill the working folder."""
        asked, geometry = self.asked, self.geometry
        listener = Listener(
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
            self.store.save("loss", losses(logits, self.ids[asked.prompt_len + 1 :]))

    def _start(self) -> Start | None:
        done = self.store.done
        hidden = self.store.load(f"hidden_{done}") if done else None
        if hidden is None:
            return None
        self.say(f"go on at layer {done}")
        inputs, outputs = torch.tensor(hidden, device=self.asked.device)
        return Start(done, inputs, outputs)

    def _reached(self, layer: int, inputs: Tensor, outputs: Tensor) -> None:
        # The new states are complete on disk before the old ones go, whenever an interruption comes.
        self.store.save(f"hidden_{layer + 1}", np.stack([as_numpy(inputs), as_numpy(outputs)]))
        self.store.reached(layer + 1)
        self.store.remove(f"hidden_{layer}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        asked, g = self.asked, self.geometry
        kept = len(g.kept)
        shapes: dict[str, tuple[int, ...]] = {
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
        query, key = self._unrotated(seen.call, inv_freq)
        ahead = query if seen.ahead is None else self._folded(seen, factor)
        self._write(at, query, key, as_numpy(seen.call.value), ahead)
        rule = LayerRule(
            scale=self.geometry.scale,
            softcap=self.geometry.softcap,
            window=window_of(seen.layer, seen.call, self.asked.prompt_len),
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
        cos, sin = (layout.pick(as_numpy(table)) for table in seen.tables)
        return frequencies(cos, sin)

    def _unrotated(self, call: Call, inv_freq: Array | None) -> tuple[Array, Array]:
        """Return queries and keys before rotation; a scale of the layer's own goes into the queries."""
        query, key, rope = as_numpy(call.query), as_numpy(call.key), self.geometry.rope
        if rope is not None and inv_freq is not None:
            query, key = undo(query, inv_freq, rope), undo(key, inv_freq, rope)
        return query * np.float32(call.scale / self.geometry.scale), key

    def _folded(self, seen: Seen, factor: float) -> Array:
        """Return the queries made ahead; scale and attention factor of the layer's own go into them."""
        assert seen.ahead is not None
        query = as_numpy(seen.ahead) * np.float32(seen.call.scale / self.geometry.scale)
        if self.geometry.rope is not None:
            query[..., : self.geometry.rope.dims] *= np.float32(factor / self.geometry.rope.attention_factor)
        return query

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

    def _prove(self, seen: Seen, rule: LayerRule, query: Array, key: Array) -> None:
        replays = [Replay(key, as_numpy(seen.call.value), rule, dtype) for dtype in _PRECISIONS]
        worst, prompt = np.zeros((2, len(replays))), self.asked.prompt_len
        for start, outputs, weights in seen.call.blocks():
            skip = max(prompt - start, 0)
            if skip >= weights.shape[1]:
                continue
            rows = slice(start + skip, start + weights.shape[1])
            model = as_numpy(weights[:, skip:]), as_numpy(outputs[:, skip:])
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
        ids = self.ids[: self.asked.tokens].astype(np.int32)
        writer.put("token_ids", ids)
        if self.asked.classes:
            writer.put("token_class", token_classes(ids, self.asked.model))
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
                "name": _model_name(asked.model),
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
            notes["float32"] = f"float16 cannot hold these queries and keys: {_loss_of_half(layers)}"
        return {
            "precision": "float16" if half else "float32",
            "architecture": type(self.model).__name__,
            "probability_max_abs": max(x.probability_errors[which] for x in layers),
            "output_max_of_largest_value": max(x.output_errors[which] for x in layers),
        } | notes


def _check_length(asked: Recording, found: int) -> None:
    needed = asked.prompt_len if asked.generate else asked.tokens
    if found < needed:
        raise InputError(
            f"{asked.text}: found {found} tokens, expected at least {needed} "
            f"({'--prompt' if asked.generate else '--prompt + --steps'})"
        )


def _model_name(model: str) -> str:
    path = Path(model)
    return path.resolve().name if path.is_dir() else path.name


def _loss_of_half(layers: list[LayerRecord]) -> str:
    probability = max(x.probability_errors[0] for x in layers)
    output = max(x.output_errors[0] for x in layers)
    if not np.isfinite(probability):
        return "numbers out of its range"
    return f"probabilities would be up to {probability:.2g} off, outputs {output:.2g} of the largest value"
