"""Two threads and an allocator that keeps its memory for everyone, one place where times are taken, and the results of
a whole run in results/.

Settings: FASTNDSM_BENCH_SIZE=tiny (the code path in seconds; its figures mean nothing), FASTNDSM_BENCH_RESULTS (where
results go; default results/ beside this file, and nowhere if tiny).
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

THREADS = 1 if os.environ.get("FASTNDSM_BENCH_SIZE") == "tiny" else 2
HERE = Path(__file__).resolve().parent
# Before torch or XLA look: both size their pools by what this process may run on.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ.pop("OMP_NUM_THREADS", None)


def keep_freed_memory() -> None:
    """Make glibc give no memory back, so that no time depends on whether results lie in memory new to the process."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


keep_freed_memory()

import torch  # noqa: E402

import fastndsm  # noqa: E402
from fastndsm.jit import core  # noqa: E402

from . import roofline  # noqa: E402
from .problems import TINY  # noqa: E402
from .record import SHARE_OF_ROOFLINE, Record  # noqa: E402
from .rows import Row  # noqa: E402

RECORD = pytest.StashKey[Record]()
SECONDS = 1.5  # of rounds, for one contender and turn
FEWEST, MOST = (2, 2) if TINY else (3, 100)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORD] = Record()


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, len(os.sched_getaffinity(0))))
    core.load()
    with fastndsm.use_backend("cpp"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_start() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Record:
    return request.config.stash[RECORD]


@pytest.fixture(scope="session")
def rates(record: Record, two_threads: None) -> roofline.Rates:
    """Return the machine's rates, measured once."""
    if record.rates is None:
        record.rates = roofline.measure()
    return record.rates


Run = Callable[[], Any]


@pytest.fixture
def race(benchmark: Any, record: Record) -> Callable[..., None]:
    """Time the fastest of a contender's configurations and record its rounds; call it only where they agree."""

    def run(row: Row, configurations: dict[str, Run] | Run, seconds: float = SECONDS) -> None:
        if not isinstance(configurations, dict):
            configurations = {"": configurations}
        single = {name: _fastest(call) for name, call in configurations.items()}
        row.configuration = min(single, key=lambda name: single[name])
        rounds = min(MOST, max(FEWEST, math.ceil(seconds / single[row.configuration])))
        benchmark.group = f"{row.op} {row.case}"
        benchmark.extra_info.update(contender=row.contender, configuration=row.configuration)
        benchmark.pedantic(configurations[row.configuration], rounds=rounds, iterations=1)
        if benchmark.stats is not None:  # --benchmark-disable
            row.seconds = list(benchmark.stats.stats.data)
            row.turns = [len(row.seconds)]
            row.share = row.share or (None if row.roofline_seconds is None else SHARE_OF_ROOFLINE)
            record.rows.add(row)

    return run


def _fastest(run: Run) -> float:
    """Return seconds of the faster of two calls; the comparison before has warmed it up and compiled its code."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.append(report.nodeid)


_failed: list[str] = []


def _whole(session: pytest.Session) -> bool:
    """Return whether every benchmark of the suite was to run: results are of one run."""
    files = {item.path for item in session.items}
    asked = session.config.args
    return not any("::" in a for a in asked) and files >= set(HERE.glob("test_*.py")) and not _deselected


_deselected: list[Any] = []


def pytest_deselected(items: list[Any]) -> None:
    _deselected.extend(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    record = session.config.stash[RECORD]
    record.failed = list(dict.fromkeys(_failed))
    place = os.environ.get("FASTNDSM_BENCH_RESULTS")
    if record.rows and (place or (_whole(session) and not TINY)):
        record.store(Path(place) if place else HERE / "results")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    record = config.stash[RECORD]
    if record.rows:
        terminalreporter.section("figures" + (" (tiny: they mean nothing)" if TINY else ""))
        terminalreporter.write(record.markdown())
