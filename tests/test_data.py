"""Data sets: their laws, their splits, and the readers' refusal of damaged files."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastndsm
from fastndsm import data
from fastndsm.data import Dataset, Standardizer

PLANAR = {"four_modes": data.four_modes, "ring": data.ring, "moons": data.moons}
each = pytest.mark.parametrize("make", PLANAR.values(), ids=PLANAR)


@each
def test_planar_sets_are_set_by_their_seed_alone(make: Any) -> None:
    a, b, other = make(300, seed=3, n_test=200), make(300, seed=3, n_test=50), make(300, seed=4)
    assert a.train.shape == (300, 2) and a.train.dtype == torch.float32
    assert a.test.shape == (200, 2) and other.test.shape == (5000, 2)
    assert torch.equal(a.train, b.train)  # whatever is held out
    assert not torch.equal(a.train, other.train)
    assert torch.cdist(a.test, a.train).min() > 0  # no point is both trained on and held out


def test_four_modes_have_their_weights_and_lie_around_their_centers() -> None:
    weights = (0.5, 0.2, 0.2, 0.1)
    d = data.four_modes(40_000, seed=1, weights=weights)
    assert d.centers is not None and d.labels is not None and d.class_weights is not None
    deviation = [math.sqrt(w * (1 - w) / 40_000) for w in weights]
    assert all(abs(float(f) - w) < 4 * s for f, w, s in zip(d.class_weights, weights, deviation, strict=True))
    for x, labels in ((d.train, d.labels), (d.test, d.test_labels)):
        assert torch.equal(torch.cdist(x, d.centers).argmin(1), labels)
    assert (d.train - d.centers[d.labels]).norm(dim=1).max() < 1.4
    assert torch.nn.functional.pdist(d.centers).min() >= 3.5


def test_four_modes_are_not_gaussian() -> None:
    d = data.four_modes(40_000, seed=1)
    assert d.labels is not None
    for mode in range(4):
        x = d.train[d.labels == mode].double()
        x = (x - x.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(x.T)))  # whitened
        kurtosis = x.square().sum(1).square().mean()  # Mardia's: of a Gaussian in two dimensions 8 +- (64 / n)^(1/2)
        assert abs(kurtosis - 8) > 10 * math.sqrt(64 / len(x)), mode


def test_an_absent_mode_keeps_its_place() -> None:
    d = data.four_modes(100, weights=(0.5, 0.5, 0.0, 0.0), n_test=100)
    assert d.n_classes == 4
    assert d.class_weights is not None and d.class_weights[2:].tolist() == [0.0, 0.0]


def test_ring_has_its_radius_and_noise() -> None:
    radius = data.ring(40_000, noise=0.1).train.double().norm(dim=1)
    # |e + noise| is 1 + noise_radial + noise_tangential^2 / 2 to second order
    assert abs(radius.mean() - 1.005) < 4 * 0.1 / 200
    assert abs(radius.std() - 0.1) < 0.003
    assert data.ring(10, noise=0.0).train.norm(dim=1).sub(1).abs().max() < 1e-6


def test_moons_lie_on_two_half_circles() -> None:
    d = data.moons(20_000, noise=0.0)
    assert d.labels is not None and d.class_weights is not None
    upper, lower = d.train[d.labels == 0], d.train[d.labels == 1]
    for points, center, sign in ((upper, (-0.5, -0.25), 1), (lower, (0.5, 0.25), -1)):
        offset = points - torch.tensor(center)
        assert offset.norm(dim=1).sub(1).abs().max() < 1e-5
        assert (sign * offset[:, 1] >= -1e-5).all()
        assert abs(float(offset[:, 0].mean())) < 4 * math.sqrt(0.5 / 10_000)
    assert abs(float(d.class_weights[0]) - 0.5) < 4 * 0.5 / math.sqrt(20_000)


def test_digits_are_split_by_class_and_scaled() -> None:
    from sklearn.datasets import load_digits

    d = data.digits(seed=2)
    assert d.event_shape == (1, 8, 8) and d.dim == 64 and d.n_classes == 10
    assert (len(d.train), len(d.test)) == (1437, 360)
    assert d.train.min() == -1 and d.train.max() == 1
    assert d.labels is not None and d.test_labels is not None
    both = torch.bincount(d.labels) / 1437 - torch.bincount(d.test_labels) / 360
    assert both.abs().max() < 1 / 360
    original = torch.from_numpy(load_digits().images).flatten(1)
    restored = d.restore(torch.cat([d.train, d.test])).flatten(1).double()
    key = torch.randn(64, dtype=torch.float64)  # the same images, each once, in another order
    torch.testing.assert_close((restored @ key).sort().values, (original @ key).sort().values)
    assert torch.equal(d.train, data.digits(seed=2).train)
    assert not torch.equal(d.train, data.digits(seed=3).train)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, n: int = 5, zipped: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("t10k", 3), ("train", n)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            payload = idx(array)
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(payload) if zipped else payload)
    return images, labels


@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("how", ["argument", "variable", "folder-above"])
def test_mnist_comes_from_a_folder(tmp_path: Path, monkeypatch: Any, zipped: bool, how: str) -> None:
    folder = tmp_path / "mnist"
    images, labels = write_mnist(folder, zipped=zipped)
    if how == "argument":
        monkeypatch.setenv("FASTNDSM_DATA", str(tmp_path / "elsewhere"))  # the argument goes first
        d = data.mnist(folder)
    else:
        monkeypatch.setenv("FASTNDSM_DATA", str(folder if how == "variable" else tmp_path))
        d = data.mnist()
    assert d.train.shape == (5, 1, 28, 28) and d.test.shape == (3, 1, 28, 28)
    assert np.array_equal(d.restore(d.train)[:, 0].round().byte().numpy(), images)
    assert d.train.min() >= -1 and d.train.max() <= 1
    assert d.labels is not None and d.labels.tolist() == labels.tolist()
    assert torch.equal(data.mnist(folder, n=2).train, d.train[:2])


def test_read_idx_of_any_dimensions(tmp_path: Path) -> None:
    for shape in ((7,), (2, 3), (2, 3, 5)):
        array = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
        (tmp_path / "a").write_bytes(idx(array))
        assert np.array_equal(data.read_idx(tmp_path / "a", len(shape)), array)


WHOLE = idx(np.zeros((4, 28, 28), np.uint8))
DAMAGED = {
    "empty": (b"", r"header of 16 bytes, found 0: truncated"),
    "in-the-magic": (WHOLE[:3], r"header of 16 bytes, found 3: truncated"),
    "in-the-header": (WHOLE[:10], r"header of 16 bytes, found 10: truncated"),
    "in-the-values": (
        WHOLE[:-1],
        r"expected 3136 values for dimensions \(4, 28, 28\), found 3135: truncated",
    ),
    "too-long": (WHOLE + b"\0", r"expected 3136 values .* found more"),
    "labels": (idx(np.zeros(4, np.uint8)), r"magic 0x00000803 .* found 0x00000801"),
    "floats": (b"\0\0\x0d\3" + WHOLE[4:], r"magic 0x00000803 .* found 0x00000d03"),
    "text": (b"<html>not found</html>", r"magic 0x00000803 .* found 0x3c68746d"),
    "zero": (idx(np.zeros((0, 28, 28), np.uint8)), r"positive dimensions, found \(0, 28, 28\)"),
    "huge": (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], r"found 3136: truncated"),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, message: str, zipped: bool) -> None:
    path = tmp_path / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "not-gzip"])
def test_damaged_gzip_is_refused(tmp_path: Path, damage: str) -> None:
    content = idx(np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8))
    packed = bytearray(gzip.compress(content))
    if damage == "corrupted":
        packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / "images.gz"
    path.write_bytes({"truncated": packed[:-100], "corrupted": packed, "not-gzip": content}[damage])
    with pytest.raises(ValueError, match="expected a whole gzip file, found it damaged"):
        data.read_idx(path, 3)


def test_mnist_checks_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder: expected train-images-idx3-ubyte"):
        data.mnist(tmp_path)
    write_mnist(tmp_path, zipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match="expected 5 labels, one per image, found 4"):
        data.mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(5, 10, np.uint8)))
    with pytest.raises(ValueError, match=r"labels in 0..9, found 10"):
        data.mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 8, 8), np.uint8)))
    with pytest.raises(ValueError, match=r"images of 28 x 28, found \(5, 8, 8\)"):
        data.mnist(tmp_path)
    with pytest.raises(ValueError, match=r"n: expected an int in 2\.\.60000 or None, found 1"):
        data.mnist(tmp_path, n=1)


def test_mnist_without_folder_or_network_says_so(monkeypatch: Any) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.delenv("FASTNDSM_DATA", raising=False)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(ConnectionError, match=r"folder of IDX files.*FASTNDSM_DATA.*openml.org.*no route to host"):
        data.mnist()


def test_mnist_from_openml_is_cut_where_openml_cuts_it(monkeypatch: Any) -> None:
    x = (np.arange(70_000) // 300).astype(np.uint8)[:, None].repeat(784, 1)
    y = (np.arange(70_000) % 10).astype(str).astype(object)
    monkeypatch.delenv("FASTNDSM_DATA", raising=False)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: (x, y))
    d = data.mnist(n=100, n_test=50)
    assert d.train.shape == (100, 1, 28, 28) and d.test.shape == (50, 1, 28, 28)
    assert d.restore(d.test)[0, 0, 0, 0] == 200  # image 60,000
    assert d.labels is not None and d.labels[:3].tolist() == [0, 1, 2]


def test_files_keep_their_scale_and_split_by_seed(tmp_path: Path) -> None:
    x = (1e3 + 5e2 * np.random.default_rng(0).standard_normal((50, 2, 3))).round(3)
    np.save(tmp_path / "mine.npy", x)
    d = data.from_file(tmp_path / "mine.npy", test_fraction=0.3, seed=1)
    assert (d.name, d.event_shape, len(d.train), len(d.test)) == ("mine", (2, 3), 35, 15)
    assert (d.scale, d.shift, d.labels) == (1.0, 0.0, None)
    assert "scale kept" in d.description
    both = torch.cat([d.train, d.test]).flatten(1)[:, 0].sort().values
    assert torch.equal(both, torch.from_numpy(x[:, 0, 0].astype(np.float32)).sort().values)
    assert torch.equal(d.train, data.from_file(tmp_path / "mine.npy", 0.3, 1).train)
    assert not torch.equal(d.train, data.from_file(tmp_path / "mine.npy", 0.3, 2).train)


@pytest.mark.parametrize("names", [("x", "y"), ("train", "labels")])
def test_labels_follow_their_samples(tmp_path: Path, names: tuple[str, str]) -> None:
    labels = np.arange(40) % 3
    np.savez(tmp_path / "mine.npz", **{names[0]: np.arange(40), names[1]: labels})
    d = data.from_file(tmp_path / "mine.npz")
    assert d.event_shape == (1,) and (len(d.train), len(d.test)) == (32, 8)
    assert d.labels is not None and d.test_labels is not None
    assert torch.equal(d.labels, d.train[:, 0].long() % 3)
    assert torch.equal(d.test_labels, d.test[:, 0].long() % 3)


def test_a_file_with_its_own_test_set_is_not_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.arange(6.0), test=-np.arange(4.0), y=[0, 1] * 3, test_labels=[1] * 4)
    d = data.from_file(tmp_path / "mine.npz")
    assert d.train[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and d.test[:, 0].tolist() == [0, -1, -2, -3]
    assert d.test_labels is not None and d.test_labels.tolist() == [1, 1, 1, 1]


BAD_FILES = {
    "nan": ({"x": np.array([[1.0], [np.nan]])}, ValueError, r"x: expected values finite in float32, found 1"),
    "overflow": (
        {"x": np.array([[1e300], [1.0]])},
        ValueError,
        r"x: expected values finite in float32, found 1",
    ),
    "one": ({"x": np.ones((1, 3))}, ValueError, r"x: .*n >= 2, found shape \(1, 3\)"),
    "scalar": ({"x": np.float64(3)}, ValueError, r"x: .* found shape \(\)"),
    "no-values": ({"x": np.ones((5, 0))}, ValueError, r"x: .* found shape \(5, 0\)"),
    "text": ({"x": np.array(["a", "b"])}, TypeError, r"x: expected real numbers, found dtype <U1"),
    "complex": ({"x": np.ones(3, complex)}, TypeError, r"x: expected real numbers, found dtype complex128"),
    "bool": ({"x": np.ones(3, bool)}, TypeError, r"x: expected real numbers, found dtype bool"),
    "pickled": ({"x": np.array([{}, {}])}, ValueError, r"plain arrays, found: .*allow_pickle=False"),
    "no-x": ({"y": np.arange(3)}, ValueError, r"expected one array named x or train, found \['y'\]"),
    "both": (
        {"x": np.ones(3), "train": np.ones(3)},
        ValueError,
        r"one array named x or train, found \['train', 'x'\]",
    ),
    "unknown": ({"x": np.ones(3), "z": np.ones(3)}, ValueError, r"expected arrays among .*, found \['z'\]"),
    "float-labels": (
        {"x": np.ones(3), "y": np.ones(3)},
        TypeError,
        r"y: expected integer labels, found dtype float64",
    ),
    "few-labels": (
        {"x": np.ones(3), "y": np.arange(2)},
        ValueError,
        r"y: expected \[3\], .* found shape \(2,\)",
    ),
    "test-shape": (
        {"x": np.ones((3, 2)), "test": np.ones((3, 4))},
        ValueError,
        r"test: expected events \(2,\).*\(4,\)",
    ),
    "test-labels": (
        {"x": np.ones(3), "test": np.ones(3), "y": np.arange(3)},
        ValueError,
        r"labels for both x and test",
    ),
}


@pytest.mark.parametrize(("arrays", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(error, match=message):
        data.from_file(tmp_path / "mine.npz")


@pytest.mark.parametrize("name", ["mine.npy", "mine.npz"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    np.save(path, np.ones(100)) if path.suffix == ".npy" else np.savez(path, x=np.ones(100))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"mine\.np.: expected a whole file"):
        data.from_file(path)


def test_load_by_name_or_path(tmp_path: Path) -> None:
    assert torch.equal(data.load("ring", n=10, seed=5).train, data.ring(10, 5).train)
    np.save(tmp_path / "mine.npy", np.ones((10, 2)))
    assert len(data.load(tmp_path / "mine.npy", test_fraction=0.5).test) == 5
    with pytest.raises(
        ValueError, match=r"expected one of four_modes, ring, moons, digits, mnist, or .* found 'rings'"
    ):
        data.load("rings")
    with pytest.raises(FileNotFoundError, match=r"found none at .*absent\.npz"):
        data.load(tmp_path / "absent.npz")
    with pytest.raises(TypeError, match="size"):
        data.load("digits", size=3)


GOOD = {"name": "a", "train": torch.zeros(4, 2), "test": torch.zeros(3, 2)}
LABELS = {"labels": torch.tensor([0, 1, 2, 0]), "test_labels": torch.tensor([0, 1, 1])}
BAD_DATASETS = {
    "nan": (
        {"train": torch.tensor([[0.0], [math.inf]])},
        ValueError,
        "train: expected finite values, found 1",
    ),
    "dtype": (
        {"test": torch.zeros(3, 2).double()},
        TypeError,
        "test: expected a float32 Tensor, found torch.float64",
    ),
    "event": (
        {"test": torch.zeros(3, 5)},
        ValueError,
        r"test: expected events \(2,\) as in train, found \(5,\)",
    ),
    "empty": ({"train": torch.zeros(0, 2)}, ValueError, r"train: .* found shape \(0, 2\)"),
    "one-sided": ({"labels": LABELS["labels"]}, ValueError, "labels, test_labels: expected both or neither"),
    "count": (
        {**LABELS, "labels": torch.zeros(3).long()},
        ValueError,
        r"labels: expected \[4\], .* found \(3,\)",
    ),
    "negative": ({**LABELS, "test_labels": torch.tensor([0, -1, 0])}, ValueError, "test_labels: .* found -1"),
    "int32": (
        {**LABELS, "labels": torch.zeros(4).int()},
        TypeError,
        "labels: expected an int64 .* found torch.int32",
    ),
    "centers": (
        {**LABELS, "centers": torch.zeros(2, 2)},
        ValueError,
        "centers: expected one per label, found 2",
    ),
    "no-labels": ({"centers": torch.zeros(2, 2)}, ValueError, "centers: expected one per label, found 2"),
    "names": ({**LABELS, "label_names": ("a", "b")}, ValueError, "label_names: expected 3, one per label, found 2"),
    "wide": ({"train": torch.zeros(4, 2).double()}, TypeError, "test: expected a float64 Tensor, found torch.float32"),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD_DATASETS.values(), ids=BAD_DATASETS)
def test_a_dataset_checks_itself(change: dict[str, Any], error: type[Exception], message: str) -> None:
    assert Dataset(**{**GOOD, **LABELS}).n_classes == 3
    with pytest.raises(error, match=message):
        Dataset(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.ring(1), "n: expected an int >= 2, found 1"),
        (lambda: data.moons(n_test=0), "n_test: expected an int >= 2, found 0"),
        (lambda: data.ring(seed=-1), "seed: expected an int >= 0, found -1"),
        (lambda: data.moons(noise=-0.1), "noise: .* found -0.1"),
        (lambda: data.four_modes(weights=(0.5, 0.5)), r"weights: expected four .* found \(0.5, 0.5\)"),
        (lambda: data.four_modes(weights=(0.5, 0.5, 0.5, -0.5)), "weights: expected four numbers >= 0"),
        (lambda: data.from_file("a.xlsx"), r"path: expected a \.npy, .* or \.pq file, found a\.xlsx"),
        (lambda: data.from_file("a.npy", test_fraction=1.0), "test_fraction: .* found 1.0"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def table() -> torch.Tensor:
    """Draw four features that fit into no one scale: tiny and far away, of unit scale, wide, and constant."""
    x = torch.randn(500, 4, dtype=torch.float64)
    return x * torch.tensor([1e-6, 1.0, 1e3, 0.0]).double() + torch.tensor([1e7, 0.0, 5e4, 0.1]).double()


def test_a_standardizer_gives_each_feature_mean_0_and_deviation_1_and_goes_back() -> None:
    x = table()
    made = Standardizer.fit(x)
    z = made.encode(x)
    rounding = torch.tensor([2e-3, 1e-14, 1e-13, 0.0]).double()  # of x itself: an ulp over a deviation
    assert bool((z.mean(0).abs() <= rounding).all())
    torch.testing.assert_close(z.std(0, correction=0)[:3], torch.ones(3).double(), atol=1e-3, rtol=0)
    assert z[:, 3].abs().max() == 0 and made.scale[3] == 0
    torch.testing.assert_close(made.decode(z), x, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((dtype, scale) for dtype in (torch.float16, torch.bfloat16, torch.float32) for scale in (1e-3, 1.0, 240.0)),
        *((torch.bfloat16, 1e30), (torch.float32, 1e-30), (torch.float64, 1e-200), (torch.float64, 1e200)),
    ],
)
def test_statistics_are_right_at_every_scale_and_in_every_dtype(dtype: torch.dtype, scale: float) -> None:
    x = (scale * torch.randn(300, 3, dtype=torch.float64)).to(dtype)
    made = Standardizer.fit(x)
    exact = (x.double() / scale).std(0, correction=0)
    torch.testing.assert_close(made.scale / scale, exact)
    assert made.encode(x).dtype == made.decode(made.encode(x)).dtype == dtype


def test_images_share_one_scale_and_integers_become_float32() -> None:
    x = torch.randint(0, 241, (60, 3, 5, 4), dtype=torch.uint8)
    made = Standardizer.fit(x)
    z = made.encode(x)
    assert made.scale.shape == (1,) and z.shape == x.shape and z.dtype == torch.float32
    assert float(z.mean()) == pytest.approx(0, abs=1e-5) and float(z.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(made.decode(z), x.float(), rtol=1e-6, atol=1e-4)
    assert Standardizer.fit(x, per_feature=True).scale.shape == (60,)
    assert Standardizer.fit(table(), per_feature=False).scale.shape == (1,)


def test_a_constant_up_to_rounding_is_not_blown_up_and_comes_back_from_any_z() -> None:
    x = torch.tensor([0.1 + 0.2, 0.3] * 10, dtype=torch.float64)[:, None].repeat(1, 2)
    x[:, 1] = torch.arange(20)
    made = Standardizer.fit(x)
    assert made.scale.tolist() == [0.0, pytest.approx(math.sqrt((20**2 - 1) / 12))]
    assert made.encode(x)[:, 0].abs().max() == 0
    torch.testing.assert_close(made.decode(torch.randn(9, 2).double())[:, 0], torch.full((9,), 0.3).double())


def test_a_standardizer_is_restored_from_its_state_its_dict_and_a_pickle() -> None:
    x = table()
    made = Standardizer.fit(x)
    other = Standardizer.fit(torch.randn(9, 4))
    other.load_state_dict(made.state_dict())
    again = Standardizer.from_dict(json.loads(json.dumps(made.to_dict())))
    for same in (other, again, pickle.loads(pickle.dumps(made)), made.half()):
        assert torch.equal(same.encode(x), Standardizer.fit(x).encode(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Standardizer.fit([[1.0]]), TypeError, "X: expected a Tensor of real numbers, found list"),
        (lambda: Standardizer.fit(torch.ones(3, 2, dtype=torch.bool)), TypeError, "X: .* found torch.bool"),
        (lambda: Standardizer.fit(torch.ones(1, 2)), ValueError, "X: .* n >= 2"),
        (lambda: Standardizer.fit(torch.tensor([[1.0], [math.nan]])), ValueError, "X: expected finite values, found 1"),
        (lambda: Standardizer.fit(table()).encode(torch.ones(3, 5)), ValueError, r"x: expected a Tensor \[n, 4\]"),
        (lambda: Standardizer.fit(table()).decode(torch.ones(4)), ValueError, r"z: expected a Tensor \[n, 4\]"),
        (lambda: Standardizer([0.0], [-1.0], (2,)), ValueError, "scale: expected numbers of at least 0, found -1.0"),
        (lambda: Standardizer([0.0], [1.0] * 3, (2,)), ValueError, r"scale: expected shape \[1\] or \[2\]"),
    ],
)
def test_a_standardizer_names_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


class Pairs(torch.utils.data.Dataset[Any]):
    """A user's own torch Dataset: pairs of an array and its class."""

    def __init__(self, x: np.ndarray, y: np.ndarray | None) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def frame(x: np.ndarray, y: np.ndarray | None) -> Any:
    pandas = pytest.importorskip("pandas")
    columns = {f"feature {i}": x[:, i] for i in range(x.shape[1])}
    return pandas.DataFrame(columns if y is None else {**columns, "label": y})


