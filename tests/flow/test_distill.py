import itertools
import math
from collections.abc import Callable

import pytest
import torch
from analytic import Gaussian, Mixture, independent_gaussian
from torch import Tensor, nn

from policies.flow import LINEAR, Field, from_velocity, heun, jump, solve, straight, uniform
from policies.flow.distill import (
    cheapest_grid,
    pseudo_huber,
    reflow,
    split,
    step_costs,
    u_shaped_times,
)

MEAN, DEVIATION = 0.7, 0.5
FINE = uniform(200)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 1, generator=generator(seed), dtype=torch.float64)


def moments(count: int, number: int, seed: int = 1) -> list[Tensor]:
    times = torch.rand(number, count, generator=generator(seed), dtype=torch.float64)
    return [*times.sort(0).values]


def spread(t: Tensor) -> Tensor:
    """Standard deviation of the state of a Gaussian at times (B,), to be broadcast."""
    return ((t * DEVIATION) ** 2 + (1 - t) ** 2).sqrt()[:, None, None]


def exact(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Average velocity of the flow of a Gaussian, in closed form."""
    s_, t_ = s[:, None, None], t[:, None, None]
    end = t_ * MEAN + spread(t) / spread(s) * (x - s_ * MEAN)
    return torch.where(t_ > s_, (end - x) / (t_ - s_).clamp(min=1e-12), FIELD(x, s).velocity)


FIELD: Field = independent_gaussian(MEAN, DEVIATION**2, horizon=1).field


def bimodal() -> Mixture:
    eye = torch.eye(1, dtype=torch.float64)
    parts = [Gaussian(torch.full((1, 1), side, dtype=torch.float64), 0.01 * eye) for side in (-1.0, 1.0)]
    return Mixture(torch.tensor([0.4, 0.6], dtype=torch.float64), parts)


class Net(nn.Module):
    """Average velocity of one number; without an end it is a velocity."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(96, 1)).double()

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x[:, 0], s[:, None], t[:, None]], -1))[:, None]


def trained(loss: Callable[[Net, int], Tensor], steps: int = 1000) -> Net:
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        optimiser.zero_grad()
        loss(net, step).backward()
        optimiser.step()
        schedule.step()
    return net


def test_the_flow_map_of_a_gaussian_has_no_loss() -> None:
    x, (r, s, t) = drawn(64), moments(64, 3)
    assert split(exact, x, r, s, t) < 1e-18


