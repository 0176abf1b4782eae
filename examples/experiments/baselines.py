"""Denoisers and flows that nonlinear noising is compared with: the same network and training, other losses.

    EDM           D(x, sigma) = c_skip x + c_out net(c_in x, sigma), x = x_0 + sigma n         (Karras et al. 2022)
    mixture skip  D(x, sigma) = E_pi[x_0 | x] + c_out net(c_in x, sigma): the mixture in place of one Gaussian
    I-CFM         v(x, t) towards x_1 - x_0, x = (1 - t) x_0 + t x_1, x_0 ~ N(0, I)            (Lipman, Liu 2023)
    OT-CFM        the same, x_0 and x_1 of a batch paired by optimal transport                 (Tong et al. 2024)
    mixture flow  the same, x_0 from the component of the mixture that x_1's responsibilities draw

Time, or noise, is what the network's own embedding makes of it, near the data on a logarithmic scale, for every row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fastndsm import GaussianMixture
from fastndsm.training.trainer import TrainConfig

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, Table 1
P_STD = 1.2
Loss = Callable[[nn.Module, Tensor, Generator], Tensor]


class SphericalMixture(nn.Module):
    """A mixture's posterior mean, responsibilities and draws in products of matrices, nothing of size [B, K, d]."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, mixture: GaussianMixture, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if mixture.covariance_type != "spherical":
            raise ValueError(f"mixture: expected spherical covariances, found {mixture.covariance_type}")
        self.register_buffer("weights", mixture.weights.to(dtype))
        self.register_buffer("means", mixture.means.to(dtype))
        self.register_buffer("variances", mixture.covariances.to(dtype))

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return those [B, K] of the components, noised by sigma [B], at x [B, d]."""
        variances = self.variances + sigma[:, None].square()
        squares = x.square().sum(1, keepdim=True) - 2 * x @ self.means.T + self.means.square().sum(1)
        logits = self.weights.log() - 0.5 * (squares / variances + x.shape[1] * variances.log())
        return logits.softmax(1)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x] where x = x_0 + sigma n and x_0 is of the mixture."""
        weights = self.responsibilities(x, sigma)
        kept = self.variances / (self.variances + sigma[:, None].square())  # of x - m_k
        return (weights * (1 - kept)) @ self.means + (weights * kept).sum(1, keepdim=True) * x

    def sample(self, n: int, generator: Generator) -> Tensor:
        """Draw n points [n, d]."""
        return self.draw(torch.multinomial(self.weights, n, replacement=True, generator=generator), generator)

    def draw(self, components: Tensor, generator: Generator) -> Tensor:
        """Draw a point of each of the components [B]."""
        means = self.means[components]
        return means + self.variances[components].sqrt()[:, None] * normal(means, generator)


