"""Records the attention of a causal language model as a trace of format 1 and proves it against the model.

The model runs once over the whole text, teacher-forced, in float32 with eager attention. Each layer's queries and keys
go to disk as it ends; an interrupted recording goes on at the layer it had reached when it is asked for again.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ghostsim.errors import InputError, InvariantError, UsageError
from ghostsim.trace.format import MANIFEST, Trace
from ghostsim.trace.manifest import read_manifest
from ghostsim.trace.write import TraceWriter

Say = Callable[[str], None]
MIN_QUERIES = 64
_PATIENCE_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Recording:
    """What to record.

    `model` is a folder or a name that transformers loads, `text` a text file or token ids (.npy, .json). `layers` are
    those to keep (None: all); `q_prompt` counts the last prompt queries to keep (None: all). `title` and `licence` go
    into the provenance.
    """

    model: str
    text: Path
    out: Path
    prompt_len: int
    steps: int
    generate: bool = False
    layers: tuple[int, ...] | None = None
    values: bool = False
    ahead: bool = False
    classes: bool = False
    q_prompt: int | None = 256
    title: str | None = None
    licence: str = "NOASSERTION"
    device: str = "cpu"
    force: bool = False

    @property
    def tokens(self) -> int:
        """Positions that are recorded."""
        return self.prompt_len + self.steps

    @property
    def queries(self) -> int:
        """Prompt queries that are recorded."""
        return self.prompt_len if self.q_prompt is None else min(self.q_prompt, self.prompt_len)


def record(asked: Recording, say: Say = lambda _: None) -> Trace:
    """Record a trace.

    Raises
    ------
    UsageError
        If options are wrong, or torch and transformers are not installed.
    InputError
        If the model or the text cannot be read or is too short.
    InvariantError
        If recomputed probabilities differ from the model's by more than 2e-3, or outputs by more than 0.5 % of the
        largest value, in float16 and in float32.
    """
    _check_options(asked)
    from ghostsim.trace.record_run import Recorder  # noqa: PLC0415  (needs torch)

    with TraceWriter(asked.out, force=asked.force) as writer:
        recorder = Recorder(asked, say)
        try:
            recorder.run()
        except InvariantError:  # trying again would end the same way
            recorder.store.drop()
            raise
        trace = recorder.finish(writer)
    recorder.store.drop()
    return trace


def _check_options(asked: Recording) -> None:
    if not _NAME.fullmatch(asked.out.name):
        raise UsageError(f"--out: found {asked.out.name!r}, expected letters, digits, '.', '_', '-', e.g. my_trace")
    if asked.prompt_len < MIN_QUERIES or asked.steps < 1:
        raise UsageError(
            f"found --prompt {asked.prompt_len} and --steps {asked.steps}, expected at least {MIN_QUERIES} and 1"
        )
    if asked.queries < MIN_QUERIES:
        raise UsageError(f"--q-prompt: found {asked.queries}, expected at least {MIN_QUERIES}, or all")
    require_torch("recording")
    require_model(asked.model)


def require_torch(what: str) -> None:
    """Refuse what needs the extra `record` where that is not installed.

    Raises
    ------
    UsageError
        If torch or transformers is missing.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"found no {' and no '.join(missing)}, which {what} needs, expected: pip install 'ghostsim[record]'"
        )


def require_model(name: str) -> None:
    """Refuse a model that is no folder, not in the hub's cache and not on the hub.

    The hub is asked once and briefly: whoever loads the model would try again and again.

    Raises
    ------
    InputError
        If it is nowhere, or the hub cannot be reached.
    """
    if Path(name).is_dir():
        return
    import huggingface_hub  # noqa: PLC0415  (comes with transformers)

    try:
        if not isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            huggingface_hub.HfApi().model_info(name, timeout=_PATIENCE_S)
    except Exception as error:  # noqa: BLE001  (it raises its own errors and those of its client)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"MODEL: found {name!r}, which is no folder here and was not found online ({reason}), "
            "expected the folder or the name of a causal language model"
        ) from None


def layer_numbers(text: str) -> tuple[int, ...] | None:
    """Return the layers that a list like 0,2-5 names; None for all.

    Raises
    ------
    UsageError
        If the text is no such list.
    """
    if text == "all":
        return None
    spans = [re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip()) for part in text.split(",")]
    layers = {n for span in spans if span for n in range(int(span[1]), int(span[2] or span[1]) + 1)}
    if None in spans or not layers:
        raise UsageError(f"--layers: found {text!r}, expected numbers and spans, e.g. 0,2-5, or all")
    return tuple(sorted(layers))


def query_count(text: str) -> int | None:
    """Return how many prompt queries a number asks for; None for all."""
    if text == "all":
        return None
    if not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(f"--q-prompt: found {text!r}, expected a number, e.g. 256, or all")
    return int(text)


def recorded_text(trace: Trace) -> str:
    """Say how well a recording holds what the model did, and what it had to give up."""
    checks = read_manifest(trace.path / MANIFEST)[0].checks or {}
    size = f"{len(trace.model.kept_layers)} layers, {trace.tokens} tokens"
    errors = (float(checks["probability_max_abs"]), float(checks["output_max_of_largest_value"]))
    lines = [
        f"{checks['architecture']}: {size}, stored as {checks['precision']}",
        "probabilities within {:.2g} of the model's, outputs within {:.2g} of the largest value".format(*errors),
    ]
    return "\n".join([*lines, *(str(checks[key]) for key in ("float32", "positions") if key in checks)])
