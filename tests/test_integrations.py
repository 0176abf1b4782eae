"""The adapters against the packages themselves, without a network. Where an extra is not installed its tests skip."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import normals, quietly, random_mixture
from packaging.requirements import Requirement
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastndsm
from fastndsm import LangevinProcess, NDSMLoss, OUProcess, ResidualScore, data, latent, metrics, networks, sample
from fastndsm.cli import main
from fastndsm.integrations.score_sde import SDE
from fastndsm.training import CheckpointError, load_model

PACKAGES = {"huggingface_hub": "HubModel", "diffusers": "NDSMPipeline", "lightning": "NDSMModule"}
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test of the adapters reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def adapter(name: str) -> Any:
    """Return the adapter's module, if its package is installed."""
    pytest.importorskip(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages' own
        return importlib.import_module(f"fastndsm.integrations.{name}")


def images_process(seed: int = 0) -> LangevinProcess:
    mixture = fastndsm.GaussianMixture(
        [0.5, 0.5], normals(2, 64, seed=seed).double(), [0.6, 0.9], "spherical", event_shape=SHAPE
    )
    return LangevinProcess(mixture, n_steps=30, grid="quadratic")


def woken(net: nn.Module, seed: int = 0) -> Any:
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.1 * normals(1, p.numel(), seed=seed + i).reshape(p.shape))
    return net


def images_model() -> tuple[ResidualScore, LangevinProcess]:
    process = images_process()
    return ResidualScore(woken(networks.MLP(64, (8,), horizon=process.T, embedding_dim=8)), process), process


def pixels(n: int) -> Tensor:
    return normals(n, 64, dtype=torch.float32).reshape(n, *SHAPE)


class OwnNet(nn.Module):
    """A network of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = {"width": width}
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).sin()).reshape(x.shape)


# --- the package -------------------------------------------------------------------------------------------------


def test_in_ci_no_extra_is_missing() -> None:
    """There every test of this file runs."""
    text = (ROOT / "pyproject.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("integrations = "))
    extras = {Requirement(part).name for part in json.loads(line.partition("=")[2])}
    assert extras == {*PACKAGES, "torchmetrics"}
    if os.environ.get("CI"):
        assert [name for name in extras if importlib.util.find_spec(name) is None] == []


ON_USE = """
import sys
import fastndsm.integrations, fastndsm.integrations.score_sde, fastndsm.integrations.torchmetrics
assert not {"diffusers", "huggingface_hub", "lightning", "torchmetrics"} & set(sys.modules)
for name in sys.argv[1:]:
    sys.modules[name] = None
    try:
        __import__(f"fastndsm.integrations.{name}")
    except ImportError as error:
        assert error.name == name
        print(error)
