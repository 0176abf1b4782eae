"""Folders on the disk: whole or not at all, verified, and never unpickled."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm.networks import MLP, UNet
from fastndsm.training import checkpoint, storage
from fastndsm.training.checkpoint import CheckpointError, load_checkpoint, load_model, save_checkpoint, save_model


def save(directory: Path, step: int = 3, **options: Any) -> Path:
    weights = {
        "w": torch.arange(6.0).reshape(2, 3),
        "flag": torch.tensor(True),
        "half": torch.ones(3).bfloat16(),
    }
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "history": [torch.zeros(2), None], "size": (4, 0.5)}, 7: {}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 7], "fused": None, "name": "a"}],
    }
    return save_checkpoint(directory, step, weights, {"w": torch.ones(2)}, optimizer, {"note": "x"}, **options)


class TestTrainingState:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        loaded = load_checkpoint(save(tmp_path))
        assert (loaded.step, loaded.state["note"]) == (3, "x")
        assert torch.equal(loaded.model["w"], torch.arange(6.0).reshape(2, 3))
        assert loaded.model["half"].dtype == torch.bfloat16
        assert loaded.model["flag"].dtype == torch.bool
        assert torch.equal(loaded.ema["w"], torch.ones(2))
        state = loaded.optimizer["state"]
        assert set(state) == {0, 7}  # integers, not JSON's strings
        assert torch.equal(state[0]["step"], torch.tensor(3.0))
        assert torch.equal(state[0]["history"][0], torch.zeros(2))
        assert state[0]["history"][1] is None
        assert state[0]["size"] == (4, 0.5)
        group = loaded.optimizer["param_groups"][0]
        assert group == {"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 7], "fused": None, "name": "a"}

    def test_views_and_transposes_are_stored_as_they_read(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        path = save_checkpoint(tmp_path, 1, {"t": base.T, "row": base[1]}, {}, {}, {})
        loaded = load_checkpoint(path)
        assert torch.equal(loaded.model["t"], base.T)
        assert torch.equal(loaded.model["row"], base[1])

    def test_the_last_two_are_kept_and_the_newest_found_by_its_number(self, tmp_path: Path) -> None:
        for step in (999_999, 5, 1_000_000):
            save(tmp_path, step)
        assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-999999", "step-1000000"]
        newest = checkpoint.latest(tmp_path)
        assert newest is not None and newest.name == "step-1000000"
        assert checkpoint.latest(tmp_path / "nowhere") is None

    def test_an_object_in_the_optimizers_state_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"optimizer: expected tensors, .*, found object at state\.a\.0"):
            save_checkpoint(tmp_path, 1, {}, {}, {"a": [object()]}, {})
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_write_leaves_the_old_one_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = save(tmp_path, 1)
        calls = []

        def full(path: Path) -> None:
            calls.append(path)
            if len(calls) == 3:
                raise OSError("No space left on device")

        monkeypatch.setattr(storage, "_synchronise", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
        assert list(tmp_path.iterdir()) == [old]
        assert load_checkpoint(old).step == 1

    def test_what_killed_processes_left_is_removed_and_what_running_ones_write_is_not(self, tmp_path: Path) -> None:
        for name in (
            "step-000002.tmp-4194305",
            "step-000001.tmp-old-4194305",
            f"step-000004.tmp-{os.getppid()}",
        ):
            (tmp_path / name).mkdir()  # no process has the number 4194305
        save(tmp_path, 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "step-000002",
            f"step-000004.tmp-{os.getppid()}",
        ]
        assert checkpoint.checkpoints(tmp_path) == [tmp_path / "step-000002"]

    def test_a_checkpoint_of_the_same_step_is_replaced(self, tmp_path: Path) -> None:
        save(tmp_path)
        path = save_checkpoint(tmp_path, 3, {"w": torch.zeros(1)}, {}, {}, {})
        assert torch.equal(load_checkpoint(path).model["w"], torch.zeros(1))
        assert [p.name for p in tmp_path.iterdir()] == ["step-000003"]


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a change of the JSON document."""

    def damage(path: Path) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def pickled(path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    path.write_bytes(pickle.dumps(Trap()))


def foreign_tensors(path: Path) -> None:
    """Write a foreign file of the right name, with the document made to fit: only the format is left to tell."""
    pickled(path)
    state = path.parent / "state.json"
    document = json.loads(state.read_text())
    document["files"][path.name] = {
        "bytes": path.stat().st_size,
        "sha256": storage._file_digest(path),
    }
    state.write_text(json.dumps(document))


class TestDamage:
    @pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (truncate, r"expected \d+ bytes, found \d+: truncated or altered"),
            (flip, r"expected SHA-256 .*, found another: altered"),
            (Path.unlink, r"expected a file of \d+ bytes, found none"),
            (pickled, r"expected \d+ bytes, found \d+: truncated or altered"),
            (foreign_tensors, "expected a safetensors file, found"),
        ],
    )
    def test_tensors(self, tmp_path: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
        path = save(tmp_path)
        damage(path / name)
        with pytest.raises(CheckpointError, match=rf"{name}: {message}"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (truncate, "expected a JSON document, found it truncated or foreign"),
            (pickled, "expected a JSON document, found it truncated or foreign"),
            (Path.unlink, "expected a fastndsm checkpoint, found no such file"),
            (
                rewritten(lambda d: d.update(format="other")),
                "expected format 'fastndsm checkpoint', found 'other'",
            ),
            (rewritten(lambda d: d.update(version=2)), "expected version 1, found 2"),
            (rewritten(lambda d: d["files"].pop("ema.safetensors")), "expected it to list model.safetensors"),
            (rewritten(lambda d: d.pop("optimizer")), "expected a training state, found none"),
            (lambda path: path.write_text("[]"), "expected format 'fastndsm checkpoint', found 'list'"),
        ],
    )
    def test_document(self, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
        path = save(tmp_path)
        damage(path / "state.json")
        with pytest.raises(CheckpointError, match=rf"state.json: {message}"):
            load_checkpoint(path)

    def test_names_in_the_document_lead_nowhere_else(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        rewritten(lambda d: d["files"].update({"../../secret": d["files"].pop("ema.safetensors")}))(path / "state.json")
        with pytest.raises(CheckpointError, match="expected it to list"):
            load_checkpoint(path)


def processes() -> dict[str, fastndsm.LangevinProcess]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    matrix = torch.tensor([[1.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    covariances = {
        "spherical": torch.tensor([0.5, 0.7, 1.0]),
        "diag": 0.5 + torch.rand(3, 2, generator=generator),
        "tied": matrix,
        "full": matrix * torch.tensor([0.7, 1.0, 1.3])[:, None, None],
    }
    made = {
        name: fastndsm.LangevinProcess(fastndsm.GaussianMixture([0.2, 0.3, 0.5], means, value, name), n_steps=30)
        for name, value in covariances.items()
    }
    made["ou"] = fastndsm.OUProcess(2, T=4.0, n_steps=60, sigma=0.8, grid="quadratic")
    return made


def network(in_dim: int = 2, horizon: float = 1.0) -> MLP:
    torch.manual_seed(0)
    net = MLP(2, (8, 8), in_dim=in_dim, horizon=horizon, embedding_dim=8)
    nn.init.normal_(net.last.weight)
    return net


class TestModel:
    @pytest.mark.parametrize("name", ["spherical", "diag", "tied", "full", "ou"])
    @pytest.mark.parametrize("kind", ["residual", "features", "bare"])
    def test_a_loaded_model_draws_the_same_samples(self, tmp_path: Path, name: str, kind: str) -> None:
        process = processes()[name]
        net = network(4 if kind == "features" else 2, process.T)
        score_net = net if kind == "bare" else fastndsm.ResidualScore(net, process, kind == "features")
        save_model(tmp_path / "m", score_net, process, meta={"data": "ring"})
        loaded, loaded_process, meta = load_model(tmp_path / "m")
        assert meta == {"data": "ring"}
        assert type(loaded_process) is type(process)
        assert not loaded.training
        expected = fastndsm.sample(score_net, process, 9, seed=4)
        assert torch.equal(fastndsm.sample(loaded, loaded_process, 9, seed=4), expected)

    def test_images_and_other_dtypes(self, tmp_path: Path) -> None:
        mixture = fastndsm.GaussianMixture([1.0], torch.zeros(1, 32), [1.0], "spherical", event_shape=(2, 4, 4))
        process = fastndsm.LangevinProcess(mixture, n_steps=20)
        net = UNet(2, 4, 8, (1,), horizon=process.T).double()
        nn.init.normal_(net.last.weight)
        save_model(tmp_path / "m", net, process)
        loaded, loaded_process, _ = load_model(tmp_path / "m")
        assert loaded_process.event_shape == (2, 4, 4)
        x, t = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
        assert torch.equal(loaded(x, t), net(x, t))

    def test_a_model_is_replaced_and_anything_else_left_alone(self, tmp_path: Path) -> None:
        process = processes()["ou"]
        for note in (1, 2):
            save_model(tmp_path / "m", network(), process, meta={"note": note})
        assert load_model(tmp_path / "m")[2] == {"note": 2}
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        with pytest.raises(
            CheckpointError, match="expected no file or a model folder to replace, found something else"
        ):
            save_model(tmp_path / "mine", network(), process)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"

    @pytest.mark.parametrize("name", ["model.safetensors", "reference.safetensors", "model.json"])
    @pytest.mark.parametrize("damage", [truncate, Path.unlink, pickled])
    def test_damage(self, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
        save_model(tmp_path / "m", network(), processes()["diag"])
        damage(tmp_path / "m" / name)
        with pytest.raises(CheckpointError, match=rf"{name}: expected"):
            load_model(tmp_path / "m")

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d["network"].update(name="transformer"),
            lambda d: d["network"]["config"].update(hidden=[9, 9]),
            lambda d: d["network"]["config"].update(width=1),
            lambda d: d.pop("process"),
        ],
    )
    def test_a_document_of_another_version(self, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
        save_model(tmp_path / "m", network(), processes()["diag"])
        rewritten(change)(tmp_path / "m" / "model.json")
        with pytest.raises(CheckpointError, match="expected a model folder of this version, found"):
            load_model(tmp_path / "m")

    def test_a_checkpoint_is_no_model(self, tmp_path: Path) -> None:
        path = save(tmp_path)
        shutil.copy(path / "state.json", path / "model.json")
        with pytest.raises(CheckpointError, match="expected format 'fastndsm model', found 'fastndsm checkpoint'"):
            load_model(path)

    def test_what_cannot_be_rebuilt_is_refused(self, tmp_path: Path) -> None:
        class Odd(nn.Module):
            def get_extra_state(self) -> Any:
                return {"calls": 3}

        ou = processes()["ou"]
        strange = Own()
        strange.config = {"width": {1, 2}}
        sparse = Own()
        sparse.register_buffer("table", torch.eye(2).to_sparse())
        drifting = fastndsm.DriftProcess(lambda x, t: -x, fastndsm.GaussianMixture.standard_normal(2), T=1.0)
        for score_net, process, meta, message in (
            (lambda x, t: x, ou, None, "score_net: expected a torch.nn.Module, found function"),
            (network(), drifting, None, "process: expected a LangevinProcess or OUProcess, found DriftProcess"),
            (network(), ou, {"a": {1}}, "meta: expected a JSON-able dict, found: Object of type set"),
            (network(), ou, {"a": math.nan}, "meta: expected a JSON-able dict, found: Out of range"),
            (network(), ou, "ring", "meta: expected a JSON-able dict, found str"),
            (strange, ou, None, "score_net.config: expected a JSON-able dict, found: Object of type set"),
            (sparse, ou, None, "table: expected a dense tensor, which can be stored, found a torch.sparse_coo one"),
            (Odd(), ou, None, "score_net: expected a state of tensors, found dict as _extra_state"),
        ):
            with pytest.raises(TypeError, match=f"^{message}"):
                save_model(tmp_path / "m", score_net, process, meta=meta)
        assert not (tmp_path / "m").exists()


class Own(nn.Module):
    """A network of the user's own, with everything that is stored: tied weights, buffers, complex numbers."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.config: Any = {"width": width}
        self.first, self.again, self.last = nn.Linear(2, width), nn.Linear(2, width), nn.Linear(width, 2)
        self.again.weight = self.first.weight
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex128))
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.register_buffer("view", self.first.weight.data)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = (self.norm(x) * self.turn).real.to(x.dtype)
        return self.last(torch.tanh(self.first(x) + self.again(x))) * self.table


class Bare(nn.Module):
    """A network that says nothing of its constructor's arguments."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


class Derived(MLP):
    """A subclass of the library's network is a class of its own."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + 1.0


class TestOwnNetworks:
    """Of any class, residual or not, compiled or not, in every dtype."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("residual", [False, True], ids=["bare", "residual"])
    @pytest.mark.parametrize("compiled", [None, "net", "whole"], ids=str)
    def test_a_loaded_network_gives_the_same_scores(
        self, tmp_path: Path, compiled: str | None, residual: bool, dtype: torch.dtype
    ) -> None:
        process = processes()["spherical"]
        net = Own(7)
        with torch.no_grad():
            net.turn += 0.3j
            net.norm.running_mean += 0.1
        net = net._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
        inner = torch.compile(net, backend="eager") if compiled == "net" else net
        whole = fastndsm.ResidualScore(inner, process) if residual else inner
        whole = torch.compile(whole, backend="eager") if compiled == "whole" else whole
        save_model(tmp_path / "m", whole, process)
        for options in (
            {"network": Own},
            {"network": lambda: Own(7)},
            {"network": {"Bare": Bare, "Own": Own}},
            {"allow_import": f"{__name__}.Own"},
            {"allow_import": [__name__]},
        ):
            loaded, _, _ = load_model(tmp_path / "m", **options)
            assert isinstance(loaded, fastndsm.ResidualScore) == residual
            found = loaded.net if residual else loaded
            assert found.again.weight is found.first.weight
            assert (found.table.dtype, found.turn.dtype) == (dtype, torch.complex128)
            x, t = torch.randn(4, 2, dtype=dtype), torch.rand(4)
            plain = fastndsm.ResidualScore(net, process) if residual else net
            assert torch.equal(loaded(x, t), plain.eval()(x, t))

    def test_the_librarys_networks_compiled_load_as_they_are(self, tmp_path: Path) -> None:
        process = processes()["ou"]
        net = network(horizon=process.T)
        save_model(tmp_path / "m", torch.compile(fastndsm.ResidualScore(torch.compile(net), process)), process)
        loaded, _, _ = load_model(tmp_path / "m")
        assert type(loaded) is fastndsm.ResidualScore and type(loaded.net) is MLP
        assert_equal_weights(loaded.net, net)

    def test_a_subclass_is_not_taken_for_its_base(self, tmp_path: Path) -> None:
        net = Derived(2, (8,))
        save_model(tmp_path / "m", net, processes()["ou"])
        with pytest.raises(ValueError, match=r"network: expected the class .*\.Derived, which .* found None"):
            load_model(tmp_path / "m")
        loaded, _, _ = load_model(tmp_path / "m", network=Derived)
        x, t = torch.randn(3, 2), torch.rand(3)
        assert torch.equal(loaded(x, t), net(x, t))

    def test_without_a_config_a_function_makes_it(self, tmp_path: Path) -> None:
        net = Bare(6)
        save_model(tmp_path / "m", net, processes()["ou"])
        with pytest.raises(TypeError, match=r"^network: expected Bare to take the stored config, None, found: .*width"):
            load_model(tmp_path / "m", network=Bare)
        assert_equal_weights(load_model(tmp_path / "m", network=lambda: Bare(6))[0], net)
        with pytest.raises(CheckpointError, match="size mismatch"):
            load_model(tmp_path / "m", network=lambda: Bare(7))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({}, ValueError, r"network: expected the class {0}, which .* found None; pass it, or allow_import='{0}'"),
            ({"allow_import": "os.system"}, ValueError, "network: expected the class {0}, which .* found None"),
            ({"allow_import": True}, TypeError, "allow_import: expected names of packages or classes, found True"),
            ({"allow_import": [3]}, TypeError, r"allow_import: expected names of packages or classes, found \[3\]"),
            (
                {"network": "Own"},
                TypeError,
                "network: expected a class or a function that makes a network, found 'Own'",
            ),
            ({"device": "warp"}, ValueError, "device: expected a device that torch can use, found 'warp'"),
            ({"device": None}, ValueError, "device: expected a device that torch can use, found None"),
            ({"network": dict}, TypeError, "network: expected it to make a torch.nn.Module, found dict"),
        ],
    )
    def test_nothing_is_imported_unasked(
        self, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        save_model(tmp_path / "m", Own(), processes()["ou"])
        with pytest.raises(error, match="^" + message.format(f"{__name__}.Own")):
            load_model(tmp_path / "m", **options)

    @pytest.mark.parametrize("name", ["subprocess.Popen", f"{__name__}.torch.nn.Linear", f"{__name__}.storage.Path"])
    def test_a_file_names_no_class_but_of_networks_and_by_its_own_name(self, tmp_path: Path, name: str) -> None:
        save_model(tmp_path / "m", Own(), processes()["ou"])
        options = {"args": ["touch", str(tmp_path / "made")]}
        rewritten(lambda d: d["network"].update({"class": name, "config": options}))(tmp_path / "m" / "model.json")
        for allowed in (name, __name__):
            with pytest.raises(ValueError, match=r"^(allow_import|network): expected the (own name|class) "):
                load_model(tmp_path / "m", allow_import=[allowed])
        assert not (tmp_path / "made").exists()

    def test_a_package_is_allowed_by_its_whole_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "nets_of_mine").mkdir()
        code = (
            "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n"
            "        self.width, self.layer = width, nn.Linear(2, width)\n"
            "    def config(self):\n        return {'width': self.width}\n"
        )
        (tmp_path / "nets_of_mine" / "small.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        net = importlib.import_module("nets_of_mine.small").Net(3)
        save_model(tmp_path / "m", net, processes()["ou"])
        for name in ("nets_of_mine.small", "nets_of_mine"):
            sys.modules.pop(name)
        for refused in ([], ["nets"], ["nets_of_mine.sma"], ["nets_of_mine.small.Net.x"]):
            with pytest.raises(ValueError, match=r"^network: expected the class nets_of_mine\.small\.Net"):
                load_model(tmp_path / "m", allow_import=refused)
            assert "nets_of_mine" not in sys.modules
        loaded, _, _ = load_model(tmp_path / "m", allow_import=["nets_of_mine"])
        assert loaded.width == 3
        assert_equal_weights(loaded, net)

    def test_of_a_local_class_the_class_is_asked_for(self, tmp_path: Path) -> None:
        class Local(Bare):
            pass

        save_model(tmp_path / "m", Local(6), processes()["ou"])
        with pytest.raises(ValueError, match=r"^network: expected the class .*Local, which .*, found None; pass it$"):
            load_model(tmp_path / "m")
        with pytest.raises(TypeError, match=r"width.*, or save it with an attribute `config`, a"):
            load_model(tmp_path / "m", network=Local)
        with pytest.raises(ValueError, match=r"found None; pass it$"):
            load_model(tmp_path / "m", network={"Other": Local})
        assert type(load_model(tmp_path / "m", network={"Local": lambda: Local(6)})[0]) is Local

    @pytest.mark.parametrize("name", ["no_such_package.Net", "math.Net", "math.pi", "Net", "a b.c", ""])
    def test_names_that_lead_to_no_class(self, tmp_path: Path, name: str) -> None:
        save_model(tmp_path / "m", Own(), processes()["ou"])
        rewritten(lambda d: d["network"].update({"class": name}))(tmp_path / "m" / "model.json")
        with pytest.raises((ValueError, TypeError), match=r"^allow_import: expected"):
            load_model(tmp_path / "m", allow_import=[name])


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class TestCallableSigma:
    @pytest.mark.parametrize("kind", ["langevin", "ou"])
    def test_its_values_on_the_grid_are_stored(self, tmp_path: Path, kind: str) -> None:
        def sigma(t: float) -> float:
            return 0.5 + 0.3 * math.cos(t)

        options: dict[str, Any] = {"T": 2.0, "n_steps": 30, "sigma": sigma, "grid": "quadratic"}
        mixture = fastndsm.GaussianMixture([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], [0.5, 1.0], "spherical")
        langevin = kind == "langevin"
        process = fastndsm.LangevinProcess(mixture, **options) if langevin else fastndsm.OUProcess(2, **options)
        net = fastndsm.ResidualScore(network(horizon=2.0), process)
        save_model(tmp_path / "m", net, process)
        loaded, again, _ = load_model(tmp_path / "m")
        for name in ("times", "drift_scale", "noise_std", "noise_variance"):
            assert torch.equal(getattr(again, name), getattr(process, name)), name
        x = torch.randn(3, 2)
        for t in process.times[:-1].tolist():
            assert torch.equal(again.drift(x, t), process.drift(x, t))
        between = float(process.times[10:12].mean())
        assert again.sigma(between) == pytest.approx(sigma(between), abs=1e-3)
        expected = fastndsm.sample(net, process, 5, seed=0)
        assert torch.equal(fastndsm.sample(loaded, again, 5, seed=0), expected)
        # equal by its values: with the process that it was made of, and saved once more
        assert torch.equal(fastndsm.sample(loaded, process, 5, seed=0), expected)
        save_model(tmp_path / "n", loaded, again)
        assert load_model(tmp_path / "n")[1].sigma == again.sigma
        assert not again.same_law(fastndsm.OUProcess(2, **{**options, "sigma": lambda t: 0.5}))
        assert len(repr(again.sigma)) < 100

    def test_one_step(self, tmp_path: Path) -> None:
        process = fastndsm.OUProcess(2, T=0.1, n_steps=1, sigma=lambda t: 0.7)
        save_model(tmp_path / "m", network(), process)
        assert load_model(tmp_path / "m")[1].sigma(5.0) == 0.7


def test_digest_tells_values_shapes_and_dtypes_apart() -> None:
    x = torch.arange(6.0)
    digests = {
        storage.tensor_digest(t)
        for t in (x, x.reshape(2, 3), x.double(), x.view(torch.int32), x + 1, torch.full((6,), math.nan))
    }
    assert len(digests) == 6
    assert storage.tensor_digest(x.reshape(2, 3).T.T) == storage.tensor_digest(x.reshape(2, 3))
