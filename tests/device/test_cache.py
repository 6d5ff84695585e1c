"""The disk cache: shared by processes, bounded, and never the cause of a failure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ghostsim import cache
from ghostsim.timing import cache as timing_cache

KEY = {"part": "DDR5", "n": 3}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A cache that can't be created, for the superuser as well: its parent is a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "file" / "cache"))


def counting(value):
    calls = []
    return calls, lambda: calls.append(1) or value


def only_file(folder: Path, kind: str) -> Path:
    (file,) = (folder / kind).iterdir()
    return file


def test_variable_names_the_folder(folder):
    assert cache.root() == folder


def test_xdg_folder_is_next(monkeypatch, tmp_path):
    monkeypatch.delenv("GHOSTSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "ghostsim"


def test_home_is_last(monkeypatch, tmp_path):
    monkeypatch.delenv("GHOSTSIM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "ghostsim"


def test_stored_bytes_come_back():
    cache.store_bytes("kind", KEY, b"data")
    assert cache.load_bytes("kind", KEY) == b"data"


def test_order_of_a_key_does_not_matter():
    cache.store_bytes("kind", {"a": 1, "b": 2}, b"data")
    assert cache.load_bytes("kind", {"b": 2, "a": 1}) == b"data"


def test_unknown_key_is_missing():
    assert cache.load_bytes("kind", KEY) is None


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_damaged_bytes_are_missing(folder, damage):
    cache.store_bytes("kind", KEY, b"data")
    only_file(folder, "kind").write_bytes(damage)
    assert cache.load_bytes("kind", KEY) is None


def test_store_without_a_writable_cache_does_nothing(no_cache):
    cache.store_bytes("kind", KEY, b"data")
    assert cache.load_bytes("kind", KEY) is None


def test_failed_store_leaves_no_temporary_file(folder, monkeypatch):
    def full(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache.store_bytes("kind", KEY, b"data")
    assert list((folder / "kind").iterdir()) == []


def test_published_folder_is_found(folder):
    path = cache.publish("sel", KEY, lambda made: (made / "reads.npy").write_bytes(b"1"))
    assert path == cache.entry("sel", KEY)
    assert (path / "reads.npy").read_bytes() == b"1"


def test_failed_build_leaves_nothing(folder):
    def build(made):
        (made / "half").write_text("")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cache.publish("sel", KEY, build)
    assert list((folder / "sel").iterdir()) == []
    assert cache.entry("sel", KEY) is None


def test_second_publisher_gets_the_first_folder(folder):
    def race(made):
        cache.publish("sel", KEY, lambda faster: (faster / "who").write_text("first"))
        (made / "who").write_text("second")

    assert (cache.publish("sel", KEY, race) / "who").read_text() == "first"
    assert len(list((folder / "sel").iterdir())) == 1


def test_publish_without_a_writable_cache_uses_a_temporary_folder(no_cache):
    path = cache.publish("sel", KEY, lambda made: (made / "x").write_text("1"))
    assert (path / "x").read_text() == "1"
    assert cache.entry("sel", KEY) is None


def test_discarded_entry_is_gone():
    cache.publish("sel", KEY, lambda made: None)
    cache.discard("sel", KEY)
    assert cache.entry("sel", KEY) is None


def test_trim_removes_the_oldest_first(folder):
    for n in range(4):
        cache.store_bytes("kind", str(n), b"x" * 68)  # 100 bytes with its checksum
        os.utime(folder / "kind" / cache.digest(str(n)), (n, n))
    cache.trim("kind", 250)
    assert [cache.load_bytes("kind", str(n)) is not None for n in range(4)] == [False, False, True, True]


def test_trim_by_count(folder):
    for n in range(4):
        cache.store_bytes("kind", str(n), b"")
    cache.trim("kind", 1 << 20, max_entries=1)
    assert len(list((folder / "kind").iterdir())) == 1


def test_trim_of_a_missing_cache_does_nothing(no_cache):
    cache.trim("kind", 0)


def test_code_hash_follows_the_source(tmp_path):
    def module(text):
        path = tmp_path / f"{len(text)}.py"
        path.write_text(text)
        made = types.ModuleType("made")
        made.__file__ = str(path)
        return made

    assert cache.code_hash(module("a = 1")) != cache.code_hash(module("a = 10"))


def test_evaluation_is_computed_once():
    calls, compute = counting(1.5)
    assert [timing_cache.cached(KEY, compute) for _ in range(3)] == [1.5] * 3
    assert len(calls) == 1


def test_pairs_come_back_as_pairs():
    timing_cache.cached(KEY, lambda: (0.1, 0.2))
    assert timing_cache.cached(KEY, lambda: (9.0, 9.0)) == (0.1, 0.2)


def test_other_code_computes_again():
    calls, compute = counting(1.5)
    timing_cache.cached(KEY, compute, "old")
    timing_cache.cached(KEY, compute, "new")
    assert len(calls) == 2


def test_evaluation_survives_a_damaged_entry(folder):
    timing_cache.cached(KEY, lambda: 1.5)
    only_file(folder, "timing").write_bytes(b"garbage")
    assert timing_cache.cached(KEY, lambda: 1.5) == 1.5


def test_evaluation_without_a_cache(no_cache):
    assert timing_cache.cached(KEY, lambda: 1.5) == 1.5


def test_remembered_function_asks_the_disk_once():
    calls = []

    @timing_cache.remembered(timing_cache)
    def slow(value: float, *, by: float = 2.0) -> float:
        calls.append(value)
        return value * by

    assert [slow(2.0), slow(2.0), slow(2.0, by=3.0)] == [4.0, 4.0, 6.0]
    assert calls == [2.0, 2.0]


PROGRAM = """
import sys
from ghostsim.timing.cache import cached
for n in range(200):
    value = cached({"n": n % 20}, lambda: (n % 20) / 7)
    assert value == (n % 20) / 7, value
"""


def test_processes_share_the_cache(folder):
    running = [subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    names = [path.name for path in (folder / "timing").iterdir()]
    assert len(names) == 20
    assert not any(name.startswith(".tmp") for name in names)


def test_a_full_cache_costs_no_entry():
    built = []

    def build(folder):
        built.append(folder)
        if len(built) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (folder / "x").write_text("1")

    path = cache.publish("sel", KEY, build)
    assert (path / "x").read_text() == "1"
    assert not built[0].exists()
    assert cache.entry("sel", KEY) is None


ELSEWHERE = """
from ghostsim import cache
print(cache.publish("sel", "key", lambda folder: (folder / "x").write_text("1")))
"""


def test_what_finds_no_place_in_the_cache_goes_with_the_process(tmp_path):
    (tmp_path / "file").touch()
    environment = os.environ | {"GHOSTSIM_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(said.stdout.strip()).parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
