"""fastndsm as a drop-in loss and sampler in a training loop of your own.

    python examples/own_training_loop.py [--steps 2000]

Everything here but the lines marked (1) to (5) is ordinary PyTorch.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import fastndsm


class MyNetwork(nn.Module):
    """Any module (x [B, d], t [B]) -> [B, d] will do."""

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = torch.stack([t.log(), t.sqrt()], dim=1)
        return self.layers(torch.cat([x, time], dim=1))


def two_arcs(n: int) -> Tensor:
    """Draw your data: two arcs, one of them with a fifth of the points."""
    angle = torch.pi * torch.rand(n)
    arc = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.05 * torch.randn(n, 2)
    return torch.where(torch.rand(n, 1) < 0.2, -arc - torch.tensor([0.0, 1.0]), arc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps

    torch.manual_seed(0)  # governs the noise of fastndsm too
    x = two_arcs(5000)

    reference = fastndsm.GaussianMixture.fit(x, n_components=8, random_state=0)  # (1) a mixture fitted to the data
    process = fastndsm.LangevinProcess(reference, grid="quadratic")  # (2) the noising process it defines
    net = fastndsm.ResidualScore(MyNetwork(2), process)  # (3) optional: your network corrects the mixture's score
    loss_fn = fastndsm.NDSMLoss(process)  # (4) the loss: any callable (x, t) -> like x can be its score network

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = x[torch.randint(len(x), (512,))]
        loss = loss_fn(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}")

    samples = fastndsm.sample(net, process, 5000)  # (5) the reverse process, started from the mixture

    print(
        f"points on the smaller arc: data {(x[:, 1] < -0.5).float().mean():.3f}, "
        f"samples {(samples[:, 1] < -0.5).float().mean():.3f}"
    )
    radius = torch.minimum(samples.norm(dim=1), (samples + torch.tensor([0.0, 1.0])).norm(dim=1))
    print(f"mean distance from the arcs: {(radius - 1).abs().mean():.3f} (the data's noise gives 0.04)")


if __name__ == "__main__":
    main()
