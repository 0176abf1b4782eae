"""The build on first use: once, under a lock, safe from killed builders and from other users' hands."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastndsm.jit.cache
from fastndsm.jit import core, toolchain
from fastndsm.jit.cache import locked, make_private
from fastndsm.jit.core import Builder, BuildError

Start = Callable[..., "subprocess.Popen[str]"]
Run = Callable[..., str]

TINY = """
import ctypes, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO)
from fastndsm.jit.core import Builder
builder = Builder("tiny", (Path(sys.argv[1]),))
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.CDLL(str(builder.build())).answer(), flush=True)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n')
    return source


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache directory that is not there yet."""
    monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiler_that(tmp_path: Path, name: str, on_compile: str) -> Path:
    """Write a compiler that runs a shell command before it compiles a file."""
    real = shutil.which("g++") or shutil.which("c++")
    wrapper = tmp_path / name
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" -c "*) {on_compile};; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_eight_cold_processes_build_once(tmp_path: Path, tiny: Path, cache: Path, start_python: Start) -> None:
    count = tmp_path / "compiled"
    compiler = compiler_that(tmp_path, "counting", f"echo once >> {count}; sleep 1")
    processes = [start_python(TINY, tiny, CXX=str(compiler)) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [(*process.communicate(timeout=120), process.returncode) for process in processes]

    assert [(out, code) for out, _, code in results] == [("42\n", 0)] * 8, results
    assert count.read_text() == "once\n"
    assert sum("(once; it may take a minute)" in err for _, err, _ in results) == 1
    assert all(err.count("waiting for another process") <= 1 for _, err, _ in results)
    assert sum("waiting for another process" in err for _, err, _ in results) >= 1
    assert len(entries(cache)) == 1


def test_killed_builder_harms_nobody(tmp_path: Path, tiny: Path, cache: Path, start_python: Start) -> None:
    """Killed half-way, while another process waits: that one builds, and clears away what was left."""
    stalled = tmp_path / "stalled"
    # the first compilation stalls, any later one does not: one compiler, and so one key, for both processes
    stall = f"mkdir {stalled} 2>/dev/null && while test -e {stalled}; do sleep 0.1; done"
    compiler = compiler_that(tmp_path, "stalling", stall)
    builder, waiting = (start_python(TINY, tiny, CXX=str(compiler)) for _ in range(2))
    try:
        _go(builder)
        _until(stalled.exists)
        unfinished = entries(cache)
        assert len(unfinished) == 1 and unfinished[0].startswith("building-")
        _go(waiting)
        assert waiting.stderr is not None
        assert "waiting for another process" in waiting.stderr.readline()

        os.kill(builder.pid, signal.SIGKILL)
        out, err = waiting.communicate(timeout=120)
        assert (out, waiting.returncode) == ("42\n", 0), err
        assert builder.wait() == -signal.SIGKILL
        assert len(entries(cache)) == 1 and not set(entries(cache)) & set(unfinished)
    finally:
        stalled.rmdir()  # the orphaned compiler goes its way


def test_the_lock_is_the_systems_and_is_not_waited_for_without_end(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fastndsm.jit.cache, "WAIT_SECONDS", 0.3)
    make_private(cache)
    with open(cache / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match=f"another process has held {cache / 'lock'} for 0 s"):
            with locked(cache, "tiny"):
                raise AssertionError("two hold the lock")
    assert [record.getMessage() for record in caplog.records if record.name == "fastndsm"] == [
        f"waiting for another process, which is building tiny in {cache}"
    ]
    with locked(cache, "tiny"), open(cache / "lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    make_private(cache)
    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(BuildError, match=f"{cache / 'lock'} cannot be locked: .*{os.strerror(errno.ENOSYS)}"):
        with locked(cache, "tiny"):
            raise AssertionError("held without a lock")


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


COLD = """
import json, sys
import torch
from fastndsm.jit import core
before = core.status()
core.load()
after = core.status()
torch.set_num_threads(2)
normals = torch.ops.fastndsm_cpp.philox_normal(
    70_000, 6, torch.tensor(-3), torch.tensor(7), 5, 2**32 - 9, torch.float64)
maps = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
torch.save(normals, sys.argv[1])
print(json.dumps({"before": before, "after": after, "openmp": len(maps)}))
"""


def check_kernels(told: dict[str, Any], normals: Path) -> None:
    """Require that the library that was loaded computes, and shares torch's OpenMP threads."""
    from fastndsm import reference

    before, after = told["before"], told["after"]
    assert (before["available"], before["loaded"], before["vector_isa"]) == (True, False, None)
    assert (after["available"], after["built"], after["loaded"]) == (True, True, True)
    assert after["vector_isa"] in {"avx512", "avx2", "sse2", "neon", "scalar"}
    assert after["key"] == before["key"] and Path(after["library"]).is_file()
    assert told["openmp"] == 1
    expected = reference.philox_normal(
        70_000, 6, torch.tensor(-3), torch.tensor(7), 5, 2**32 - 9, torch.float64, torch.device("cpu")
    )
    torch.testing.assert_close(torch.load(normals), expected, rtol=1e-12, atol=1e-14)


