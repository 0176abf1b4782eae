"""Instructions of a compiled program, each as often as its loops run: what a warp issues, and to which pipe."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

LINE = re.compile(
    r"^\s+/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][A-Za-z0-9_.]*)\s*(?P<rest>[^;]*);", re.MULTILINE
)
ADDED = re.compile(r"(?P<to>U?R\d+),(?: U?P\d,)* (?:(?P=to)(?:\.reuse)?|U?R\d+), (?P<added>0x[0-9a-f]+)(?:, U?R\w+)?$")
ALU = (
    "IADD",
    "LOP",
    "SHF",
    "LEA",
    "ISETP",
    "IMNMX",
    "VIMNMX",
    "SEL",
    "PRMT",
    "FSETP",
    "FSEL",
    "FMNMX",
    "VIADD",
    "PLOP",
)
# Lanes of a quarter of a multiprocessor of an H100 that a pipe serves in a cycle, as cycles for a warp's instruction.
PIPES: dict[str, tuple[tuple[str, ...], float]] = {
    "fp32": (("FFMA", "FADD", "FMUL"), 1.0),
    "imad": (("IMAD",), 2.0),
    "alu": (ALU, 2.0),
    "mufu": (("MUFU", "I2F", "F2I", "POPC", "FLO"), 8.0),
    # 1,024 multiply-adds of tf32 (16 x 8 x 8), of which a quarter does 256 a cycle, and 62% of that by mma.sync; of a
    # warp group's (64 x n x 8) each of its four warps has a quarter
    "tensor": (("HMMA", "HGMMA"), 4.0 / 0.62),
    # 32 lanes by 32 bits at 128 bytes a cycle for four quarters; wider ones in proportion
    "global memory": (("LDG", "STG"), 4.0),
    "shared memory": (("LDS", "STS"), 4.0),
}


@dataclass
class Loop:
    """A loop by the addresses of its first and last instruction, and what is in it but not in the loops within it."""

    first: int
    last: int
    depth: int = 0
    inner: list[Loop] = field(default_factory=list)
    instructions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def leaf(self) -> bool:
        return not self.inner

    def stride(self, unit: int) -> int:
        """Return by how many units a counter goes on at each turn: the least of what registers are increased by."""
        steps = [
            int(match["added"], 16) for op, rest in self.instructions if "ADD" in op and (match := ADDED.match(rest))
        ]
        return min((step // unit for step in steps if step % unit == 0), default=1)


def program(sass: str) -> Loop:
    """Return a program as a loop that runs once: as far as its last EXIT, behind which are slow paths and padding."""
    lines = [(int(m["at"], 16), m["op"], m["rest"].strip()) for m in LINE.finditer(sass)]
    last = max((i for i, (_, op, _) in enumerate(lines) if op == "EXIT"), default=len(lines) - 1)
    if last + 1 < len(lines) and lines[last + 1][1] == "BRA" and _target(lines[last + 1][2]) < lines[last][0]:
        last += 1  # the way back of a loop that ends in the EXIT
    lines = lines[: last + 1]
    ends: dict[int, int] = {}
    for at, op, rest in lines:
        if op == "BRA" and (to := _target(rest)) < at:
            ends[to] = max(at, ends.get(to, 0))
    whole = Loop(0, lines[-1][0])
    for first, end in sorted(ends.items(), key=lambda pair: (pair[0], -pair[1])):
        within = _innermost(whole, first)
        within.inner.append(Loop(first, end, within.depth + 1))
    for at, op, rest in lines:
        _innermost(whole, at).instructions.append((op, rest))
    return whole


def _target(rest: str) -> int:
    found = re.search(r"0x[0-9a-f]+", rest)
    return int(found[0], 16) if found else 1 << 62


def _innermost(loop: Loop, at: int) -> Loop:
    for one in loop.inner:
        if one.first <= at <= one.last:
            return _innermost(one, at)
    return loop


@dataclass
class Count:
    """Instructions that a warp issues, and the cycles that they take each pipe."""

    instructions: float = 0.0
    cycles: Counter[str] = field(default_factory=Counter)

    def add(self, op: str, times: float) -> None:
        self.instructions += times
        for pipe, (names, cost) in PIPES.items():
            if not op.startswith(names):
                continue
            if pipe.endswith("memory"):
                cost *= 4.0 if ".128" in op else 2.0 if ".64" in op else 1.0
            elif group := re.match(r"HGMMA\.64x(\d+)x8", op):
                cost = int(group[1]) / 2.0
            self.cycles[pipe] += times * cost

    @property
    def most(self) -> tuple[str, float]:
        """The pipe that is taken longest, with its cycles; "issue" is one instruction a cycle."""
        return max([("issue", self.instructions), *self.cycles.items()], key=lambda pair: pair[1])


def count(loop: Loop, turns: Callable[[Loop], float], times: float = 1.0) -> Count:
    """Count the instructions of a loop that runs so many times, those within by the turns of each loop."""
    found = Count()
    for op, _ in loop.instructions:
        found.add(op, times)
    for one in loop.inner:
        inner = count(one, turns, times * turns(one))
        found.instructions += inner.instructions
        found.cycles.update(inner.cycles)
    return found