class Denoiser(nn.Module):
    """EDM's preconditioning; sigma_data is the data's mean standard deviation."""

    def __init__(self, net: nn.Module, data: Tensor) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = float(data.var(0).mean().sqrt())

    def skip(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised x [B, d] of an untrained network."""
        return x * (self.sigma_data**2 / (sigma.square() + self.sigma_data**2))[:, None]

    def scale(self, sigma: Tensor) -> Tensor:
        """Return c_out [B]: the deviation of what the skip connection leaves to learn."""
        return sigma * self.sigma_data * (sigma.square() + self.sigma_data**2).rsqrt()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return D(x [B, d], sigma [B])."""
        inputs = x * (sigma.square() + self.sigma_data**2).rsqrt()[:, None]
        return self.skip(x, sigma) + self.scale(sigma)[:, None] * self.net(inputs, sigma)


class MixtureDenoiser(Denoiser):
    """EDM with the mixture's exact denoiser for a skip connection; c_out is measured, log-linear between."""

    def __init__(self, net: nn.Module, data: Tensor, mixture: GaussianMixture) -> None:
        super().__init__(net, data)
        self.mixture = SphericalMixture(mixture)
        generator = torch.Generator().manual_seed(0)
        x0 = data[torch.randperm(len(data), generator=generator)[:4000]]
        self.log_sigmas = torch.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), 50)
        errors = []
        for sigma in self.log_sigmas.exp():
            noise = sigma.expand(len(x0))
            x = x0 + sigma * normal(x0, generator)
            errors.append((x0 - self.skip(x, noise)).square().mean().sqrt())
        self.log_scales = torch.stack(errors).log()

    def skip(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mixture.denoise(x, sigma)

    def scale(self, sigma: Tensor) -> Tensor:
        logs = sigma.log()
        right = torch.searchsorted(self.log_sigmas, logs).clamp(1, len(self.log_sigmas) - 1)
        low, high = self.log_sigmas[right - 1], self.log_sigmas[right]
        weight = ((logs - low) / (high - low)).clamp(0.0, 1.0)
        return torch.lerp(self.log_scales[right - 1], self.log_scales[right], weight).exp()


class Velocity(nn.Module):
    """A flow's velocity at x [B, d] and t [B], from 0 (source) to 1 (data)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(x, 1.0 - t)
        return out


def normal(like: Tensor, generator: Generator) -> Tensor:
    """Draw standard normal numbers of that shape."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def denoising(p_mean: float, antithetic: bool = False) -> Loss:
    """Return EDM's loss, sigma log-normal: |D - x_0|^2 / c_out^2, so that the network's targets have variance one.

    antithetic: each x_0 is noised twice at one sigma, once by minus the noise.
    """

    def loss(model: nn.Module, x0: Tensor, generator: Generator) -> Tensor:
        assert isinstance(model, Denoiser)
        sigma = (p_mean + P_STD * torch.randn(len(x0), generator=generator)).exp()
        noise = sigma[:, None] * normal(x0, generator)
        if antithetic:
            x0, sigma, noise = x0.repeat(2, 1), sigma.repeat(2), torch.cat([noise, -noise])
        denoised = model(x0 + noise, sigma)
        return ((denoised - x0) / model.scale(sigma)[:, None]).square().mean()

    return loss


def independent(x1: Tensor, generator: Generator) -> Tensor:
    """Draw x_0 of N(0, I) for each x_1 [B, d], whatever it is."""
    return normal(x1, generator)


def optimal(x1: Tensor, generator: Generator) -> Tensor:
    """Draw x_0 of N(0, I) and pair them with x_1 by optimal transport within the batch."""
    x0 = normal(x1, generator)
    _, columns = linear_sum_assignment(torch.cdist(x1, x0).square().numpy())
    return x0[torch.from_numpy(columns)]


def component(mixture: GaussianMixture) -> Callable[[Tensor, Generator], Tensor]:
    """Return the coupling that draws x_0 of a component drawn by the responsibilities at x_1."""
    source = SphericalMixture(mixture)

    def couple(x1: Tensor, generator: Generator) -> Tensor:
        responsibilities = source.responsibilities(x1, torch.zeros(len(x1)))
        return source.draw(torch.multinomial(responsibilities, 1, generator=generator)[:, 0], generator)

    return couple


def matching(couple: Callable[[Tensor, Generator], Tensor]) -> Loss:
    """Return the loss of conditional flow matching, t uniform: |v - (x_1 - x_0)|^2."""

    def loss(model: nn.Module, x1: Tensor, generator: Generator) -> Tensor:
        x0, t = couple(x1, generator), torch.rand(len(x1), generator=generator)
        x = torch.lerp(x0, x1, t[:, None])
        return (model(x, t) - (x1 - x0)).square().mean()

    return loss


def train(model: nn.Module, loss: Loss, data: Tensor, config: TrainConfig) -> nn.Module:
    """Train as `fastndsm.Trainer` does, Adam with a cosine and moving average, by any loss; return the average."""
    generator = torch.Generator().manual_seed(config.seed)
    average = copy.deepcopy(model).requires_grad_(False)
    weights, averages = list(model.parameters()), list(average.parameters())
    optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
    schedule = CosineAnnealingLR(optimizer, config.steps)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(config.steps):
        while len(order) < config.batch_size:
            order = torch.cat([order, torch.randperm(len(data), generator=generator)])
        batch, order = data[order[: config.batch_size]], order[config.batch_size :]
        optimizer.zero_grad()
        value = loss(model, batch, generator)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            get_ema_multi_avg_fn(min(config.ema, (1 + step) / (10 + step)))(averages, weights, None)
    if not all(bool(torch.isfinite(w).all()) for w in averages):
        raise FloatingPointError(f"train: expected finite weights after {config.steps} steps, found NaN or infinite")
    return average.eval()