def write_table(path: Path, x: np.ndarray, y: np.ndarray | None) -> Path:
    if path.suffix == ".parquet":
        made = frame(x, y)
        pytest.importorskip("pyarrow")
        made.to_parquet(path)
        return path
    delimiter = "\t" if path.suffix == ".tsv" else ","
    names = [f"feature {i}" for i in range(x.shape[1])] + ([] if y is None else ["Label"])
    rows = [[*map(repr, map(float, row)), *([] if y is None else [str(y[i])])] for i, row in enumerate(x)]
    path.write_text("\n".join(delimiter.join(row) for row in [names, *rows]) + "\n")
    return path


def write_arrays(path: Path, x: np.ndarray, y: np.ndarray | None) -> Path:
    np.savez(path, x=x) if y is None else np.savez(path, x=x, y=y)
    return path


Kind = Callable[[Path, np.ndarray, np.ndarray | None], dict[str, Any]]
ARRAY_KINDS: dict[str, Kind] = {
    "npz": lambda folder, x, y: {"source": write_arrays(folder / "a.npz", x, y)},
    "ndarray": lambda folder, x, y: {"source": x, "labels": y},
    "tensor": lambda folder, x, y: {"source": torch.from_numpy(x), "labels": y},
    "masked, nothing masked": lambda folder, x, y: {"source": np.ma.masked_array(x, np.zeros(x.shape)), "labels": y},
    "torch Dataset": lambda folder, x, y: {"source": Pairs(x, y)},
    "DataLoader": lambda folder, x, y: {"source": torch.utils.data.DataLoader(Pairs(x, y), batch_size=7)},
}
TABLE_KINDS: dict[str, Kind] = {
    "csv": lambda folder, x, y: {"source": write_table(folder / "a.csv", x, y)},
    "tsv": lambda folder, x, y: {"source": str(write_table(folder / "a.TSV", x, y))},
    "parquet": lambda folder, x, y: {"source": write_table(folder / "a.parquet", x, y)},
    "DataFrame": lambda folder, x, y: {"source": frame(x, y)},
}
N = 30
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 3, 6, 5)).astype(np.uint8)
CONTENTS: dict[str, tuple[np.ndarray, np.ndarray]] = {  # as given, as expected
    "points": ((points := 1e3 * np.random.default_rng(1).standard_normal((N, 3))), points),
    "grey uint8 NHW": (PIXELS[:, 0], PIXELS[:, :1]),
    "grey float NHW": (PIXELS[:, 0] / 255.0, PIXELS[:, :1] / 255.0),
    "colour uint8 NHWC": (np.moveaxis(PIXELS, 1, -1), PIXELS),
    "colour float NHWC": (np.moveaxis(PIXELS, 1, -1) / 255.0, PIXELS / 255.0),
    "grey NHWC": (np.moveaxis(PIXELS[:, :1], 1, -1), PIXELS[:, :1]),
    "colour NCHW": (PIXELS, PIXELS),
    "small colour NHWC": (np.moveaxis(PIXELS[:, :, :4, :4], 1, -1), PIXELS[:, :, :4, :4]),
    "features in rows": (PIXELS[:, :2, 0], PIXELS[:, :2, 0]),
}
CLASSES: dict[str, np.ndarray | None] = {
    "no labels": None,
    "1..5": np.arange(N) % 5 + 1,
    "0 and 7": np.arange(N) % 2 * 7,
    "negative": np.arange(N) % 3 - 10,
    "texts": np.array(["cat", "ant", "dog"])[np.arange(N) % 3],
}
CASES = [
    *((kind, content) for kind in ARRAY_KINDS for content in CONTENTS),
    *((kind, "points") for kind in TABLE_KINDS),
]


