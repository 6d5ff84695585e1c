"""Trains the small causal transformer that the shipped traces are recorded of.

    python traces/docs_5m/corpus.py CORPUS
    python traces/docs_5m/train.py CORPUS OUT

The model in this folder had 14.0 M tokens without QK-clip, and then 2.4 M with it:

    python traces/docs_5m/train.py CORPUS OUT --init FIRST --tokens 2400000 --rate 0.4

Llama's architecture (RMSNorm, SwiGLU, RoPE, grouped-query attention with heads of 128) over a small byte-level BPE,
with a curriculum of growing contexts. A share of the rows repeats passages, asks for planted facts or is a server log,
so that induction and retrieval heads form. Needs `pip install "ghostsim[record]"`; uses a GPU where there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tasks import Tokens, fact, with_copies, with_facts
from tokenizers import ByteLevelBPETokenizer, Tokenizer, processors
from torch import Tensor, nn

BOS, EOS = "<|bos|>", "<|eos|>"
KINDS = ("natural", "copies", "facts")
SHARES = (0.70, 0.17, 0.13)


@dataclass(frozen=True)
class Stage:
    """Updates of `rows` rows of one context for a share of the training tokens."""

    context: int
    rows: int
    share: float


@dataclass(frozen=True)
class Size:
    """What is trained: the shape of the model and the curriculum."""

    layers: int
    width: int
    q_heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    tokens: int
    stages: tuple[Stage, ...]

    @property
    def context(self) -> int:
        """The longest context trained at."""
        return self.stages[-1].context


SIZES = {
    "small": Size(
        4, 256, 8, 2, 640, 2048, 14_000_000, (Stage(256, 16, 0.60), Stage(1024, 8, 0.22), Stage(4096, 2, 0.18))
    ),
    "large": Size(
        12, 768, 8, 2, 2048, 8192, 150_000_000, (Stage(1024, 128, 0.55), Stage(4096, 32, 0.25), Stage(16384, 8, 0.20))
    ),
}
"""`small` is for two CPU cores and an hour, `large` for a data-centre GPU and ten minutes."""


# --- text ------------------------------------------------------------------------------------------------------


def train_tokenizer(files: list[Path], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE that puts the first token before every text."""
    trainer = ByteLevelBPETokenizer()
    trainer.train([str(file) for file in files], vocab_size=vocabulary, special_tokens=[BOS, EOS], show_progress=False)
    tokenizer = Tokenizer.from_str(trainer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
    """Return the tokens of a text without the first token."""
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def read_tokens(tokenizer: Tokenizer, folder: Path) -> Tokens:
    """Return all documents of a folder in the order of their names, each closed by the end token."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]
    encoded = [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]
    return np.concatenate([np.array([*ids, 1], dtype=np.int64) for ids in encoded])


class Rows:
    """Draws training rows: a stretch of the text, some with copies or facts in it."""

    def __init__(self, tokens: Tokens, tokenizer: Tokenizer, seed: int) -> None:
        self.tokens, self.tokenizer = tokens, tokenizer
        self.random = np.random.default_rng(seed)

    def batch(self, rows: int, context: int) -> Tokens:
        """Return [rows, context + 1] tokens."""
        return np.stack([self.row(context) for _ in range(rows)])

    def row(self, context: int) -> Tokens:
        """Return one row of a random kind."""
        return self.row_of(str(self.random.choice(KINDS, p=SHARES)), context)

    def row_of(self, kind: str, context: int) -> Tokens:
        """Return one row of a kind."""
        start = int(self.random.integers(len(self.tokens) - context))
        row = self.tokens[start : start + context]
        if kind == "copies":
            row = with_copies(self.random, row)
        if kind == "facts":
            row = with_facts(self.random, row, self.facts(max(context // 100, 3)))
        return np.concatenate([[0], row])

    def facts(self, count: int) -> list[tuple[Tokens, Tokens]]:
        """Return tokens of facts."""
        texts = [fact(self.random) for _ in range(count)]
        return [(encode(self.tokenizer, asked), encode(self.tokenizer, answer)) for asked, answer in texts]


# --- model -----------------------------------------------------------------------------------------------------


def build(size: Size) -> nn.Module:
    """Return an untrained model."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.q_heads,
        num_key_value_heads=size.kv_heads,
        head_dim=128,
        max_position_embeddings=size.context,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for embeddings and norms."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inside, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(done: float) -> float:
    """Return the share of the learning rate at a share of the tokens: a short rise, a level, a fall to 0."""
    return min(done / 0.02, 1.0, max((1 - done) / 0.45, 0.0))


class QkClip:
    """Keeps attention logits small: QK-clip of Kimi K2 (arXiv 2507.20534), on a bound of the logits.

    After an update each head whose max ||q|| times max ||k|| was over the limit has its query and key projections
    scaled down, by at most 3 % at a time. Without it Muon lets logits grow to hundreds, which float16 cannot hold.
    """

    LIMIT, SLOWEST = 40.0, 0.97

    def __init__(self, model: nn.Module) -> None:
        self.attentions = [layer.self_attn for layer in model.model.layers]
        self.largest: dict[nn.Module, Tensor] = {}
        for attention in self.attentions:
            for projection in (attention.q_proj, attention.k_proj):
                projection.register_forward_hook(self._seen)

    def _seen(self, projection: nn.Module, _: object, out: Tensor) -> None:
        heads = out.detach().float().unflatten(-1, (-1, 128))
        self.largest[projection] = heads.norm(dim=-1).flatten(0, 1).amax(dim=0)

    @torch.no_grad()
    def clip(self) -> None:
        """Scale projections down where the last batch was over the limit."""
        for attention in self.attentions:
            q, k = self.largest[attention.q_proj], self.largest[attention.k_proj]
            groups = len(q) // len(k)
            bound = q * k.repeat_interleave(groups) * attention.scaling
            shrink = (self.LIMIT / bound).clamp(self.SLOWEST, 1.0)
            shared = shrink.view(len(k), groups).amin(dim=1).sqrt()
            attention.q_proj.weight.view(len(q), 128, -1).mul_(
                (shrink / shared.repeat_interleave(groups))[:, None, None]
            )
            attention.k_proj.weight.view(len(k), 128, -1).mul_(shared[:, None, None])


def loss_of(model: nn.Module, rows: Tokens, device: torch.device) -> Tensor:
    """Return the loss in nats of each predicted token, [rows, context]."""
    ids = torch.from_numpy(rows).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits
    flat = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1)


