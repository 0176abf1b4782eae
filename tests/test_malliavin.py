"""The estimators of benchmarks/malliavin.py: unbiased, ours among them the library's, and a small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import z_score

from benchmarks import malliavin
from fastndsm import functional

N, PATHS = 12, 1 << 15


@pytest.fixture(scope="module", params=[(name, dim) for name in malliavin.TOYS for dim in (1, 3)], ids=str)
def toy(request: pytest.FixtureRequest) -> tuple[malliavin.DriftProcess, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a process, starts, and where the paths end with their terms."""
    name, dim = request.param
    p = malliavin.process(name, dim, N)
    x0 = 0.5 * torch.randn(PATHS, dim, generator=torch.Generator().manual_seed(1))
    return p, x0, *malliavin.terms(p, x0, N, seed=5)


def test_ours_is_the_librarys(toy: tuple[malliavin.DriftProcess, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    p, x0, x, each = toy
    weights = malliavin.path_weights(p, N)
    found = functional.simulate_target(x0, p, seed=5)
    torch.testing.assert_close(found[0], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], torch.einsum("k,kbd->bd", weights.float(), each), rtol=1e-3, atol=1e-3)


def test_every_mode_is_unbiased(
    toy: tuple[malliavin.DriftProcess, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Stein's identity of the law of x: E [target . f(x) + div f(x)] = 0."""
    p, _, x, each = toy
    chosen = malliavin.weights(p, N, malliavin.terms(p, 0.5 * torch.randn_like(x), N, seed=6)[1])
    assert set(chosen) == set(malliavin.MODES)
    for mode, weights in chosen.items():
        assert float(weights.sum()) == pytest.approx(1.0), mode
        target = torch.einsum("k,kbd->bd", weights.float(), each)
        assert abs(z_score((target * x.sin() + x.cos()).double().sum(1))) < 4.5, mode


def test_the_optimal_weights_are_optimal_and_ours_average_without_a_rate(
    toy: tuple[malliavin.DriftProcess, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    p, _, _, each = toy
    chosen = malliavin.weights(p, N, each)
    size = {mode: float(torch.einsum("k,kbd->bd", w, each.double()).square().mean()) for mode, w in chosen.items()}
    assert all(size["optimal"] <= other * (1 + 1e-9) for other in size.values())
    assert size["path"] <= 1.5 * size["optimal"] and size["path"] < min(size["first"], size["last"])
    without = malliavin.process("OU", 1, N, rate=0.0)
    torch.testing.assert_close(malliavin.path_weights(without, N), chosen["average"])


def test_a_small_run_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--paths", "512", "--steps", "10", "--train-steps", "20", "--results", str(tmp_path)]
    rows = malliavin.main(small)
    stored = json.loads((tmp_path / "malliavin.json").read_text())
    assert stored["rows"] == rows and stored["versions"]["torch"] == torch.__version__
    assert len(rows) == len(malliavin.TOYS) * len(malliavin.DIMENSIONS) * 2 * (len(malliavin.MODES) + 1)
    last = {row["mode"]: row["gradient"] for row in rows if (row["drift"], row["dim"], row["t/T"]) == ("OU", 1, 1.0)}
    assert last["path"] < 0.5 * last["last"]  # the 1/dt of a single step
    assert "path antithetic" in capsys.readouterr().out == (tmp_path / "malliavin.md").read_text() + "\n"