@pytest.mark.parametrize("labels", CLASSES)
@pytest.mark.parametrize(("kind", "content"), CASES)
def test_every_kind_of_input_gives_the_same_data(tmp_path: Path, kind: str, content: str, labels: str) -> None:
    given, expected = CONTENTS[content]
    y = CLASSES[labels]
    made = {**ARRAY_KINDS, **TABLE_KINDS}[kind](tmp_path, given, y)
    d = data.load(**{key: value for key, value in made.items() if value is not None})
    assert d.event_shape == expected.shape[1:] and (len(d.train), len(d.test)) == (24, 6)
    both = torch.cat([d.train, d.test])
    wanted = torch.from_numpy(expected.astype(np.float32))
    order = torch.cdist(both.flatten(1), wanted.flatten(1)).argmin(1)
    assert torch.equal(both, wanted[order]) and len(order.unique()) == N
    if y is None:
        assert d.labels is None and d.n_classes == 0
        return
    assert d.labels is not None and d.test_labels is not None and d.label_names is not None
    assert d.label_names == tuple(map(str, np.unique(y)))
    found = [d.label_names[i] for i in torch.cat([d.labels, d.test_labels]).tolist()]
    assert found == [str(y[i]) for i in order.tolist()]
    assert d.class_weights is not None and float(d.class_weights.min()) > 0


