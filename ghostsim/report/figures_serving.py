"""Figures of serving: goodput, latency per request, and queues and memory over time."""

from __future__ import annotations

from collections.abc import Sequence

from ghostsim.report.figure import Figure, Table, Trace, View, axis, fill, log_axis, plot, rows_axis, run_mark, short
from ghostsim.report.store import RunFolder, Steps
from ghostsim.report.verdict import TIERS, Runs
from ghostsim.report.verdict_serving import serving_runs
from ghostsim.report.words import number, share, size

_MOST_POINTS = 400
_HEIGHT = 380
_SIZES = "kv_bytes_"
_LATENCIES = (
    ("time to first token", "ttft_ms"),
    ("time per output token", "tpot_ms"),
    ("end to end", "e2e_ms"),
)


def goodput(run: RunFolder) -> Figure:
    """Requests per second that got what they were promised, beside all that were served."""
    runs = serving_runs(run.metrics)
    bars: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(runs),
            "x": [short(each["serving"][key]) for each in runs.values()],
            "marker": fill(colour),
            "hovertemplate": "%{y}, %{fullData.name}: %{x:.4~g} requests/s<extra></extra>",
        }
        for colour, (name, key) in enumerate((("within the promise", "goodput_per_s"), ("served", "requests_per_s")))
    ]
    drawn = plot(
        bars, 120 + 44 * len(runs), barmode="group", xaxis=axis("Requests per second"), yaxis=rows_axis(list(runs))
    )
    caption = "Longer is better. A request counts as good if its first token and its later tokens came in time."
    header = [
        "Run", "Requests", "Refused", "Served/s", "Good/s", "In time", "Output tokens/s", "In system, mean",
        *(f"{name} {q}, ms" for name in ("TTFT", "TPOT", "end to end") for q in ("p50", "p95", "p99")),
    ]  # fmt: skip
    return Figure(
        "goodput", "Goodput", caption, [View("", drawn)], Table(header, [_row(*each) for each in runs.items()])
    )


def _row(label: str, each: Runs) -> list[str]:
    found = each["serving"]
    rates = [number(found[key]) for key in ("requests_per_s", "goodput_per_s")]
    spans = [number(found[key][q]) for _, key in _LATENCIES for q in ("p50", "p95", "p99")]
    tail = [share(found["slo_share"]), number(found["output_tokens_per_s"]), number(found["in_system_mean"]), *spans]
    return [label, str(found["requests"]), str(found["rejected"]), *rates, *tail]


def latency_shares(run: RunFolder) -> Figure:
    """The share of requests that were as fast or faster."""
    views = [
        View(name, plot([_share(run.requests, label, key, i) for i, label in enumerate(run.requests)], _HEIGHT,
                        xaxis=log_axis(f"{name.capitalize()}, ms (log)", _all(run.requests, key)),
                        yaxis=axis("Share of requests", range=[0, 1.02], tickformat=".0%")))
        for name, key in _LATENCIES
    ]  # fmt: skip
    header = ["Run", *(f"{name}: {what}, ms" for name, _ in _LATENCIES for what in ("mean", "half width of its 95 %"))]
    rows = [
        [label, *(number(each["serving"][key][what]) for _, key in _LATENCIES for what in ("mean", "mean_ci95"))]
        for label, each in serving_runs(run.metrics).items()
    ]
    caption = (
        "Further left is better. The table holds means with their confidence by 20 batch means, where there is one."
    )
    return Figure("serving-latency", "Latency of requests", caption, views, Table(header, rows), picker="latency")


def _all(requests: Steps, key: str) -> list[float | None]:
    return [value for columns in requests.values() for value in columns[key]]


def _share(requests: Steps, label: str, key: str, index: int) -> Trace:
    values = sorted(value for value in requests[label][key] if value is not None)
    every = max(1, len(values) // _MOST_POINTS)
    kept = [*values[::every], *values[-1:]]
    shares = [(i * every + 1) / len(values) for i in range(len(kept) - 1)] + [1.0]
    return _line(label, index, [short(value) for value in kept], [short(value) for value in shares], shape="hv")


def _line(label: str, index: int, x: Sequence[float], y: Sequence[float], shape: str = "linear") -> Trace:
    hover = "%{fullData.name}: %{x:.4~g}, %{y:.4~g}<extra></extra>"
    line = run_mark(label, index, mode="lines", x=list(x), y=list(y), hovertemplate=hover)
    line["line"] |= {"width": 2, "shape": shape}
    return line


def queues_over_time(run: RunFolder) -> Figure:
    """Requests that wait and that are served."""
    views = [
        _over_time(run, name, key, "Requests", 1.0)
        for name, key in (("waiting", "waiting"), ("in service", "in_service"))
    ]
    header = ["Run", "Waiting, mean", "In service, mean", "Waiting, most", "Busy", "Preempted"]
    rows = []
    for label, each in serving_runs(run.metrics).items():
        waiting = [value or 0.0 for value in run.serving[label]["waiting"]]
        inside = [value or 0.0 for value in run.serving[label]["in_service"]]
        found = each["serving"]
        means = [number(sum(values) / len(values)) for values in (waiting, inside)]
        rows.append([label, *means, number(max(waiting)), share(found["busy_share"]), str(found["preemptions"])])
    caption = "A queue that grows to the end of the arrivals is a system that cannot keep up. Means over equal bins."
    return Figure("serving-queues", "Queues over time", caption, views, Table(header, rows), picker="queue")


def memory_over_time(run: RunFolder) -> Figure:
    """KV of requests in service and of kept prompt blocks, by tier."""
    known = {column for columns in run.serving.values() for column in columns if column.startswith(_SIZES)}
    tiers = [tier for tier in TIERS if _SIZES + tier in known]
    views = [_over_time(run, tier, _SIZES + tier, "GB", 1e9) for tier in tiers]
    header = ["Run", *(f"{tier}, mean" for tier in tiers), *(f"{tier}, room" for tier in tiers), "Prompt tokens found"]
    rows = []
    for label, each in serving_runs(run.metrics).items():
        found = each["serving"]
        sizes = [size(found[part].get(tier)) for part in ("kv_bytes_mean", "kv_capacity_bytes") for tier in tiers]
        hits = found["prefix"]["hit_tokens"] / max(1, found["prompt_tokens"]) if found["prefix"] else None
        rows.append([label, *sizes, share(hits)])
    caption = "Bytes that requests in service have taken and that kept prompt blocks fill."
    return Figure("serving-memory", "KV in each tier over time", caption, views, Table(header, rows), picker="tier")


def _over_time(run: RunFolder, name: str, key: str, unit: str, divisor: float) -> View:
    lines = []
    for index, (label, columns) in enumerate(run.serving.items()):
        pairs = [
            (t, v / divisor)
            for t, v in zip(columns["time_s"], columns.get(key, ()), strict=False)
            if t is not None and v is not None
        ]
        if pairs:
            lines.append(_line(label, index, [short(t) for t, _ in pairs], [short(v) for _, v in pairs]))
    return View(name, plot(lines, _HEIGHT, xaxis=axis("Time, s"), yaxis=axis(unit, rangemode="tozero")))