"""


def test_a_package_is_imported_on_use_and_its_absence_is_told(run_python: Callable[..., str]) -> None:
    lines = run_python(ON_USE, "lightning", "huggingface_hub").splitlines()
    for name, line in zip(("lightning", "huggingface_hub"), lines, strict=True):
        assert line.startswith(f"{name}: expected it to be installed, found: ")
        assert line.endswith("; pip install 'fastndsm[integrations]' (docs/troubleshooting.md#missing-packages)")


@pytest.mark.parametrize("name", PACKAGES)
def test_what_an_adapter_makes_can_be_copied(name: str) -> None:
    module = adapter(name)
    net, process = images_model()
    if name == "lightning":
        value = module.NDSMModule(net, NDSMLoss(process))
    else:
        value = adapter("huggingface_hub").HubModel(net, process, meta={"a": 1})
        value = value if name == "huggingface_hub" else module.NDSMPipeline(value)
    for made in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        made = made.model if name == "diffusers" else made
        assert torch.equal(made.sample(2, seed=1), sample(net, process, 2, seed=1))


# --- Hugging Face Hub --------------------------------------------------------------------------------------------


class TestHub:
    def test_a_folder_gives_the_model_again(self, tmp_path: Path) -> None:
        HubModel = adapter("huggingface_hub").HubModel
        net, process = images_model()
        HubModel(net, process, meta={"note": [1, "two"]}).save_pretrained(tmp_path / "m")
        names = {path.name for path in (tmp_path / "m").iterdir()}
        assert names == {"config.json", "model.safetensors", "reference.safetensors", "README.md"}
        assert json.loads((tmp_path / "m" / "config.json").read_text())["network"]["name"] == "mlp"
        loaded = HubModel.from_pretrained(tmp_path / "m")
        assert loaded.meta == {"note": [1, "two"]} and not loaded.training
        assert torch.equal(loaded.sample(3, seed=1), sample(net, process, 3, seed=1))
        x, t = pixels(2), torch.tensor([0.1, 0.2])
        assert torch.equal(loaded(x, t), net(x, t))
        assert torch.equal(loaded.log_likelihood(x), fastndsm.log_likelihood(net, process, x))
        again = load_model(tmp_path / "m")[0]  # and by the library's own
        assert torch.equal(again(x, t), net(x, t))
        assert main(["sample", str(tmp_path / "m"), "--n", "3", "--seed", "1", "--out", str(tmp_path / "s.npy")]) == 0
        torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "s.npy")), loaded.sample(3, seed=1))

    def test_saved_again_it_is_the_new_one(self, tmp_path: Path) -> None:
        HubModel = adapter("huggingface_hub").HubModel
        net, process = images_model()
        encoder = data.Standardizer([1.0], [2.0], SHAPE)
        first = HubModel(net, process, encoder)
        first.save_pretrained(tmp_path / "m")
        loaded = HubModel.from_pretrained(tmp_path / "m")
        assert torch.equal(loaded.sample(3, seed=1), encoder.decode(sample(net, process, 3, seed=1)))
        assert main(["sample", str(tmp_path / "m"), "--n", "3", "--seed", "1", "--out", str(tmp_path / "s.npy")]) == 0
        torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "s.npy")), loaded.sample(3, seed=1))
        (tmp_path / "m" / "other.safetensors").write_text("not ours")
        woken(net, seed=9)
        HubModel(net, process).save_pretrained(tmp_path / "m")
        loaded = HubModel.from_pretrained(tmp_path / "m")
        assert loaded.encoder is None and not (tmp_path / "m" / "encoder.safetensors").exists()
        assert (tmp_path / "m" / "other.safetensors").read_text() == "not ours"
        assert torch.equal(loaded.sample(3, seed=1), sample(net, process, 3, seed=1))

    def test_a_latent_model(self, tmp_path: Path) -> None:
        HubModel = adapter("huggingface_hub").HubModel
        encoder = latent.PCA.fit(pixels(40), 3)
        process = quietly(random_mixture("diag", 3, 3, seed=0, ratio=3.0), T=0.5, n_steps=8)
        net = ResidualScore(woken(networks.MLP(3, (8,), horizon=process.T, embedding_dim=8)), process)
        HubModel(net, process, encoder).save_pretrained(tmp_path / "m")
        found = HubModel.from_pretrained(tmp_path / "m").sample(3, seed=1)
        assert torch.equal(found, latent.LatentModel(encoder, net, process).sample(3, seed=1))

    def test_a_network_of_ones_own(self, tmp_path: Path) -> None:
        HubModel = adapter("huggingface_hub").HubModel
        process = images_process()
        HubModel(woken(OwnNet(5)), process).save_pretrained(tmp_path / "m")
        with pytest.raises(
            ValueError, match=r"^network: expected the class .*OwnNet, which .* found None; pass it, or"
        ):
            HubModel.from_pretrained(tmp_path / "m")
        for options in ({"network": OwnNet}, {"allow_import": [__name__]}):
            loaded = HubModel.from_pretrained(tmp_path / "m", **options)
            assert type(loaded.score_net) is OwnNet

    def test_what_is_wrong_is_told(self, tmp_path: Path) -> None:
        HubModel = adapter("huggingface_hub").HubModel
        net, process = images_model()
        HubModel(net, process, meta={"a": 1}).save_pretrained(tmp_path / "m")
        with pytest.raises(TypeError, match=r"^from_pretrained: expected network, allow_import or device, found nets"):
            HubModel.from_pretrained(tmp_path / "m", nets=1)
        file = tmp_path / "m" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="truncated or altered"):
            HubModel.from_pretrained(tmp_path / "m")
        with pytest.raises(TypeError, match=r"^process: expected a noising process, found None"):
            HubModel(net, None)

    def test_push_uploads_that_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The upload is a recorder, and the download its folder."""
        module = adapter("huggingface_hub")
        import huggingface_hub

        net, process = images_model()
        calls: list[Any] = []

        class Url(str):
            repo_id = "me/moons"

        def create(self: Any, **options: Any) -> Url:
            calls.append(("create", options))
            return Url("https://huggingface.co/me/moons")

        def upload(self: Any, *, folder_path: Path, **options: Any) -> str:
            calls.append(("upload", options))
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return "a commit"

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
        assert module.HubModel(net, process).push_to_hub("me/moons", private=True, token="t") == "a commit"
        assert [name for name, _ in calls] == ["create", "upload"]
        assert calls[0][1]["private"] is True and calls[1][1]["repo_id"] == "me/moons"
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"config.json", "model.safetensors", "reference.safetensors", "README.md"}
        assert "library_name: fastndsm" in (tmp_path / "README.md").read_text()

        asked: list[Any] = []

        def download(repo: str, **options: Any) -> str:
            asked.append((repo, options["revision"], options["allow_patterns"]))
            return str(tmp_path)

        monkeypatch.setattr(module, "snapshot_download", download)
        monkeypatch.setattr(
            huggingface_hub.hub_mixin, "hf_hub_download", lambda **options: str(tmp_path / options["filename"])
        )
        loaded = module.HubModel.from_pretrained("me/moons", revision="v1")
        assert asked == [("me/moons", "v1", ["*.safetensors", "config.json"])]
        assert torch.equal(loaded.sample(2, seed=1), sample(net, process, 2, seed=1))


