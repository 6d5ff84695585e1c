"""The first sentences of a report: what won, by how much, why, and how far to trust it.

Everything here is a pure function of `metrics.json` and of a few `Facts` that the other files of a run folder hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghostsim.report.verdict_serving import best_server, grid_text, serving_heading, serving_runs, serving_summary
from ghostsim.report.words import at_most, listing, loses, number, plural, share, times

_EVEN = 0.02
"""Ratios this close to 1 are called equal: closer than the models are accurate."""
_ALIKE = 0.05
"""Runs whose bytes differ by less are set side by side as equal."""
_SATURATED = 0.7
"""Below this a resource is not what a step waits for."""

CAUSES = {
    "gemm": "matrix products",
    "attend_hot": "attention over hot tokens",
    "attend_survivors": "attention over survivors",
    "scan": "the index scan",
    "select": "selection",
    "fetch_queue": "fetches that wait for other traffic",
    "fetch_service": "fetching KV",
    "migrate": "migration",
    "launch": "kernel launches",
    "other": "everything else",
}
"""Causes of the critical path, in the order in which they are drawn, with the words for them."""


@dataclass(frozen=True)
class BoundCheck:
    """How a claimed bound held against the exact scores."""

    below: float
    """Share of checked tokens whose bound lies below their true score."""
    violated_mass: float
    """Mean attention mass of those tokens, per query head and step."""


@dataclass(frozen=True)
class Facts:
    """What the verdict needs beyond `metrics.json`."""

    not_lossless: frozenset[str] = frozenset()
    """Labels whose KV format changes scores."""
    bounds: Mapping[str, BoundCheck] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    assumed: int | None = None
    """Hardware numbers that are assumptions."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run in words."""

    heading: str
    sentences: list[str]
    warnings: list[str]
    label: str
    """The run that the heading is about."""
    pays: bool | None
    """Whether that run beats every baseline; none without a baseline."""
    summary: dict[str, str]
    """Short answers to: what won, by how much, why, how far to trust it."""


Run = Mapping[str, Any]
Runs = Mapping[str, Run]


def verdict(metrics: Mapping[str, Any], facts: Facts | None = None) -> Verdict:
    """Say what a run found.

    The heading is about the fastest sound GhostKV run (`contender`) against every baseline: by the p95 of the
    step where batches are equal, else by tokens/s. Where runs serve requests it is about who serves most of them in
    time, and the step comes after.
    """
    facts = facts or Facts()
    runs: Runs = metrics["runs"]
    label = contender(metrics)
    duels = [_Duel(metrics, baseline, label) for baseline in metrics.get("compare", {}) if baseline != label]
    pays = all(duel.wins for duel in duels) if duels else None
    step = " ".join([_outcome(runs, label, duels, pays), _price(runs, label, facts, pays)])
    serving = serving_heading(metrics, label)
    sentences = _sentences(metrics, label, facts)
    return Verdict(
        heading=serving or step,
        sentences=[f"The decode step alone: {step}", *sentences] if serving else sentences,
        warnings=_warnings(runs, facts),
        label=label,
        pays=pays,
        summary=_served(metrics, label, facts, _summary(metrics, label, duels, facts)),
    )


def contender(metrics: Mapping[str, Any]) -> str:
    """Return the label that the heading is about: the fastest sound GhostKV run, else the next best kind of run."""
    runs: Runs = metrics["runs"]
    others = [label for label in runs if label not in metrics.get("compare", {})] or list(runs)
    ghosts = [label for label in others if runs[label]["policy"].startswith("ghostkv")]
    kinds = [[label for label in ghosts if is_sound(runs[label])], [label for label in others if is_sound(runs[label])]]
    pool = next(kind for kind in (*kinds, ghosts, others) if kind)
    return max(pool, key=lambda label: runs[label]["tokens_per_s"])


def is_sound(run: Run) -> bool:
    """Tell whether a run certifies what it loses and none of its bounds broke."""
    quality = run["quality"]
    return quality.get("certified_mass") is not None and quality.get("violations") == 0


def claims_bound(run: Run) -> bool:
    """Tell whether the policy claims an upper bound on scores, true or not."""
    return run["quality"].get("violations") is not None


