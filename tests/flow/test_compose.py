import math

import pytest
import torch
from analytic import Gaussian, exported, independent_gaussian, smooth_gaussian, terminal
from scipy.integrate import quad
from torch import Tensor

from policies.flow import (
    COSINE,
    Field,
    blend,
    disagreement,
    from_noise,
    heun,
    padded,
    pin,
    reschedule,
    solve,
    straight,
    uniform,
)

TIMES = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
A, B = smooth_gaussian(4), smooth_gaussian(4, scale=0.5, length=1.5)


def states(batch: int = 5, horizon: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, horizon, 1, generator=generator, dtype=torch.float64)


def score(field: Field, x: Tensor, t: Tensor) -> Tensor:
    return -field(x, t).noise / (1 - t[:, None, None])


def test_one_hot_weights_return_the_parent_bit_for_bit() -> None:
    x = states()
    for mixed, parent in [(blend([A.field, B.field], [1, 0]), A), (blend([A.field, B.field], [0.0, 1.0]), B)]:
        for ours, theirs in zip(mixed(x, TIMES), parent.field(x, TIMES), strict=True):
            assert torch.equal(ours, theirs)


def test_blending_a_field_with_itself_changes_nothing() -> None:
    mixed = blend([A.field, A.field], [0.3, 0.7])
    torch.testing.assert_close(mixed(states(), TIMES), A.field(states(), TIMES), rtol=0, atol=1e-12)


def test_order_and_nesting_do_not_matter() -> None:
    fields, weights = [A.field, B.field, independent_gaussian(1, 2, 4).field], [0.2, 0.3, 0.5]
    flat = blend(fields, weights)(states(), TIMES)
    turned = blend(fields[::-1], weights[::-1])(states(), TIMES)
    nested = blend([blend(fields[:2], [0.4, 0.6]), fields[2]], [0.5, 0.5])(states(), TIMES)
    torch.testing.assert_close(turned, flat, rtol=0, atol=1e-12)
    torch.testing.assert_close(nested, flat, rtol=0, atol=1e-12)


def test_a_parent_on_another_path_blends_as_if_it_were_on_this_one() -> None:
    foreign = reschedule(from_noise(lambda x, time: B.on(COSINE)(x, time).noise, COSINE), COSINE)
    mixed, native = blend([A.field, foreign], [0.5, 0.5]), blend([A.field, B.field], [0.5, 0.5])
    torch.testing.assert_close(mixed(states(), TIMES), native(states(), TIMES), rtol=0, atol=1e-9)


def test_equal_covariances_compose_to_the_gaussian_between_the_means() -> None:
    other, between = Gaussian(A.mean + 1, A.covariance), Gaussian(A.mean + 0.7, A.covariance)
    mixed = blend([A.field, other.field], [0.3, 0.7])
    torch.testing.assert_close(mixed(states(), TIMES), between.field(states(), TIMES), rtol=0, atol=1e-12)


def test_unequal_covariances_compose_to_the_product_of_experts_only_at_the_data() -> None:
    precision = 0.4 * A.covariance.inverse() + 0.6 * B.covariance.inverse()
    covariance = precision.inverse()
    pull = 0.4 * A.covariance.inverse() @ A.mean + 0.6 * B.covariance.inverse() @ B.mean
    product, mixed = Gaussian(covariance @ pull, covariance), blend([A.field, B.field], [0.4, 0.6])

    def mismatch(time: float) -> float:
        t = torch.full((5,), time, dtype=torch.float64)
        exact = product.score(states(), t)
        return ((score(mixed, states(), t) - exact).norm() / exact.norm()).item()

    assert mismatch(1 - 1e-6) < 1e-3
    assert mismatch(0.5) > 0.02


@pytest.mark.parametrize("weight", [0.3, 0.5, 1.25])
def test_the_composed_flow_ends_on_the_geometric_mean_of_the_variances(weight: float) -> None:
    means, variances, weights = (1.0, -0.5), (1.5, 0.2), (weight, 1 - weight)
    parents = [independent_gaussian(mean, variance) for mean, variance in zip(means, variances, strict=True)]
    mixed = blend([parent.field for parent in parents], weights)
    samples = terminal(lambda _: heun(mixed), uniform(400), 2)

    def spread(sigma: float) -> float:
        return math.prod((variance + sigma**2) ** (w / 2) for w, variance in zip(weights, variances, strict=True))

    def drift(sigma: float) -> float:
        parts = zip(weights, means, variances, strict=True)
        return sigma * sum(w * mean / (variance + sigma**2) for w, mean, variance in parts) / spread(sigma)

    mean = spread(0) * quad(drift, 0, math.inf)[0]
    assert samples.covariance.diagonal().tolist() == pytest.approx([spread(0) ** 2] * 2, rel=0.01)
    assert samples.mean.flatten().tolist() == pytest.approx([mean] * 2, rel=0.01)


def test_a_shorter_parent_leaves_the_tail_to_the_longer_one() -> None:
    short = smooth_gaussian(3, scale=0.5)
    share = torch.tensor([0.6, 0.6, 0.6, 0.0], dtype=torch.float64)[:, None]
    mixed = blend([A.field, padded(short.field, 3)], [1 - share, share])(states(), TIMES)
    longer, shorter = A.field(states(), TIMES), short.field(states()[:, :3], TIMES)
    assert torch.equal(mixed.data[:, 3:], longer.data[:, 3:]) and torch.equal(mixed.noise[:, 3:], longer.noise[:, 3:])
    torch.testing.assert_close(mixed.data[:, :3], 0.4 * longer.data[:, :3] + 0.6 * shorter.data)


def test_disagreement_is_the_weighted_variance_of_the_scores() -> None:
    x, weights = states(), (0.3, 0.7)
    scores = torch.stack([score(parent.field, x, TIMES).flatten(1) for parent in (A, B)])
    share = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    spread = (share * scores**2).sum(0) - (share * scores).sum(0) ** 2
    expected = (1 - TIMES) / TIMES * spread.sum(1)
    measured = disagreement([A.field, B.field], weights)(x, TIMES)
    torch.testing.assert_close(measured, expected)
    assert disagreement([A.field, A.field], weights)(x, TIMES).max() < 1e-20


def test_weights_may_be_inputs_of_an_exported_graph() -> None:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return solve(
            straight(blend([A.field, padded(smooth_gaussian(3).field, 3)], [1 - weight, weight])), x, (0, 0.5, 1)
        )

    weight = torch.tensor([0.6, 0.6, 0.6, 0.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(exported(run, states(), weight), run(states(), weight), rtol=0, atol=1e-12)


def test_guides_apply_to_compositions() -> None:
    mask = torch.tensor([True, False, False, False])[:, None]
    mixed = pin(blend([A.field, B.field], [0.5, 0.5]), torch.full((4, 1), 0.25, dtype=torch.float64), mask)
    end = solve(straight(mixed), states(), uniform(5))
    assert (end[:, 0] == 0.25).all() and end[:, 1:].std() > 0.1