# --- diffusers ---------------------------------------------------------------------------------------------------


def unet(**options: Any) -> Any:
    import diffusers

    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **options,
    )


def dit(**options: Any) -> Any:
    import diffusers

    torch.manual_seed(1)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=1,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=4,
        **options,
    ).eval()


class TestDiffusersNetwork:
    def test_it_is_the_model_at_its_own_timesteps(self) -> None:
        module = adapter("diffusers")
        model = unet()
        net = module.DiffusersNetwork(model, horizon=2.0)
        x, t = pixels(3), torch.tensor([0.0, 0.5, 2.0])
        expected = torch.cat([model(x[i : i + 1], step).sample for i, step in enumerate((0, 250, 1000))])
        torch.testing.assert_close(net(x, t), expected, rtol=1e-5, atol=1e-5)
        assert not net.takes_condition
        with pytest.raises(ValueError, match="condition: expected None for a model without classes, found one"):
            net(x, t, torch.zeros(3))
        scaled = module.DiffusersNetwork(model, horizon=2.0, timesteps=500.0)
        torch.testing.assert_close(scaled(x[:1], t[2:]), model(x[:1], 500).sample)

    def test_a_condition_is_its_class_labels(self) -> None:
        module = adapter("diffusers")
        model = unet(num_class_embeds=4)
        net = module.DiffusersNetwork(model, null_class=3)
        x, t, y = pixels(2), torch.tensor([0.1, 0.1]), torch.tensor([0, 2])
        assert torch.equal(net(x, t, y.int()), model(x, 1000.0 * t, class_labels=y).sample)
        assert not torch.equal(net(x, t, y), net(x, t, y.flip(0)))
        assert torch.equal(net(x, t), net(x, t, torch.tensor([3, 3])))
        assert torch.equal(net.null_condition(y), torch.tensor([3, 3]))
        without = module.DiffusersNetwork(model)
        assert without.takes_condition and not hasattr(without, "null_condition")
        with pytest.raises(ValueError, match=r"condition: expected labels \[B\] for a model with classes, found None"):
            without(x, t)
        with pytest.raises(ValueError, match="guidance: expected 0 or 1 for a network without null_condition"):
            sample(without, images_process(), 2, condition=y, guidance=2.0)

    def test_a_dit_with_its_null_class_and_without_its_variance(self) -> None:
        module = adapter("diffusers")
        model = dit(out_channels=2)
        net = module.DiffusersNetwork(model)
        x, t, y = pixels(2), torch.tensor([0.1, 0.3]), torch.tensor([0, 2])
        found = net(x, t, y)
        assert found.shape == x.shape
        assert torch.equal(found, model(x, 1000.0 * t, class_labels=y).sample[:, :1])
        assert net.null_class == 3 and net(x, t).shape == x.shape
        process = images_process()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the prior does not know the class
            drawn = sample(net, process, 2, condition=y, guidance=1.5, seed=0, n_evaluations=3)
        assert drawn.shape == x.shape and drawn.isfinite().all()

    def test_it_learns(self) -> None:
        """As any network does: by the trainer, under conditions that it is guided by."""
        module = adapter("diffusers")
        model = unet(num_class_embeds=3)
        nn.init.zeros_(model.conv_out.weight)
        nn.init.zeros_(model.conv_out.bias)
        process = images_process()
        net = ResidualScore(module.DiffusersNetwork(model, process.T, null_class=2), process)
        x = 0.1 * pixels(64)
        y = torch.arange(64) % 2
        x[y == 1] += 1.0
        config = fastndsm.training.TrainConfig(steps=80, batch_size=32, lr=3e-3)
        trainer = fastndsm.training.Trainer(net, NDSMLoss(process), x, config, conditions=y)
        trainer.fit(progress=False)
        losses = [row.loss for row in trainer.history]
        assert losses[-1] < 0.8 * losses[0]
        labels = torch.tensor([0] * 20 + [1] * 20)
        process.fit_prior(x, y)
        drawn = sample(trainer.ema_net, process, 40, condition=labels, seed=1)
        assert float(drawn[20:].mean() - drawn[:20].mean()) > 0.3

    def test_its_class_is_stored_and_nothing_else_is_made_of_a_file(self, tmp_path: Path) -> None:
        module = adapter("diffusers")
        process = images_process()
        net = ResidualScore(module.DiffusersNetwork(unet(num_class_embeds=4), process.T, null_class=3), process)
        fastndsm.training.save_model(tmp_path / "m", net, process)
        with pytest.raises(ValueError, match=r"DiffusersNetwork, which .* found None"):
            load_model(tmp_path / "m")
        for options in ({"network": module.DiffusersNetwork}, {"allow_import": ["fastndsm.integrations"]}):
            loaded = load_model(tmp_path / "m", **options)[0]
            x, t = pixels(2), torch.tensor([0.1, 0.2])
            assert torch.equal(loaded(x, t), net.eval()(x, t))
        for name in ("DDPMPipeline", "os", "utils.import_utils", None, "no_such"):
            with pytest.raises(ValueError, match="model: expected a config with the _class_name of a model of diff"):
                module.DiffusersNetwork({"_class_name": name})

    def test_bad_input(self) -> None:
        module = adapter("diffusers")
        with pytest.raises(TypeError, match="model: expected a model of diffusers, found Linear"):
            module.DiffusersNetwork(nn.Linear(2, 2))
        with pytest.raises(ValueError, match="null_class: expected None for a model without classes, found 3"):
            module.DiffusersNetwork(unet(), null_class=3)


