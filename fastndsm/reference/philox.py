"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and its normals.

    key      (seed low 32, seed high 32)
    counter  (path low 32, path high 24 | stream << 24, step, dimension block j // 4)

A word depends on seed, stream, path, step and dimension alone, never on where or beside whom it is drawn.
Words live in int64 tensors: the 64-bit product wraps, and its bits are those of the unsigned product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# Stream ids: one for each use of random numbers, so that no two uses share a counter.
NOISING, PRIOR, REVERSE, STEP, PROBE, DROPOUT, DEQUANTIZE, LEVEL = range(8)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32_10(counter: Words, key: tuple[int, int] | tuple[Tensor, Tensor]) -> Words:
    """Run ten rounds of Philox4x32 on four int64 tensors of values in [0, 2^32), broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox_words(paths: Tensor, n_blocks: int, seed: int, step: Tensor | int, stream: int) -> Words:
    """Return the four words of each dimension block: paths [n], step int or [n] -> four tensors [n, n_blocks]."""
    c0 = (paths & MASK)[:, None]
    c1 = ((paths >> 32) & 0xFFFFFF | stream << 24)[:, None]
    c2 = (step & MASK)[:, None] if isinstance(step, Tensor) else torch.full_like(c0, step & MASK)
    c3 = torch.arange(n_blocks, device=paths.device)[None, :]
    return philox4x32_10((c0, c1, c2, c3), (seed & MASK, (seed >> 32) & MASK))


def uniform(word: Tensor) -> Tensor:
    """Return (w + 1/2) 2^-32 in (0, 1), exact in float64."""
    return (word.double() + 0.5) * 2.0**-32


def normal(paths: Tensor, dim: int, *, seed: int, step: Tensor | int, stream: int, dtype: torch.dtype) -> Tensor:
    """Draw normals [n, dim] of the given paths [n] by Box-Muller, computed in float64 and rounded to `dtype`.

    radius r = sqrt(-2 ln u), u = (w0 + 1/2) 2^-32; angle 2 pi v, v = int32(w1) 2^-32; the pair r cos, r sin.
    """
    w = torch.stack(philox_words(paths, (dim + 3) // 4, seed, step, stream), dim=-1)  # [n, blocks, 4]
    radius = (-2.0 * uniform(w[..., 0::2]).log()).sqrt()
    angle = w[..., 1::2].to(torch.int32).double() * (2.0 * math.pi * 2.0**-32)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)  # [n, blocks, 2, 2]
    return pairs.flatten(1)[:, :dim].to(dtype)


def path_range(n_paths: int, first_path: int, device: torch.device) -> Tensor:
    """Return the path numbers first_path, ..., first_path + n_paths - 1 as int64 [n_paths]."""
    return torch.arange(n_paths, device=device) + first_path


def uniform_steps(
    n_paths: int, n_steps: int, seed: Tensor, first_path: int, device: torch.device, records: int | None = None
) -> Tensor:
    """Draw integers uniform on 0..n_steps-1, int64 [n_paths]: word 0 of stream STEP times n_steps, its high half.

    Or [n_paths, records]: each uniform, and those of a path spread over the range by the golden ratio, from its word on
    (a Weyl sequence), so that record r is the same whatever their number.
    """
    paths = path_range(n_paths, first_path, device)[:, None]
    zero = torch.zeros_like(paths)
    counter = (paths & MASK, (paths >> 32) & 0xFFFFFF | STEP << 24, zero, zero)
    word = philox4x32_10(counter, (seed & MASK, (seed >> 32) & MASK))[0][:, 0]
    if records is not None:
        word = (word[:, None] + WEYL[0] * torch.arange(records, device=device)) & MASK
    return (word * n_steps) >> 32


def philox_normal(
    n_paths: int,
    dim: int,
    seed: Tensor,
    step: Tensor,
    stream: int,
    first_path: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Draw normals [n_paths, dim] of the paths first_path, first_path + 1, ...; step is 0-d or [n_paths]."""
    paths = path_range(n_paths, first_path, device)
    per_path = step.to(device).expand(n_paths)
    return normal(paths, dim, seed=int(seed), step=per_path, stream=stream, dtype=dtype)
