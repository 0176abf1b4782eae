"""The lock of a folder that one process at a time writes to: the system's, which a killed process leaves free."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .. import _checks
from .storage import CheckpointError

LOCK_NAME = "lock"  # in the folder, while it is held
MOMENTS = 20  # of a twentieth of a second, for the holder to write who it is


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if there is none, and removed again if nothing was put there.

    Args:
        name: of the argument that gave the folder.

    Raises:
        CheckpointError: if another process holds it, naming that process.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{name}: expected a folder that can be written to, found {folder} ({error})") from error
    path = folder / LOCK_NAME
    lock = FileLock(path, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CheckpointError(
            f"{name}: expected a folder that no run is writing to, found {folder} in use by {_holder(path)}"
            f"{_checks.cure('folder-in-use')}"
        ) from None
    except PermissionError as error:
        raise CheckpointError(f"{name}: expected a folder that can be written to, found {folder} ({error})") from error
    except OSError as error:  # a file system without locks
        warnings.warn(f"{name}: {folder} cannot be locked ({error}); start no second run in it", stacklevel=4)
        yield
        return
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}))
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the release: whoever has opened it already looks whether it still has a name
        lock.release()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _holder(path: Path) -> str:
    for _ in range(MOMENTS):
        try:
            found = json.loads(path.read_text())
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(found["time"])))
            return f"process {found['pid']} on {found['host']}, since {since}"
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.05)
    return "another process"
