"""Listens to the attention of a transformers model while it runs in eager mode.

Every model file of transformers hands rotated queries and keys to its `eager_attention_forward`; that function is
wrapped for the time of a pass. Called once more with cosine 1 and sine 0 in place of the rotary tables, a layer brings
its queries and keys there with bias and norms, but before rotation, whatever the family: that tells how it rotates.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghostsim.errors import InputError

EAGER = "eager_attention_forward"
BLOCK_SCORES = 1 << 25


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer's attention: `query` [H, T, d], `key`, `value` [KV, T, d], rotated; `mask` [.., T, T]."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None
    declared_window: int | None
    attend: Callable[[int, int], tuple[Tensor, Tensor]]

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, outputs [H, n, d], probabilities [H, n, T]) of the model's own attention."""
        heads, tokens = self.query.shape[0], self.query.shape[1]
        rows = max(1, BLOCK_SCORES // (heads * tokens))
        for start in range(0, tokens, rows):
            outputs, weights = self.attend(start, min(tokens, start + rows))
            yield start, outputs, weights


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer showed: its call and the rotary tables [T, width], if it has any.

    `query` and `key` are without rotation where that was asked for; `ahead` are the queries that the layer makes of the
    input of the layer before it.
    """

    layer: int
    call: Call
    tables: tuple[Tensor, Tensor] | None
    query: Tensor
    key: Tensor
    ahead: Tensor | None


@dataclass(frozen=True, eq=False)
class Start:
    """Where an interrupted pass goes on: `inputs` and `outputs` [T, hidden] of the last layer that was done."""

    done: int
    inputs: Tensor
    outputs: Tensor


class _Captured(Exception):  # noqa: N818  (it ends a forward, it is no error)
    def __init__(self, query: Tensor, key: Tensor) -> None:
        self.query, self.key = query, key


def _homes(model: nn.Module) -> list[Any]:
    """Return the Python modules whose eager attention the model may call, in a fixed order."""
    names = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    return [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), EAGER)]


@contextmanager
def _wrapped(model: nn.Module, handle: Callable[..., tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Send every eager attention call of the model to handle(original, module, query, key, value, mask, **rest)."""
    homes = [(home, getattr(home, EAGER)) for home in _homes(model)]
    for home, original in homes:
        setattr(home, EAGER, _bound(original, handle))
    try:
        yield
    finally:
        for home, original in homes:
            setattr(home, EAGER, original)


def _bound(original: Callable[..., Any], handle: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)
    extra = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)

    def wrapper(*args: object, **kwargs: object) -> object:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        rest = dict(given.arguments)
        rest |= rest.pop(extra, {}) if extra else {}
        return handle(original, *(rest.pop(name) for name in list(rest)[:5]), **rest)

    return wrapper


def _call(
    original: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rest: dict[str, Any],
) -> Call:
    def attend(start: int, end: int) -> tuple[Tensor, Tensor]:
        part = None if mask is None else mask[..., start:end, : key.shape[-2]]
        outputs, weights = original(module, query[:, :, start:end], key, value, part, **rest)
        return outputs[0].transpose(0, 1), weights[0]

    scale, window = rest.get("scaling"), rest.get("sliding_window")
    return Call(
        query=query[0],
        key=key[0],
        value=value[0],
        mask=None if mask is None else mask[0, ..., : key.shape[-2]],
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        softcap=rest.get("softcap"),
        declared_window=window if isinstance(window, int) else None,
        attend=attend,
    )


def _slot(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], name: str) -> int | str | None:
    """Return where the argument `name` of module.forward stands: a position, its own name, or nowhere."""
    names = list(inspect.signature(module.forward).parameters)
    if name in kwargs:
        return name
    return names.index(name) if name in names and names.index(name) < len(args) else None


def _get(args: Sequence[Any], kwargs: dict[str, Any], slot: int | str | None) -> Any:  # noqa: ANN401
    if slot is None:
        return None
    return kwargs[slot] if isinstance(slot, str) else args[slot]


