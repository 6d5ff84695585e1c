"""Does every damaged trace give one line that names the file and the place?"""

import hashlib
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import yaml

from ghostsim.cli import main
from ghostsim.errors import TraceError, UsageError
from ghostsim.trace.format import bundled_names, check_trace, open_trace
from ghostsim.trace.write import TraceWriter, model_fields

LAYERS, KV, Q, D, PROMPT, STEPS, W = 2, 1, 2, 8, 80, 4, 64
TOKENS = PROMPT + STEPS


def arrays():
    rng = np.random.default_rng(0)

    def half(*shape):
        return rng.standard_normal(shape).astype(np.float16)

    return {
        "q": half(STEPS, LAYERS, Q, D),
        "k": half(LAYERS, KV, TOKENS, D),
        "q_prompt": half(LAYERS, Q, W, D),
        "inv_freq": np.full((LAYERS, D // 2), 0.1),
        "token_ids": np.arange(TOKENS, dtype=np.int32),
        "v": half(LAYERS, KV, TOKENS, D),
        "token_class": np.zeros(TOKENS, dtype=np.uint8),
        "loss": np.ones(STEPS, dtype=np.float32),
    }


def describe(array, file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def manifest_of(folder, content):
    model = {
        "name": "tiny", "sha256": "0" * 64, "layers": 4, "kept_layers": [0, 2], "q_heads": Q, "kv_heads": KV,
        "head_dim": D, "scale": 0.35, "softcap": None, "window": None, "trained_context": 128,
    }  # fmt: skip
    return {
        "format": 1,
        "name": "tiny",
        "kind": "recorded",
        "model": model,
        "rope": {"dims": D, "pairing": "half", "attention_factor": 1.0},
        "prompt_len": PROMPT,
        "steps": STEPS,
        "tokens": TOKENS,
        "arrays": {name: describe(array, folder / f"{name}.npy") for name, array in content.items()},
        "provenance": {"recorder": "test", "text": "noise", "licence": "CC0-1.0", "seed": 0},
        "checks": {"anything": [1, {"at": "all"}]},
    }


def write(folder, manifest):
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    content = arrays()
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    write(folder, manifest_of(folder, content))
    return folder


def read(folder):
    return yaml.safe_load((folder / "manifest.yaml").read_text())


def edit(change):
    """A corruption of the manifest, given as a function of its data."""

    def corrupt(folder):
        manifest = read(folder)
        change(manifest)
        write(folder, manifest)

    return corrupt


def put(path, value):
    def change(manifest):
        *parents, last = path.split(".")
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value

    return edit(change)


def drop(path):
    def change(manifest):
        *parents, last = path.split(".")
        for key in parents:
            manifest = manifest[key]
        del manifest[last]

    return edit(change)


def text(content):
    def corrupt(folder):
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "manifest.yaml").write_bytes(data)

    return corrupt


def append(line):
    def corrupt(folder):
        with (folder / "manifest.yaml").open("a") as file:
            file.write(line)

    return corrupt


def array(name, change):
    """A corruption of an array whose new SHA-256 the manifest knows."""

    def corrupt(folder):
        np.save(folder / f"{name}.npy", change(arrays()[name]))
        manifest = read(folder)
        manifest["arrays"][name]["sha256"] = hashlib.sha256((folder / f"{name}.npy").read_bytes()).hexdigest()
        write(folder, manifest)

    return corrupt


def raw(name, change):
    def corrupt(folder):
        file = folder / name
        file.write_bytes(change(file.read_bytes()))

    return corrupt


def flip(name):
    """A flipped bit in the last byte of an array."""
    return raw(f"{name}.npy", lambda b: b[:-1] + bytes([b[-1] ^ 1])), f"{name}.npy: arrays.{name}.sha256: found"


def header(fields):
    """A header of k.npy that its writer never wrote, with a SHA-256 that the manifest knows."""

    def corrupt(folder):
        file = folder / "k.npy"
        values, written = file.read_bytes()[128:], fields.encode() + b"\n"
        file.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(written)) + written + values)
        put("arrays.k.sha256", hashlib.sha256(file.read_bytes()).hexdigest())(folder)

    return corrupt


