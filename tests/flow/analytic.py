"""Distributions whose fields are known in closed form, for tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from policies.flow import LINEAR, Estimate, Field, Path, Step, solve


class Gaussian:
    """N(mean, covariance) over chunks ``(H, A)``; the covariance is ``(H * A, H * A)``."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance

    def _whitened(self, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Marginal precision times the offset from the marginal mean, ``(B, H * A)``; scales ``(B, 1)``."""
        values, vectors = torch.linalg.eigh(self.covariance.to(x))
        offset = x.flatten(1) - signal * self.mean.flatten().to(x)
        return (offset @ vectors) / (signal**2 * values + noise**2) @ vectors.mT

    def on(self, path: Path) -> Field:
        """Exact field on a path, in its native time."""

        def field(x: Tensor, time: Tensor) -> Estimate:
            signal, noise = path.signal(time)[:, None], path.noise(time)[:, None]
            white = self._whitened(x, signal, noise)
            data = self.mean.to(x) + (signal * white @ self.covariance.to(x)).view_as(x)
            return Estimate(data, (noise * white).view_as(x))

        return field

    def field(self, x: Tensor, t: Tensor) -> Estimate:
        """Exact field on the linear path."""
        return self.on(LINEAR)(x, t)

    def score(self, x: Tensor, time: Tensor, path: Path = LINEAR) -> Tensor:
        """Gradient of the log density of the state of a path."""
        return -self._whitened(x, path.signal(time)[:, None], path.noise(time)[:, None]).view_as(x)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Log density of the state on the linear path, ``(B,)``."""
        eye = torch.eye(len(self.covariance), dtype=x.dtype)
        covariance = t[:, None, None] ** 2 * self.covariance.to(x) + (1 - t[:, None, None]) ** 2 * eye
        mean = t[:, None] * self.mean.flatten().to(x)
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x.flatten(1))

    def conditional(self, known: Tensor, count: int) -> Gaussian:
        """Distribution of the coordinates after the first ``count``, given those, for A = 1."""
        a, b = slice(0, count), slice(count, None)
        gain = torch.linalg.solve(self.covariance[a, a], self.covariance[a, b]).mT
        mean = self.mean[b] + gain @ (known - self.mean[a])
        return Gaussian(mean, self.covariance[b, b] - gain @ self.covariance[a, b])


class Mixture:
    """Weighted Gaussians; the field is the posterior mean of theirs."""

    def __init__(self, weights: Tensor, parts: list[Gaussian]) -> None:
        self.weights, self.parts = weights, parts

    def _logits(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack([part.log_density(x, t) for part in self.parts]) + self.weights.log()[:, None]

    def field(self, x: Tensor, t: Tensor) -> Estimate:
        """Exact field on the linear path."""
        share = self._logits(x, t).softmax(0)[..., None, None]
        estimates = [part.field(x, t) for part in self.parts]
        return Estimate(*((share * torch.stack(column)).sum(0) for column in zip(*estimates, strict=True)))

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Log density of the state on the linear path, ``(B,)``."""
        return self._logits(x, t).logsumexp(0)


def smooth_gaussian(horizon: int, scale: float = 1.0, length: float = 3.0) -> Gaussian:
    """Correlated chunks with A = 1, float64: neighbouring actions are alike; variance ``scale**2``."""
    steps = torch.arange(horizon, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((steps[:, None] - steps) / length) ** 2) + 0.05 * torch.eye(horizon)
    return Gaussian(torch.sin(steps)[:, None], scale**2 * kernel / 1.05)


def independent_gaussian(mean: float, variance: float, horizon: int = 2) -> Gaussian:
    """Independent actions with A = 1, float64."""
    eye = torch.eye(horizon, dtype=torch.float64)
    return Gaussian(mean * torch.ones(horizon, 1, dtype=torch.float64), variance * eye)


def terminal(
    make_step: Callable[[Callable[[Tensor], Tensor]], Step], grid: Sequence[float], horizon: int, draws: int = 0
) -> Gaussian:
    """Exact distribution at ``grid[-1]`` of an affine sampler with A = 1, without sampling.

    Every source of randomness, the start and each draw, is fed one basis vector at a time.

    Args:
        make_step: Step for a function that draws fresh noise.
        grid: Times, beginning at 0.
        horizon: H.
        draws: How often the sampler draws.
    """
    basis = torch.eye(horizon * (1 + draws), dtype=torch.float64)
    sources = torch.cat([torch.zeros_like(basis[:1]), basis]).view(-1, 1 + draws, horizon, 1)
    remaining = iter(sources.unbind(1))
    end = solve(make_step(lambda _: next(remaining)), next(remaining), grid)[..., 0]
    columns = end[1:] - end[0]
    return Gaussian(end[0][:, None], columns.mT @ columns)


def cosine_betas(count: int) -> Tensor:
    """Variance table of improved DDPM (arXiv 2102.09672), ``squaredcos_cap_v2`` elsewhere; ``(count,)`` float64."""
    time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    kept = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


def exported(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Output of ``function`` after a round through ``torch.export``."""

    class Wrapped(torch.nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return function(*values)

    return torch.export.export(Wrapped(), inputs).module()(*inputs)
