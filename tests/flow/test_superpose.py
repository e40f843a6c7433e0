import pytest
import torch
from analytic import Gaussian, independent_gaussian
from torch import Tensor

from policies.flow import blend, product, sample_and, sample_or, sde, shifted, solve, uniform

H = 16
STEPS = torch.arange(H, dtype=torch.float64)
A, B, C = (
    Gaussian(0.5 * torch.sin(STEPS + turn)[:, None], torch.diag(level + 0.2 * torch.cos(STEPS + turn)))
    for turn, level in [(0, 0.3), (1.6, 0.4), (3, 0.5)]
)


def noise(batch: int, horizon: int = H) -> Tensor:
    return torch.randn(batch, horizon, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draw(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact_ratio(parents: tuple[Gaussian, ...], x: Tensor, time: float) -> Tensor:
    """Log densities of states relative to the mean of the parents', ``(N, B)``."""
    density = torch.stack([parent.log_density(x, torch.full((len(x),), time).double()) for parent in parents])
    return density - density.mean(0)


@pytest.mark.parametrize("grid", [uniform(7), (0.12, 0.4, 0.9, 1.0)], ids=["from noise", "later"])
def test_a_single_parent_is_sampled_as_by_the_stochastic_step(grid: tuple[float, ...]) -> None:
    expected = solve(sde(A.field, draw()), noise(8), grid)
    for x, densities in [
        sample_or([A.field], [1], noise(8), grid, draw()),
        sample_and([A.field, A.field], noise(8), grid, draw()),
    ]:
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
        assert densities.abs().max() < 1e-12
    x, log_weight = product([A.field, A.field], [0.3, 0.7], noise(8), grid, lambda state: torch.ones_like(state), 4)
    torch.testing.assert_close(x, solve(sde(A.field, torch.ones_like), noise(8), grid), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_weight.exp(), torch.full((8,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("n", [10, 50])
def test_or_samples_the_mixture(n: int) -> None:
    left, right = independent_gaussian(-1.5, 0.05), independent_gaussian(1, 0.1)
    parents, weights = [left.field, right.field], [0.3, 0.7]
    x = sample_or(parents, weights, noise(2000, 2), uniform(n), draw())[0][..., 0]
    inside = [((x - parent.mean[0]).abs() < 4 * parent.covariance[0, 0].sqrt()).all(1) for parent in (left, right)]
    assert (inside[0] | inside[1]).double().mean() > 0.995
    assert inside[0].double().mean().item() == pytest.approx(0.3, abs=0.05)
    for member, parent in zip(inside, (left, right), strict=True):
        alone = solve(sde(parent.field, draw(2)), noise(2000, 2), uniform(n))
        assert x[member].std().item() == pytest.approx(alone.std().item(), rel=0.15)
    blended = solve(sde(blend(parents, weights), draw()), noise(2000, 2), uniform(n))[..., 0]
    assert blended.mean().item() == pytest.approx(0.25, abs=0.2) and blended.std() < 0.5  # a blend lies between


@pytest.mark.parametrize(("temperature", "n"), [(0, 400), (1, 200)], ids=["blend", "or"])
def test_log_densities_follow_the_exact_ones(temperature: float, n: int) -> None:
    grid, parents = [0.98 * time for time in uniform(n)], (A, B, C)
    x, found = sample_or([parent.field for parent in parents], [1, 1, 1], noise(128), grid, draw(), temperature)
    exact = exact_ratio(parents, x, 0.98)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.999
    assert (found - exact).std() < 0.1 * exact.std()


def test_or_without_temperature_is_a_blend() -> None:
    x, _ = sample_or([A.field, B.field], [3, 1], noise(8), uniform(9), draw(), temperature=0.0)
    expected = solve(sde(blend([A.field, B.field], [0.75, 0.25]), draw()), noise(8), uniform(9))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)


def test_the_order_of_the_parents_does_not_matter() -> None:
    fields = [A.field, B.field, C.field]
    x, densities = sample_or(fields, [1, 2, 3], noise(8), uniform(9), draw())
    again, turned = sample_or(fields[::-1], [3, 2, 1], noise(8), uniform(9), draw())
    torch.testing.assert_close(again, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(turned.flip(0), densities, rtol=0, atol=1e-9)
    ours, theirs = (sample_and(order, noise(8), uniform(9), draw())[0] for order in (fields, fields[::-1]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parents", [(A, B), (A, B, C)], ids=["two", "three"])
def test_and_keeps_the_densities_together_where_the_plain_sampler_does_not(parents: tuple[Gaussian, ...]) -> None:
    fields, grid = [parent.field for parent in parents], [0.98 * time for time in uniform(200)]
    joined, found = sample_and(fields, noise(256), grid, draw())
    plain = solve(sde(blend(fields, [1 / len(fields)] * len(fields)), draw()), noise(256), grid)
    together, apart = (exact_ratio(parents, x, 0.98).std(1).max() for x in (joined, plain))
    assert found.abs().max() < 1e-9
    assert together < 0.1 * apart


def test_and_of_two_is_the_mean_with_the_noise_projected_off_their_difference() -> None:
    fresh = noise(4)
    x, _ = sample_and([A.field, B.field], noise(4), (0.3, 0.5), lambda _: fresh)
    t = torch.full((4,), 0.3, dtype=torch.float64)
    apart = (A.field(noise(4), t).data - B.field(noise(4), t).data)[..., 0]
    along = (fresh[..., 0] * apart).sum(1, keepdim=True) * apart / apart.square().sum(1, keepdim=True)
    expected = sde(blend([A.field, B.field], [0.5, 0.5]), lambda _: fresh - along[..., None])
    torch.testing.assert_close(x, expected(noise(4), t, t + 0.2), rtol=0, atol=1e-12)


def test_and_stays_finite_where_no_point_is_equally_likely() -> None:
    middle = independent_gaussian(0, 0.2, H)
    low, high = independent_gaussian(-1, 0.2, H), independent_gaussian(1.001, 0.2, H)
    for parents in ([low, middle, high], [middle, middle, high], [middle, middle, middle]):
        fields = [parent.field for parent in parents]
        x, densities = sample_and(fields, noise(64).float(), uniform(10), draw())
        assert x.abs().max() < 3 and torch.isfinite(densities).all()


PRODUCTS = [((0.5, 0.5), (1.0, -0.5), (1.5, 0.2)), ((1.4, -0.4), (1.0, -0.5), (0.5, 1.5))]


def moments(x: Tensor, log_weight: Tensor, particles: int) -> tuple[float, float]:
    """Weighted mean and variance over all groups and coordinates."""
    share = log_weight.exp()[:, None, None] * particles / len(x) / x[0].numel()
    mean = (share * x).sum()
    return mean.item(), (share * (x - mean) ** 2).sum().item()


@pytest.mark.parametrize(("weights", "means", "variances"), PRODUCTS, ids=["convex", "signed"])
def test_weighted_particles_reach_the_product_of_experts(
    weights: tuple[float, ...], means: tuple[float, ...], variances: tuple[float, ...]
) -> None:
    parents = list(zip(weights, means, variances, strict=True))
    precision = sum(weight / variance for weight, _, variance in parents)
    mean = sum(weight * mean / variance for weight, mean, variance in parents) / precision
    fields = [independent_gaussian(mean, variance).field for _, mean, variance in parents]
    x, log_weight = product(fields, weights, noise(6400, 2), uniform(100), draw(), 64)
    found = moments(x, log_weight, 64)
    assert found[0] == pytest.approx(mean, rel=0.05) and found[1] == pytest.approx(1 / precision, rel=0.1)
    uncorrected = solve(sde(blend(fields, weights), draw()), noise(6400, 2), uniform(100))
    assert abs(uncorrected.mean().item() - mean) > 2 * abs(found[0] - mean)


def test_groups_of_particles_stay_apart_and_effective() -> None:
    centre = torch.tensor([0.0, 100.0], dtype=torch.float64).repeat_interleave(8)[:, None, None]
    fields = [shifted(independent_gaussian(mean, 0.2).field, centre) for mean in (-1, 1)]
    fields.append(shifted(independent_gaussian(0, 1.0).field, centre))
    x, log_weight = product(fields, [0.3, 0.3, 0.4], noise(16, 2), uniform(20), draw(), 8)
    assert (x - centre).abs().max() < 5
    share = log_weight.view(2, 8).exp()
    torch.testing.assert_close(share.sum(1), torch.ones(2, dtype=torch.float64))
    assert (1 / share.square().sum(1) >= 4).all()


def test_particles_must_make_groups() -> None:
    with pytest.raises(ValueError, match="10 states do not make groups of 4"):
        product([A.field, B.field], [0.5, 0.5], noise(10), uniform(2), draw(), 4)
