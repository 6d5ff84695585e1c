"""What a policy costs a model: perplexity, lost mass in open and in closed loop, and exact recall of planted facts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ghostsim.columns import aligned
from ghostsim.config.formats import IntFormat
from ghostsim.config.policy import Policy
from ghostsim.errors import ConfigError, InputError, UsageError
from ghostsim.policy.formats import codec_known
from ghostsim.policy.variants import by_head
from ghostsim.study.facts import Script
from ghostsim.trace.record import MIN_QUERIES, require_model, require_torch

if TYPE_CHECKING:
    from ghostsim.study.closed_loop import Decoded, Reads

Floats = npt.NDArray[np.floating]
COLUMNS = ("policy", "step", "loss", "loss_full", "lost_mass_open", "lost_mass_closed")


@dataclass(frozen=True)
class Decode:
    """What to decode.

    `model` is a folder or a name that transformers loads, `text` a text file or token ids (.npy, .json). `q_prompt`
    counts the last prompt queries that policies may see (None: all), `facts` those to plant and to ask for.
    """

    model: str
    text: Path
    policies: tuple[Policy, ...]
    prompt_len: int
    steps: int
    facts: int = 0
    q_prompt: int | None = None
    seed: int = 1
    device: str = "cpu"

    @property
    def prompt_queries(self) -> int:
        """Prompt queries that policies may see."""
        return self.prompt_len if self.q_prompt is None else min(self.q_prompt, self.prompt_len)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One policy: the decode that attends only to what it reads, and what it read in open and in closed loop."""

    policy: Policy
    decoded: Decoded
    open: Reads
    closed: Reads


@dataclass(frozen=True, eq=False)
class Perplexity:
    """The decode with full attention and the one under each policy."""

    asked: Decode
    script: Script
    full: Decoded
    outcomes: tuple[Outcome, ...]


def perplexity(asked: Decode, say: Callable[[str], None] = lambda _: None) -> Perplexity:
    """Decode a text teacher-forced with full attention and under each policy.

    Raises
    ------
    UsageError
        If options are wrong, or torch and transformers are not installed.
    InputError
        If the model or the text cannot be read or is too short.
    ConfigError
        If a policy completes or stores in a way that is not modelled here.
    """
    _check(asked)
    from ghostsim.study.closed_loop import ClosedLoop  # noqa: PLC0415  (needs torch)
    from ghostsim.trace.record_model import load_model  # noqa: PLC0415

    say("load the model")
    model = load_model(asked.model, asked.device)
    script = _script(asked, model.config.get_text_config().vocab_size)
    loop = ClosedLoop(model, script, asked.prompt_queries, say)
    full, opened = loop.full(asked.policies)
    closed = [loop.closed(policy) for policy in asked.policies]
    outcomes = [
        Outcome(policy, decoded, before, after)
        for policy, before, (decoded, after) in zip(asked.policies, opened, closed, strict=True)
    ]
    return Perplexity(asked, script, full, tuple(outcomes))


