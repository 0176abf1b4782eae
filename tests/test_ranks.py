"""Several processes: the batches, losses and samples of one, whatever their number; resumed on another; clear refusals.

Two gloo processes run `ranks.py` once; the tests compare what they found with this process alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from patience import PATIENCE
from torch import Tensor

import fastndsm
from fastndsm.training import checkpoint
from fastndsm.training.batches import Batches

HERE = str(Path(__file__).resolve().parent)
CODE = f"""
import sys
sys.path.insert(0, {HERE!r})
from pathlib import Path
import ranks
ranks.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
"""
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def found(folder: Path, start_python: Any) -> Found:
    """Return what each of the two ranks found; they run once."""
    paths = [folder / f"found-{rank}.pt" for rank in range(2)]
    if not (folder / "started").exists():
        (folder / "started").touch()
        started = [start_python(CODE, "all", rank, 2, folder) for rank in range(2)]
        for one in started:
            _, err = one.communicate(timeout=PATIENCE)
            assert one.returncode == 0, err
    return [torch.load(path, weights_only=False) for path in paths]


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_near(one: Any, other: Any) -> None:
    """Compare to rounding, which Adam's first steps, of size lr whatever the gradient, make more of."""
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_loop_of_ones_own_draws_the_noise_of_one_large_batch(found: Found) -> None:
    torch.manual_seed(5)
    whole = fastndsm.NDSMLoss(ranks.process()).draw(ranks.data(8))
    for parts, field in zip(zip(*(f["drawn"] for f in found), strict=True), whole, strict=True):
        assert_equal(torch.cat(parts), field)


@pytest.mark.parametrize("name", ranks.RUNS)
def test_training_on_two_ranks_is_that_of_one_to_rounding(found: Found, name: str) -> None:
    alone = ranks.trainer(**ranks.RUNS[name])
    start = ranks.weights(alone.ema_net)
    history = alone.fit(progress=False)
    assert_equal(*(f[name] for f in found))
    learnt, losses = found[0][name]
    assert_near(learnt, ranks.weights(alone.ema_net))
    assert losses == pytest.approx([row.loss for row in history], rel=1e-3)
    moved = (learnt["last.weight"] - start["last.weight"]).abs().max()
    assert moved > 20 * (learnt["last.weight"] - alone.ema_net.last.weight).abs().max()


def test_wrapped_in_distributed_data_parallel_it_is_the_same(found: Found) -> None:
    assert_equal(*(f["wrapped"] for f in found))
    assert_near(found[0]["wrapped"], found[0]["plain"][0])


def test_a_run_resumed_on_as_many_ranks_is_that_of_no_stop_bit_for_bit(found: Found) -> None:
    for f in found:
        assert f["resumed at"] == 8
        assert_equal(f["resumed"], found[0]["normalised"])


def test_a_run_of_two_ranks_goes_on_on_one(found: Found, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "elsewhere", tmp_path / "copy")
    again = ranks.trainer(tmp_path / "copy")
    assert again.resume() == 8
    again.fit(progress=False)
    assert_near(ranks.weights(again.ema_net), found[0]["plain"][0])


def test_validation_is_shared_out(found: Found) -> None:
    assert found[0]["validation"] == found[1]["validation"]
    assert [value is not None for value in found[0]["validation"]] == [True, True, True]


def test_rank_zero_alone_logs(found: Found) -> None:
    assert [f["logged"] for f in found] == [[3, -1], [-1]]


