"""Every variant of the Triton kernels compiled ahead of time, in a record that grows from run to run.

    FASTNDSM_BENCH_DEVICE=cpu python -m benchmarks.gpu.ahead [TARGET ...] [--seconds S]

compiles what the GPU suite launches and the record of the Triton in use lacks, writes down each as it is done, and
prints what spills or does not compile. A record knows a variant by its code: by the kernel and all that it calls as
Python reads them, by types, constants and options. Where comments or places in a file change, nothing is compiled anew.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import inspect
import json
import math
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastndsm.cli.tables import markdown

from . import cases
from .launches import TARGETS, Compiled, Variant, add_limits, compile_variants, of_families, without_gpu

RESULTS = Path(__file__).resolve().parent.parent / "results"
OPTIONS = ("num_warps", "num_stages", "maxnreg")  # that configurations give; others are defaults of a version
DIVISIBLE = ["tt.divisibility", 16]  # what a launch says of an argument; other attributes are those of a version
FIELDS = ("registers", "shared", "spilled", "instructions")  # of a variant in a record, in this order
AT_ONCE = 16  # variants between two writings of the record


class Record:
    """Outcomes of variants with one version of Triton: a row of FIELDS each, or the error."""

    def __init__(self, version: str, folder: Path = RESULTS) -> None:
        self.path = folder / f"triton-{version}.json"
        self.rows: dict[str, dict[str, list[int] | str]] = {}  # by target, and a variant's identity
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text())

    def lacks(self, target: str, variants: Mapping[str, Variant]) -> dict[str, Variant]:
        """Return those of the variants, by identity, that it has nothing of, or an error."""
        known = self.rows.get(target, {})
        return {name: v for name, v in variants.items() if not isinstance(known.get(name), list)}

    def add(self, target: str, found: Mapping[str, Compiled]) -> None:
        """Write down what came of some variants."""
        rows = self.rows.setdefault(target, {})
        for name, one in found.items():
            rows[name] = one.error or [getattr(one, field) for field in FIELDS]
        self._store()

    def keep(self, target: str, names: Iterable[str]) -> None:
        """Drop what is launched no more: names are all that are."""
        kept, rows = set(names), self.rows.get(target, {})
        if not rows.keys() <= kept:
            self.rows[target] = {name: row for name, row in rows.items() if name in kept}
            self._store()

    def row(self, target: str, name: str) -> dict[str, Any]:
        """Return a variant's target, kernel, and FIELDS or error, by name."""
        about, found = {"target": target, "kernel": name.split()[0]}, self.rows[target][name]
        return about | ({"error": found} if isinstance(found, str) else dict(zip(FIELDS, found, strict=True)))

    def faults(self, target: str) -> dict[str, str]:
        """Return what is wrong with the variants that spill or do not compile."""
        said = {}
        for name in self.rows.get(target, {}):
            row = self.row(target, name)
            if "error" in row or row["spilled"]:
                said[name] = row.get("error") or f"{row['spilled']} bytes spilled"
        return said

    def _store(self) -> None:
        """Write it whole, a line a variant; a reader finds the old file or the new one."""
        parts = []
        for target in sorted(self.rows):
            lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(self.rows[target].items())]
            parts.append(f" {json.dumps(target)}: {{\n" + ",\n".join(lines) + "\n }")
        new = self.path.with_suffix(".new")
        new.write_text("{\n" + ",\n".join(parts) + "\n}\n")
        new.replace(self.path)


def recorded() -> list[str]:
    """Return the versions of Triton that there are records of."""
    return sorted(path.stem.removeprefix("triton-") for path in RESULTS.glob("triton-*.json"))


# --- what a variant is -------------------------------------------------------------------------------------------


def identity(variant: Variant) -> str:
    """Return the kernel's name and a digest of what is compiled, the same with every version of Triton."""
    source = variant.source
    parts = {
        "code": code(source.fn),
        "signature": sorted((name, str(kind)) for name, kind in source.signature.items()),
        "constants": sorted((path, _constant(value)) for path, value in source.constants.items()),
        "divisible": sorted(path for path, said in source.attrs.items() if DIVISIBLE in said),
        "options": [(name, variant.options.get(name)) for name in OPTIONS],
    }
    return f"{variant.kernel} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _constant(value: Any) -> str:
    return code(value) if hasattr(value, "src") else repr(value)


@functools.cache
def code(function: Any) -> str:
    """Return a jit function and all that it calls as text, without comments and docstrings, with globals read."""
    known: dict[Any, str] = {}
    _read(function, known)
    return "\n".join(known.values())


def _read(function: Any, known: dict[Any, str]) -> None:
    import triton.language as tl

    if function in known:
        return
    tree = ast.parse(textwrap.dedent(function.src))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    known[function] = ast.unparse(tree)
    names = inspect.getclosurevars(function.fn)
    for name, value in sorted((names.globals | names.nonlocals).items()):
        if hasattr(value, "src"):
            _read(value, known)
        elif isinstance(value, (tl.constexpr, str, int, float)):
            known[function] += f"\n{name} = {value!r}"


def variants(target: str, families: Iterable[str] = cases.FAMILIES) -> dict[str, Variant]:
    """Return what the checks of families of ops launch, by identity."""
    return {identity(v): v for v in of_families(target, families)}


# --- compiled ----------------------------------------------------------------------------------------------------


def compile_missing(
    record: Record, target: str, launched: Mapping[str, Variant], processes: int, seconds: float = math.inf
) -> int:
    """Compile what the record lacks of what is launched, for so long; return how many are left."""
    end = time.monotonic() + seconds
    record.keep(target, launched)
    missing = list(record.lacks(target, launched).items())
    while missing and (left := end - time.monotonic()) > 0:
        names, some = zip(*missing[:AT_ONCE], strict=True)
        found = compile_variants(some, processes, left)
        record.add(target, dict(zip(names, found, strict=False)))
        missing = missing[len(found) :]
    return len(missing)


def main() -> int:
    """Compile, and print; return 1 where something spills or does not compile."""
    import triton

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default all")
    add_limits(parser)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"expected targets of {', '.join(TARGETS)}, found {', '.join(sorted(unknown))}")
    without_gpu()
    end, record, bad = time.monotonic() + options.seconds, Record(triton.__version__), []
    for target in options.targets or TARGETS:
        left = compile_missing(record, target, variants(target), options.processes, end - time.monotonic())
        print(f"{target}, Triton {triton.__version__}: {len(record.rows.get(target, {}))} compiled, {left} left")
        bad += [[target, name, said] for name, said in record.faults(target).items()]
    if bad:
        print(markdown(("target", "variant", "what"), bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
