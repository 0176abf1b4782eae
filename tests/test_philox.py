"""Philox4x32-10 and its normals: known answers, independence of how they are drawn, and their law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import on_one_backend  # noqa: F401

from fastndsm.functional import philox_normal
from fastndsm.reference.philox import NOISING, PRIOR, PROBE, REVERSE, STEP, philox4x32_10

KNOWN_ANSWERS = {  # Random123's kat_vectors: counter, key, output
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answer(name: str) -> None:
    counter, key, expected = (words(text) for text in KNOWN_ANSWERS[name])
    tensors = tuple(torch.tensor([c], dtype=torch.int64) for c in counter)
    assert [int(w) for w in philox4x32_10(tensors, (key[0], key[1]))] == expected


# --- an independent implementation, in numpy's unsigned integers -----------------------------------------


def numpy_philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the words [..., 4] uint64 of counter [..., 4] uint64."""
    low = np.uint64(0xFFFFFFFF)
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        a = c[0] * np.uint64(0xD2511F53)
        b = c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, axis=-1)


def numpy_normal(n_paths: int, dim: int, seed: int, step: int, stream: int, first_path: int) -> np.ndarray:
    """Apply Box-Muller to words of counter (path low, path high | stream << 24, step, block), key (seed low, high)."""
    counter = np.zeros((n_paths, (dim + 3) // 4, 4), dtype=np.uint64)
    paths = np.uint64(first_path) + np.arange(n_paths, dtype=np.uint64)[:, None]
    counter[..., 0] = paths & np.uint64(0xFFFFFFFF)
    counter[..., 1] = (paths >> np.uint64(32)) | np.uint64(stream << 24)
    counter[..., 2] = np.uint64(step)
    counter[..., 3] = np.arange(counter.shape[1], dtype=np.uint64)
    w = numpy_philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    u = (w[..., 0::2].astype(np.float64) + 0.5) / 2.0**32
    angle = 2.0 * np.pi * w[..., 1::2].astype(np.uint32).view(np.int32).astype(np.float64) / 2.0**32
    radius = np.sqrt(-2.0 * np.log(u))
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return z.reshape(n_paths, -1)[:, :dim]


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_known_answer_of_the_numpy_implementation(name: str) -> None:
    counter, key, expected = (words(text) for text in KNOWN_ANSWERS[name])
    assert numpy_philox(np.array(counter, dtype=np.uint64), (key[0], key[1])).tolist() == expected


@pytest.mark.parametrize(
    ("dim", "seed", "step", "stream", "first_path"),
    [
        (1, 0, 0, 0, 0),
        (2, 1, 5, 3, 7),
        (3, 2**32 + 9, 2**31, 255, 2**32 - 3),
        (5, 2**63 + 12345, 2**32 - 1, 4, 2**40),
        (8, 2**64 - 1, 99, 1, 2**56 - 31),
    ],
)
@pytest.mark.parametrize("n_paths", [1, 31])
def test_normals_are_those_of_the_numpy_implementation(
    n_paths: int, dim: int, seed: int, step: int, stream: int, first_path: int
) -> None:
    z = philox_normal(n_paths, dim, seed=seed, step=step, stream=stream, first_path=first_path, dtype=torch.float64)
    expected = numpy_normal(n_paths, dim, seed, step, stream, first_path)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-13, atol=1e-14)


def test_the_tail_goes_beyond_triton_randn() -> None:
    """The first word of this path is 21: a radius of 6.18, which a generator clamped at 5.7 cannot give."""
    path = 48_643_752
    z = philox_normal(1, 2, seed=0, first_path=path, dtype=torch.float64)[0]
    assert float(z.norm()) == pytest.approx(math.sqrt(-2.0 * math.log(21.5 / 2**32)), rel=1e-12)
    np.testing.assert_allclose(z[None].numpy(), numpy_normal(1, 2, 0, 0, 0, path), rtol=1e-13)


def test_low_precision_is_the_rounded_float32() -> None:
    z = philox_normal(33, 5, seed=3, dtype=torch.float32)
    exact = philox_normal(33, 5, seed=3, dtype=torch.float64)
    torch.testing.assert_close(z.double(), exact, rtol=1e-6, atol=1e-7)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(philox_normal(33, 5, seed=3, dtype=dtype), z.to(dtype))


# --- noise does not depend on how it is drawn -----------------------------------------


@pytest.mark.parametrize("first_path", [0, 2**32 - 10, 2**32 + 5, 2**50])
@pytest.mark.parametrize("pieces", [(1, 32), (16, 17), (31, 1, 1)])
def test_a_batch_may_be_split(first_path: int, pieces: tuple[int, ...]) -> None:
    whole = philox_normal(33, 6, seed=11, step=2, first_path=first_path)
    starts = np.cumsum([0, *pieces])
    parts = [
        philox_normal(n, 6, seed=11, step=2, first_path=first_path + int(start))
        for n, start in zip(pieces, starts, strict=False)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_steps_of_its_own_for_each_path() -> None:
    steps = torch.tensor([4, 0, 2, 2, 7, 1])
    z = philox_normal(6, 3, seed=5, step=steps)
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(z[row], philox_normal(6, 3, seed=5, step=step)[row])


def test_more_dimensions_leave_the_first_ones_as_they_were() -> None:
    z = philox_normal(4, 13, seed=5)
    for dim in (1, 2, 3, 4, 5, 12):
        assert torch.equal(philox_normal(4, dim, seed=5), z[:, :dim])


def test_a_seed_is_64_bits_and_every_bit_counts() -> None:
    assert torch.equal(philox_normal(3, 4, seed=2**64 - 1), philox_normal(3, 4, seed=-1))
    assert torch.equal(philox_normal(3, 4, seed=torch.tensor(7)), philox_normal(3, 4, seed=7))
    draws = [philox_normal(3, 4, seed=1 << bit) for bit in range(64)]
    assert len({tuple(z.flatten().tolist()) for z in draws}) == 64


def test_manual_seed_governs_draws_without_a_seed() -> None:
    torch.manual_seed(0)
    first, second = philox_normal(3, 2, seed=None), philox_normal(3, 2, seed=None)
    torch.manual_seed(0)
    assert torch.equal(philox_normal(3, 2, seed=None), first)
    assert not torch.equal(first, second)


# --- the law of the normals -----------------------------------------


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the correlation of two samples of standard normals, in standard errors."""
    return float((a * b).mean() * math.sqrt(a.numel()))


@pytest.mark.parametrize(
    ("this", "other"),
    [pytest.param({}, {"stream": stream}, id=f"stream {stream}") for stream in (PRIOR, REVERSE, STEP, PROBE)]
    + [
        pytest.param({}, {"step": 1}, id="next step"),
        pytest.param({}, {"step": 2**16}, id="far step"),
        pytest.param({}, {"first_path": 1}, id="next path"),
        pytest.param({}, {"first_path": 2**32}, id="path beyond 32 bits"),
        pytest.param({}, {"seed": 1}, id="next seed"),
        pytest.param({}, {"seed": 2**32}, id="high half of the seed"),
    ],
)
def test_draws_of_different_counters_are_independent(this: dict[str, int], other: dict[str, int]) -> None:
    first = {"seed": 0, "step": 0, "stream": NOISING, "first_path": 0}
    a, b = (philox_normal(125_000, 8, **{**first, **at}, dtype=torch.float64) for at in (this, other))
    assert not bool((a == b).any())
    assert abs(correlation(a, b)) < 4.0
    # also the magnitudes: (z^2 - 1) / sqrt(2) has mean 0 and variance 1
    assert abs(correlation((a.square() - 1) / 2**0.5, (b.square() - 1) / 2**0.5)) < 4.0


def test_dimensions_are_independent() -> None:
    z = philox_normal(200_000, 8, seed=1, dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    scale = math.sqrt(len(z))
    error = scale * (z.T @ z / len(z) - eye)
    assert float((error * (1 - eye)).abs().amax()) < 4.5
    assert float(error.diagonal().abs().amax() / math.sqrt(2)) < 4.5
    squares = (z.square() - 1) / math.sqrt(2)
    assert float((scale * squares.T @ squares / len(z) * (1 - eye)).abs().amax()) < 4.5


BINS, REACH = 140_000, 7.0


def histogram(n: int, chunk: int = 1 << 19) -> tuple[np.ndarray, np.ndarray, int]:
    """Return counts of n normals in BINS equal bins of [-7, 7], power sums 1..4, and how many radii exceed 5.7."""
    counts, powers, far = torch.zeros(BINS, dtype=torch.int64), np.zeros(4), 0
    for start in range(0, n // 4, chunk):
        z = philox_normal(min(chunk, n // 4 - start), 4, seed=2024, first_path=start, dtype=torch.float64)
        far += int((z.reshape(-1, 2).square().sum(1) > 5.7**2).sum())
        z = z.flatten()
        counts += torch.bincount(((z + REACH) * (BINS / (2 * REACH))).long(), minlength=BINS)
        square = z * z
        powers += [float(z.sum()), float(square.sum()), float((square * z).sum()), float((square * square).sum())]
    return counts.numpy(), powers, far


def test_law_of_the_normals() -> None:
    """1e8 draws: Kolmogorov-Smirnov on bins of width 1e-4 (probability at most 4e-5 each), moments, and both tails."""
    from scipy.stats import norm

    n = 100_000_000
    counts, powers, far = histogram(n)
    assert counts.sum() == n
    edges = np.linspace(-REACH, REACH, BINS + 1)
    cdf = norm.cdf(edges)
    ks = np.abs(np.cumsum(counts) / n - cdf[1:]).max() * math.sqrt(n)
    assert ks < 1.95  # the one-in-a-thousand quantile

    expected = np.array([0.0, 1.0, 0.0, 3.0])
    deviation = np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / n)  # of the mean of z, z^2, z^3, z^4
    assert (np.abs(powers / n - expected) < 4.0 * deviation).all()

    for threshold in (2.0, 3.0, 4.0, 4.5, 5.0):
        mean = n * norm.sf(threshold)
        beyond = round((threshold + REACH) * BINS / (2 * REACH))
        for found in (counts[beyond:].sum(), counts[: BINS - beyond].sum()):
            assert abs(found - mean) < 4.0 * math.sqrt(mean) + 2.0, f"tail beyond {threshold}"
    # A radius has P(r > 5.7) = exp(-5.7^2 / 2).
    mean = n / 2 * math.exp(-(5.7**2) / 2)
    assert abs(far - mean) < 4.0 * math.sqrt(mean) + 2.0
