"""Compiled once, kept, and said why not: with a source of one line, which a compiler has soon done."""

import shutil
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from swin_mim.kernels.native import library as module
from swin_mim.kernels.native.library import Unavailable

load = module.library.__wrapped__  # not its cache, which outlives the test


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, and a small source."""
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(module, "SOURCES", (source,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "swin_mim" / "native"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that notes each time that it is called."""
    real = next(filter(None, map(shutil.which, module.COMPILERS)), None)
    if real is None:
        pytest.skip("there is no C++ compiler")
    notes, script = tmp_path / "calls", tmp_path / "noting"
    script.write_text(f'#!/bin/sh\necho called >> {notes}\nexec {real} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return notes


def test_it_is_compiled_once_and_then_needs_no_compiler(compiler, cache, monkeypatch, caplog):
    with caplog.at_level("INFO", module.__name__):
        assert load().answer() == 42
    (built,) = cache.glob("*.so")
    assert caplog.messages == [f"compiling the kernels for this processor, once: {built}"]
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert load().answer() == 42
    assert compiler.read_text() == "called\n"


@pytest.mark.parametrize("change", ["source", "processor", "flags"])
def test_another_source_processor_or_flags_are_another_library(change, compiler, cache, monkeypatch):
    load()
    if change == "source":
        module.SOURCES[0].write_text('extern "C" int answer() { return 43; }\n')
    elif change == "processor":
        monkeypatch.setattr(module, "_processor", lambda: "another")
    else:
        before = module._flags()
        monkeypatch.setattr(module, "_flags", lambda: [*before, "-g"])
    assert load().answer() == (43 if change == "source" else 42)
    assert len(list(cache.glob("*.so"))) == 2


def test_several_at_once_compile_once(compiler):
    with ThreadPoolExecutor(4) as pool:
        assert [done.answer() for done in pool.map(lambda _: load(), range(4))] == [42] * 4
    assert compiler.read_text() == "called\n"


def test_where_files_cannot_be_locked_it_is_compiled_all_the_same(compiler, monkeypatch):
    def refused(*_, **__):
        raise OSError("No locks available")

    monkeypatch.setattr(module, "lock", refused)
    assert load().answer() == 42


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"there is no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+, or what CXX names\)"):
        load()


def test_a_compiler_that_fails(compiler, cache):
    module.SOURCES[0].write_text("int answer() { return nothing; }\n")
    with pytest.raises(Unavailable, match=r"noting fails: .*answer.cpp:1.*error: .*nothing"):
        load()
    assert not list(cache.glob("*.so")), "nothing is kept"


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler -O2")
    with pytest.raises(Unavailable, match=r"No such file or directory: '/no/such/compiler'"):
        load()


def test_a_folder_that_cannot_be_made(compiler, cache, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Unavailable, match="Not a directory"):
        load()


def test_windows_is_not_tried(monkeypatch):
    monkeypatch.setattr(module.os, "name", "nt")
    monkeypatch.setattr(module.platform, "system", lambda: "Windows")
    with pytest.raises(Unavailable, match="it is not written for Windows"):
        load()


def test_a_torch_without_the_loop(monkeypatch, tmp_path):
    monkeypatch.setattr(module.torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    with pytest.raises(Unavailable, match="this torch has no torch_parallel_for"):
        module.parallel_for.__wrapped__()
