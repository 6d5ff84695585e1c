"""A decode written another way: one token at a time over a KV cache, the attention of each step computed in full."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "token_by_token"


@dataclass
class TopK:
    """Reads sinks, a window and, of the rest, the k best tokens of each query head, shared within its group."""

    k: int
    sinks: int
    window: int
    position: int = 0

    def read(self, scores, attended, group):
        """Return what the heads of `scores` [H, T] read, [H, T]; the last column is the own token."""
        at = self.position - len(attended) + 1 + torch.arange(len(attended))
        pinned = (at < self.sinks) | (at > self.position - self.window)
        cold = scores.masked_fill(~attended | pinned, -torch.inf)
        best = torch.zeros_like(cold, dtype=torch.bool)
        k = min(self.k, int((attended & ~pinned).sum()))
        best.scatter_(1, cold.topk(k, dim=1).indices, value=True)
        shared = best.view(-1, group, best.shape[1]).any(dim=1).repeat_interleave(group, dim=0)
        return attended & (pinned | shared)

    def attend(self, module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask
        if query.shape[2] == 1:
            attended = scores[0, 0, 0] > -1e30
            scores[0, :, 0] = scores[0, :, 0].masked_fill(~self.read(scores[0, :, 0], attended, group), -torch.inf)
        weights = scores.softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), weights


def losses_token_by_token(model, ids, targets, rule):
    """Return the losses of the steps that read by a rule after a prompt that reads everything."""
    AttentionInterface.register(NAME, rule.attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    prompt, losses = len(ids) - len(targets), []
    ids = torch.tensor(ids).long()[None]
    with torch.inference_mode():
        cache = getattr(model(input_ids=ids[:, :prompt], use_cache=True), name)
        for step, target in enumerate(targets.tolist()):
            rule.position = prompt + step
            out = model(input_ids=ids[:, prompt + step, None], use_cache=True, **{name: cache})
            cache = getattr(out, name)
            losses.append(-float(out.logits[0, -1].log_softmax(dim=-1)[target]))
    return np.array(losses)


def logits_under_full_attention(model, ids, steps):
    """Return the logits of the last steps of one pass, as transformers itself computes them."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor(ids).long()[None], use_cache=False).logits[0, -steps:]


def losses_under_full_attention(model, ids, targets):
    logits = logits_under_full_attention(model, ids, len(targets))
    return torch.nn.functional.cross_entropy(logits, torch.tensor(targets).long(), reduction="none").numpy()