def both(*corruptions):
    def corrupt(folder):
        for each in corruptions:
            each(folder)

    return corrupt


def swapped(folder):
    (folder / "k.npy").rename(folder / "x")
    (folder / "v.npy").rename(folder / "k.npy")
    (folder / "x").rename(folder / "v.npy")


def set_at(*at, value):
    def change(x):
        x[at] = value
        return x

    return change


def pickled(folder):
    (folder / "k.npy").write_bytes(pickle.dumps({"k": 1}))


def object_array(folder):
    np.save(folder / "k.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def zipped(folder):
    np.savez(folder / "k.npz", k=np.zeros(3))
    (folder / "k.npz").rename(folder / "k.npy")


def link(name, target):
    def corrupt(folder):
        file = folder / name
        shutil.move(file, folder.parent / "outside")
        file.symlink_to(target)

    return corrupt


def folder_for(name):
    def corrupt(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return corrupt


def fifo(folder):
    (folder / "k.npy").unlink()
    os.mkfifo(folder / "k.npy")


NESTED = "format: " + "[" * 20_000
BOMB = "a: &a [1, 1]\nb: &b [*a, *a]\nformat: [*b, *b]\n"

CORRUPTIONS = {
    "truncated array": (raw("k.npy", lambda b: b[:-10]), "k.npy: arrays.k"),
    "header only": (raw("q.npy", lambda b: b[:40]), "q.npy: arrays.q"),
    "empty array file": (raw("q.npy", lambda b: b""), "q.npy: arrays.q"),
    "trailing bytes": (raw("k.npy", lambda b: b + b"x"), "k.npy: arrays.k: found"),
    "flipped byte": (raw("k.npy", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]), "arrays.k.sha256: found"),
    **{f"flipped bit of {name}": flip(name) for name in arrays()},
    "arrays swapped": (swapped, "k.npy: arrays.k.sha256: found"),
    "header from the future": (raw("k.npy", lambda b: b[:6] + b"\x09" + b[7:]), "arrays.k: found no valid array"),
    "header shape of another world": (
        raw("k.npy", lambda b: b.replace(b"(2, 1, 84, 8)", b"(2, 1, 9**9, )")), "arrays.k: found no valid array"),
    "header shape beyond any address": (
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (9999999999, 9999999999, 84, 8)}"), "no valid array"),
    "header shape beyond the file": (
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1, 84, 8000000000)}"), "no valid array"),
    "header shape negative": (
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (-2, -1, 84, 8)}"), "no valid array"),
    "header of no tokens": (
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1, 0, 8)}"), "arrays.k: found"),
    "header with code": (
        header("{'descr': '<f2', 'fortran_order': __import__('os'), 'shape': (2, 1, 84, 8)}"), "no valid array"),
    "header of Python objects": (
        header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 1, 84, 8)}"), "no valid array"),
    "header of records": (
        header("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (2, 1, 84, 8)}"), "found dtype |V2"),
    "header too long": (header("{'descr': '<f2'}" + " " * 30_000), "no valid array"),
    "header too deep": (header("{'shape': " + "(" * 3000 + "2" + ",)" * 3000 + "}"), "no valid array"),
    "empty array": (array("k", lambda x: np.zeros(0, np.float16)), "found shape [0], expected [2, 1, 84, 8]"),
    "array without axes": (array("k", lambda x: np.float16(3)), "found shape [], expected [2, 1, 84, 8]"),
    "Fortran order": (array("k", np.asfortranarray), "k.npy: arrays.k: found Fortran order, expected C order"),
    "wrong dtype in the file": (array("k", lambda x: x.astype(np.float32)), "found dtype <f4, expected float16"),
    "big-endian": (array("k", lambda x: x.astype(">f2")), "found dtype >f2"),
    "wrong dtype in the manifest": (put("arrays.token_ids.dtype", "float16"), "found 'float16', expected int32"),
    "signed token classes": (array("token_class", lambda x: x.astype(np.int8)), "found dtype |i1, expected uint8"),
    "wide token classes": (
        both(array("token_class", lambda x: x.astype(np.int32)), put("arrays.token_class.dtype", "int32")),
        "arrays.token_class.dtype: found 'int32', expected uint8"),
    "loss of another length": (array("loss", lambda x: x[:-1]), "arrays.loss: found shape [3], expected [4]"),
    "loss of another length in both": (
        both(array("loss", lambda x: x[:-1]), put("arrays.loss.shape", [3])), "loss.shape: found [3], expected [4]"),
    "loss in double": (array("loss", lambda x: x.astype(float)), "found dtype <f8, expected float32"),
    "loss below zero": (array("loss", set_at(2, value=-1)), "loss.npy: arrays.loss: found -1, expected nats of 0"),
    "half frequencies": (array("inv_freq", lambda x: x.astype(np.float16)), "found dtype <f2, expected float64"),
    "frequencies too few": (array("inv_freq", lambda x: x[:, :-1]), "found shape [2, 3], expected [2, 4]"),
    "unknown dtype": (put("arrays.k.dtype", "object"), "manifest.yaml:"),
    "NaN": (array("k", set_at(1, 0, 3, 5, value=np.nan)), "found nan at [1, 0, 3, 5]"),
    "infinity": (array("q", set_at(0, 0, 0, 0, value=np.inf)), "found inf at [0, 0, 0, 0]"),
    "minus infinity": (array("v", set_at(0, 0, 0, 0, value=-np.inf)), "v.npy: arrays.v: found -inf at [0, 0, 0, 0]"),
    "NaN in the prompt's queries": (array("q_prompt", set_at(1, 1, 2, 3, value=np.nan)), "found nan at [1, 1, 2, 3]"),
    "NaN in the frequencies": (array("inv_freq", set_at(1, 0, value=np.nan)), "arrays.inv_freq: found nan at [1, 0]"),
    "NaN in the loss": (array("loss", set_at(3, value=np.nan)), "arrays.loss: found nan at [3]"),
    "negative token id": (array("token_ids", set_at(5, value=-1)), "found -1, expected ids of 0 or more"),
    "negative frequency": (array("inv_freq", set_at(0, 0, value=-0.5)), "found a negative frequency"),
    "shape mismatch": (array("v", lambda x: x[:, :, :-1]), "found shape [2, 1, 83, 8], expected [2, 1, 84, 8]"),
    "shape of the manifest": (put("arrays.k.shape", [2, 1, 85, 8]), "arrays.k.shape: found [2, 1, 85, 8]"),
    "huge shape": (put("arrays.k.shape", [10**40, 1, 84, 8]), "found a number of 41 digits"),
    "negative shape": (put("arrays.k.shape", [-2, -1, 84, 8]), "arrays.k.shape"),
    "pickle": (pickled, "k.npy: arrays.k: found no valid array"),
    "object array": (object_array, "k.npy: arrays.k: found no valid array"),
    "zip for an array": (zipped, "k.npy: arrays.k: found no valid array"),
    "link out of the folder": (link("k.npy", "../outside"), "a link that leads out"),
    "absolute link": (link("k.npy", "/dev/zero"), "a link that leads out"),
    "path of an array": (edit(lambda m: m["arrays"]["k"].update(path="../k.npy")), "k.path: found an unknown key"),
    "absolute path for a name": (edit(lambda m: m["arrays"].update({"/etc/passwd": {}})), "an unknown key"),
    "optional array listed, not there": (
        edit(lambda m: m["arrays"].update(q_ahead=m["arrays"]["q"])), "arrays.q_ahead: found no such file"),
    "array of nothing": (put("arrays.k", None), "arrays.k: found None, expected a mapping"),
    "manifest links out": (link("manifest.yaml", "../outside"), "a link that leads out"),
    "dangling link": (link("k.npy", "nowhere.npy"), "found no such file"),
    "link to itself": (link("k.npy", "k.npy"), "k.npy: "),
    "array missing": (lambda folder: (folder / "v.npy").unlink(), "v.npy: arrays.v: found no such file"),
    "folder for an array": (folder_for("k.npy"), "found a folder"),
    "folder for the manifest": (folder_for("manifest.yaml"), "found a folder"),
    "pipe for an array": (fifo, "k.npy: arrays.k: found"),
    "array with a path for a name": (edit(lambda m: m["arrays"].update({"../../etc/passwd": {}})), "an unknown key"),
    "version from the future": (put("format", 2), "manifest.yaml:1:9: format: found 2, expected 1"),
    "version as text": (put("format", "1"), "format: found '1', expected 1"),
    "version as truth": (put("format", True), "format: found True, expected 1"),
    "version as fraction": (put("format", 1.0), "format: found 1.0, expected 1"),
    "prompt beyond tokens": (put("prompt_len", 4000), "tokens: found 84, expected prompt_len + steps = 4004"),
    "prompt shorter than its queries": (
        edit(lambda m: m.update(prompt_len=PROMPT - 30, tokens=TOKENS - 30)), "manifest.yaml:"),
    "no prompt": (put("prompt_len", 0), "prompt_len: found 0"),
    "negative tokens": (put("tokens", -84), "tokens: found -84"),
    "tokens that do not add up": (put("tokens", 85), "tokens: found 85, expected prompt_len + steps = 84"),
    "no steps": (put("steps", 0), "steps: found 0"),
    "steps as text": (put("steps", "many"), "steps: found 'many'"),
    "steps as truth": (put("steps", True), "steps: found True"),
    "steps as fraction": (put("steps", 4.5), "steps: found 4.5"),
    "huge number": (put("tokens", 10**25), "tokens: found 10000000000000000000000000"),
    "unknown key": (append("colour: red\n"), "colour: found an unknown key"),
    "misspelt key": (edit(lambda m: m["model"].update(head_dims=m["model"].pop("head_dim"))), "did you mean head_dim?"),
    "duplicate key": (append("steps: 4\n"), "found the key 'steps' again"),
    "missing key": (drop("prompt_len"), "prompt_len: found nothing"),
    "missing array key": (drop("arrays.q_prompt"), "arrays.q_prompt: found nothing"),
    "no provenance": (put("provenance", None), "provenance: found None"),
    "scale 0": (put("model.scale", 0), "model.scale: found 0"),
    "scale negative": (put("model.scale", -0.35), "model.scale: found -0.35, expected greater than"),
    "scale as text": (put("model.scale", "0.35"), "model.scale: found '0.35'"),
    "softcap 0": (put("model.softcap", 0), "model.softcap: found 0, expected greater than"),
    "scale not finite": (put("model.scale", float("nan")), "manifest.yaml:14:10: found .nan, expected a finite"),
    "scale too large": (put("model.scale", 1e300), "model.scale: found 1e+300"),
    "softcap too small": (put("model.softcap", 1e-300), "model.softcap: found 1e-300"),
    "rope factor too large": (put("rope.attention_factor", 1e300), "rope.attention_factor: found 1e+300"),
    "softcap negative": (put("model.softcap", -30.0), "model.softcap: found -30.0"),
    "heads do not divide": (put("model.kv_heads", 3), "model.q_heads: found 2, expected a multiple of kv_heads = 3"),
    "kept layers unsorted": (put("model.kept_layers", [2, 0]), "model.kept_layers: found [2, 0], expected ascending"),
    "kept layer twice": (put("model.kept_layers", [2, 2]), "model.kept_layers: found [2, 2], expected ascending"),
    "kept layer negative": (put("model.kept_layers", [-1, 0]), "model.kept_layers.0: found -1"),
    "no kept layer": (put("model.kept_layers", []), "model.kept_layers: found [], expected 1 or more items"),
    "kept layer too high": (put("model.kept_layers", [0, 4]), "expected layers below layers = 4"),
    "window per layer": (put("model.window", [128]), "model.window: found [128], expected one per kept layer (2)"),
    "window list too long": (put("model.window", [1, 2, 3]), "expected one per kept layer (2)"),
    "window negative": (put("model.window", -4), "model.window: found -4"),
    "window zero": (put("model.window", 0), "model.window: found 0"),
    "rope too wide": (put("rope.dims", 16), "rope.dims: found 16, expected at most head_dim = 8"),
    "rope odd": (put("rope.dims", 7), "rope.dims: found 7"),
    "rope of nothing": (put("rope.dims", 0), "rope.dims: found 0"),
    "head_dim odd": (put("model.head_dim", 7), "manifest.yaml:"),
    "rope factor 0": (put("rope.attention_factor", 0.0), "rope.attention_factor: found 0.0"),
    "rope pairing": (put("rope.pairing", "quarter"), "rope.pairing: found 'quarter'"),
    "no rope but frequencies": (put("rope", None), "arrays.inv_freq: found [2, 4], expected no array"),
    "no frequencies": (drop("arrays.inv_freq"), "arrays.inv_freq: found None, expected an array"),
    "kind": (put("kind", "invented"), "kind: found 'invented'"),
    "name with a path": (put("name", "../x"), "name: found '../x'"),
    "hash in capitals": (put("arrays.k.sha256", "A" * 64), "arrays.k.sha256: found"),
    "hash too short": (put("arrays.k.sha256", "a" * 63), "expected text that matches ^[0-9a-f]{64}$"),
    "hash of another array": (
        edit(lambda m: m["arrays"]["k"].update(sha256=m["arrays"]["v"]["sha256"])), "k.npy: arrays.k.sha256: found"),
    "wrong hash": (put("arrays.k.sha256", "a" * 64), "k.npy: arrays.k.sha256: found"),
    "no weights hash": (put("model.sha256", None), "model.sha256: found None"),
    "empty manifest": (text(""), "found an empty file"),
    "comment only": (text("# nothing\n"), "found an empty document"),
    "list for a mapping": (text("- 1\n- 2\n"), "expected a trace manifest"),
    "binary": (text(b"\x93NUMPY\x01\x00\xff\xfe"), "not UTF-8"),
    "control characters": (text("format: 1\x00\n"), "manifest.yaml:1:10: found the character U+0000"),
    "text for a mapping": (text("hello\n"), "expected a trace manifest"),
    "duplicate key inside": (
        text("format: 1\nmodel:\n  name: a\n  name: b\n"), "manifest.yaml:4:3: found the key 'name' again"),
    "broken YAML": (text("format: [1\nname: x\n"), "manifest.yaml:2:"),
    "tab": (text("format:\n\t1\n"), "manifest.yaml:2:1: found bad YAML"),
    "deep nesting": (text(NESTED), "nesting"),
    "too many values": (text("format: [" + "1," * 500_000 + "1]\n"), "found more than 500000 values"),
    "aliases": (text(BOMB), "format: found [[[1, 1], [1, 1]]"),
    "recursive anchor": (text("format: &a [*a]\n"), "found the alias *a"),
    "python tag": (text("format: !!python/object/apply:os.system ['true']\n"), "found the tag"),
    "two documents": (append("---\nformat: 1\n"), "found a second document"),
    "mapping as a key": (text("? {a: 1}\n: 2\n"), "found a list or mapping as key"),
    "too long": (text("#" * (5 << 20)), "found a file above"),
    "bad escape": (text('format: "\\UFFFFFFFF"\n'), "found bad YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_gives_one_line_with_its_place(tiny, name):
    corrupt, expected = CORRUPTIONS[name]
    corrupt(tiny)
    with pytest.raises(TraceError) as caught:
        check_trace(tiny)
    message = str(caught.value)
    assert message.startswith(str(tiny))
    assert expected in message
    assert "\n" not in message
    assert len(message) < 700
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS)))
def test_a_small_trace_is_checked_in_full_on_opening(tiny, name):
    CORRUPTIONS[name][0](tiny)
    with pytest.raises(TraceError):
        open_trace(tiny)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS)))