def test_a_class_of_one_sample_is_trained_on(tmp_path: Path) -> None:
    for rare in range(20):
        labels = np.where(np.arange(20) == rare, 9, np.arange(20) % 2)
        d = data.load(np.arange(20.0), labels=labels)
        assert d.class_weights is not None and d.n_classes == 3 and float(d.class_weights.min()) > 0
        assert len(d.train) + len(d.test) == 20


def test_a_layout_can_be_named() -> None:
    x = np.random.default_rng(0).normal(size=(9, 3, 8, 4))
    shapes = {"auto": (3, 8, 4), "NCHW": (3, 8, 4), "NHWC": (4, 3, 8), "rows": (3, 8, 4)}
    assert {layout: data.load(x, layout=layout).event_shape for layout in shapes} == shapes
    series = x[:, 0]
    shapes = {"auto": (1, 8, 4), "NHW": (1, 8, 4), "rows": (8, 4)}
    assert {layout: data.load(series, layout=layout).event_shape for layout in shapes} == shapes
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions for layout NHWC, found shape \(9, 8, 4\)"):
        data.load(series, layout="NHWC")
    with pytest.raises(ValueError, match=r"layout: expected one of 'auto', .* found 'HWC'"):
        data.load(x, layout="HWC")


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 1e3])
def test_data_stay_float64_where_float32_would_round_away_what_varies(deviation: float) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2)) * deviation
    assert data.load(x).train.dtype == torch.float32
    d = data.load(x + 1e7 * deviation)
    assert d.train.dtype == d.test.dtype == torch.float64
    torch.testing.assert_close(d.train.std(0), torch.from_numpy(x).std(0), rtol=0.3, atol=0)
    assert data.load((x + 50 * deviation).astype(np.float32)).train.dtype == torch.float32
    assert data.load(np.full((4, 2), 0.1)).train.dtype == torch.float32  # a constant has nothing to lose


