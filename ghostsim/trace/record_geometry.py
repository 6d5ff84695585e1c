"""How the layers of a model attend, told from a first look at a few tokens: heads, scale, rotation, windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.errors import InputError, InvariantError, UsageError
from ghostsim.trace.format import Rope
from ghostsim.trace.record_check import band
from ghostsim.trace.record_rope import Layout, frequencies, identify, same

if TYPE_CHECKING:
    from torch import Tensor

    from ghostsim.trace.record_capture import Call, Seen

Array = npt.NDArray[Any]
_NOT_UNDONE = "the model's rotary embedding could not be undone; queries and keys hold their positions"


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


def as_numpy(x: Tensor) -> Array:
    """Return a tensor as a float32 array on the host."""
    return np.asarray(x.detach().float().cpu().numpy())


def check_kept(asked: tuple[int, ...] | None, seen: dict[int, Seen], layers: int, model: str) -> None:
    """Refuse layers that are not there or hold no attention."""
    missing = sorted(set(asked or ()) - set(seen))
    if missing:
        raise UsageError(
            f"--layers: found {missing[0]}, expected layers with attention from 0 to {layers - 1}, e.g. 0,2-5"
        )
    if not seen:
        raise InputError(f"MODEL: found {model}, none of whose layers calls transformers' eager attention")


def geometry_of(seen: dict[int, Seen], *, hidden_rope: bool) -> Geometry:
    """Return what the layers that were seen have in common.

    `hidden_rope` says that the model has rotary embeddings somewhere, also where its layers do not show them.

    Raises
    ------
    InputError
        If layers differ in what the format holds once for all of them.
    """
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
        layouts={layer: layout if isinstance(layout, Layout) else None for layer, layout in layouts.items()},
        note=_NOT_UNDONE if stays else None,
    )


def _layout(seen: Seen) -> Layout | Literal[False] | None:
    """Return how a layer turns: None if it does not, False if it does in a way that is not known."""
    pairs = [(seen.query, seen.call.query), (seen.key, seen.call.key)]
    before_after = [(as_numpy(before), as_numpy(after)) for before, after in pairs]
    if all(same(before, after) for before, after in before_after):
        return None
    if seen.tables is None:
        return False
    cos, sin = (as_numpy(table) for table in seen.tables)
    found = {identify(before, after, cos, sin) for before, after in before_after}
    return (found.pop() or False) if len(found) == 1 else False


def _common_rope(seen: dict[int, Seen], layouts: dict[int, Layout | Literal[False] | None]) -> Rope | None:
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
        _, factor = frequencies(*(layout.pick(as_numpy(table)) for table in tables))
    except InvariantError:
        return None
    return Rope(dims, pairing, factor)


def window_of(layer: int, call: Call, prompt_len: int) -> int | None:
    """Return the sliding window that a layer's mask shows over the decode steps.

    Raises
    ------
    InvariantError
        If the mask is neither causal nor a sliding window.
    """
    tokens = call.key.shape[1]
    if call.mask is None:
        return None
    mask = as_numpy(call.mask)[0, prompt_len:] if call.mask.ndim == 3 else as_numpy(call.mask)[prompt_len:]
    allowed = mask.astype(bool) if str(call.mask.dtype) == "torch.bool" else mask == 0
    hidden = int(np.argmax(allowed[-1]))
    beyond = call.declared_window if (call.declared_window or 0) >= tokens else None
    window = tokens - hidden if hidden else beyond
    if not np.array_equal(allowed, band(np.arange(prompt_len, tokens), tokens, window)):
        raise InvariantError(f"layer {layer}: found a mask that is neither causal nor a sliding window")
    return window
