import math
from collections.abc import Callable

import pytest
import torch
from analytic import exported, independent_gaussian, smooth_gaussian, terminal
from torch import Tensor

from policies.flow import Field, Step, from_data, heun, jump, sde, solve, straight, uniform

GENERATOR_SEED = 3
STEPS: dict[str, Callable[[Field], Step]] = {
    "straight": straight,
    "heun": heun,
    "sde": lambda field: sde(field, torch.ones_like),
}


def noise(batch: int, horizon: int) -> Tensor:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    return torch.randn(batch, horizon, 1, generator=generator, dtype=torch.float64)


def measured_order(make_step: Callable[[Field], Step]) -> float:
    """Order of convergence to the exact flow of a Gaussian, x(1) = mean + std * x(0)."""
    gaussian, start = independent_gaussian(0.7, 0.25), noise(16, 2)
    errors = [solve(make_step(gaussian.field), start, uniform(n)) - (0.7 + 0.5 * start) for n in (64, 128)]
    return math.log2(errors[0].norm() / errors[1].norm())


def test_orders_of_convergence() -> None:
    assert measured_order(straight) == pytest.approx(1, abs=0.1)
    assert measured_order(heun) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("name", ["straight", "heun"])
def test_samples_have_the_distribution_of_the_data(name: str) -> None:
    gaussian = smooth_gaussian(4)
    samples = terminal(lambda _: STEPS[name](gaussian.field), uniform(400), 4)
    torch.testing.assert_close(samples.mean, gaussian.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(samples.covariance, gaussian.covariance, rtol=0, atol=0.02)


def test_heun_needs_no_field_at_the_data() -> None:
    def guarded(x: Tensor, t: Tensor) -> Tensor:
        assert (t < 1).all()
        return 0.5 * x + t[:, None, None]

    start = noise(3, 2).requires_grad_()
    end = solve(heun(from_data(guarded)), start, uniform(4))
    (gradient,) = torch.autograd.grad(end.sum(), start)
    assert torch.isfinite(end).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("stop", [0.5, 1.0])
def test_stochastic_steps_preserve_the_marginals(eta: float, stop: float) -> None:
    gaussian, errors = smooth_gaussian(3), []
    eye = torch.eye(3, dtype=torch.float64)
    for n in (50, 100, 200):
        grid = [stop * time for time in uniform(n)]
        samples = terminal(lambda draw: sde(gaussian.field, draw, eta), grid, 3, draws=n)
        torch.testing.assert_close(samples.mean, stop * gaussian.mean, rtol=0, atol=1 / n)
        marginal = stop**2 * gaussian.covariance + (1 - stop) ** 2 * eye
        errors.append((samples.covariance - marginal).norm().item() / marginal.norm().item())
    assert errors[2] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.5) and errors[1] / errors[2] == pytest.approx(2, abs=0.5)


def test_stochastic_steps_repeat_with_their_generator_only() -> None:
    field, start = smooth_gaussian(3).field, noise(4, 3)

    def run(seed: int) -> Tensor:
        return solve(sde(field, torch.Generator().manual_seed(seed)), start, uniform(5))

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))


def test_eta_zero_is_the_straight_step() -> None:
    field, start = smooth_gaussian(3).field, noise(4, 3)
    silent = solve(sde(field, torch.Generator(), eta=0.0), start, uniform(7))
    torch.testing.assert_close(silent, solve(straight(field), start, uniform(7)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(0.0, 1.0), (0.0, 0.3, 1.0)])
def test_an_exact_flow_map_needs_any_number_of_steps(grid: tuple[float, ...]) -> None:
    def spread(t: Tensor) -> Tensor:
        return (0.25 * t**2 + (1 - t) ** 2).sqrt()

    def average(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        s, t = s[:, None, None], t[:, None, None]
        end = 0.7 * t + spread(t) / spread(s) * (x - 0.7 * s)
        return (end - x) / (t - s)

    start = noise(8, 2)
    torch.testing.assert_close(solve(jump(average), start, grid), 0.7 + 0.5 * start, rtol=0, atol=1e-12)


def test_grid_times_can_be_learned() -> None:
    grid = torch.tensor(uniform(4), dtype=torch.float64, requires_grad=True)
    solve(straight(smooth_gaussian(3).field), noise(4, 3), grid).sum().backward()
    assert grid.grad is not None and grid.grad[1:-1].abs().min() > 0


def test_uniform_grid_ends_are_exact() -> None:
    assert uniform(4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert uniform(7)[-1] == 1.0


@pytest.mark.parametrize("name", STEPS)
def test_samplers_survive_export(name: str) -> None:
    step, start = STEPS[name](smooth_gaussian(3).field), noise(2, 3)
    run = lambda x: solve(step, x, uniform(3))  # noqa: E731
    torch.testing.assert_close(exported(run, start), run(start), rtol=0, atol=1e-12)


def test_a_flow_map_survives_export() -> None:
    run = lambda x: solve(jump(lambda state, s, t: state * (s + t)[:, None, None]), x, uniform(3))  # noqa: E731
    torch.testing.assert_close(exported(run, noise(2, 3)), run(noise(2, 3)), rtol=0, atol=1e-12)
