"""Does an interrupted recording go on where it stopped, and end in the same trace?"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tiny_models import build

pytestmark = pytest.mark.torch


def stop_at(layer):
    def say(text):
        if text.startswith(f"record layer {layer} "):
            raise KeyboardInterrupt

    return say


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_interrupted_recording_ends_in_the_same_trace(family, tmp_path, recorded):
    folder = build(tmp_path / "model", family)
    options = {"values": True, "ahead": True}
    whole, said = recorded(folder, "whole", **options), []
    with pytest.raises(KeyboardInterrupt):
        recorded(folder, "parts", say=stop_at(3), **options)
    parts = recorded(folder, "parts", say=said.append, **options)
    assert [text for text in said if "layer" in text] == ["go on at layer 2", "record layer 3 of 3"]
    for name in whole.arrays():
        assert (whole.path / f"{name}.npy").read_bytes() == (parts.path / f"{name}.npy").read_bytes()


def test_other_options_start_again(tmp_path, recorded):
    folder, said = build(tmp_path / "model", "llama"), []
    with pytest.raises(KeyboardInterrupt):
        recorded(folder, say=stop_at(2))
    recorded(folder, say=said.append, values=True)
    assert "record layer 1 of 3" in said


def test_finished_recording_leaves_only_the_trace(tmp_path, recorded):
    folder = build(tmp_path / "model", "llama")
    recorded(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "model", "trace"]