def test_kernels_load_and_compute(tmp_path: Path, run_python: Run) -> None:
    """The real sources, as whichever test was first has built them."""
    check_kernels(json.loads(run_python(COLD, tmp_path / "normals.pt")), tmp_path / "normals.pt")


@pytest.mark.slow
def test_kernels_build_cold(tmp_path: Path, cache: Path, run_python: Run) -> None:
    """The same in an empty cache: minutes, which a run of the tests in a new place takes once in any case."""
    told = json.loads(run_python(COLD, tmp_path / "normals.pt"))
    assert not told["before"]["built"]
    assert entries(cache) == [told["after"]["key"]]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    check_kernels(told, tmp_path / "normals.pt")


def test_import_builds_nothing(cache: Path, run_python: Run) -> None:
    run_python("import fastndsm")
    assert not cache.exists()


FALLS_BACK = """
import logging, sys
import torch
import fastndsm
from fastndsm import functional as F
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
logging.getLogger("fastndsm").addHandler(handler)
logging.getLogger("fastndsm").setLevel(logging.INFO)
for _ in range(3):
    found = F.philox_normal(5, 3, seed=1)
assert torch.equal(found, F.philox_normal(5, 3, seed=1, backend="reference"))
reason = sys.argv[1]
assert sum(reason in text for text in records) == 1, records
try:
    F.philox_normal(5, 3, seed=1, backend="cpp")
except fastndsm.BackendError as error:
    assert reason in str(error) and "reference" in str(error), error
else:
    raise AssertionError("backend cpp served")
"""


