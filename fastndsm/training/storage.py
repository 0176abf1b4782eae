"""Folders of safetensors and one JSON document, written whole or not at all, verified before they are read.

A folder is written under a temporary name beside its place, synchronised to the disk and renamed, so that a
process killed at any moment leaves the old state or the new one. The document lists the size and SHA-256 of
every other file. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _checks

__all__ = ["CheckpointError", "read_folder", "tensor_digest", "write_folder", "write_text"]

VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint or model folder that is missing, damaged, foreign, or of another run."""


def write_folder(
    path: Path,
    document_name: str,
    kind: str,
    document: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    trial: bool = False,
) -> None:
    """Write `document` and the tensors of each safetensors file to the folder `path`, replacing an older one.

    Args:
        trial: write it all under the temporary name, and delete it: whatever would fail, fails.

    Raises:
        CheckpointError: if something else stands at `path`; it is left as it is.
        TypeError: naming the tensor that safetensors cannot store.
    """
    path = Path(path)
    if path.exists() and not (path / document_name).is_file():
        raise CheckpointError(f"{path}: expected no file or a {kind} folder to replace, found something else")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _fill(temporary, document_name, kind, document, tensors)
        if trial:
            return
        if path.exists():
            old = path.with_name(f"{path.name}.tmp-old-{os.getpid()}")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _synchronise(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(
    folder: Path,
    document_name: str,
    kind: str,
    document: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    from safetensors.torch import save_file

    files: dict[str, dict[str, Any]] = {}
    for name, group in tensors.items():
        try:
            save_file(_storable(group), folder / name)
        except KeyError as error:
            raise TypeError(f"{name}: expected tensors of dtypes that safetensors stores, found {error}") from error
        _synchronise(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _file_digest(folder / name)}
        if pairs := [key for key, tensor in group.items() if tensor.is_complex()]:
            files[name]["complex"] = pairs
    header = {"format": f"fastndsm {kind}", "version": VERSION, "files": files}
    text = json.dumps({**header, **document}, indent=1, allow_nan=False)
    (folder / document_name).write_text(text, encoding="utf-8")
    _synchronise(folder / document_name)
    _synchronise(folder)


def _storable(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors takes them: dense, on the CPU, in memory of their own, complex as pairs."""
    made: dict[str, Tensor] = {}
    memory = set()
    for key, tensor in group.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else tensor.dtype if tensor.is_quantized else tensor.layout
            raise TypeError(f"{key}: expected a dense tensor, which can be stored, found a {kind} one")
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        values = torch.view_as_real(values) if values.is_complex() else values
        if values.untyped_storage().data_ptr() in memory:
            values = values.clone()
        memory.add(values.untyped_storage().data_ptr())
        made[key] = values
    return made


def read_folder(
    path: Path,
    document_name: str,
    kind: str,
    files: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    optional_alone: bool = False,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the document and the tensors of each of `files`, and of those of `optional` that there are, on the CPU.

    optional_alone: read and verify those of `optional` alone; the others are only expected to be listed.

    Raises:
        CheckpointError: naming the file, if one is missing, truncated, altered or of another kind.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    document = _read_document(path / document_name, kind)
    listed = document.get("files")
    found = tuple(name for name in optional if isinstance(listed, dict) and name in listed)
    if not isinstance(listed, dict) or sorted(listed) != sorted(files + found):
        raise CheckpointError(f"{path / document_name}: expected it to list {', '.join(files)}, found {listed}")
    tensors, hint = {}, _checks.cure("damaged-files")
    for name in found if optional_alone else files + found:
        expected, file = listed[name], path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: expected a file of {expected['bytes']} bytes, found none")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise CheckpointError(
                f"{file}: expected {expected['bytes']} bytes, found {size}: truncated or altered{hint}"
            )
        if _file_digest(file) != expected["sha256"]:
            found_hash = f"expected SHA-256 {expected['sha256'][:12]}..., found another: altered"
            raise CheckpointError(f"{file}: {found_hash}{hint}")
        try:
            tensors[name] = load_file(file)
            for key in expected.get("complex", ()):
                tensors[name][key] = torch.view_as_complex(tensors[name][key])
        except SafetensorError as error:
            raise CheckpointError(f"{file}: expected a safetensors file, found: {error}") from error
    return document, tensors


def json_object(name: str, value: Any) -> dict[str, Any]:
    """Check that JSON can hold value, a dict or None; return it as a dict."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a JSON-able dict, found {type(value).__name__}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a JSON-able dict, found: {error}") from error
    return dict(value or {})


def write_text(path: Path, text: str) -> None:
    """Write one file under a temporary name and rename it."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    _synchronise(temporary)
    temporary.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary folders of processes that were killed while writing."""
    for leftover in folder.glob("*.tmp-*"):
        match = re.search(r"\.tmp-(?:old-)?(\d+)$", leftover.name)
        if match and leftover.is_dir() and not _running(int(match[1])):
            shutil.rmtree(leftover, ignore_errors=True)


def tensor_digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of the tensors' dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_document(file: Path, kind: str) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a fastndsm {kind}, found no such file")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: expected a JSON document, found it truncated or foreign ({error})") from error
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or found != f"fastndsm {kind}":
        raise CheckpointError(f"{file}: expected format 'fastndsm {kind}', found {found!r}")
    if document.get("version") != VERSION:
        raise CheckpointError(f"{file}: expected version {VERSION}, found {document.get('version')!r}")
    return document


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _synchronise(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # only POSIX opens a directory
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _running(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