def _check(asked: Decode) -> None:
    if asked.prompt_len < MIN_QUERIES or asked.steps < 1 or asked.facts < 0:
        raise UsageError(
            f"found --prompt {asked.prompt_len}, --steps {asked.steps} and --facts {asked.facts}, expected at least "
            f"{MIN_QUERIES}, 1 and 0"
        )
    names = [policy.name for policy in asked.policies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UsageError(
            f"--policy: found {f'{twice[0]} twice' if twice else 'none'}, expected policies of other names"
        )
    for policy in asked.policies:
        _check_policy(policy)
    require_torch("a decode")
    require_model(asked.model)


def _check_policy(policy: Policy) -> None:
    if policy.read.completion != "renormalise":
        raise ConfigError(
            f"read.completion: found {policy.read.completion} (policy {policy.name}), expected renormalise, the only "
            "one that is decoded in closed loop"
        )
    if not _decodes(policy):
        raise ConfigError(
            f"keep: found formats with a residual, a codec that is not modelled, or several of them (policy "
            f"{policy.name}), expected fp16, or one other format without a residual, to decode in closed loop"
        )
    if any(selector.scope == "model" for selector in policy.selectors()) or by_head(policy):
        raise ConfigError(
            f"found selectors over all layers or by head class (policy {policy.name}), expected scope: head or layer "
            "in closed loop, where layers are decided one after another"
        )


def _decodes(policy: Policy) -> bool:
    """Whether what a policy stores can be given back token by token."""
    if policy.lossless:
        return True
    form = policy.keep[0].format
    residual = any(isinstance(side, IntFormat) and side.int.residual for side in (form.k, form.v))
    return len(policy.keep) == 1 and codec_known(policy) and not residual


def _script(asked: Decode, vocabulary: int) -> Script:
    from ghostsim.study.facts import encoded, invented, script  # noqa: PLC0415
    from ghostsim.trace.record_model import load_tokenizer, read_ids  # noqa: PLC0415  (needs torch)

    ids = read_ids(asked.text, asked.model, vocabulary)
    needed = asked.prompt_len + asked.steps + 1
    if len(ids) < needed:
        raise InputError(
            f"{asked.text}: found {len(ids)} tokens, expected at least {needed} (--prompt + --steps + the one after)"
        )
    if not asked.facts:
        return script(ids, asked.prompt_len, asked.steps)
    tokenizer = load_tokenizer(asked.model)

    def encode(text: str) -> npt.NDArray[np.int32]:
        return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)

    facts = encoded(invented(asked.facts, asked.seed), encode)
    return script(ids, asked.prompt_len, asked.steps, facts, asked.seed)


# --- figures -----------------------------------------------------------------------------------------------------


def figures(found: Perplexity) -> dict[str, Any]:
    """Return the result as an object with `schema` 1.

    Perplexity is over the steps of the text, lost mass over all steps, layers and query heads, `answer_nats` over the
    tokens of the answers. `standard_error` is that of the mean difference in nats, step against step.
    """
    asked, script = found.asked, found.script
    return {
        "schema": 1,
        "model": Path(asked.model).name,
        "text": asked.text.name,
        "prompt": script.prompt_len,
        "steps": script.text_steps,
        "question_steps": script.steps - script.text_steps,
        "facts": len(script.answers),
        "q_prompt": asked.prompt_queries,
        "seed": asked.seed,
        "full": _decoded_figures(found.full, script),
        "policies": {outcome.policy.name: _outcome_figures(outcome, found) for outcome in found.outcomes},
    }


def _decoded_figures(decoded: Decoded, script: Script) -> dict[str, Any]:
    nats, asked = float(decoded.loss[: script.text_steps].mean(dtype=np.float64)), bool(script.answers)
    answers = [decoded.loss[steps] for steps in script.answers]
    return {
        "perplexity": float(np.exp(nats)),
        "nats_per_token": nats,
        "recall": float(np.mean([decoded.hit[steps].all() for steps in script.answers])) if asked else None,
        "answer_nats": float(np.concatenate(answers).mean(dtype=np.float64)) if asked else None,
    }


def _outcome_figures(outcome: Outcome, found: Perplexity) -> dict[str, Any]:
    own, full = (_decoded_figures(decoded, found.script) for decoded in (outcome.decoded, found.full))
    opened, closed = _spread(outcome.open.lost_mass), _spread(outcome.closed.lost_mass)
    delta = {key: own[key] - full[key] for key in ("perplexity", "nats_per_token")}
    delta["standard_error"] = _standard_error((outcome.decoded.loss - found.full.loss)[: found.script.text_steps])
    gap = {key: closed[key] - opened[key] for key in opened}
    return own | {
        "delta": delta,
        "lost_mass": {"open": opened, "closed": closed, "gap": gap},
        "read_share": float(outcome.closed.share.mean()),
        "lossless": outcome.policy.lossless,
    }


