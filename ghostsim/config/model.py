"""The shape of a language model: what decides weights, KV bytes and matrix products."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ghostsim.config.base import Block, Count, Text


class Model(Block):
    """A decoder-only transformer with gated MLP and grouped-query attention."""

    schema_: Literal[1] = Field(1, alias="schema")
    kind: Literal["model"]
    name: Text
    summary: Text = "language model"
    layers: Annotated[Count, Field(le=10_000)]
    hidden: Count
    intermediate: Count
    q_heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    bytes_per_weight: Count
    bytes_per_element: Count
    """Bytes of one element of K or V as the model writes it."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Model:
        if self.q_heads % self.kv_heads:
            raise ValueError(f"found {self.q_heads} query heads for {self.kv_heads} KV heads, expected a multiple")
        return self

    @property
    def q_per_kv(self) -> int:
        """Query heads that share one KV head."""
        return self.q_heads // self.kv_heads

    @property
    def qkv_weights(self) -> int:
        """Weights of the Q, K and V projections of one layer."""
        return self.hidden * (self.q_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def output_weights(self) -> int:
        """Weights of the attention output projection of one layer."""
        return self.hidden * self.q_heads * self.head_dim

    @property
    def gate_up_weights(self) -> int:
        """Weights of the gate and up projections of one layer."""
        return 2 * self.hidden * self.intermediate

    @property
    def down_weights(self) -> int:
        """Weights of the down projection of one layer."""
        return self.hidden * self.intermediate

    @property
    def head_weights(self) -> int:
        """Weights of the language-model head (and of the embedding table)."""
        return self.hidden * self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights: layers, embedding table and language-model head (not tied)."""
        layer = self.qkv_weights + self.output_weights + self.gate_up_weights + self.down_weights
        return (self.layers * layer + 2 * self.head_weights) * self.bytes_per_weight

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V of one token in one KV head of one layer."""
        return 2 * self.head_dim * self.bytes_per_element
