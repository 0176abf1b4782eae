"""The fixed configuration of every kernel: one table, by op, size (d, K) and architecture.

Chosen by shape and never by timing, so that the same call computes the same bits everywhere and always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

SMALL = 4  # the largest dimension whose samples are held in registers
SMALL_PATHS = 8  # the same of trajectories and of reverse steps
PAIRED = 5  # the largest in which registers hold both paths of an antithetic pair
WHOLE_FULL = 32  # the largest in which these hold blocks of whole paths
WHOLE = 16  # the largest whose samples are, whatever the number of components, one tile of mixture_score
MANY = 1024  # components


@dataclass(frozen=True)
class Configuration:
    """Choices with which a kernel is compiled for the sizes it serves.

    dim and components are the largest that it serves (None: any), architecture the only one it is for, such as
    "sm_90" or "gfx942" (None: any). constants are the kernel's constexpr arguments by name. registers is
    the most that a thread may have on NVIDIA's GPUs, whose assembler else spills for the sake of more warps at a time.
    """

    constants: Mapping[str, int]
    num_warps: int
    num_stages: int | None  # None: Triton's default
    dim: int | None
    components: int | None
    architecture: str | None
    registers: int | None = None

    def __getitem__(self, constant: str) -> int:
        return self.constants[constant]

    def serves(self, dim: int, components: int, architecture: str | None) -> bool:
        return (
            (self.dim is None or dim <= self.dim)
            and (self.components is None or components <= self.components)
            and self.architecture in (None, architecture)
        )

    @property
    def options(self) -> dict[str, int]:
        """Options of the compiler."""
        given = {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.registers}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def launch(self) -> dict[str, int]:
        """Keyword arguments of a launch: the constants and the compiler's options."""
        return {**self.constants, **self.options}

    def launch_with(self, components: int, held: bool = True) -> dict[str, int]:
        """Return what a launch among so many components takes; RESIDENT: `held`, and one block has them all."""
        resident = held and components <= self["COMPONENTS"]
        return {**self.launch, "RESIDENT": resident, **({"COMPONENTS": components} if resident else {})}


def _for(
    dim: int | None = None,
    components: int | None = None,
    architecture: str | None = None,
    *,
    num_warps: int,
    num_stages: int | None = None,
    registers: int | None = None,
    **constants: int,
) -> Configuration:
    return Configuration(constants, num_warps, num_stages, dim, components, architecture, registers)