class TestPipeline:
    def made(self) -> Any:
        module = adapter("diffusers")
        process = images_process()
        process.fit_prior(pixels(40), torch.arange(40) % 3)
        net = ResidualScore(module.DiffusersNetwork(unet(num_class_embeds=4), process.T, null_class=3), process)
        pipeline = module.NDSMPipeline(adapter("huggingface_hub").HubModel(net.eval(), process))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def test_it_is_the_sampler(self) -> None:
        pipeline = self.made()
        net, process = pipeline.model.score_net, pipeline.model.process
        seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
        options: dict[str, Any] = {"condition": torch.tensor([0, 2]), "guidance": 2.0, "n_evaluations": 4}
        expected = sample(net, process, 2, seed=seed, **options)

        def call(**options: Any) -> Any:
            given = {"class_labels": [0, 2], "guidance_scale": 2.0, "num_inference_steps": 4, **options}
            return pipeline(batch_size=2, generator=torch.Generator().manual_seed(3), **given)

        assert torch.equal(call(output_type="latent").images, expected)
        images = (expected / 2 + 0.5).clamp(0, 1)
        assert torch.equal(call(output_type="pt", return_dict=False)[0], images)
        array = call(output_type="np").images
        assert array.shape == (2, 8, 8, 1) and torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), images)
        assert [(image.size, image.mode) for image in call().images] == [((8, 8), "L")] * 2
        one = call(class_labels=1, output_type="latent").images
        assert torch.equal(one, call(class_labels=torch.tensor([1, 1]), output_type="latent").images)
        flow = call(method="ode", output_type="latent").images
        assert torch.equal(flow, sample(net, process, 2, "ode", seed=seed, **options))

    def test_it_is_saved_and_loaded(self, tmp_path: Path) -> None:
        module, pipeline = adapter("diffusers"), self.made()
        pipeline.save_pretrained(tmp_path / "p")
        index = json.loads((tmp_path / "p" / "model_index.json").read_text())
        assert index["_class_name"] == "NDSMPipeline"
        out = tmp_path / "s.npy"
        allowed = ["--allow-import", "fastndsm.integrations", "--no-progress"]
        assert main(["sample", str(tmp_path / "p"), "--n", "2", "--out", str(out), *allowed, "--evaluations", "2"]) == 0
        loaded = module.NDSMPipeline.from_pretrained(tmp_path / "p")
        loaded.set_progress_bar_config(disable=True)

        def drawn(p: Any) -> Tensor:
            options: dict[str, Any] = {"class_labels": 1, "num_inference_steps": 3, "output_type": "latent"}
            return p(batch_size=2, generator=torch.Generator().manual_seed(0), **options).images

        assert torch.equal(drawn(loaded), drawn(pipeline))
        assert set(loaded.components) == {"model"} and loaded.device.type == "cpu"
        assert loaded.to(torch.float64).dtype == torch.float64

    def test_loading_imports_nothing_that_the_folder_names(self, tmp_path: Path) -> None:
        module, pipeline = adapter("diffusers"), self.made()
        pipeline.save_pretrained(tmp_path / "p")
        (tmp_path / "trap.py").write_text("raise SystemExit('ran code of a file')")
        index = tmp_path / "p" / "model_index.json"
        index.write_text(index.read_text().replace("fastndsm.integrations.huggingface_hub", "trap"))
        sys.path.insert(0, str(tmp_path))
        try:
            module.NDSMPipeline.from_pretrained(tmp_path / "p")
        finally:
            sys.path.remove(str(tmp_path))
        assert "trap" not in sys.modules

    def test_a_network_of_ones_own_and_points(self, tmp_path: Path) -> None:
        module, HubModel = adapter("diffusers"), adapter("huggingface_hub").HubModel
        module.NDSMPipeline(HubModel(woken(OwnNet(5)), images_process())).save_pretrained(tmp_path / "p")
        with pytest.raises(ValueError, match=r"expected the class .*OwnNet"):
            module.NDSMPipeline.from_pretrained(tmp_path / "p")
        loaded = module.NDSMPipeline.from_pretrained(tmp_path / "p", network={"OwnNet": OwnNet})
        assert type(loaded.model.score_net) is OwnNet
        points = module.NDSMPipeline(HubModel(networks.MLP(2, (4,)), OUProcess(2)))
        with pytest.raises(ValueError, match="output_type: expected 'latent' for samples that are no images"):
            points()
        assert points(output_type="latent").images.shape == (1, 2)

    def test_push_uploads_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = self.made()
        hub = importlib.import_module("diffusers.utils.hub_utils")
        found: list[Any] = []

        def upload(folder_path: str, **options: Any) -> str:
            names = sorted(str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file())
            found.append((options["repo_id"], [name for name in names if not name.endswith(".md")]))
            return "a commit"

        class Url(str):
            repo_id = "me/digits"

        card = importlib.import_module("huggingface_hub").ModelCard("---\nlibrary_name: diffusers\n---\n")
        monkeypatch.setattr(hub, "create_repo", lambda repo_id, **options: Url(repo_id))
        monkeypatch.setattr(hub, "load_or_create_model_card", lambda *args, **options: card)
        monkeypatch.setattr(hub, "upload_folder", lambda **options: upload(**options))
        pipeline.push_to_hub("me/digits")
        pipeline.save_pretrained(tmp_path / "digits", push_to_hub=True, repo_id="me/digits")
        files = ["model/config.json", "model/model.safetensors", "model/reference.safetensors", "model_index.json"]
        assert found == [("me/digits", files)] * 2
        with pytest.raises(ValueError, match="safe_serialization: expected True, as nothing is pickled here"):
            pipeline.save_pretrained(tmp_path / "digits", safe_serialization=False)
        with pytest.raises(TypeError, match="save_pretrained: expected push_to_hub=True with token, found False"):
            pipeline.save_pretrained(tmp_path / "digits", token="t")