def test_a_trace_that_changes_after_it_was_opened_is_checked_again(tiny, name):
    assert open_trace(tiny) is open_trace(tiny)
    CORRUPTIONS[name][0](tiny)
    with pytest.raises(TraceError):
        open_trace(tiny)


def test_the_unharmed_trace_opens_and_is_memory_mapped_read_only(tiny):
    trace = check_trace(tiny)
    assert (trace.name, trace.prompt_len, trace.steps, trace.model.kept_layers) == ("tiny", PROMPT, STEPS, (0, 2))
    assert trace.q_ahead is None
    np.testing.assert_array_equal(trace.k, arrays()["k"])
    assert not trace.k.flags.writeable
    assert not trace.k.flags.owndata


def test_windows_are_given_once_or_per_kept_layer(tiny):
    put("model.window", [None, 32])(tiny)
    assert open_trace(tiny).model.window == (None, 32)
    put("model.window", 16)(tiny)
    assert open_trace(tiny).model.window == (16, 16)


def test_positions_inside_the_keys_need_no_frequencies(tiny):
    drop("arrays.inv_freq")(tiny)
    put("rope", None)(tiny)
    trace = check_trace(tiny)
    assert trace.rope is None
    assert trace.inv_freq is None


def test_files_that_the_manifest_does_not_name_are_no_part_of_the_trace(tiny):
    drop("arrays.v")(tiny)
    np.save(tiny / "notes.npy", np.zeros(3))
    assert check_trace(tiny).v is None