def limit(run: Run) -> tuple[str, float] | None:
    """Return the busiest resource of a run and its utilisation."""
    used = run["utilisation"]
    return max(used.items(), key=lambda item: item[1]) if used else None


def longest_cause(run: Run) -> tuple[str, float] | None:
    """Return the cause that holds most of the critical path and its share of the step."""
    causes = run["critical_path_ms"]
    total = sum(causes.values())
    if total <= 0:
        return None
    cause = max(causes, key=lambda name: causes[name])
    return cause, causes[cause] / total


def kv_bytes(run: Run) -> float:
    """Return the KV bytes that attention takes in per step and request.

    KV that is copied to HBM first counts in its own tier and again when it is attended: the larger is taken.
    """
    kv = {tier: run["bytes_per_step"].get(tier, {}).get("kv", 0) for tier in TIERS}
    outside = sum(nbytes for tier, nbytes in kv.items() if tier != "hbm")
    return float(max(kv["hbm"], outside) / run["batch"])


TIERS = ("hbm", "dram", "cxl", "pim", "ssd")


class _Duel:
    """One baseline against the contender, by the measure that is fair to both."""

    def __init__(self, metrics: Mapping[str, Any], baseline: str, label: str) -> None:
        self.baseline, self.label = baseline, label
        self.base, self.run = metrics["runs"][baseline], metrics["runs"][label]
        self.same_batch = self.base["batch"] == self.run["batch"]
        ratios = metrics["compare"][baseline][label]
        self.ratio = ratios["step_p95" if self.same_batch else "tokens_per_s"]

    @property
    def wins(self) -> bool:
        """Whether the contender is better by more than the models can err."""
        return bool(self.ratio > 1 + _EVEN)

    def clause(self) -> str:
        """Say the outcome with the contender as the subject."""
        return self._step_clause() if self.same_batch else self._rate_clause()

    def _step_clause(self) -> str:
        tail = f"{self.baseline} at the same batch of {self.run['batch']}"
        if abs(self.ratio - 1) <= _EVEN:
            return f"is as fast at p95 as {tail}"
        return f"is {times(faster(self.ratio))} {'faster' if self.ratio > 1 else 'slower'} at p95 than {tail}"

    def _rate_clause(self) -> str:
        tail = f"{self.baseline} at batch {self.base['batch']}"
        own = f"tokens/s at batch {self.run['batch']}"
        mine, theirs = number(self.run["tokens_per_s"]), number(self.base["tokens_per_s"])
        if abs(self.ratio - 1) <= _EVEN:
            return f"gives as many {own} as {tail} ({mine} against {theirs})"
        word = "more" if self.ratio > 1 else "fewer"
        return f"gives {times(faster(self.ratio))} {word} {own} than {tail} ({mine} against {theirs})"


def faster(ratio: float) -> float:
    """Return the ratio of the better to the worse."""
    return ratio if ratio >= 1 or ratio <= 0 else 1 / ratio


def _outcome(runs: Runs, label: str, duels: Sequence[_Duel], pays: bool | None) -> str:
    run = runs[label]
    place, p95 = f"On {run['platform']}, {label}", f"step p95 {number(run['step_ms']['p95'])} ms"
    if pays is None:
        rate = f"{number(run['tokens_per_s'])} tokens/s at batch {run['batch']}"
        return f"{place} gives {rate}, {p95}; there is no baseline to compare it with."
    note = "" if any(duel.same_batch for duel in duels) else f", {p95}"
    if pays:
        return f"{place} {listing([duel.clause() for duel in duels])}{note}."
    ahead = [duel.clause() for duel in duels if duel.wins]
    behind = listing([duel.clause() for duel in duels if not duel.wins])
    return f"{label} does not pay on {run['platform']}: it {behind}{', but ' + listing(ahead) if ahead else ''}{note}."


def _price(runs: Runs, label: str, facts: Facts, pays: bool | None) -> str:
    reason = "" if pays is not False else _why_not(runs, label)
    return f"It {_loss(runs[label], label in facts.not_lossless)}; {reason}{_limit_text(runs[label])}."