def _put(
    args: Sequence[Any], kwargs: dict[str, Any], slot: int | str, value: object
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(slot, str):
        return tuple(args), kwargs | {slot: value}
    return (*args[:slot], value, *args[slot + 1 :]), kwargs


def _tables(rotation: object) -> tuple[Tensor, Tensor] | None:
    """Return cosine and sine [T, width] of a model's rotary argument."""
    if isinstance(rotation, Tensor) and rotation.is_complex():
        rotation = (rotation.real, rotation.imag)
    if not isinstance(rotation, tuple) or len(rotation) != 2:
        return None
    cos, sin = (table.reshape(-1, *table.shape[-2:]) for table in rotation)
    return (cos[0], sin[0]) if len(cos) == 1 else None


def _no_rotation(rotation: object) -> object:
    if isinstance(rotation, Tensor):
        return torch.ones_like(rotation)
    assert isinstance(rotation, tuple)
    return torch.ones_like(rotation[0]), torch.zeros_like(rotation[1])


class Listener:
    """Runs a model over one sequence and hands what the kept layers show to `handle`.

    Parameters
    ----------
    handle
        What it returns, [H, T, value dims], is the layer's attention output; None leaves the model's own.
    layers
        The decoder layers in order.
    kept
        Layers to listen to; None: all.
    bare
        Also run each layer without rotation, for its queries and keys.
    rotated
        Leave the rotation in the queries that are made ahead.
    ahead
        Also run each layer on the input of the layer before it, for its queries.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        handle: Callable[[Seen], Tensor | None],
        *,
        kept: Sequence[int] | None = None,
        bare: bool = False,
        rotated: bool = False,
        ahead: bool = False,
        after_layer: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> None:
        self.model, self.layers, self.handle = model, layers, handle
        self.kept = set(range(len(layers)) if kept is None else kept)
        self.bare, self.rotated, self.ahead, self.after_layer = bare, rotated, ahead, after_layer
        self.previous: Tensor | None = None
        self.unrotated: tuple[Tensor, Tensor] | None = None
        self.ahead_query: Tensor | None = None
        self.rotation: object = None
        self.layer, self.first = -1, 0
        self.aside = False

    def run(self, ids: Tensor, *, logits: int = 1, start: Start | None = None) -> Tensor:
        """Run over `ids` [T]; return the last `logits` rows of the logits."""
        keep = {"logits_to_keep": logits} if _takes(self.model, "logits_to_keep") else {}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(_wrapped(self.model, self._attention))
            self._hook(stack)
            if start is not None:
                self._skip(stack, start)
            out = self.model(input_ids=ids[None], use_cache=False, **keep)
        return out.logits[0, -logits:]

    def _hook(self, stack: ExitStack) -> None:
        for index, layer in enumerate(self.layers):
            hooks = [
                layer.register_forward_pre_hook(self._before_layer(index), with_kwargs=True),
                layer.register_forward_hook(self._after_layer(index), with_kwargs=True),
            ]
            inner = [module for module in layer.modules() if module is not layer]
            hooks += [module.register_forward_pre_hook(self._before_inner, with_kwargs=True) for module in inner]
            for hook in hooks:
                stack.callback(hook.remove)

    def _skip(self, stack: ExitStack, start: Start) -> None:
        for index in range(start.done):
            layer = self.layers[index]
            layer.forward = lambda *_args, **_kwargs: start.outputs[None]
            stack.callback(delattr, layer, "forward")
        self.first, self.previous = start.done, start.inputs[None]
        self.kept -= set(range(start.done))

    def _before_layer(self, index: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.layer, self.unrotated, self.ahead_query, self.rotation = index, None, None, None
            if index not in self.kept:
                return
            if self.bare:
                self.unrotated = self._aside(layer, args, kwargs)
            slot = _slot(layer, args, kwargs, "hidden_states")
            if self.ahead and self.previous is not None and slot is not None:
                other = self._aside(layer, *_put(args, kwargs, slot, self.previous))
                self.ahead_query = other[0] if other else None

        return hook

    def _aside(self, layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Run a layer up to its attention; None if it has none that calls the eager function."""
        self.aside = True
        try:
            layer.forward(*args, **kwargs)
        except _Captured as captured:
            return captured.query, captured.key
        finally:
            self.aside = False
        return None

    def _before_inner(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        slot = _slot(module, args, kwargs, "position_embeddings")
        rotation = _get(args, kwargs, slot)
        if slot is None or _tables(rotation) is None:
            return args, kwargs
        if not self.aside:
            self.rotation = rotation
        elif not self.rotated:
            return _put(args, kwargs, slot, _no_rotation(rotation))
        return args, kwargs

    def _after_layer(self, index: int) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            inputs = _get(args, kwargs, _slot(layer, args, kwargs, "hidden_states"))
            if isinstance(inputs, Tensor) and index >= self.first:
                self.previous = inputs
                if self.after_layer is not None and isinstance(output, Tensor):
                    self.after_layer(index, inputs[0], output[0])

        return hook

    def _attention(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **rest: object,
    ) -> tuple[Tensor, Tensor | None]:
        if self.aside:
            raise _Captured(query[0], key[0])
        call = _call(original, module, query, key, value, mask, rest)
        if self.layer not in self.kept:
            outputs = torch.cat([out for _, out, _ in call.blocks()], dim=1)
            return outputs.transpose(0, 1)[None].contiguous(), None
        return self._listen(call), None

    def _listen(self, call: Call) -> Tensor:
        """Show the call to the handler; return its output, or the model's, put together from the same blocks."""
        parts: list[Tensor] = []

        def attend(start: int, end: int) -> tuple[Tensor, Tensor]:
            outputs, weights = call.attend(start, end)
            parts.append(outputs)
            return outputs, weights

        heard = Call(**{**vars(call), "attend": attend})
        query, key = self.unrotated or (call.query, call.key)
        given = self.handle(Seen(self.layer, heard, _tables(self.rotation), query, key, self.ahead_query))
        if given is not None:
            parts = [given]
        elif not parts:
            parts = [outputs for _, outputs, _ in call.blocks()]
        return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous()


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers of a causal LM: the list of modules with as many entries as the model has layers.

    Raises
    ------
    InputError
        If the model has no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists or not _homes(model):
        raise InputError(
            f"MODEL: found {type(model).__name__}, which does not use transformers' attention interface, "
            "expected a model that does, e.g. Llama, Qwen, Mistral, Gemma, Phi, GPT-2 or OPT"
        )
    return list(lists[0])
