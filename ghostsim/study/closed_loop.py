"""Decodes a model that attends only to what a policy reads.

Teacher-forced, a decode need not go token by token: the queries and keys of a layer depend on the outputs of the layers
below alone, so each layer is decided for all steps at once. A layer's queries and keys go through the same evaluator as
recorded ones; what it reads is what the layer attends to, and the next layer sees the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ghostsim.config.policy import Policy
from ghostsim.errors import InputError, InvariantError
from ghostsim.policy.formats import decoded
from ghostsim.policy.head import evaluate_group
from ghostsim.policy.rows import HeadRows
from ghostsim.policy.variants import specialised
from ghostsim.study.facts import Ids, Script
from ghostsim.trace.compose import Head
from ghostsim.trace.record_capture import Call, Listener, Seen, decoder_layers
from ghostsim.trace.record_check import OUTPUT, band
from ghostsim.trace.record_geometry import as_numpy, window_of
from ghostsim.trace.record_model import check_runs, losses

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LOOK = 64


@dataclass(frozen=True, eq=False)
class Decoded:
    """By step: the loss in nats of the token that follows, and whether it was the likeliest."""

    loss: Floats
    hit: Mask


@dataclass(frozen=True, eq=False)
class Reads:
    """What a policy read: `lost_mass` [steps, layers, query heads] and `share` [steps] of the attended positions."""

    lost_mass: Floats
    share: Floats


class ClosedLoop:
    """A model and the script it decodes.

    Parameters
    ----------
    queries
        Prompt queries that a policy may see.
    """

    def __init__(self, model: nn.Module, script: Script, queries: int, say: Callable[[str], None]) -> None:
        self.model, self.script, self.queries, self.say = model, script, queries, say
        self.layers = decoder_layers(model)
        check_runs(model, self._tensor(script.ids[:_LOOK]))
        self._prompt: dict[int, Tensor] = {}
        """Attention outputs [H, prompt, value dims] by layer: a policy changes decode steps only."""

    def full(self, policies: Sequence[Policy]) -> tuple[Decoded, list[Reads]]:
        """Decode with full attention; judge every policy on the queries and keys of that.

        Raises
        ------
        InputError
            If the model cannot read the whole script, or its layers differ in heads.
        InvariantError
            If attention is more than a softmax over scores, so that reading less of it has no meaning here.
        """
        found: list[list[LayerReads]] = []

        def handle(seen: Seen) -> Tensor:
            self.say(f"full attention, layer {seen.layer + 1} of {len(self.layers)}")
            outputs = torch.cat([out for _, out, _ in seen.call.blocks()], dim=1)
            self._prompt[seen.layer] = outputs[:, : self.script.prompt_len].clone()
            layer = Layer(seen, self.script.prompt_len, self.queries, len(self.layers))
            layer.prove(outputs[:, self.script.prompt_len :])
            found.append([layer.reads(rows) for rows in layer.evaluated(policies)])
            return outputs

        try:
            decoded = self._run(handle)
        except IndexError:  # of the embedding of positions
            raise InputError(
                f"--prompt, --steps and --facts: found {len(self.script.ids)} tokens, expected at most as many as "
                f"{type(self.model).__name__} has learned positions"
            ) from None
        self._check_layers([layers[0] for layers in found])
        return decoded, [_joined(layers) for layers in zip(*found, strict=True)]

    def closed(self, policy: Policy) -> tuple[Decoded, Reads]:
        """Decode attending only to what the policy reads; needs the full decode first."""
        found: list[LayerReads] = []

        def handle(seen: Seen) -> Tensor:
            self.say(f"policy {policy.name}, layer {seen.layer + 1} of {len(self.layers)}")
            layer = Layer(seen, self.script.prompt_len, self.queries, len(self.layers))
            (rows,) = layer.evaluated([policy])
            found.append(layer.reads(rows))
            return torch.cat([self._prompt[seen.layer], layer.outputs(policy, rows)], dim=1)

        decoded = self._run(handle)
        return decoded, _joined(found)

    def _check_layers(self, layers: Sequence[LayerReads]) -> None:
        heads = sorted({reads.lost_mass.shape[1] for reads in layers})
        if len(heads) != 1:
            what = "layers of {} and of {} query heads".format(*heads[:2]) if heads else "no layer with eager attention"
            raise InputError(
                f"MODEL: found {type(self.model).__name__} with {what}, expected heads alike in all layers"
            )

    def _tensor(self, ids: Ids) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=next(self.model.parameters()).device)

    def _run(self, handle: Callable[[Seen], Tensor]) -> Decoded:
        targets = self.script.targets
        listener = Listener(self.model, self.layers, handle, rotated=True, ahead=True)
        logits = listener.run(self._tensor(self.script.ids), logits=len(targets))
        return Decoded(losses(logits, targets), logits.argmax(dim=-1).cpu().numpy() == targets)


@dataclass(frozen=True, eq=False)
class LayerReads:
    """Lost mass [steps, query heads], and tokens read and attended [steps], over the KV heads of a layer."""

    lost_mass: Floats
    read: Ints
    attended: Ints


class Layer:
    """The attention of one layer over prompt and steps."""

    def __init__(self, seen: Seen, prompt_len: int, queries: int, layers: int) -> None:
        self.call, self.prompt_len, self.layers = seen.call, prompt_len, layers
        self.window = window_of(seen.layer, seen.call, prompt_len)
        self.group = seen.call.query.shape[0] // seen.call.key.shape[0]
        self.index = seen.layer
        self.heads = [self._head(seen, kv_head, queries) for kv_head in range(seen.call.key.shape[0])]

    def _of(self, kv_head: int) -> slice:
        """Return the query heads of a KV head."""
        return slice(kv_head * self.group, (kv_head + 1) * self.group)

    def _head(self, seen: Seen, kv_head: int, queries: int) -> Head:
        call, mine, prompt = seen.call, self._of(kv_head), self.prompt_len
        query = _wide(call.query[mine]).swapaxes(0, 1)
        ahead = query if seen.ahead is None else _wide(seen.ahead[mine]).swapaxes(0, 1)
        return Head(
            request=0,
            kept_layer=seen.layer,
            kv_head=kv_head,
            context=prompt,
            keys=_wide(call.key[kv_head]),
            queries=query[prompt:],
            prompt_queries=query[prompt - queries : prompt],
            values=_wide(call.value[kv_head]),
            q_ahead=ahead[prompt:],
            scale=call.scale,
            softcap=call.softcap,
            window=self.window,
        )

    def evaluated(self, policies: Sequence[Policy]) -> list[list[HeadRows]]:
        """Return the rows of every KV head, by policy."""
        variants = [specialised(policy, self.index, self.layers) for policy in policies]
        return evaluate_group(variants, self.heads)

    def reads(self, rows: Sequence[HeadRows]) -> LayerReads:
        """Return what the rows of the KV heads come to."""
        tokens = self.call.key.shape[1]
        attended = np.minimum(np.arange(self.prompt_len, tokens) + 1, tokens if self.window is None else self.window)
        read = np.sum([np.bitwise_count(found.sets).sum(axis=1, dtype=np.int64) for found in rows], axis=0)
        return LayerReads(np.concatenate([found.lost_mass for found in rows], axis=1), read, attended * len(rows))

    def outputs(self, policy: Policy, rows: Sequence[HeadRows]) -> Tensor:
        """Return the attention [H, steps, value dims] over what is read, renormalised."""
        parts = []
        for kv_head, (head, found) in enumerate(zip(self.heads, rows, strict=True)):
            keys, values = self._stored(policy, kv_head, head)
            parts.append(_attend(self.call, self._of(kv_head), keys, values, positions_read(found, len(head.keys))))
        return torch.cat(parts)

    def _stored(self, policy: Policy, kv_head: int, head: Head) -> tuple[Tensor, Tensor]:
        """Return keys and values of a KV head as they come back from the policy's format."""
        keys, values = self.call.key[kv_head], self.call.value[kv_head]
        if policy.lossless:
            return keys, values
        assert head.values is not None
        form = policy.keep[0].format
        rows = [decoded(head.keys, form.k), decoded(head.values, form.v)]
        return keys.new_tensor(rows[0]), values.new_tensor(rows[1])

    def prove(self, outputs: Tensor) -> None:
        """Compare attention over everything with the model's own [H, steps, value dims]."""
        tokens = self.call.key.shape[1]
        everything = band(np.arange(self.prompt_len, tokens), tokens, self.window)
        for kv_head in range(len(self.heads)):
            mine, key, value = self._of(kv_head), self.call.key[kv_head], self.call.value[kv_head]
            off = float((_attend(self.call, mine, key, value, everything) - outputs[mine]).abs().max())
            if not off <= OUTPUT * float(self.call.value.abs().max()):
                raise InvariantError(
                    f"layer {self.index}: found outputs up to {off:.3g} off the model's, expected a softmax over "
                    "scores alone: a bias on scores, sink logits and the like are not modelled"
                )


def _wide(x: Tensor) -> Floats:
    return as_numpy(x).astype(np.float64)


def _attend(call: Call, heads: slice, keys: Tensor, values: Tensor, reads: Mask) -> Tensor:
    """Return the attention [heads, steps, value dims] of the last steps over the positions read, `reads` [steps, T]."""
    scores = call.scale * (call.query[heads, -len(reads) :] @ keys.T)
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~torch.from_numpy(reads).to(scores.device), -torch.inf)
    return torch.softmax(scores, dim=-1) @ values


def positions_read(rows: HeadRows, tokens: int) -> Mask:
    """Return what was read, [steps, tokens]."""
    return np.unpackbits(rows.sets, axis=1, count=tokens, bitorder="little").astype(bool)


def _joined(layers: Sequence[LayerReads]) -> Reads:
    read, attended = (np.sum([getattr(x, name) for x in layers], axis=0) for name in ("read", "attended"))
    return Reads(np.stack([layer.lost_mass for layer in layers], axis=1), read / attended)