@dataclass
class Run:
    """A training run under way."""

    model: nn.Module
    rows: Rows
    size: Size
    tokens: int
    scale: float
    """Of the learning rate."""
    device: torch.device
    seen: int = 0

    def stage(self, done: float) -> Stage:
        """Return the stage at a share of the tokens."""
        ends = np.cumsum([stage.share for stage in self.size.stages])
        return self.size.stages[min(int(np.searchsorted(ends, done, side="right")), len(ends) - 1)]

    def train(self) -> None:
        """Train on the given number of tokens, printing the loss about twice a minute."""
        makers, clip = optimisers(self.model), QkClip(self.model)
        base = [maker.param_groups[0]["lr"] for maker in makers]
        said = time.monotonic()
        while (done := self.seen / self.tokens) < 1:
            for maker, lr in zip(makers, base, strict=True):
                maker.param_groups[0]["lr"] = lr * self.scale * rate(done)
            loss = self.update(self.stage(done), makers)
            clip.clip()
            if time.monotonic() - said > 30:
                said = time.monotonic()
                print(f"{done:5.0%} context {self.stage(done).context} seen {self.seen:,} loss {loss:.3f}", flush=True)

    def update(self, stage: Stage, makers: list[torch.optim.Optimizer]) -> float:
        """Make one update; return its loss."""
        rows = self.rows.batch(stage.rows, stage.context)
        parts = np.array_split(rows, max(rows.size // (1 << 15), 1))
        total = 0.0
        for part in parts:
            loss = loss_of(self.model, part, self.device).mean() * (len(part) / len(rows))
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for maker in makers:
            maker.step()
            maker.zero_grad(set_to_none=True)
        self.seen += rows.size
        return total


# --- what it has learned ------------------------------------------------------------------------------------------


@torch.inference_mode()
def held_out_loss(model: nn.Module, tokens: Tokens, context: int, device: torch.device) -> dict[str, float]:
    """Return nats per token on held-out text, by position."""
    count = min(len(tokens) // context, max((1 << 17) // context, 1))
    starts = np.linspace(0, len(tokens) - context - 1, count).astype(int)
    rows = [np.concatenate([[0], tokens[start : start + context]])[None] for start in starts]
    losses = torch.cat([loss_of(model, row, device) for row in rows]).mean(dim=0)
    edges = [edge for edge in (0, 64, 1024, 2048, 4096, 8192, 16384) if edge < context] + [context]
    named = {f"{a}-{b}": float(losses[a:b].mean()) for a, b in itertools.pairwise(edges)}
    return {"all": float(losses.mean()), **named}


@torch.inference_mode()
def fact_recall(model: nn.Module, rows: Rows, context: int, device: torch.device, count: int = 48) -> float:
    """Return the share of planted facts whose answer is recalled exactly, asked at the end of the context."""
    right = 0
    for _ in range(count):
        asked, answer = rows.facts(1)[0]
        text = rows.row_of("natural", context - len(asked) - len(answer))
        place = int(rows.random.integers(1, len(text) // 2))
        size = len(asked) + len(answer)
        row = np.concatenate([text[:place], asked, answer, text[place : len(text) - size], asked, answer])
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=torch.from_numpy(row[None]).to(device)).logits[0]
        right += bool((logits[-len(answer) - 1 : -1].argmax(-1).cpu().numpy() == answer).all())
    return right / count


def report(run: Run, corpus: Path, started: float) -> dict[str, object]:
    """Return what the run cost and what the model can do."""
    held = read_tokens(run.rows.tokenizer, corpus / "heldout")
    rows = Rows(held, run.rows.tokenizer, seed=1)
    contexts = sorted({min(1024, run.size.context), run.size.context})
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "training_tokens": run.seen,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "device": str(run.device),
        "held_out_nats_per_token": held_out_loss(run.model, held, run.size.context, run.device),
        "fact_recall": {str(n): fact_recall(run.model, rows, n, run.device) for n in contexts},
    }


def save(model: nn.Module, tokenizer: Tokenizer, out: Path) -> None:
    """Write the weights in float16 with configuration and tokenizer, as transformers loads them."""
    out.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.float16).save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (out / "tokenizer_config.json").write_text(json.dumps(fast, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train, save and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--init", type=Path, help="a model of this script to go on with")
    parser.add_argument("--tokens", type=int, help="training tokens; by size")
    parser.add_argument("--rate", type=float, default=1.0, help="scales the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SIZES[asked.size]
    files = sorted((asked.corpus / "train").glob("*.txt"))
    if asked.init is None:
        tokenizer, model = train_tokenizer(files, size.vocabulary), build(size)
    else:
        tokenizer = Tokenizer.from_file(str(asked.init / "tokenizer.json"))
        model = transformers.AutoModelForCausalLM.from_pretrained(asked.init, dtype=torch.float32)
    tokens = read_tokens(tokenizer, asked.corpus / "train")
    rows = Rows(tokens, tokenizer, asked.seed)
    run = Run(model.to(device), rows, size, asked.tokens or size.tokens, asked.rate, device)
    print(f"{len(tokens):,} tokens of text, {sum(p.numel() for p in run.model.parameters()):,} parameters")
    started = time.monotonic()
    run.train()
    found = report(run, asked.corpus, started)
    save(run.model, tokenizer, asked.out)
    (asked.out / "training.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