@pytest.mark.parametrize("circumstance", ["no compiler", "unwritable cache", "turned off"])
def test_without_a_build_the_library_works_on_the_reference(
    circumstance: str, tmp_path: Path, cache: Path, run_python: Run
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    environment: dict[str, str | None]
    reason, environment = {
        "no compiler": ("no C++ compiler found", {"PATH": str(tmp_path / "empty"), "CXX": None}),
        "unwritable cache": ("cannot be made", {"FASTNDSM_CACHE_DIR": str(tmp_path / "file" / "cache")}),
        "turned off": ("turned off by FASTNDSM_DISABLE_JIT", {"FASTNDSM_DISABLE_JIT": "1"}),
    }[circumstance]  # type: ignore[assignment]
    run_python(FALLS_BACK, reason, **environment)
    assert not cache.exists() or entries(cache) == []


AS_ORDINARY_USER = """
import os, sys
from pathlib import Path
from fastndsm.jit import core
root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(root, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
try:
    core.Builder("tiny", (root.parent / "tiny.cpp",), cache_dir=root).build()
except core.BuildError as error:
    print(error)
"""


def test_read_only_cache_is_named(run_python: Run) -> None:
    place = Path("/tmp") / f"fastndsm-test-{os.getpid()}"  # pytest's own directory is closed to other users
    place.mkdir()
    try:
        place.chmod(0o755)
        (place / "tiny.cpp").write_text('extern "C" int answer() { return 42; }\n')
        (place / "cache").mkdir(mode=0o500)
        assert "cannot be written to" in run_python(AS_ORDINARY_USER, place / "cache")
    finally:
        shutil.rmtree(place)


def test_turned_off_even_when_built(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder("tiny", (tiny,))
    builder.build()
    monkeypatch.setenv("FASTNDSM_DISABLE_JIT", "1")
    with pytest.raises(BuildError, match="turned off by FASTNDSM_DISABLE_JIT"):
        builder.build()
    with pytest.raises(BuildError, match="turned off by FASTNDSM_DISABLE_JIT"):
        core.load()
    report = core.status()
    assert not report["available"] and "turned off" in report["reason"]


@pytest.mark.parametrize(
    ("mode", "refused"), [(0o777, True), (0o1777, True), (0o770, True), (0o755, False), (0o700, False)]
)
def test_cache_that_others_may_write_to_is_refused(mode: int, refused: bool, tiny: Path, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)
    if refused:
        with pytest.raises(BuildError, match=rf"is refused: others may write to it \(mode {mode:o}\)"):
            Builder("tiny", (tiny,)).build()
        assert list(cache.iterdir()) == []
    else:
        assert Builder("tiny", (tiny,)).build().is_file()


def test_symbolic_links_are_refused(tmp_path: Path, tiny: Path, cache: Path) -> None:
    builder = Builder("tiny", (tiny,))
    built = builder.build()

    moved = tmp_path / "moved"
    built.parent.rename(moved)
    built.parent.symlink_to(moved)
    with pytest.raises(BuildError, match=f"{built.parent} is refused: it is a symbolic link"):
        builder.build()
    built.parent.unlink()

    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuildError, match=f"{cache} is refused: it is a symbolic link"):
        builder.build()
    cache.unlink()

    cache.mkdir(mode=0o700)
    (cache / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(BuildError, match="cannot be written to"):
        builder.build()
    assert not (tmp_path / "target").exists()


def test_file_in_place_of_the_cache_is_refused(tiny: Path, cache: Path) -> None:
    cache.touch()
    with pytest.raises(BuildError, match="it is not a directory"):
        Builder("tiny", (tiny,)).build()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_cache_of_another_user_is_refused(tiny: Path, cache: Path) -> None:
    cache.mkdir(mode=0o700)
    os.chown(cache, 65534, 65534)
    with pytest.raises(BuildError, match="expected owner 0, found 65534"):
        Builder("tiny", (tiny,)).build()


def test_failed_compilation_is_shown_and_leaves_nothing(tiny: Path, cache: Path) -> None:
    good = tiny.read_text()
    tiny.write_text("int answer() { return no_such_name; }\n")
    builder = Builder("tiny", (tiny,))
    with pytest.raises(BuildError, match="no_such_name") as caught:
        builder.build()
    (log,) = cache.glob("*.log")
    assert str(log) in str(caught.value) and "no_such_name" in log.read_text()
    assert entries(cache) == []
    tiny.write_text(good)
    assert ctypes.CDLL(str(builder.build())).answer() == 42


def test_load_fails_once_and_says_it_again(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A compilation that fails is not attempted anew by every op."""
    count = tmp_path / "compiled"
    monkeypatch.setenv("CXX", str(compiler_that(tmp_path, "counting", f"echo once >> {count}")))
    tiny.write_text("this is not C++\n")
    monkeypatch.setattr(core, "csrc_builder", lambda: Builder("tiny", (tiny,)))
    monkeypatch.setattr(core, "_loaded", None)
    monkeypatch.setattr(core, "_failure", None)
    messages = []
    for _ in range(2):
        with pytest.raises(BuildError) as caught:
            core.load()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "not C++" in messages[0]
    assert count.read_text() == "once\n"
    assert "not C++" in core.status()["reason"]


def test_key_follows_everything_the_library_is_made_from(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "tiny.h"
    header.write_text("// one\n")
    compiler = toolchain.find_compiler(core.compile_flags())
    builder = Builder("tiny", (tiny,), (header,))
    keys = [builder.key(compiler)]
    assert Builder("tiny", (tiny,), (header,)).key(compiler) == keys[0]

    keys.append(Builder("tiny", (tiny,), (header,), compile_flags=("-O0", "-fPIC")).key(compiler))
    keys.append(Builder("tiny", (tiny,), (header,), link_flags=("-s",)).key(compiler))
    for change in ({"command": ("cc",)}, {"version": "other"}, {"target": "other machine"}):
        keys.append(builder.key(toolchain.Compiler(**(vars(compiler) | change))))
    header.write_text("// two\n")
    keys.append(builder.key(compiler))
    tiny.write_text(tiny.read_text() + "// more\n")
    os.utime(tiny, (0, 0))  # content counts, not the time stamp
    keys.append(builder.key(compiler))
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.append(builder.key(compiler))
    assert len(set(keys)) == len(keys)


WHICH = """
import json
import torch
from fastndsm.jit import core
core.load()
print(json.dumps([torch.ops.fastndsm_cpp.vector_isa(), core.status()["requested_isa"]]))
"""


def test_the_instruction_set_can_be_named(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, start_python: Start
) -> None:
    """Each that the machine has is compiled for, under a key of its own; any other is refused by name."""
    keys, here = [], toolchain.instruction_sets()
    assert "sse2" in here or "neon" in here
    for name in (None, *here):
        monkeypatch.setenv("FASTNDSM_ISA", name or "")
        builder = Builder("tiny", (tiny,))
        keys.append(builder.key(toolchain.find_compiler(builder.compile_flags)))
        status = core.status()
        assert status["requested_isa"] == name and status["flags"] == list(builder.compile_flags)
        assert ("-march=native" in status["flags"]) == (name is None)
    assert len(set(keys)) == len(keys)

    for wrong in ("avx1024", "neon" if "sse2" in here else "avx2"):
        monkeypatch.setenv("FASTNDSM_ISA", wrong)
        message = rf"FASTNDSM_ISA: expected an instruction set of this machine \({', '.join(here)}\), found '{wrong}'"
        with pytest.raises(ValueError, match=f"^{message}$"):
            core.build()
        assert re.fullmatch(message, core.status()["reason"]) and not core.status()["available"]
        process = start_python("from fastndsm import functional; functional.philox_normal(1, 1, seed=1)")
        assert re.search(f"ValueError: {message}$", process.communicate()[1].strip())  # auto does not fall back


@pytest.mark.slow
@pytest.mark.parametrize("isa", toolchain.instruction_sets())
def test_the_library_is_of_the_instruction_set_that_is_named(isa: str, run_python: Run) -> None:
    assert json.loads(run_python(WHICH, FASTNDSM_ISA=isa)) == [isa, isa]


def test_compilers_and_tools_are_named(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler found: CXX is 'no-such-compiler -x'"):
        Builder("tiny", (tiny,)).build()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(BuildError, match=r"(?s)compiler does not work: .*out of order"):
        Builder("tiny", (tiny,)).build()


def test_ninja_need_not_be_on_the_path(
    tmp_path: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("g++", "as", "ld", "sh"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("ninja") is None
    assert ctypes.CDLL(str(Builder("tiny", (tiny,)).build())).answer() == 42