# --- Lightning ---------------------------------------------------------------------------------------------------


def points_process() -> tuple[Tensor, LangevinProcess]:
    x = data.four_modes(1000, seed=0).train
    return x, LangevinProcess(fastndsm.GaussianMixture.fit(x, 1))


def small(process: LangevinProcess, **options: Any) -> ResidualScore:
    torch.manual_seed(0)
    return ResidualScore(networks.MLP(2, (64, 64), horizon=process.T, embedding_dim=8, **options), process)


class TestLightning:
    def fit(self, module: Any, x: Any, folder: Path, steps: int, validation: Any = None, **options: Any) -> Any:
        from lightning.pytorch import Trainer

        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        options = {"enable_checkpointing": False, "accelerator": "cpu", **quiet, **options}
        trainer = Trainer(max_steps=steps, default_root_dir=folder, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers
            trainer.fit(module, x, validation)
        return trainer

    def test_training_lowers_the_loss_and_samples_are_better(self, tmp_path: Path) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        x, process = points_process()
        module = NDSMModule(small(process), NDSMLoss(process))
        held_out = DataLoader(x, 500)
        losses = []
        for steps in (1, 300):
            batches = DataLoader(TensorDataset(x), 256, shuffle=True)
            trainer = self.fit(module, batches, tmp_path, steps, held_out, val_check_interval=1)
            losses.append(float(trainer.callback_metrics["val_loss"]))
        assert losses[1] < 0.95 * losses[0]
        assert module.score_net.process is module.loss.process
        distance = metrics.energy_distance(module.sample(1000, seed=0), x)
        assert distance < 0.5 * metrics.energy_distance(process.prior.sample(1000, seed=0).float(), x)

    def test_the_ema_of_lightning_is_that_of_the_weights(self, tmp_path: Path) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

        x, process = points_process()
        module = NDSMModule(small(process), NDSMLoss(process))
        seen: list[Tensor] = []

        class Watch(Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
                seen.append(module.score_net.net.last.weight.detach().clone())

        ema = EMAWeightAveraging(decay=0.9, use_buffers=False)  # whose first update copies the weights
        self.fit(module, DataLoader(x, 256), tmp_path, 20, callbacks=[Watch(), ema])
        expected = seen[0]
        for weight in seen[1:]:
            expected = 0.9 * expected + 0.1 * weight
        torch.testing.assert_close(module.score_net.net.last.weight, expected)
        assert not torch.allclose(expected, seen[-1])
        for name, table in process.named_buffers():
            assert table.dtype == torch.float64, name
        assert torch.equal(process.times, points_process()[1].times)  # averaging leaves it as it is

    def test_validation_has_the_same_noise_each_time(self, tmp_path: Path) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        x, process = points_process()
        module = NDSMModule(small(process), NDSMLoss(process), optimizer=lambda p: torch.optim.SGD(p, lr=1e-12))
        values = [
            float(
                self.fit(module, DataLoader(x, 500), tmp_path, 2, DataLoader(x[:200], 50)).callback_metrics["val_loss"]
            )
            for _ in range(2)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        drawn = {float(NDSMLoss(process)(module.score_net, x).detach()) for _ in range(2)}
        assert len(drawn) == 2  # where noise is not fixed it differs

    def test_conditions_and_their_dropout(self, tmp_path: Path) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        x, process = points_process()
        y = (x[:, 1] > 0.0).long()
        net = small(process, classes=2)
        module = NDSMModule(net, NDSMLoss(process), condition_dropout=0.5)
        self.fit(module, DataLoader(TensorDataset(x, y), 256), tmp_path, 5)
        assert net.null_trained  # by what was dropped
        kept = small(process, classes=2)
        self.fit(NDSMModule(kept, NDSMLoss(process)), DataLoader(TensorDataset(x, y), 256), tmp_path, 5)
        assert not kept.null_trained

    def test_a_checkpoint_goes_on(self, tmp_path: Path) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        x, process = points_process()
        module = NDSMModule(small(process), NDSMLoss(process))
        trainer = self.fit(module, DataLoader(x, 256), tmp_path, 3, enable_checkpointing=True)
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        net = small(process)
        NDSMModule.load_from_checkpoint(tmp_path / "c.ckpt", score_net=net, loss=NDSMLoss(process), weights_only=True)
        for name, value in module.score_net.state_dict().items():
            assert torch.equal(net.state_dict()[name], value), name

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"score_net": lambda x, t: x}, TypeError, "score_net: expected a torch.nn.Module, found function"),
            ({"loss": nn.MSELoss()}, ValueError, "loss: expected an NDSMLoss or DSMLoss of .*, found MSELoss"),
            (
                {"loss": NDSMLoss(OUProcess(2), reduction="none")},
                ValueError,
                "loss: expected .*, found reduction 'none'",
            ),
            ({"condition_dropout": 2.0}, ValueError, r"condition_dropout: expected a number in \[0, 1\], found 2.0"),
            (
                {"score_net": nn.Linear(2, 2), "condition_dropout": 0.1},
                ValueError,
                "condition_dropout: expected 0 for a",
            ),
            ({"lr": 0.0}, ValueError, "lr: expected a finite positive number, found 0.0"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        NDSMModule = adapter("lightning").NDSMModule
        given = {"score_net": networks.MLP(2, (4,)), "loss": NDSMLoss(OUProcess(2)), **options}
        with pytest.raises(error, match=f"^{message}"):
            NDSMModule(**given)
        with pytest.raises(TypeError, match=r"^batch: expected x, \(x,\) or \(x, condition\), found dict"):
            NDSMModule(networks.MLP(2, (4,)), NDSMLoss(OUProcess(2))).training_step({}, 0)


# --- torchmetrics ------------------------------------------------------------------------------------------------


class TestTorchmetrics:
    def test_fid_by_the_classifier_is_the_frechet_distance_of_its_features(self) -> None:
        module = adapter("torchmetrics")
        from torchmetrics.image.fid import FrechetInceptionDistance

        digits = data.load("digits")
        classifier = metrics.FeatureClassifier.fit(digits.train, digits.labels, steps=100, feature_dim=8)
        real, drawn = digits.train[:600], digits.train[600:1000] + 0.2 * pixels(400)
        fid = FrechetInceptionDistance(feature=module.Features(classifier)).set_dtype(torch.float64)
        for part in real.split(200):
            fid.update(part, real=True)
        for part in drawn.split(150):
            fid.update(part, real=False)
        expected = metrics.frechet_distance(classifier.features(drawn), classifier.features(real))
        assert float(fid.compute()) == pytest.approx(expected, rel=1e-4)
        assert expected > 0.1

    def test_it_takes_a_classifier(self) -> None:
        module = importlib.import_module("fastndsm.integrations.torchmetrics")
        with pytest.raises(TypeError, match=r"classifier: expected a metrics.FeatureClassifier, found Linear"):
            module.Features(nn.Linear(2, 2))


# --- Song et al.'s SDE -------------------------------------------------------------------------------------------


def wave(t: float) -> float:
    return 1.0 + 0.3 * t


PROCESSES: dict[str, Callable[[], Any]] = {
    "langevin": lambda: quietly(random_mixture("full", 3, 2, seed=1, ratio=3.0), T=0.5, n_steps=8),
    "sigma of t": lambda: quietly(random_mixture("diag", 3, 2, seed=1, ratio=3.0), T=0.5, n_steps=8, sigma=wave),
    "ou": lambda: OUProcess(2, 2.0, 40, grid="quadratic"),
    "ou, sigma of t": lambda: OUProcess(2, 2.0, 40, wave, "quadratic"),
    "drift": lambda: fastndsm.DriftProcess(
        lambda x, t: -0.5 * x, fastndsm.GaussianMixture.standard_normal(2), T=1.0, n_steps=8
    ),
}


class TestSDE:
    @pytest.mark.parametrize("name", PROCESSES)
    def test_its_steps_are_the_processs(self, name: str) -> None:
        process = PROCESSES[name]()
        sde, x0 = SDE(process), normals(4, 2, dtype=torch.float64)
        assert (sde.T, sde.N) == (process.T, process.n_steps)
        for n in range(process.n_steps):
            step = process.transition(x0, n, seed=3)
            before = process.simulate(x0, n, seed=3)
            f, G = sde.discretize(before, step.t)
            torch.testing.assert_close(before + f + G[:, None] * step.noise, step.x, rtol=1e-6, atol=1e-9)
            drift, diffusion = sde.sde(before, process.times[n].expand(4))
            torch.testing.assert_close(drift, process.drift(before, float(process.times[n])))
            dt = float(process.times[n + 1] - process.times[n])
            torch.testing.assert_close(diffusion * dt**0.5, process.noise_std[n].expand(4))

    def test_the_timesteps_of_their_samplers_are_its_steps(self) -> None:
        """Linear from T to eps, N of them, as sampling.py has it."""
        sde = SDE(OUProcess(2, 5.0, 100, wave))
        t = torch.linspace(sde.T, 1e-3, sde.N)
        _, G = sde.discretize(torch.zeros(100, 2), t)
        assert torch.equal(G, sde.process.noise_std.float().flip(0))

    @pytest.mark.parametrize("name", ["ou", "ou, sigma of t"])
    def test_the_marginal_of_a_linear_process(self, name: str) -> None:
        process = PROCESSES[name]()
        sde, x = SDE(process), normals(40, 2, dtype=torch.float64)
        m, v = process.marginal()
        mean, std = sde.marginal_prob(x, process.times[1:])
        torch.testing.assert_close(mean, m[:, None] * x)
        torch.testing.assert_close(std, v.sqrt())
        mean, std = sde.marginal_prob(x[:2], torch.zeros(2, dtype=torch.float64))
        assert torch.equal(mean, x[:2]) and torch.equal(std, torch.zeros(2, dtype=torch.float64))
        if name == "ou":  # between the grid's times, too
            t = torch.tensor([0.123, 1.7], dtype=torch.float64)
            mean, std = sde.marginal_prob(x[:2], t)
            torch.testing.assert_close(mean, (-0.5 * t).exp()[:, None] * x[:2])
            torch.testing.assert_close(std, (1.0 - (-t).exp()).sqrt())

    @pytest.mark.parametrize("name", ["langevin", "drift"])
    def test_of_another_it_raises_and_says_why(self, name: str) -> None:
        with pytest.raises(NotImplementedError, match=r"^marginal_prob: expected .*: the drift is not linear, so that"):
            SDE(PROCESSES[name]()).marginal_prob(torch.zeros(3, 2), torch.ones(3))

    @pytest.mark.parametrize("probability_flow", [False, True], ids=["sde", "ode"])
    def test_their_sampler_draws_the_data(self, probability_flow: bool) -> None:
        """The reverse diffusion predictor of their sampling.py, on a Gaussian whose score is known."""
        process = OUProcess(2, 8.0, 400, grid="quadratic")
        centre, spread = torch.tensor([1.0, -0.5]), torch.tensor([0.3, 0.8])

        def score(x: Tensor, t: Tensor) -> Tensor:
            m = (-0.5 * t)[:, None].exp()
            return -(x - m * centre) / (m**2 * spread**2 + 1.0 - m**2)

        sde = SDE(process)
        reverse = sde.reverse(score, probability_flow)
        x = sde.prior_sampling((4000, 2), seed=0)
        generator = torch.Generator().manual_seed(0)
        for time in process.times[1:].flip(0).tolist():
            t = torch.full((len(x),), time)
            f, G = reverse.discretize(x, t)
            x = x - f + G[:, None] * torch.randn(x.shape, generator=generator)
        error = x.std(0) / len(x) ** 0.5
        assert ((x.mean(0) - centre).abs() < 5.0 * error + 0.02).all()
        torch.testing.assert_close(x.std(0), spread, rtol=0.05, atol=0.0)
        drift, diffusion = reverse.sde(x, t)
        forward, sigma = sde.sde(x, t)
        half = 0.5 if probability_flow else 1.0
        torch.testing.assert_close(drift, forward - half * sigma[:, None] ** 2 * score(x, t))
        assert bool((diffusion == 0).all()) == probability_flow

    def test_the_prior(self) -> None:
        process = PROCESSES["langevin"]()
        sde = SDE(process)
        x = sde.prior_sampling((5, 2), seed=1)
        assert x.dtype == torch.float32 and torch.equal(x, process.prior.sample(5, seed=1).float())
        torch.testing.assert_close(sde.prior_logp(x), process.prior.log_prob(x))
        with pytest.raises(TypeError, match="process: expected a noising process, found"):
            SDE(process.reference)