# The first configuration of an op that serves (d, K) on an architecture is taken: an entry for one architecture stands
# before the general one that it replaces, and the last entry of each op serves everything.
TABLE: dict[str, tuple[Configuration, ...]] = {
    # ROWS paths by BLOCKS counters, each giving 2 PAIRS dimensions: two counters a thread on NVIDIA, one on AMD, whose
    # waves are twice as wide.
    "philox_normal": (
        _for(dim=2, ROWS=256, BLOCKS=1, PAIRS=1, num_warps=4),
        _for(dim=4, ROWS=256, BLOCKS=1, PAIRS=2, num_warps=4),
        _for(dim=8, ROWS=128, BLOCKS=2, PAIRS=2, num_warps=4),
        _for(dim=16, ROWS=64, BLOCKS=4, PAIRS=2, num_warps=4),
        _for(ROWS=32, BLOCKS=8, PAIRS=2, num_warps=4),
    ),
    # Up to d = 4, ROWS samples in registers. Above, blocks of COMPONENTS: samples whole while d <= DIMS, else in tiles.
    # Logits are taken from differences, one component at a time (DIRECT), or from matrix products once there are many.
    "mixture_score": (
        _for(dim=4, ROWS=256, num_warps=4),
        _for(dim=16, ROWS=64, COMPONENTS=16, DIMS=16, num_warps=4, registers=255),
        _for(dim=64, components=256, ROWS=32, COMPONENTS=16, DIMS=64, num_warps=4),
        _for(components=16, ROWS=16, COMPONENTS=16, DIMS=64, DIRECT=1, num_warps=4, num_stages=1),
        _for(ROWS=64, COMPONENTS=32, DIMS=16, DIRECT=0, num_warps=4, num_stages=1),
    ),
    # More than MANY components: larger blocks, whose sums are read and written less often.
    "mixture_score_many": (_for(ROWS=64, COMPONENTS=64, DIMS=16, DIRECT=0, num_warps=4, num_stages=1),),
    "mixture_hvp": (
        _for(dim=4, ROWS=256, num_warps=4),
        _for(dim=16, ROWS=64, COMPONENTS=16, DIMS=16, num_warps=4),
        _for(dim=64, components=256, ROWS=16, COMPONENTS=16, DIMS=64, num_warps=4, registers=255),
        _for(components=16, ROWS=16, COMPONENTS=16, DIMS=32, DIRECT=1, num_warps=4, num_stages=1, registers=255),
        _for(ROWS=32, COMPONENTS=16, DIMS=16, DIRECT=0, num_warps=4, num_stages=1),
    ),
    "mixture_merge": (
        _for(dim=4, ROWS=64, DIMS=4, num_warps=4),
        _for(ROWS=4, DIMS=128, num_warps=4),
    ),
    "precision_product": (_for(ROWS=32, COLUMNS=64, DEPTH=32, num_warps=4, registers=255),),
    "turn": (_for(dim=16, COLUMNS=16, DEPTH=16, num_warps=1), _for(COLUMNS=64, DEPTH=32, num_warps=4)),
    # Up to d = 4: ROWS paths, a lane each, and a warp by itself, so that it waits for none. A few components stay in
    # registers; more are read in blocks of COMPONENTS, for two paths a lane.
    "simulate_small": (
        _for(dim=2, components=8, architecture="gfx942", ROWS=64, COMPONENTS=8, num_warps=1),
        _for(dim=4, components=4, architecture="gfx942", ROWS=64, COMPONENTS=4, num_warps=1),
        _for(architecture="gfx942", ROWS=64, COMPONENTS=2, num_warps=1),
        _for(dim=2, components=10, ROWS=32, COMPONENTS=10, num_warps=1),
        _for(dim=4, components=4, ROWS=32, COMPONENTS=4, num_warps=1),
        _for(dim=2, ROWS=64, COMPONENTS=4, num_warps=1),
        _for(ROWS=64, COMPONENTS=2, num_warps=1),
    ),
    # In 5 to 8 dimensions, the same.
    "simulate_eight": (
        _for(architecture="gfx942", ROWS=64, COMPONENTS=4, num_warps=1),
        _for(ROWS=32, COMPONENTS=4, num_warps=1, registers=255),
    ),
    # Full covariances there: two paths a lane share what is read, but with a target, as each has axes of its own.
    "simulate_eight_full": (
        _for(dim=5, ROWS=64, COMPONENTS=2, num_warps=1),
        _for(ROWS=64, COMPONENTS=1, num_warps=1, registers=255),
    ),
    "simulate_eight_full_target": (
        _for(architecture="gfx942", ROWS=64, COMPONENTS=1, num_warps=1),
        _for(dim=5, ROWS=32, COMPONENTS=2, num_warps=1, registers=255),
        _for(ROWS=32, COMPONENTS=1, num_warps=1, registers=255),
    ),
    # And in more: ROWS whole paths, as many as a tensor core takes at once.
    "simulate_whole": (
        _for(dim=16, ROWS=16, num_warps=1, num_stages=1),
        _for(ROWS=16, num_warps=4, num_stages=1),
    ),
    # A program's drift, whatever it is: ROWS paths, a lane each.
    "drift": (_for(architecture="gfx942", ROWS=64, num_warps=1), _for(ROWS=32, num_warps=1)),
    # Above: ROWS paths by tiles of COLUMNS dimensions, four a lane; a warp has rows to itself. A few components are
    # weighed at once, more in blocks of COMPONENTS.
    "simulate_spherical": (
        _for(components=10, architecture="gfx942", ROWS=4, COLUMNS=64, COMPONENTS=10, num_warps=1, num_stages=1),
        _for(architecture="gfx942", ROWS=4, COLUMNS=64, COMPONENTS=4, num_warps=1, num_stages=1),
        _for(dim=16, components=10, ROWS=8, COLUMNS=16, COMPONENTS=10, num_warps=1, num_stages=1),
        _for(dim=32, components=10, ROWS=8, COLUMNS=32, COMPONENTS=10, num_warps=1, num_stages=1, registers=255),
        _for(dim=64, components=10, ROWS=4, COLUMNS=64, COMPONENTS=10, num_warps=1, num_stages=1),
        _for(components=10, ROWS=2, COLUMNS=128, COMPONENTS=10, num_warps=1, num_stages=1, registers=255),
        _for(dim=16, ROWS=8, COLUMNS=16, COMPONENTS=6, num_warps=1, num_stages=1, registers=255),
        _for(dim=32, ROWS=8, COLUMNS=32, COMPONENTS=6, num_warps=1, num_stages=1, registers=255),
        _for(ROWS=4, COLUMNS=64, COMPONENTS=6, num_warps=1, num_stages=1, registers=255),
    ),
    "simulate_diag": (
        _for(architecture="gfx942", ROWS=4, COLUMNS=64, COMPONENTS=4, num_warps=1, num_stages=1),
        _for(dim=16, components=10, ROWS=8, COLUMNS=16, COMPONENTS=10, num_warps=1, num_stages=1, registers=255),
        _for(dim=64, components=10, ROWS=4, COLUMNS=64, COMPONENTS=10, num_warps=1, num_stages=1, registers=255),
        _for(components=10, ROWS=2, COLUMNS=128, COMPONENTS=10, num_warps=1, num_stages=1, registers=255),
        _for(dim=16, ROWS=8, COLUMNS=16, COMPONENTS=4, num_warps=1, num_stages=1, registers=255),
        _for(ROWS=4, COLUMNS=64, COMPONENTS=4, num_warps=1, num_stages=1, registers=255),
    ),
    # The same with matrix products for P x and P z, which want 16 rows and several warps.
    "simulate_tied": (
        _for(architecture="gfx942", ROWS=16, COLUMNS=32, COMPONENTS=4, num_warps=2, num_stages=1),
        _for(ROWS=16, COLUMNS=32, COMPONENTS=3, num_warps=8, num_stages=1, registers=255),
    ),
    # Reverse steps have the configurations above but for tied and full, the latter with a product for each component.
    "reverse_steps_tied": (_for(ROWS=16, COLUMNS=32, COMPONENTS=4, num_warps=4, num_stages=1),),
    "reverse_steps_full": (
        _for(dim=16, ROWS=16, COLUMNS=16, COMPONENTS=1, num_warps=1, num_stages=1),
        _for(architecture="gfx942", ROWS=16, COLUMNS=32, COMPONENTS=1, num_warps=4, num_stages=1),
        _for(ROWS=32, COLUMNS=32, COMPONENTS=1, num_warps=4, num_stages=1),
    ),
    # ROWS samples by COLUMNS values: 8 values a thread of each array, 4 of the shortest rows. From 128 values on a warp
    # has rows to itself, and beyond 1,024 a program one row, so that a few long ones fill a GPU too.
    "loss": (
        _for(dim=2, ROWS=256, COLUMNS=2, num_warps=4),
        _for(dim=4, ROWS=128, COLUMNS=4, num_warps=4),
        _for(dim=8, ROWS=128, COLUMNS=8, num_warps=4),
        _for(dim=16, ROWS=64, COLUMNS=16, num_warps=4),
        _for(dim=32, ROWS=32, COLUMNS=32, num_warps=4),
        _for(dim=64, ROWS=16, COLUMNS=64, num_warps=4),
        _for(dim=128, ROWS=8, COLUMNS=128, num_warps=4),
        _for(dim=1024, ROWS=4, COLUMNS=256, num_warps=4),
        _for(ROWS=1, COLUMNS=2048, num_warps=8),
    ),
}