def test_check_command_ends_with_4_and_one_line(tiny, capfd):
    array("k", np.asfortranarray)(tiny)
    with pytest.raises(SystemExit) as ended:
        main(["trace", "check", str(tiny)])
    assert ended.value.code == 4
    assert capfd.readouterr().err.count("\n") == 1


def test_a_link_inside_the_folder_is_followed(tiny):
    (tiny / "v.npy").rename(tiny / "other.npy")
    (tiny / "v.npy").symlink_to("other.npy")
    assert check_trace(tiny).v is not None


def test_a_trace_is_found_by_relative_path_and_by_name(tiny, monkeypatch):
    assert open_trace("tiny", base=tiny.parent).name == "tiny"
    monkeypatch.chdir(tiny.parent)
    assert open_trace("tiny").name == "tiny"
    assert open_trace("./tiny", base=tiny).name == "tiny"
    assert open_trace("natural_4k").name == "natural_4k"


def test_a_folder_of_a_bundled_name_without_a_manifest_does_not_hide_the_bundled_trace(tmp_path, monkeypatch):
    (tmp_path / "natural_4k").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_trace("natural_4k").steps == 128


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(TraceError, match=r"did you mean natural_4k\?.*manual_4k, natural_4k, tutorial_4k"):
        open_trace("natural_4")


