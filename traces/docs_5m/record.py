"""Records the shipped traces: the model of this folder over documents that it was not trained on.

python traces/docs_5m/corpus.py CORPUS
python traces/docs_5m/record.py CORPUS OUT [--model traces/docs_5m]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tasks import fact, server_log, with_facts
from tokenizers import Tokenizer

from ghostsim.trace.record import Recording, record, recorded_text

PYTHON = "Python documentation, python3.11-doc of Debian 12"
FACTS = 40


@dataclass(frozen=True)
class Shipped:
    """A trace that ships: its document in the corpus, and what differs from the usual recording."""

    document: str
    title: str
    licence: str
    changes: dict[str, object]


SHIPPED = {
    "natural_4k": Shipped(
        "python.whatsnew.3.10", f"What's New In Python 3.10 ({PYTHON})", "PSF-2.0", {"values": True, "ahead": True}
    ),
    "manual_4k": Shipped(
        "postgresql.app-psql", "manual page of psql (postgresql-doc-15 of Debian 12)", "PostgreSQL", {"q_prompt": 64}
    ),
    "code_4k": Shipped("stdlib.tarfile", "tarfile.py (libpython3.11-stdlib of Debian 12)", "PSF-2.0", {"q_prompt": 64}),
    "logs_4k": Shipped(
        "log", "server log drawn by traces/docs_5m/tasks.py, seed 10000", "Apache-2.0", {"q_prompt": 64}
    ),
    "facts_4k": Shipped(
        "python.library.socket",
        f"{FACTS} invented facts stated and asked in the page on socket ({PYTHON})",
        "PSF-2.0",
        {"prompt_len": 3072, "steps": 1024, "q_prompt": 64},
    ),
    "tutorial_4k": Shipped(
        "python.tutorial.classes",
        f"tutorial on classes ({PYTHON})",
        "PSF-2.0",
        {"layers": (0, 3), "values": True, "classes": True, "q_prompt": None, "steps": 64, "prompt_len": 4032},
    ),
}


def text_of(name: str, corpus: Path, model: Path, folder: Path) -> Path:
    """Return the file that a trace is recorded of; token ids where facts are planted."""
    if name == "logs_4k":
        (file := folder / "log.txt").write_text(server_log(np.random.default_rng(10_000), 300), encoding="utf-8")
        return file
    document = corpus / "heldout" / f"{SHIPPED[name].document}.txt"
    if name != "facts_4k":
        return document
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    random = np.random.default_rng(10_001)
    row = np.array(tokenizer.encode(document.read_text(encoding="utf-8"), add_special_tokens=False).ids)[:4096]
    texts = [fact(random) for _ in range(FACTS)]
    facts = [tuple(np.array(tokenizer.encode(x, add_special_tokens=False).ids) for x in pair) for pair in texts]
    np.save(file := folder / "facts.npy", np.concatenate([[0], with_facts(random, row, facts)]))
    return file


def main() -> None:
    """Record all shipped traces, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", choices=SHIPPED, nargs="*", default=list(SHIPPED))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            shipped = SHIPPED[name]
            text = text_of(name, asked.corpus, asked.model, Path(folder))
            usual = Recording(str(asked.model), text, asked.out / name, prompt_len=3968, steps=128, force=True)
            about = {"title": shipped.title, "licence": shipped.licence}
            print(f"{name}\n{recorded_text(record(replace(usual, **about, **shipped.changes)))}")


if __name__ == "__main__":
    main()
