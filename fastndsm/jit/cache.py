"""The private directory that compiled code is kept in: how its entries come there, and the lock under which they do."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import Timeout, UnixFileLock

logger = logging.getLogger("fastndsm")

WAIT_SECONDS = 1800.0


class BuildError(RuntimeError):
    """The compiled kernels cannot be had; the message says why."""


class CompilationError(BuildError):
    """The tools are there, but what they make of the sources is no library that can be loaded."""


def default_cache_dir() -> Path:
    if named := os.environ.get("FASTNDSM_CACHE_DIR"):
        return Path(os.path.abspath(os.path.expanduser(named)))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "fastndsm"


def make_private(directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
    except OSError as error:
        raise BuildError(f"the cache directory {directory} cannot be made: {error}") from error
    require_private(directory)


def require_private(directory: Path) -> None:
    try:
        info = os.lstat(directory)
    except OSError as error:
        raise BuildError(f"the cache directory {directory} cannot be read: {error}") from error
    if stat.S_ISLNK(info.st_mode):
        raise BuildError(f"the cache directory {directory} is refused: it is a symbolic link")
    if not stat.S_ISDIR(info.st_mode):
        raise BuildError(f"the cache directory {directory} is refused: it is not a directory")
    if info.st_uid != os.geteuid():
        raise BuildError(
            f"the cache directory {directory} is refused: expected owner {os.geteuid()}, found {info.st_uid}"
        )
    if info.st_mode & 0o022:
        raise BuildError(
            f"the cache directory {directory} is refused: others may write to it "
            f"(mode {stat.S_IMODE(info.st_mode):o}); chmod 700 it, or set FASTNDSM_CACHE_DIR"
        )


def is_built(library: Path) -> bool:
    if not os.path.lexists(library.parent):
        return False
    require_private(library.parent)
    return library.is_file() and not library.is_symlink()


@contextlib.contextmanager
def locked(root: Path, name: str) -> Iterator[None]:
    """Hold the cache's lock. It is the system's, tied to an open file: it never outlives its process."""
    path = root / "lock"  # not followed if it is a symbolic link
    lock = UnixFileLock(path, mode=0o600, fallback_to_soft=False, preserve_lock_file=True)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.warning("waiting for another process, which is building %s in %s", name, root)
            lock.acquire(timeout=WAIT_SECONDS, poll_interval=0.1)
    except Timeout:
        raise BuildError(f"another process has held {path} for {WAIT_SECONDS:.0f} s") from None
    except OSError as error:
        if error.filename is None:  # of flock, which knows no name
            raise BuildError(f"{path} cannot be locked: {error}") from error
        raise BuildError(f"the cache directory {root} cannot be written to: {error}") from error
    try:
        yield
    finally:
        lock.release()


def kept(root: Path, file: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return a file of the cache, root/ENTRY/FILE; where there is none, make(folder) makes what its entry holds, once.

    The entry is there whole or not at all, also after a crash.

    Raises:
        BuildError: the cache cannot be used or is not safe, or `make` raised an OSError.
    """
    make_private(root)
    if is_built(file):
        return file
    with locked(root, name):
        if not is_built(file):
            remove_leftovers(root, file.parent)
            _put(root, file, name, make)
    return file


def _put(root: Path, file: Path, name: str, make: Callable[[Path], None]) -> None:
    try:
        work = Path(tempfile.mkdtemp(prefix="building-", dir=root))
    except OSError as error:
        raise BuildError(f"the cache directory {root} cannot be written to: {error}") from error
    try:
        make(work)
        flush(work / file.name)
        flush(work)
        os.rename(work, file.parent)
        flush(root)
    except OSError as error:
        raise BuildError(f"building {name} in {root} failed: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_leftovers(root: Path, entry: Path) -> None:
    """Remove what is unfinished: under the lock nobody else builds, so that its builder has died."""
    for path in [*root.glob("building-*"), entry]:
        shutil.rmtree(path, ignore_errors=True)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