def _loss(run: Run, not_lossless: bool) -> str:
    lost, certified = run["quality"]["lost_mass"]["max"], run["quality"].get("certified_mass")
    text = loses(lost)
    if is_sound(run) and certified and lost > 0:
        text += f" (certified: {at_most(certified['max'])})"
    return text + (" and is not lossless, because its format changes scores" if not_lossless else "")


def _why_not(runs: Runs, label: str) -> str:
    part = kv_share(runs, label)
    return "" if part is None else f"it still reads {share(part)} of the KV at every step; "


def kv_share(runs: Runs, label: str) -> float | None:
    """Return the KV bytes that a run reads per request over those of full attention, if such a run is there."""
    full = next((kv_bytes(run) for run in runs.values() if run["policy"] == "full" and kv_bytes(run) > 0), None)
    return None if full is None or runs[label]["policy"] == "full" else kv_bytes(runs[label]) / full


def _limit_text(run: Run) -> str:
    cause = longest_cause(run)
    spent = f", and {share(cause[1])} of the step goes to {CAUSES.get(cause[0], cause[0])}" if cause else ""
    busiest = limit(run)
    if not busiest:
        return f"the limit is no resource that was observed{spent}"
    name, used = busiest
    if used < _SATURATED:
        return (
            f"the limit is one thing waiting for another, as the busiest resource, {name}, is {share(used)} busy{spent}"
        )
    return f"the limit is {name} ({share(used)} busy){spent}"


def _sentences(metrics: Mapping[str, Any], label: str, facts: Facts) -> list[str]:
    runs: Runs = metrics["runs"]
    found = [
        _fastest(runs, label, facts),
        _placed_otherwise(runs, label),
        _moved(runs, label),
        _lossy(runs, facts),
    ]
    return [sentence for sentence in found if sentence]


def _fastest(runs: Runs, label: str, facts: Facts) -> str:
    best = max(runs, key=lambda name: runs[name]["tokens_per_s"])
    run = runs[best]
    if best == label:
        return f"{label} gives the most tokens/s of all {plural(len(runs), 'run')}." if len(runs) > 1 else ""
    proof = "" if is_sound(run) else " without a sound certificate"
    notes = [f"it loses up to {_worst(run)} of attention mass{proof}"] if run["quality"]["lost_mass"]["max"] else []
    notes += ["it is not lossless"] if best in facts.not_lossless else []
    rate = f"{number(run['tokens_per_s'])} at batch {run['batch']}"
    return f"Most tokens/s of all: {best}, {rate}; {listing(notes) or 'it loses nothing'}."


def _worst(run: Run) -> str:
    return at_most(run["quality"]["lost_mass"]["max"])


def _placed_otherwise(runs: Runs, label: str) -> str:
    twins = [name for name in runs if name != label and runs[name]["policy"] == runs[label]["policy"]]
    if all(runs[name]["tokens_per_s"] == runs[label]["tokens_per_s"] for name in twins):
        return ""
    rates = listing([f"{name} {number(runs[name]['tokens_per_s'])} tokens/s" for name in twins])
    return f"The same policy placed otherwise: {rates}, against {number(runs[label]['tokens_per_s'])} for {label}."


def _moved(runs: Runs, label: str) -> str:
    quality, part = runs[label]["quality"], kv_share(runs, label)
    if not claims_bound(runs[label]):
        return ""
    left, back = share(quality["elimination_rate"]), share(quality["resurrection_rate"])
    moved = "" if part is None else f", so it reads {share(part)} of the KV bytes of full attention"
    return f"{label} eliminates {left} of cold tokens and brings back {back}{moved}."


def _lossy(runs: Runs, facts: Facts) -> str:
    named = [label for label in runs if label in facts.not_lossless]
    return f"Not lossless, because the format changes scores: {listing(named)}." if named else ""


