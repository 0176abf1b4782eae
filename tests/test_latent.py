"""Latent space: encoders that invert, scale and refuse as they say, and the few lines from images to samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, ResidualScore, checkpoint, data, latent, metrics
from fastndsm.networks import MLP
from fastndsm.training.trainer import TrainConfig

Make = Callable[[Tensor], latent.Encoder]
ENCODERS: dict[str, Make] = {
    "pca": lambda x: latent.PCA.fit(x, 8),
    "whitened": lambda x: latent.PCA.fit(x, 8, whiten=True),
    "autoencoder": lambda x: latent.Autoencoder.fit(x, 8, hidden=(64,), steps=400, lr=3e-3),
    "variational": lambda x: latent.Autoencoder.fit(x, 8, hidden=(64,), steps=400, lr=3e-3, kl_weight=0.1),
}


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(params=list(ENCODERS), scope="module")
def encoder(request: pytest.FixtureRequest, digits: data.Dataset) -> latent.Encoder:
    return ENCODERS[request.param](digits.train)


def test_latent_vectors_are_centred_with_variance_one_on_average(encoder: latent.Encoder, digits: data.Dataset) -> None:
    z = encoder.encode(digits.train)
    assert z.shape == (len(digits.train), 8) and not z.requires_grad
    torch.testing.assert_close(z.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    assert float(z.var(0).mean()) == pytest.approx(1.0, abs=1e-3)


def test_decoding_gives_events_back_in_chunks_or_not(
    encoder: latent.Encoder, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.decode(encoder.encode(digits.test))
    assert whole.shape == digits.test.shape
    spread = float((digits.test - digits.train.mean(0)).square().mean())
    assert float((whole - digits.test).square().mean()) < 0.6 * spread
    monkeypatch.setattr(latent, "_CHUNK", 100)
    torch.testing.assert_close(encoder.decode(encoder.encode(digits.test)), whole, atol=1e-5, rtol=1e-5)
    assert encoder.encode(digits.test.flatten(1)).shape == (len(digits.test), 8)


@pytest.mark.parametrize("n", [40, 500], ids=["fewer samples than values", "more"])
def test_pca_agrees_with_scikit_learn(n: int, digits: data.Dataset) -> None:
    from sklearn.decomposition import PCA

    flat = digits.train[:n].flatten(1).double()
    theirs = PCA(6, svd_solver="full").fit(flat.numpy())
    ours = latent.PCA.fit(flat, 6)
    overlap = (ours.components @ torch.from_numpy(theirs.components_).T).abs()
    torch.testing.assert_close(overlap, torch.eye(6, dtype=torch.float64), atol=1e-8, rtol=0)
    assert ours.explained == pytest.approx(theirs.explained_variance_ratio_.sum())
    scale = math.sqrt(theirs.explained_variance_.mean())
    torch.testing.assert_close(ours.scale, torch.full((6,), scale, dtype=torch.float64))


@pytest.mark.parametrize("n", [40, 500], ids=["fewer samples than values", "more"])
def test_a_component_s_sign_is_settled(n: int, digits: data.Dataset) -> None:
    rows = latent.PCA.fit(digits.train[:n], 6).components
    assert bool((rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all())


def test_all_components_lose_nothing() -> None:
    x = torch.randn(50, 2, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1])
    for whiten in (False, True):
        encoder = latent.PCA.fit(x, whiten=whiten)
        assert encoder.dim == 6 and encoder.explained == pytest.approx(1.0)
        torch.testing.assert_close(encoder.decode(encoder.encode(x)), x)


def test_whitened_data_have_the_identity_as_covariance(digits: data.Dataset) -> None:
    z = latent.PCA.fit(digits.train.double(), 20, whiten=True).encode(digits.train.double())
    torch.testing.assert_close(torch.cov(z.T), torch.eye(20, dtype=torch.float64))


def test_an_autoencoder_beats_pca_of_its_size_and_keeps_to_the_data_s_range(digits: data.Dataset) -> None:
    encoder = latent.Autoencoder.fit(digits.train, 4, hidden=(128, 64), steps=1500, lr=3e-3)
    pca = latent.PCA.fit(digits.train, 4)
    ours, theirs = (float((e.decode(e.encode(digits.train)) - digits.train).square().mean()) for e in (encoder, pca))
    assert ours < 0.8 * theirs
    wild = encoder.decode(10 * torch.randn(200, 4))
    assert -1.0 <= float(wild.min()) and float(wild.max()) <= 1.0


def test_fits_repeat_and_leave_the_default_generator_alone(digits: data.Dataset) -> None:
    before = torch.get_rng_state()
    fits = [latent.Autoencoder.fit(digits.train, 3, hidden=(16,), steps=5, seed=seed) for seed in (1, 1, 2)]
    made = [encoder.encode(digits.test) for encoder in fits]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_encoders_are_restored_from_their_state(encoder: latent.Encoder, digits: data.Dataset) -> None:
    other = ENCODERS[_name(encoder)](digits.train[:300])
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.encode(digits.test), encoder.encode(digits.test))


def _name(encoder: latent.Encoder) -> str:
    if isinstance(encoder, latent.Autoencoder):
        return "variational" if encoder.kl_weight else "autoencoder"
    return "pca"


def test_from_images_to_samples_in_a_few_lines(digits: data.Dataset) -> None:
    config = TrainConfig(steps=300, batch_size=128)
    model = latent.LatentModel.fit(
        digits.train, latent.PCA.fit(digits.train, 12), 10, hidden=(64, 64), config=config, progress=False
    )
    samples = model.sample(300, seed=3)
    assert samples.shape == (300, 1, 8, 8)
    z = fastndsm.sample(model.score_net, model.process, 300, seed=3)
    assert torch.equal(samples, model.encoder.decode(z)) and len(model.history) == 15
    real = digits.train[torch.randperm(len(digits.train))[:300]]
    noise = digits.train.mean(0) + digits.train.std() * torch.randn(300, 1, 8, 8)
    assert metrics.energy_distance(samples, digits.test) < 0.2
    assert metrics.energy_distance(samples, digits.test) < 0.2 * metrics.energy_distance(noise, digits.test)
    assert metrics.energy_distance(real, digits.test) < metrics.energy_distance(samples, digits.test)


@pytest.mark.parametrize(
    "x",
    [
        5e4 + 1e3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0)),
        1e-3 * torch.randn(400, 2, generator=torch.Generator().manual_seed(1)),
        torch.randint(0, 241, (200, 1, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.uint8),
    ],
    ids=["wide and far away", "narrow", "uint8 images"],
)
def test_data_of_any_scale_are_learnt_in_standard_coordinates(x: Tensor) -> None:
    config = TrainConfig(steps=60, batch_size=64)
    model = latent.LatentModel.fit(
        x, data.Standardizer.fit(x), 2, hidden=(16,), config=config, progress=False, n_steps=50
    )
    samples = model.sample(400, seed=1)
    assert samples.shape[1:] == x.shape[1:]
    spread = x.double().std()
    assert float((samples.mean() - x.double().mean()).abs() / spread) < 0.25
    assert float(samples.double().std() / spread) == pytest.approx(1, abs=0.25)


def test_a_latent_model_repeats_by_its_configuration_alone(digits: data.Dataset) -> None:
    encoder = latent.PCA.fit(digits.train, 5)

    def samples() -> Tensor:
        torch.rand(7)  # whatever the generator's state
        config = TrainConfig(steps=4, batch_size=32, seed=5)
        model = latent.LatentModel.fit(
            *(digits.train, encoder, 3),
            **{"hidden": (16,), "config": config, "progress": False, "n_steps": 60},
            loss_options={"estimator": "plain", "antithetic": True},
        )
        return model.sample(6, seed=1)

    assert torch.equal(samples(), samples())


def test_a_latent_model_of_classes(digits: data.Dataset) -> None:
    x, y = digits.train, digits.labels
    assert y is not None
    encoder = latent.PCA.fit(x, 8)
    config = TrainConfig(steps=400, batch_size=128)
    model = latent.LatentModel.fit(
        x, encoder, 20, hidden=(64, 64), config=config, conditions=y, n_init=1, progress=False
    )
    assert model.process.reference.n_classes == 10 and model.process.class_weights is None
    wanted = torch.arange(200) % 10
    drawn = model.sample(200, condition=wanted, seed=1)
    nearest = y[torch.cdist(drawn.flatten(1), x.flatten(1)).argmin(1)]
    assert float((nearest == wanted).float().mean()) > 0.85
    states = model.sample(5, condition=wanted[:5], guidance=2.0, seed=1, trajectory=4)
    assert states.shape == (5, 5, 1, 8, 8)
    vectors = latent.LatentModel.fit(
        x, encoder, 4, hidden=(8,), config=TrainConfig(steps=2), conditions=x[:, 0, :2], n_init=1, progress=False
    )
    assert vectors.score_net.net.config["condition_dim"] == 16
    assert vectors.sample(3, condition=x[:3, 0, :2], x_T=encoder.encode(x[:3])).shape == (3, 1, 8, 8)


def test_float64_stays_float64(digits: data.Dataset) -> None:
    x = digits.train[:200].double()
    for made in (latent.PCA.fit(x, 3), latent.Autoencoder.fit(x, 3, hidden=(8,), steps=3)):
        assert made.encode(x).dtype == made.decode(made.encode(x)).dtype == torch.float64


X = torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(5, 2)
HALF_CONSTANT = torch.stack([torch.arange(9.0), torch.ones(9)], 1)
Refused = tuple[Callable[[], object], type[Exception], str]
BAD: dict[str, Refused] = {
    "not a tensor": (lambda: latent.PCA.fit([[1.0]], 1), TypeError, "X: expected a floating-point Tensor, found list"),
    "integers": (lambda: latent.Autoencoder.fit(ONES.long(), 1), TypeError, "X: expected a floating-point"),
    "one sample": (lambda: latent.PCA.fit(X[:1], 1), ValueError, "n >= 2"),
    "flat": (lambda: latent.PCA.fit(ONES[0], 1), ValueError, r"\[n, \*event\]"),
    "not finite": (lambda: latent.PCA.fit(ONES / 0), ValueError, "X: expected finite values, found 10"),
    "components": (lambda: latent.PCA.fit(X, 10), ValueError, r"dim: expected at most min\(n - 1, D\) = 9, found 10"),
    "no variance": (lambda: latent.PCA.fit(ONES, 1), ValueError, "expected variance in 1 directions, found it in 0"),
    "whitening a constant": (
        *(lambda: latent.PCA.fit(HALF_CONSTANT, 2, whiten=True), ValueError),
        "expected variance in 2 directions, found it in 1",
    ),
    "constant": (lambda: latent.Autoencoder.fit(ONES, 1), ValueError, "X: expected values that differ"),
    "negative weight": (lambda: latent.Autoencoder.fit(X, 2, kl_weight=-1.0), ValueError, "kl_weight"),
    "no steps": (lambda: latent.Autoencoder.fit(X, 2, steps=0), ValueError, "steps"),
    "events": (lambda: latent.PCA.fit(X, 2).encode(X[..., :2]), ValueError, r"x: expected a Tensor \[n, 1, 3, 3\]"),
    "other dim": (lambda: latent.PCA.fit(X, 2).decode(ONES[:, :1]), ValueError, r"z: expected a Tensor \[n, 2\]"),
    "no encoder": (lambda: latent.LatentModel.fit(X, None, 2), TypeError, "encoder: expected an Encoder"),
    "dimensions": (
        *(lambda: latent.LatentModel(latent.PCA.fit(X, 2), torch.nn.Identity(), fastndsm.OUProcess(3)), ValueError),
        "process: expected 2 dimensions",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", [*ENCODERS, "standardizer"])
def test_a_model_is_stored_with_its_encoder(name: str, digits: data.Dataset, tmp_path: Path) -> None:
    encoder = data.Standardizer.fit(digits.train) if name == "standardizer" else ENCODERS[name](digits.train[:200])
    config = TrainConfig(steps=2, batch_size=8)
    model = latent.LatentModel.fit(digits.train[:200], encoder, 2, hidden=(8,), config=config, progress=False, T=0.1)
    model.save(tmp_path / "m", meta={"a": 1})
    again = latent.LatentModel.load(tmp_path / "m")
    assert not again.training and torch.equal(again.sample(6, seed=1), model.sample(6, seed=1))
    assert torch.equal(again.encoder.encode(digits.test), encoder.encode(digits.test))
    assert checkpoint.load_model(tmp_path / "m")[2] == {"a": 1}
    file = tmp_path / "m" / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(checkpoint.CheckpointError, match=r"encoder\.safetensors"):
        latent.LatentModel.load(tmp_path / "m")


def test_a_model_without_an_encoder_is_refused(tmp_path: Path) -> None:
    process = LangevinProcess(GaussianMixture.standard_normal(2))
    checkpoint.save_model(tmp_path / "m", ResidualScore(MLP(2, (4,)), process), process)
    with pytest.raises(checkpoint.CheckpointError, match="expected a model with an encoder, found one without"):
        latent.LatentModel.load(tmp_path / "m")
    for described, message in (({"kind": "vae"}, "found 'vae'"), ({"kind": "pca"}, "of this version")):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            latent.encoder_from(described, {})


def test_the_number_of_components_is_chosen_unless_given() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(60, 0)
    X = centres + 0.05 * torch.randn(180, 3, generator=generator)
    encoder = latent.PCA.fit(X, 2)
    options: dict[str, Any] = {"config": TrainConfig(steps=1), "progress": False, "hidden": (4,)}
    chosen = latent.LatentModel.fit(X, encoder, **options)
    assert chosen.selection is not None and chosen.selection.chosen.n_components == 3
    assert chosen.process.reference.n_components == 3
    given = latent.LatentModel.fit(X, encoder, 2, eigenvalue_floor=0.5, **options)
    floored = fastndsm.GaussianMixture.fit(encoder.encode(X), 2, random_state=0, n_init=5).conditioned(0.5)
    assert given.selection is None and given.process.reference.digest == floored.digest