REFUSED = {
    "divided": "TypeError: score_net: expected whole parameters, found those that fully_shard has divided among the",
    "sample of a divided network": "TypeError: score_net: expected whole parameters, found those that fully_shard",
    "shape": "ValueError: data.shape: expected the same on all ranks, found [60, 2] on rank 0 and [61, 2] on rank 1",
    "values": "ValueError: data.sha256: expected the same on all ranks, found ",
    "mixture": "ValueError: process.sha256: expected the same on all ranks, found ",
    "loss": "ValueError: loss.antithetic: expected the same on all ranks, found False on rank 0 and True on rank 1",
    "validation": "ValueError: validation: expected the same on all ranks, found (5, 2) on rank 0 and (6, 2) on rank 1",
    "directory": "ValueError: directory: expected the same on all ranks, found a folder on rank 0 and None on rank 1",
    "config": "ValueError: config.lr: expected the same on all ranks, found 0.001 on rank 0 and 0.002 on rank 1",
    "network": "ValueError: score_net.film.out.weight: expected the same on all ranks, found [32, 8] float32",
    "batch": "ValueError: batch_size: expected a multiple of the 2 ranks, found 7",
    "parts": "ValueError: accumulate: expected at most the 2 paths of a batch, found 3",
    "NaN": "NonFiniteLoss: loss: expected a finite value, found nan at step 3; no checkpoint was written",
    "checkpoint": "ValueError: directory: expected one folder of all ranks, found step-000004 on rank 0 and no ch",
    "sample of another n": "ValueError: sample.n: expected the same on all ranks, found 10 on rank 0 and 11 on rank 1",
    "sample of another network": "ValueError: sample.score_net: expected the same on all ranks, found ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_from_rank_to_rank_is_named_on_all(found: Found, name: str) -> None:
    for f in found:
        assert f["refused"][name].startswith(REFUSED[name]), f["refused"][name]


def test_samples_that_fail_on_one_rank_fail_on_all(found: Found) -> None:
    first, second = (f["refused"]["sample"] for f in found)
    failed = "FloatingPointError: score_net: expected finite samples, found NaN"
    assert first.startswith(f"RuntimeError: sample: rank 1 failed: {failed}")
    assert second == "nothing was raised" or second.startswith(failed)


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(found: Found, folder: Path, start_python: Any) -> None:
    started = [start_python(CODE, "killed", rank, 2, folder) for rank in range(2)]
    codes = []
    for one in started:
        one.communicate(timeout=PATIENCE)
        codes.append(one.returncode)
    assert codes[1] == -9 and codes[0] not in (0, -9)
    again = ranks.trainer(folder / "killed", checkpoint_every=2)  # elsewhere: on one rank
    assert again.resume() == 6
    again.fit(progress=False)
    assert_near(ranks.weights(again.ema_net), found[0]["plain"][0])
    assert checkpoint.latest(folder / "killed").name == "step-000013"


# --- batches, on any number of ranks ---


@pytest.mark.parametrize("options", [{}, {"records": 3}, {"pool": 24, "passes": 2}], ids=str)
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("world", [2, 3, 6])
def test_parts_of_the_ranks_are_the_batch(world: int, antithetic: bool, options: dict[str, Any]) -> None:
    loss = fastndsm.NDSMLoss(ranks.process(), antithetic=antithetic)
    labels = torch.arange(60)
    kinds: dict[str, Any] = {"steps": 5, "batch_size": 6, "seed": 3, "noised_ahead": 2, "device": torch.device("cpu")}
    kinds |= {"conditions": labels, **options}
    whole = Batches(ranks.data(), loss, **kinds)
    parts = [Batches(ranks.data(), loss, rank=rank, world=world, **kinds) for rank in range(world)]
    for step in (0, 1, 4, 2):
        conditions = [part.condition(step, None) for part in parts]
        assert_equal(torch.cat(conditions), whole.condition(step, None))
        drawn = [part(step) for part in parts]
        for fields, field in zip(zip(*drawn, strict=True), whole(step), strict=True):
            halves = [f.chunk(2) if antithetic else (f,) for f in fields]
            joined = torch.cat([torch.cat(side) for side in zip(*halves, strict=True)])
            torch.testing.assert_close(joined, field, rtol=1e-5, atol=1e-6)


# --- samples, on any number of ranks ---


def sample(n: int, method: str = "sde", **options: Any) -> Tensor:
    return fastndsm.sample(ranks.network(), ranks.process(), n, method, **options)


def test_samples_of_two_ranks_are_those_of_one_bit_for_bit(found: Found) -> None:
    torch.manual_seed(0)
    expected = {
        "drawn seed": sample(ranks.N, batch_size=ranks.SIZE),
        "seed 3": sample(ranks.N, "ode", batch_size=ranks.SIZE, seed=3, first_path=7, order=1),
        "few": sample(2, seed=3),
    }
    for f in found:
        for name, x in expected.items():
            assert_equal(f["samples"][name], x)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("fused", [True, False])
def test_rows_of_any_number_of_ranks_are_the_samples(world: int, fused: bool) -> None:
    net, process = ranks.network(), ranks.process()
    options: dict[str, Any] = {"batch_size": 3, "seed": 5, "fused": "auto" if fused else False}
    expected = fastndsm.sample(net, process, 14, **options)
    parts = [fastndsm.sample_sharded(net, process, 14, rank=rank, world_size=world, **options) for rank in range(world)]
    assert_equal(torch.cat(parts), expected)
    assert_equal(fastndsm.sample_sharded(net, process, 14, **options), expected)


def test_conditions_and_starts_go_with_their_rows() -> None:
    torch.manual_seed(0)
    net, process = fastndsm.networks.MLP(2, (8,), embedding_dim=8, classes=3), ranks.process()
    torch.nn.init.normal_(net.last.weight)
    options: dict[str, Any] = {"condition": torch.arange(8) % 3, "seed": 1, "batch_size": 3}
    for started in ({"x_T": ranks.data(8)}, {"start": (ranks.data(8), 0.5)}):
        expected = fastndsm.sample(net, process, 8, **options, **started)
        assert_equal(fastndsm.sample_sharded(net, process, 8, **options, **started), expected)


def test_files_of_two_ranks_are_the_samples(found: Found, folder: Path) -> None:
    files = found[0]["samples"]["files"]
    assert files == found[1]["samples"]["files"] == sorted((folder / "samples").iterdir())
    assert_equal(fastndsm.read_samples(folder / "samples"), sample(ranks.N, seed=3, batch_size=ranks.SIZE))


def test_a_call_that_was_killed_is_repeated_on_another_number_of_ranks(tmp_path: Path) -> None:
    net, process = ranks.network(), ranks.process()
    options: dict[str, Any] = {"seed": 3, "batch_size": 3}
    fastndsm.write_samples(tmp_path, net, process, 10, rank=0, world_size=2, **options)
    with pytest.raises(
        ValueError, match=r"expected 4 files of samples in .*, found 2 missing, first samples-000000006"
    ):
        fastndsm.read_samples(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    (tmp_path / ".samples-000000006-000000009.safetensors.tmp-1").write_text("cut")
    for rank in range(3):
        fastndsm.write_samples(tmp_path, net, process, 10, rank=rank, world_size=3, **options)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_equal(fastndsm.read_samples(tmp_path), sample(10, **options))


def test_files_of_another_call_are_refused(tmp_path: Path) -> None:
    net, process = ranks.network(), ranks.process()
    with pytest.raises(ValueError, match="directory: expected a folder that write_samples wrote to, found no samples"):
        fastndsm.read_samples(tmp_path)
    fastndsm.write_samples(tmp_path, net, process, 6, seed=3)
    for other, changed, name in (
        (net, {"seed": 4}, "seed = 3 in place of 4"),
        (net, {"seed": 3, "order": 1}, "order = None in place of 1"),
        (net, {"seed": 3, "x_T": torch.zeros(6, 2)}, "x_T = None in place of "),
        (net, {"seed": 3, "start": (torch.zeros(6, 2), 0.5)}, "start = None in place of "),
        (ranks.network(1), {"seed": 3}, "score_net = "),
    ):
        with pytest.raises(ValueError, match=f"^directory: expected samples of one call, found .* with {name}"):
            fastndsm.write_samples(tmp_path, other, process, 6, **changed)
    with pytest.raises(ValueError, match=r"^directory: expected samples of one call, found .* with process = "):
        fastndsm.write_samples(tmp_path, net, ranks.process(0.1), 6, seed=3)
    (tmp_path / "samples-000000000-000000006.safetensors").write_text("foreign")
    with pytest.raises(ValueError, match=r"^directory: expected files of write_samples, found"):
        fastndsm.read_samples(tmp_path)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rank": 1}, "rank, world_size: expected both or neither, found 1 and None"),
        ({"rank": 2, "world_size": 2, "seed": 0}, "rank: expected one below world_size = 2, found 2"),
        ({"rank": 0, "world_size": 2}, "seed: expected an integer with rank and world_size, found None"),
        ({"trajectory": 3}, "trajectory: expected None on several ranks, found a number"),
        ({"x_T": torch.zeros(3, 2)}, r"x_T: expected 5 rows, one for each sample, found shape \(3, 2\)"),
        ({"condition": torch.zeros(3)}, r"condition: expected 5 rows, one for each sample, found shape \(3,\)"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        fastndsm.sample_sharded(ranks.network(), ranks.process(), 5, **options)