def test_a_wrong_flow_map_has_a_loss() -> None:
    x, (r, s, t) = drawn(64), moments(64, 3)

    def wrong(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return exact(x, s, t) + 0.1 * (t - s)[:, None, None]

    assert split(wrong, x, r, s, t) > 1e-5


def test_maps_chain_into_maps() -> None:
    x, (r, s, t), step = drawn(64), moments(64, 3), jump(exact)
    torch.testing.assert_close(step(step(x, r, s), s, t), step(x, r, t))


def test_an_empty_interval_splits_into_itself() -> None:
    x, (s, t) = drawn(8), moments(8, 2)
    assert split(exact, x, t, t, t) == 0
    assert split(exact, x, s, s, t) < 1e-18


def test_a_map_of_two_modes_is_learnt_from_their_field() -> None:
    field, rng = bimodal().field, generator(2)

    def loss(net: Net, step: int) -> Tensor:
        noise = torch.randn(256, 1, 1, generator=rng, dtype=torch.float64)
        r, s, t = torch.rand(3, 256, generator=rng, dtype=torch.float64).sort(0).values
        data = torch.where(torch.rand(256, 1, 1, generator=rng) < 0.4, -1.0, 1.0)
        data = data + 0.1 * torch.randn(256, 1, 1, generator=rng, dtype=torch.float64)
        x = LINEAR.at(data, noise, r)
        velocity = (net(x, r, r) - field(x, r).velocity).square().mean()
        return velocity + split(net, x, r, s, t)

    net, noise = trained(loss), drawn(2000, 3)
    with torch.no_grad():
        truth, ended = solve(heun(field), noise, FINE), solve(jump(net), noise, (0, 1))
        single = solve(straight(field), noise, (0, 1))
    assert (ended - truth).abs().mean() < 0.1  # the modes are 2 apart
    assert (single - truth).abs().mean() > 0.8  # one step of the field leads to the mean
    assert (ended < 0).double().mean().item() == pytest.approx(0.4, abs=0.03)


def test_reflow_makes_paths_straight_and_keeps_the_marginals() -> None:
    field, rng = bimodal().field, generator(4)
    noise = drawn(20000, 5)
    data = solve(heun(field), noise, FINE)

    def loss(net: Net, step: int) -> Tensor:
        chosen = torch.randint(len(noise), (256,), generator=rng)
        return reflow(on(net), noise[chosen], data[chosen], u_shaped_times(256, rng).double())

    student, fresh = on(trained(loss)), drawn(4000, 6)
    with torch.no_grad():
        assert bend(student, fresh) < 0.2 * bend(field, fresh)
        ended, truth = (solve(straight(f), fresh, uniform(n))[:, 0, 0] for f, n in ((student, 1), (field, 200)))
    quantiles = torch.tensor([0.05, 0.2, 0.35, 0.5, 0.8, 0.95], dtype=torch.float64)
    torch.testing.assert_close(ended.quantile(quantiles), truth.quantile(quantiles), atol=0.1, rtol=0)


def on(net: Net) -> Field:
    return from_velocity(lambda x, t: net(x, t, torch.ones_like(t)))


def bend(field: Field, noise: Tensor) -> float:
    """How far velocities along paths are from the way they lead in all, mean square."""
    x, velocities = noise, []
    for s, t in itertools.pairwise(uniform(50)):
        begin, end = (torch.full((len(x),), time, dtype=x.dtype) for time in (s, t))
        velocities.append(field(x, begin).velocity)
        x = straight(field)(x, begin, end)
    return float((torch.stack(velocities) - (x - noise)).square().mean())


def test_reflow_compares_with_the_pair() -> None:
    noise, data, (t,) = drawn(16), 2 * drawn(16, 7), moments(16, 1)
    assert reflow(from_velocity(lambda x, t: data - noise), noise, data, t) == 0
    off = reflow(from_velocity(lambda x, t: data - noise + 3.0), noise, data, t)
    assert off.item() == pytest.approx(3.0, abs=1e-3)  # a length, not a square


def test_the_robust_length_is_square_near_zero_and_long_far_away() -> None:
    far, near = torch.full((2, 3, 2), 5.0), torch.full((2, 3, 2), 1e-6, dtype=torch.float64)
    assert pseudo_huber(far).item() == pytest.approx(5 * math.sqrt(6), rel=1e-3)
    assert pseudo_huber(2 * near).item() == pytest.approx(4 * pseudo_huber(near).item(), rel=1e-2)


def test_u_shaped_times_follow_their_density() -> None:
    times = u_shaped_times(200_000, generator())
    assert times.min() >= 0 and times.max() <= 1
    edges = torch.linspace(0, 1, 11)
    antiderivative = torch.sinh(4 * (edges - 0.5))  # of exp(4 t) + exp(4 - 4 t), up to a factor
    expected = antiderivative.diff() / (antiderivative[-1] - antiderivative[0])
    found = torch.histc(times, 10, 0, 1) / len(times)
    torch.testing.assert_close(found, expected, atol=0.005, rtol=0)


def test_the_cheapest_grid_of_a_case_solved_by_hand() -> None:
    costs = torch.tensor(
        [[0.0, 1.0, 5.0, 9.0, 20.0], [0, 0, 4, 3, 12], [0, 0, 0, 1, 8], [0, 0, 0, 0, 6], [0, 0, 0, 0, 0]]
    )
    assert cheapest_grid(costs, 1) == [0, 4]
    assert cheapest_grid(costs, 2) == [0, 1, 4]  # 13, like 0 2 4; 0 3 4 costs 15
    assert cheapest_grid(costs, 3) == [0, 1, 3, 4]  # 10
    assert cheapest_grid(costs, 4) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="5 times are no grid of 5 steps; take 1 to 4"):
        cheapest_grid(costs, 5)


def test_the_cheapest_grid_is_the_best_of_all() -> None:
    costs = torch.rand(8, 8, generator=generator())
    for steps in range(1, 8):
        ways = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
        totals = [sum(float(costs[a, b]) for a, b in itertools.pairwise(way)) for way in ways]
        found = cheapest_grid(costs, steps)
        assert sum(float(costs[a, b]) for a, b in itertools.pairwise(found)) == pytest.approx(min(totals))


def test_costs_of_steps_are_those_of_leaving_the_fine_path() -> None:
    grid, x = uniform(4), drawn(32)
    costs = step_costs(FIELD, x, grid)
    assert torch.isinf(costs.tril()[costs.tril() != 0]).all()
    assert max(float(costs[k, k + 1]) for k in range(4)) == 0
    expected = (solve(straight(FIELD), x, (0, 1)) - solve(straight(FIELD), x, grid)).square().mean()
    torch.testing.assert_close(costs[0, 4], expected)