def _standard_error(values: Floats) -> float:
    """Return the standard error of a mean; 0 for a single value, of which nothing is known."""
    return float(values.std(ddof=1, dtype=np.float64) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _spread(values: Floats) -> dict[str, float]:
    return {"mean": float(values.mean()), "p99": float(np.percentile(values, 99)), "max": float(values.max())}


# --- files -------------------------------------------------------------------------------------------------------


def write_perplexity(found: Perplexity, folder: Path) -> None:
    """Write perplexity.json and perplexity.csv, one row per policy and step, into an existing folder.

    Lost mass in the CSV is the largest over layers and query heads.
    """
    (folder / "perplexity.json").write_text(json.dumps(figures(found), indent=1, allow_nan=False) + "\n", "utf-8")
    with (folder / "perplexity.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_rows(found))


def _rows(found: Perplexity) -> Iterator[Sequence[str]]:
    for outcome in found.outcomes:
        worst = [reads.lost_mass.max(axis=(1, 2)) for reads in (outcome.open, outcome.closed)]
        columns = (outcome.decoded.loss, found.full.loss, *worst)
        for step, numbers in enumerate(zip(*columns, strict=True)):
            yield outcome.policy.name, str(step), *(repr(float(number)) for number in numbers)


# --- text --------------------------------------------------------------------------------------------------------

_LOSS = ("policy", "perplexity", "nats/token", "delta", "+-", "read")
_RECALL = ("recall", "answer nats")
_LOST = ("lost mass", *(f"{loop} {key}" for loop in ("open", "closed", "gap") for key in ("mean", "p99", "max")))


def perplexity_text(found: Perplexity) -> str:
    """Return the result as two tables, losses and lost mass, with what their columns mean."""
    result = figures(found)
    names = {name: name if own["lossless"] else f"{name} (not lossless)" for name, own in result["policies"].items()}
    losses = [[*_LOSS, *(_RECALL if result["facts"] else ())], _loss_row("full attention", result["full"])]
    losses += [_loss_row(names[name], own) for name, own in result["policies"].items()]
    masses = [_LOST, *(_lost_row(names[name], own) for name, own in result["policies"].items())]
    return "\n".join(
        [_title(result), "", *aligned(losses, numbers=True), "", *aligned(masses, numbers=True), "", *_notes(result)]
    )


def _title(result: dict[str, Any]) -> str:
    asked = f", then {result['facts']} facts asked for in {result['question_steps']} steps" if result["facts"] else ""
    return f"{result['model']} on {result['text']}: prompt {result['prompt']:,}, {result['steps']:,} steps{asked}"


def _notes(result: dict[str, Any]) -> list[str]:
    notes = [
        "delta: nats/token more than full attention, with the standard error of the mean over steps.",
        "read: share of the attended positions that are read.",
        "Lost mass is over steps, layers and query heads: in open loop on the queries and keys of full attention, in",
        "closed loop on those of the model that attends only to what the policy reads; gap: closed - open.",
    ]
    recall = "recall: share of the facts whose answer is the likeliest, token for token; answer nats: per token of it."
    return [*notes, recall] if result["facts"] else notes


def _loss_row(name: str, own: dict[str, Any]) -> list[str]:
    row = [name, f"{own['perplexity']:.3f}", f"{own['nats_per_token']:.4f}", "", "", ""]
    if "delta" in own:
        delta = own["delta"]
        row[3:] = f"{delta['nats_per_token']:+.4f}", f"{delta['standard_error']:.4f}", f"{own['read_share']:.1%}"
    return row if own["recall"] is None else [*row, f"{own['recall']:.1%}", f"{own['answer_nats']:.3f}"]


def _lost_row(name: str, own: dict[str, Any]) -> list[str]:
    lost = own["lost_mass"]
    masses = [f"{lost[loop][key]:.4f}" for loop in ("open", "closed") for key in ("mean", "p99", "max")]
    return [name, *masses, *(f"{gap:+.4f}" for gap in lost["gap"].values())]