def masked(values: Any) -> Any:
    return np.ma.masked_array(values, np.arange(np.size(values)).reshape(np.shape(values)) == 3)


MASKED = r"expected no masked values, found 1, first at \(1, 1\)"
MASKS: dict[str, Callable[[], object]] = {
    "load": lambda: data.load(masked(np.ones((4, 2)))),
    "held out": lambda: data.load(np.ones((4, 2)), test=masked(np.ones((4, 2)))),
    "MaskedTensor": lambda: data.load(torch.masked.masked_tensor(torch.ones(4, 2), torch.arange(8).view(4, 2) != 3)),
    "fit": lambda: fastndsm.GaussianMixture.fit(masked(np.ones((4, 2))), 1),
    "from_points": lambda: fastndsm.GaussianMixture.from_points(masked(np.ones((4, 2))), 0.1),
    "means": lambda: fastndsm.GaussianMixture([0.5, 0.5], masked(np.ones((2, 2))), [1.0, 1.0], "spherical"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("case", MASKS)
def test_masked_values_are_refused_never_unmasked(case: str) -> None:
    with pytest.raises(ValueError, match=MASKED):
        MASKS[case]()


def test_masked_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: expected no masked values, found 1, first at \(3,\)"):
        data.load(np.ones((5, 2)), labels=masked(np.arange(5)))


BAD_TABLES = {
    "empty cell": ("a,b\n1,2\n3,\n", ValueError, r"a\.csv: row 2 \(line 3\), column 'b': .* found an empty cell"),
    "nan": ("a,b\n1,NaN\n3,4\n", ValueError, r"row 1 \(line 2\), column 'b': expected a value, found 'NaN'"),
    "NA": ("a,b\nNA,1\n3,4\n", ValueError, r"row 1 \(line 2\), column 'a': expected a value, found 'NA'"),
    "infinite": ("a,b\n1,2\n3,inf\n", ValueError, r"row 2 \(line 3\), column 'b': expected a finite number"),
    "no header": ("1,2\n3,nan\n", ValueError, r"row 2 \(line 2\), column '2': expected a value, found 'nan'"),
    "blank lines": ("a,b\n\n1,2\n\n3,\n", ValueError, r"row 2 \(line 5\), column 'b'"),
    "text": ("a,kind\n1,cat\n2,dog\n", TypeError, r"column 'kind': expected numbers, found 'cat' in row 1 \(line 2\)"),
    "date": ("day,b\n2024-01-01,1\n2024-01-02,2\n", TypeError, r"column 'day': expected numbers, found '2024-01-01'"),
    "decimal commas": ("a;b\n1,5;2,5\n2,5;3,5\n", TypeError, r"column 'a': expected numbers, found '1,5' in row 1"),
    "booleans": ("a,b\n1,True\n2,False\n", TypeError, r"column 'b': expected numbers, found 'True'"),
    "ragged": ("a,b\n1,2\n3\n", ValueError, r"line 3: expected 2 cells as in the first line, found 1"),
    "twice": ("a,a\n1,2\n3,4\n", ValueError, r"columns of different names, found 'a' twice"),
    "nothing": ("\n", ValueError, r"expected a table, found an empty file"),
    "header alone": ("a,b\n", ValueError, r"expected rows, found none below the header"),
    "labels alone": ("label\n1\n2\n", ValueError, r"expected a column of numbers, found labels alone"),
    "real labels": ("a,label\n1,0.5\n2,1\n", TypeError, r"column 'label': expected integer labels, found 0\.5"),
    "missing label": ("a,label\n1,\n2,1\n", ValueError, r"row 1 \(line 2\), column 'label': .* an empty cell"),
    "one row": ("a,b\n1,2\n", ValueError, r"x: .*n >= 2, found shape \(1, 2\)"),
}


@pytest.mark.parametrize(("text", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_are_named_by_row_and_column(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(error, match=message):
        data.load(tmp_path / "a.csv")


def test_tables_are_read_as_others_write_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf a ; b\r\n1e-3;-2\r\n3;4\r\n")  # byte order mark, spaces, semicolons, CRLF
    d = data.load(path, test_fraction=0.5)
    assert torch.cat([d.train, d.test]).sort(0).values.tolist() == [[pytest.approx(1e-3), -2.0], [3.0, 4.0]]
    path.write_text(",a,b\n0,5,6\n1,7,8\n")
    with pytest.warns(UserWarning, match="the first column has no name and counts the rows"):
        assert data.load(path).dim == 2
    path.write_text("a,kind\n1,cat\n2,dog\n3,cat\n4,dog\n")
    d = data.load(path, label_column="kind")
    assert d.label_names == ("cat", "dog") and d.dim == 1
    with pytest.raises(ValueError, match="label_column: expected one of 'a', 'kind', found 'species'"):
        data.load(path, label_column="species")


def test_parquet_without_pandas_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"a\.parquet: .* needs pandas .*: pip install 'fastndsm\[tables\]'"):
        data.load(tmp_path / "a.parquet")


def test_frames_name_what_is_amiss(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    bad = [
        ({"a": [1.0, np.nan]}, ValueError, r"DataFrame: row 2, column 'a': expected a value, found an empty cell"),
        ({"a": [1, 2], "b": [True, False]}, TypeError, "column 'b': expected numbers, found 'True' in row 1"),
        ({"a": pandas.to_datetime(["2024-01-01"] * 2)}, TypeError, "column 'a': expected numbers, found '2024-01-01"),
        ({"a": pandas.array([1, None], dtype="Int64")}, ValueError, "row 2, column 'a'"),
    ]
    for columns, error, message in bad:
        with pytest.raises(error, match=message):
            data.load(pandas.DataFrame(columns))
    with pytest.raises(ValueError, match=r"row 2 \(index 'v'\), column 'a'"):
        data.load(pandas.DataFrame({"a": [1.0, np.inf]}, index=["u", "v"]).replace(np.inf, np.nan))
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"a\.parquet: expected a whole Parquet file"):
        data.load(tmp_path / "a.parquet")


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "list": (lambda: [[1.0, 2.0]], r"source: expected a name, .* or a DataLoader, found builtins\.list"),
    "scipy": (lambda: __import__("scipy.sparse").sparse.eye(3), r"found scipy\.sparse\._dia\.dia_matrix"),
    "sparse tensor": (lambda: torch.eye(3).to_sparse(), r"x: expected a dense Tensor, found torch\.sparse_coo"),
    "endless": (Endless, "expected a Dataset that has a length, found Endless"),
    "endless loader": (
        *(lambda: torch.utils.data.DataLoader(Endless()),),
        "expected a DataLoader over a Dataset that has a length, found Endless",
    ),
    "three parts": (
        *(lambda: torch.utils.data.TensorDataset(*[torch.ones(3)] * 3),),
        r"source\[0\]: expected a sample, or a sample and its class .*, found 3 parts",
    ),
    "real targets": (
        *(lambda: torch.utils.data.TensorDataset(torch.ones(3, 2), torch.ones(3)),),
        "labels: expected integer labels, found dtype float64",
    ),
    "dictionaries": (
        *(lambda: torch.utils.data.StackDataset(x=torch.ones(3, 2)),),
        r"source\[0\]: expected a sample, .* found dict",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(TypeError, match=message):
        data.load(make())


def test_events_of_different_shapes_are_refused_by_their_number() -> None:
    ragged = Pairs(np.array([np.ones(2), np.ones(3)], dtype=object), None)
    with pytest.raises(ValueError, match=r"source\[1\]: expected shape \(2,\) as in source\[0\], found \(3,\)"):
        data.load(ragged)


def test_the_users_array_stays_theirs() -> None:
    x, test = np.ones((6, 2), dtype=np.float32), np.ones((4, 2), dtype=np.float32)
    x.flags.writeable = False
    d = data.load(x, test=test)
    test[:] = 7
    assert d.test.max() == 1
    d.train.add_(1)
    assert x.max() == 1


def test_a_dataset_is_given_back() -> None:
    d = data.load("ring", n=10)
    assert data.load(d) is d
    with pytest.raises(TypeError, match="source: expected no options beside a fastndsm Dataset, found n"):
        data.load(d, n=5)
