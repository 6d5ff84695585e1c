"""Does every bundled document hold what the catalogue promises: valid, named after its file, every number sourced?"""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ghostsim.bundled import folder
from ghostsim.config import catalogue
from ghostsim.config.base import Confidence
from ghostsim.config.catalogue import FOLDERS, assumed_numbers, provenance
from ghostsim.config.document import dump
from ghostsim.config.load import load_any, load_scenario

DOCUMENTS = [(kind, name) for kind in FOLDERS for name in catalogue.files(kind)]
HARDWARE = [(kind, name) for kind, name in DOCUMENTS if kind in ("part", "platform", "model")]


DOCUMENTS_READ = yaml.safe_load((folder("hwmodels") / "reference" / "sources.yaml").read_text(encoding="utf-8"))
CITES = tuple(entry["cite"] for entry in DOCUMENTS_READ["documents"])
UNREAD = ("recalled", "design assumption", "derived", "quoted in", "no measured table", "no usable rows", *CITES)
"""How the source of an assumed figure begins: nothing in it may pass for a document that was read."""


@cache
def load(kind, name):
    return load_any(catalogue.files(kind)[name])


def leaves(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, (*path, index))
    else:
        yield path, node


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_something_is_bundled_of_every_kind(kind):
    assert catalogue.files(kind)


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_a_bundled_document_is_valid_and_named_after_its_file(kind, name):
    loaded = load(kind, name)
    assert loaded.kind == kind
    assert getattr(loaded.value, "name", None) in ((name, None) if kind in ("sweep", "search", "finding") else (name,))


@pytest.mark.parametrize(("kind", "name"), HARDWARE)
def test_every_hardware_number_has_a_source_and_a_confidence(kind, name):
    document = load(kind, name).document
    facts = {fact.path: fact for fact in provenance(document)}
    numbers = [
        path
        for path, value in leaves(document)
        if isinstance(value, int | float) and not isinstance(value, bool) and path[-1] != "schema"
    ]
    for path in numbers:
        dotted = ".".join(map(str, path[:-1] if path[-1] == "value" else path))
        assert len(facts[dotted].source) > 3
    assert {fact.confidence for fact in facts.values()} <= set(get_args(Confidence))
    assert numbers or kind == "platform"


@pytest.mark.parametrize(("kind", "name"), HARDWARE)
def test_what_was_measured_or_published_names_a_document_that_was_read(kind, name):
    facts = [fact for fact in provenance(load(kind, name).document) if fact.confidence in ("measured", "datasheet")]
    assert [fact for fact in facts if not fact.source.startswith(CITES)] == []


@pytest.mark.parametrize(("kind", "name"), HARDWARE)
def test_what_is_assumed_says_so_first(kind, name):
    facts = assumed_numbers(load(kind, name).document)
    assert [fact for fact in facts if not fact.source.startswith(UNREAD)] == []


def test_documents_say_who_read_them_how_and_some_number_rests_on_each():
    sources = {fact.source for kind, name in HARDWARE for fact in provenance(load(kind, name).document)}
    for entry in DOCUMENTS_READ["documents"]:
        assert entry["read"] in ("primary", "secondary")
        assert entry["what"]
        assert any(entry["cite"] in source for source in sources)


@pytest.mark.parametrize("cite", [e["cite"] for e in DOCUMENTS_READ["documents"] if e["read"] == "secondary"])
def test_a_figure_at_second_hand_says_so(cite):
    for kind, name in HARDWARE:
        for fact in provenance(load(kind, name).document):
            if fact.source.startswith(cite) and fact.confidence in ("measured", "datasheet"):
                assert re.search("read in (a|notes|a detailed) ", fact.source) or "second" in fact.source


@pytest.mark.parametrize(("kind", "name"), HARDWARE)
def test_no_bundled_number_is_overridden_without_saying_why(kind, name):
    silent = [fact.path for fact in assumed_numbers(load(kind, name).document) if fact.source.startswith("set in ")]
    assert not silent


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_the_effective_form_is_the_same_document(kind, name, tmp_path):
    loaded = load(kind, name)
    file = tmp_path / f"{name}.yaml"
    file.write_text(dump(loaded.document), encoding="utf-8")
    again = load_any(file)
    assert again.value == loaded.value
    assert again.document == loaded.document


@pytest.mark.parametrize("plural", list(catalogue.PLURALS))
def test_a_list_has_a_name_and_a_summary_for_each(plural):
    for entry in catalogue.names(plural):
        assert entry.name
        assert Path(entry.path).exists()
        assert entry.summary
        assert not entry.summary.startswith("invalid")


def test_the_catalogue_has_what_an_architect_looks_for():
    kinds = Counter(entry.kind for entry in catalogue.names("parts"))
    assert sum(kinds.values()) >= 50
    assert kinds.keys() >= {"gpu", "dram", "host_cpu", "cxl_expander", "switch", "upmem", "nvme", "link"}
    assert len(catalogue.names("platforms")) >= 15


@pytest.mark.bench
def test_a_scenario_loads_in_half_a_second():
    def seconds():
        start = time.perf_counter()
        load_scenario("cxl_pim")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_inputs_are_the_hashes_of_the_files():
    inputs = load_scenario("cxl_pim").inputs
    assert "scenarios/cxl_pim.yaml" in inputs
    for name, digest in inputs.items():
        first, _, rest = name.partition("/")
        assert hashlib.sha256((folder(first) / rest).read_bytes()).hexdigest() == digest


def test_the_effective_form_is_the_same_in_any_process():
    program = (
        "from ghostsim.config.document import dump; from ghostsim.config.load import load_scenario; "
        "s = load_scenario('cxl_pim', ['workload.batch=2']); print(dump(s.document), list(s.inputs.items()))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(texts) == 1