def configuration(op: str, dim: int, components: int = 1, architecture: str | None = None) -> Configuration:
    """Return the one that serves rows of `dim` values and `components`; architecture as `architecture_of` names it."""
    return _on(next(c for c in TABLE[op] if c.serves(dim, components, architecture)), architecture)


def small_op(kind: str, dim: int, target: bool = False) -> str:
    """Return the op of TABLE that paths in at most SMALL_PATHS dimensions have, with a target or without."""
    if dim <= SMALL:
        return "simulate_small"
    return "simulate_eight" + ("" if kind != "full" else "_full_target" if target else "_full")


def configurations(op: str, architecture: str) -> Iterator[Configuration]:
    """Yield all that may be taken on that architecture, to compile ahead of time; none that an earlier one replaces."""
    sizes = set()
    for c in TABLE[op]:
        if c.architecture in (None, architecture) and (c.dim, c.components) not in sizes:
            sizes.add((c.dim, c.components))
            yield _on(c, architecture)
        if (None, None) in sizes:
            return


def _on(chosen: Configuration, architecture: str | None) -> Configuration:
    """Return it as that architecture's compiler takes it: NVIDIA's alone has a number of registers."""
    nvidia = architecture is not None and architecture.startswith("sm_")
    return chosen if nvidia else replace(chosen, registers=None)


@cache
def architecture_of(device: torch.device) -> str | None:
    """Return a name such as "sm_90" or "gfx942"; None for the CPU, where kernels are interpreted."""
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
