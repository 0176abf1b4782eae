"""Standard normals of the counter-based stream, each a function of (seed, stream, path, step, dimension) alone.

    key      (seed low 32, seed high 32)
    counter  (path low 32, path high 24 | stream << 24, step, dimension block j // 4)

`philox_words` and `normals` are device functions for every kernel that draws noise in place; `philox_normal` writes
a whole array. The integers are those of `fastndsm.reference.philox` bit for bit, the normals to a few ulp of float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import architecture_of, configuration

MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)
TWO_THIRDS = tl.constexpr(0x3F2AAAAB)  # the bits of 2/3 in float32
EXPONENT = tl.constexpr(-(1 << 23))  # the sign and exponent bits of a float32
MAX_GRID_Y = 65_535  # of CUDA and HIP


# --- device functions --------------------------------------------------------------------------------------------


@triton.jit
def philox_words(seed_low, seed_high, path, step, block, stream):
    """Return Philox4x32-10's four uint32 words of each counter, of the arguments' common shape.

    Ten rounds of   (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
    with (k0, k1) <- (k0 + W0, k1 + W1) between them. path is int64, seed_low and seed_high are uint32; step, block and
    stream are integers of any width, of which the low 32 bits count. (Every word is uint32: tl.philox given 64-bit
    counters is Philox4x64, another generator.)

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0 = path.to(tl.uint32)
    c1 = ((path >> 32).to(tl.uint32) & 0xFFFFFF) | (tl.cast(stream, tl.uint32) << 24)
    c2 = tl.cast(step, tl.uint32)
    c3 = tl.cast(block, tl.uint32)
    k0, k1 = seed_low, seed_high
    for _ in tl.static_range(10):
        # one wide multiplication each; tl.umulhi beside a low product makes two
        p0, p1 = c0.to(tl.uint64) * MULTIPLIER_0, c2.to(tl.uint64) * MULTIPLIER_1
        c0, c1, c2, c3 = (
            (p1 >> 32).to(tl.uint32) ^ c1 ^ k0,
            p1.to(tl.uint32),
            (p0 >> 32).to(tl.uint32) ^ c3 ^ k1,
            p0.to(tl.uint32),
        )
        k0 = tl.add(k0, WEYL_0, sanitize_overflow=False)
        k1 = tl.add(k1, WEYL_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def minus_two_log_uniform(word):
    """Return -2 ln u, u = (word + 1/2) 2^-32, within 4 ulp, also for u near 1, where the result is near 0.

    u = m 2^e with m in [2/3, 4/3), so -2 ln u = -2 e ln 2 - 2 ln(1 + f), f = m - 1; a minimax polynomial in f. From
    u = 2/3 on e is 0, and f = u - 1 comes from the word directly, with full relative precision.
    """
    # u below 1/2, and u - 1 from there on
    h = tl.fma(word.to(tl.int32, bitcast=True).to(tl.float32), 2.0**-32, 2.0**-33)
    bits = tl.where(h < 0, h + 1.0, h).to(tl.int32, bitcast=True)
    e = (bits - TWO_THIRDS) & EXPONENT  # e 2^23
    m = (bits - e).to(tl.float32, bitcast=True)
    f = tl.where(e < 0, m - 1.0, h)
    p = tl.fma(f, -0.276406611013, 0.3024437184904)
    p = tl.fma(p, f, -0.280845739676)
    p = tl.fma(p, f, 0.329446526727)
    p = tl.fma(p, f, -0.400158421404)
    p = tl.fma(p, f, 0.500084754619)
    p = tl.fma(p, f, -0.666665319925)
    p = tl.fma(p, f, 1.0)
    p = tl.fma(p, f, -2.0)
    return tl.fma(e.to(tl.float32), -1.38629436111989061883 * 2.0**-23, f * p)


@triton.jit
def sincos_turns(word):
    """Return sin and cos of 2 pi v, v = int32(word) 2^-32, within 4 ulp.

    word = quadrant 2^30 + rest, -2^29 <= rest < 2^29, exactly; minimax polynomials of the remaining angle, at most
    pi / 4. The quadrant's low bit swaps the two; sin is negative in quadrants 2 and 3, cos in 1 and 2.
    """
    rest = (word << 2).to(tl.int32, bitcast=True)  # 4 rest
    angle = rest.to(tl.float32) * (6.28318530717958647693 * 2.0**-34)
    z = angle * angle
    s = tl.fma(z, -0.000195039631257, 0.00833210095313)
    s = tl.fma(s, z, -0.166666546743)
    s = tl.fma(s, z, 1.0) * angle
    c = tl.fma(z, 0.000024463837439, -0.00138876543845)
    c = tl.fma(c, z, 0.0416666546518)
    c = tl.fma(c, z, -0.5)
    c = tl.fma(c, z, 1.0)
    quadrant = tl.add(word, 0x20000000, sanitize_overflow=False)  # in the two top bits
    swap = (quadrant & 0x40000000) != 0
    sin_sign = quadrant & 0x80000000
    cos_sign = tl.add(quadrant, 0x40000000, sanitize_overflow=False) & 0x80000000
    sin = tl.where(swap, c, s).to(tl.uint32, bitcast=True) ^ sin_sign
    cos = tl.where(swap, s, c).to(tl.uint32, bitcast=True) ^ cos_sign
    return sin.to(tl.float32, bitcast=True), cos.to(tl.float32, bitcast=True)


@triton.jit
def normals(radius_word, angle_word):
    """Return two independent standard normals of two words, by Box-Muller: r cos(2 pi v), r sin(2 pi v).

    r = sqrt(-2 ln u), u = (radius_word + 1/2) 2^-32, so that 0 is never reached and the tail goes to 6.7 sigma;
    v = int32(angle_word) 2^-32. float32, with a relative error below 4 x 2^-23, near 0 too.

    Source: Box, Muller, "A note on the generation of random normal deviates", 1958.
    """
    r = tl.sqrt(minus_two_log_uniform(radius_word))
    sin, cos = sincos_turns(angle_word)
    return r * cos, r * sin


@triton.jit
def seed_words(seed_ptr):
    """Return the key of a 0-d int64 seed: its low and high 32 bits; loaded as words, they leave Philox its 32-bit
    multiplications, where halves of a 64-bit load made the compiler widen the xors too."""
    words = seed_ptr.to(tl.pointer_type(tl.uint32), bitcast=True)
    return tl.load(words), tl.load(words + 1)


# --- the op ------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_paths", "dim", "stream", "first_path"])
def philox_normal_kernel(
    out_ptr,
    seed_ptr,
    step_ptr,
    n_paths: tl.int64,
    dim: tl.int64,
    stream: tl.int32,
    first_path: tl.int64,
    STEP_PER_PATH: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Store out[i, j] = normal j % 4 of the counter (first_path + i, stream, step, j // 4) under the key `seed`.

    One counter gives r0 cos, r0 sin, r1 cos, r1 sin of its words (w0, w1) and (w2, w3), see `normals`.
    PAIRS = 1, for dim <= 2, leaves (w2, w3) out. ALIGNED: dim is a multiple of 2 PAIRS.
    """
    WIDTH: tl.constexpr = 2 * PAIRS
    key_low, key_high = seed_words(seed_ptr)
    first_block = tl.program_id(0).to(tl.int64) * BLOCKS
    blocks = first_block + tl.arange(0, BLOCKS)
    columns = tl.arange(0, BLOCKS * WIDTH)
    pitch, left = dim, tl.minimum(dim - first_block * WIDTH, BLOCKS * WIDTH).to(tl.int32)
    if ALIGNED:  # nothing changes, but the compiler sees that whole vectors can be stored
        pitch, left = pitch // WIDTH * WIDTH, left // WIDTH * WIDTH
    first_row = tl.program_id(1).to(tl.int64) * ROWS
    stride = tl.num_programs(1).to(tl.int64) * ROWS
    for row in range(first_row, n_paths, stride):
        lanes = tl.arange(0, ROWS)
        in_column = lanes < tl.minimum(n_paths - row, ROWS).to(tl.int32)
        rows = row + lanes
        if STEP_PER_PATH:
            step = tl.load(step_ptr + rows, mask=in_column, other=0)[:, None]
        else:
            step = tl.load(step_ptr)
        w0, w1, w2, w3 = philox_words(key_low, key_high, first_path + rows[:, None], step, blocks[None, :], stream)
        n0, n1 = normals(w0, w1)
        if PAIRS == 2:
            n2, n3 = normals(w2, w3)
            values = tl.join(tl.join(n0, n2), tl.join(n1, n3))
        else:
            values = tl.join(n0, n1)
        values = tl.reshape(values, (ROWS, BLOCKS * WIDTH))
        offsets = rows[:, None] * pitch + (first_block * WIDTH + columns)[None, :]
        tl.store(out_ptr + offsets, values, mask=in_column[:, None] & (columns < left)[None, :])


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
    """Draw normals [n_paths, dim] of the paths first_path, first_path + 1, ...; step is int64, 0-d or [n_paths].

    Raises:
        TypeError: if dtype is not float32, or seed or step is not int64.
        ValueError: if seed is not 0-d, or step has another shape.
    """
    if dtype != torch.float32:
        raise TypeError(f"dtype: expected torch.float32, found {dtype}")
    for name, value in (("seed", seed), ("step", step)):
        if value.dtype != torch.int64:
            raise TypeError(f"{name}: expected torch.int64, found {value.dtype}")
    if seed.ndim != 0:
        raise ValueError(f"seed: expected a 0-d tensor, found shape {tuple(seed.shape)}")
    if step.ndim != 0 and step.shape != (n_paths,):
        raise ValueError(f"step: expected a 0-d tensor or shape ({n_paths},), found {tuple(step.shape)}")
    out = torch.empty((n_paths, dim), dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    tile = configuration("philox_normal", dim, architecture=architecture_of(out.device))
    width = 2 * tile["PAIRS"]
    grid = (
        triton.cdiv(dim, width * tile["BLOCKS"]),
        min(triton.cdiv(n_paths, tile["ROWS"]), MAX_GRID_Y),
    )
    with torch.cuda.device_of(out):
        philox_normal_kernel[grid](
            out,
            on_device(seed, out.device),
            on_device(step, out.device).contiguous(),
            n_paths,
            dim,
            stream,
            first_path,
            STEP_PER_PATH=step.ndim == 1,
            ALIGNED=dim % width == 0,
            **tile.launch,
            enable_fp_fusion=False,  # every fused multiply-add is written out, so that all GPUs round alike
        )
    return out


STEP = tl.constexpr(3)  # the stream of drawn steps
AT_ONCE = tl.constexpr(256)  # steps a program draws


@triton.jit(do_not_specialize=["n_values", "n_records", "n_steps", "first_path"])
def uniform_steps_kernel(
    out_ptr,
    seed_ptr,
    n_values: tl.int64,
    n_records: tl.int64,
    n_steps: tl.int64,
    first_path: tl.int64,
):
    """Store the steps [n_values / n_records, n_records] of `uniform_steps`: word 0 of a path, its records a Weyl
    sequence from there on, times n_steps, the high half."""
    key_low, key_high = seed_words(seed_ptr)
    i = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    word, _, _, _ = philox_words(key_low, key_high, first_path + i // n_records, 0, 0, STEP)
    word = tl.add(word, (i % n_records).to(tl.uint32) * WEYL_0, sanitize_overflow=False)
    tl.store(out_ptr + i, word.to(tl.int64) * n_steps >> 32, mask=i < n_values)


def uniform_steps(
    n_paths: int, n_steps: int, seed: Tensor, first_path: int, device: torch.device, records: int | None = None
) -> Tensor:
    """Draw integers uniform on 0..n_steps-1, int64 [n_paths], or [n_paths, records] spread over the range."""
    out = torch.empty((n_paths,) if records is None else (n_paths, records), dtype=torch.int64, device=device)
    if out.numel() > 0:
        with torch.cuda.device_of(out):
            uniform_steps_kernel[(triton.cdiv(out.numel(), AT_ONCE.value),)](
                out, on_device(seed, out.device), out.numel(), records or 1, n_steps, first_path, num_warps=4
            )
    return out


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """Put value on the device. A number on the host becomes a fill, which needs no synchronisation and whose value a
    captured CUDA graph keeps; a captured copy would read the host's memory again at replay."""
    if value.device == device or value.ndim > 0:
        return value.to(device)
    return torch.full((), int(value), dtype=value.dtype, device=device)
