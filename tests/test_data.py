"""Data sets: their laws, their splits, and the readers' refusal of damaged files."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    "label-range": (
        {"x": np.ones(3), "y": np.array([0, 7, 1])},
        ValueError,
        r"y: expected labels in 0..2, found 0..7",
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
        (lambda: data.from_file("a.csv"), r"path: expected a \.npy or \.npz file, found a\.csv"),
        (lambda: data.from_file("a.npy", test_fraction=1.0), "test_fraction: .* found 1.0"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def table() -> torch.Tensor:
    """Four features that fit into no one scale: tiny and far away, of unit scale, wide, and constant."""
    x = torch.randn(500, 4, dtype=torch.float64)
    return x * torch.tensor([1e-6, 1.0, 1e3, 0.0]).double() + torch.tensor([1e7, 0.0, 5e4, 0.1]).double()


def test_a_standardizer_gives_each_feature_mean_0_and_deviation_1_and_goes_back() -> None:
    x = table()
    made = Standardizer.fit(x)
    z = made.encode(x)
    rounding = torch.tensor([2e-3, 1e-14, 1e-13, 0.0]).double()  # of x itself: an ulp over a deviation
    assert bool((z.mean(0).abs() <= rounding).all())
    torch.testing.assert_close(z.std(0, correction=0)[:3], torch.ones(3).double(), atol=1e-3, rtol=0)
    assert z[:, 3].abs().max() == 0 and made.scale[3] == 1
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


def test_a_constant_up_to_rounding_is_not_blown_up() -> None:
    x = torch.tensor([0.1 + 0.2, 0.3] * 10, dtype=torch.float64)[:, None].repeat(1, 2)
    x[:, 1] = torch.arange(20)
    assert Standardizer.fit(x).scale.tolist() == [1.0, pytest.approx(math.sqrt((20**2 - 1) / 12))]


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
        (lambda: Standardizer([0.0], [0.0], (2,)), ValueError, "scale: expected positive numbers, found 0.0"),
        (lambda: Standardizer([0.0], [1.0] * 3, (2,)), ValueError, r"scale: expected shape \[1\] or \[2\]"),
    ],
)
def test_a_standardizer_names_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