@pytest.mark.parametrize("name", ["", "a\x00b", "x" * 5000, "../..", "/dev/null", "~"])
def test_odd_names_give_one_line(name, tmp_path):
    with pytest.raises(TraceError) as caught:
        open_trace(name, base=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder(tiny):
    with pytest.raises(TraceError, match="expected the folder of a trace"):
        open_trace(tiny / "manifest.yaml")


def test_bundled_traces_pass_every_check():
    assert bundled_names() == ["code_4k", "facts_4k", "logs_4k", "manual_4k", "natural_4k", "tutorial_4k"]
    for name in bundled_names():
        assert check_trace(name).name == name


def rewrite(trace, folder, *, force=False):
    with TraceWriter(folder, force=force) as writer:
        for name, values in trace.arrays().items():
            writer.put(name, values)
        fields = read(trace.path)
        return writer.finish(
            {k: v for k, v in fields.items() if k not in {"format", "arrays"}} | {"model": model_fields(trace)}
        )


def test_what_is_written_is_read_back(tiny, tmp_path):
    trace = open_trace(tiny)
    again = rewrite(trace, tmp_path / "again")
    assert again.model == trace.model
    assert again.rope == trace.rope
    for name, values in trace.arrays().items():
        np.testing.assert_array_equal(getattr(again, name), values)


def test_the_writer_replaces_a_trace_only_when_told_and_nothing_else_ever(tiny, tmp_path):
    trace = open_trace(tiny)
    rewrite(trace, tmp_path / "again")
    with pytest.raises(UsageError, match="--force"):
        rewrite(trace, tmp_path / "again")
    rewrite(trace, tmp_path / "again", force=True)
    (tmp_path / "home").mkdir()
    with pytest.raises(UsageError, match="is no trace"):
        rewrite(trace, tmp_path / "home", force=True)


def write_half(folder):
    with TraceWriter(folder) as writer:
        writer.put("q", np.zeros(3, dtype=np.float16))
        writer.finish({"name": "broken"})


def test_a_failed_write_leaves_nothing_behind(tiny, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TraceError, match="found"):
        write_half(tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