def _trust(metrics: Mapping[str, Any], facts: Facts) -> str:
    trace, work = metrics["trace"], facts.workload
    length = f"{plural(trace['context_tokens'], 'token')} of context, {plural(trace['steps'], 'step')}"
    text = f"Attention is {trace['kind']} ({trace['name']}), {length}"
    trained = work.get("trained_context")
    if trained and trained < trace["context_tokens"]:
        text += f", from a model trained at {trained:,}"
    if (work.get("token_repeats") or 1) > 1:
        text += f"; each recorded token stands for {number(work['token_repeats'])}"
    if facts.assumed is not None:
        text += f"; {plural(facts.assumed, 'hardware number')} {'is' if facts.assumed == 1 else 'are'} assumed"
    return text + ". Replay is an open loop: what a policy loses does not change later queries."


def _warnings(runs: Runs, facts: Facts) -> list[str]:
    return [_unsound(runs, label, facts) for label in runs if claims_bound(runs[label]) and not _held(runs[label])]


def _held(run: Run) -> bool:
    return bool(run["quality"]["violations"] == 0)


def _unsound(runs: Runs, label: str, facts: Facts) -> str:
    run, check = runs[label], facts.bounds.get(label)
    count = f"{run['quality']['violations']:,} times"
    often = f"for {share(check.below)} of the tokens checked ({count})" if check else count
    twin = sound_twin(runs, label)
    beside = f"; {_twin_text(runs, label, twin)}" if twin else ""
    below = f"{label} is not sound: its bound lies below the true score {often}"
    return f"{below}, and it loses up to {_worst(run)} of attention mass{beside}."


def _twin_text(runs: Runs, label: str, twin: str) -> str:
    ratio = all_bytes(runs[twin]) / all_bytes(runs[label]) if all_bytes(runs[label]) else 1.0
    amount = "as many bytes" if abs(ratio - 1) <= _ALIKE else f"{times(ratio)} the bytes"
    return f"the sound bound of {twin} at {amount} loses at most {_worst(runs[twin])} and was never below a score"


def sound_twin(runs: Runs, label: str) -> str | None:
    """Return the sound run to set beside an unsound one: the sound sketch if it ran, else the nearest in bytes."""
    sound = [name for name in runs if name != label and is_sound(runs[name])]
    sketch = [name for name in sound if "ghostkv_sketch" in (name, runs[name]["policy"])]
    target = all_bytes(runs[label])
    return min(sketch or sound, key=lambda name: abs(all_bytes(runs[name]) - target), default=None)


def all_bytes(run: Run) -> float:
    """Return index and KV bytes (`kv_bytes`) per step and request."""
    index = sum(run["bytes_per_step"].get(tier, {}).get("index", 0) for tier in TIERS)
    return float(index / run["batch"]) + kv_bytes(run)


def _summary(metrics: Mapping[str, Any], label: str, duels: Sequence[_Duel], facts: Facts) -> dict[str, str]:
    runs: Runs = metrics["runs"]
    fair = {label: 1.0} | {duel.baseline: 1 / duel.ratio if duel.ratio > 0 else 0.0 for duel in duels}
    winner = max(fair, key=lambda name: fair[name])
    return {
        "What won": winner if len(fair) > 1 else f"{winner} (nothing to compare with)",
        "By how much": _margin(duels, label) or f"{number(runs[label]['tokens_per_s'])} tokens/s",
        "Why": _limit_text(runs[label]).removeprefix("the limit is "),
        "What it costs": _loss(runs[label], label in facts.not_lossless),
        "How far to trust it": _trust(metrics, facts),
    }


def _served(metrics: Mapping[str, Any], label: str, facts: Facts, summary: dict[str, str]) -> dict[str, str]:
    """Return a summary with the answers of runs that serve requests, if there are some."""
    runs = serving_runs(metrics)
    if not runs:
        return summary
    best = best_server(runs)
    costs = {"What it costs": _loss(runs[best], best in facts.not_lossless)}
    trust = f"{summary['How far to trust it']} {grid_text(runs)}"
    return summary | serving_summary(metrics, label) | costs | {"How far to trust it": trust}


def _margin(duels: Sequence[_Duel], label: str) -> str:
    parts = []
    for duel in duels:
        measure = "step p95, same batch" if duel.same_batch else "tokens/s, other batch"
        ahead, behind = (label, duel.baseline) if duel.ratio >= 1 else (duel.baseline, label)
        parts.append(f"{ahead} is {times(faster(duel.ratio))} ahead of {behind} ({measure})")
    return "; ".join(parts)
