import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from analytic import Gaussian, Mixture, cosine_betas, exported, independent_gaussian, smooth_gaussian, terminal
from scipy.integrate import quad
from torch import Tensor

from policies.flow import (
    COSINE,
    Estimate,
    Field,
    blend,
    cfg,
    ddpm,
    disagreement,
    either,
    from_noise,
    heun,
    pin,
    reschedule,
    scaled,
    shifted,
    solve,
    spread,
    straight,
    tail_weights,
    uniform,
    window,
)
from policies.flow import Path as NoisePath
from policies.flow.compose import LogDensity

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


def test_a_parent_without_weight_is_not_evaluated() -> None:
    def refuses(x: Tensor, t: Tensor) -> Estimate:
        raise AssertionError("evaluated")

    mixed = blend([A.field, refuses, B.field], [0.3, 0, 0.7])(states(), TIMES)
    torch.testing.assert_close(mixed, blend([A.field, B.field], [0.3, 0.7])(states(), TIMES), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"\[0, 0\] leave no field"):
        blend([A.field, B.field], [0, 0])


def test_weights_may_follow_the_time() -> None:
    mixed = blend([A.field, B.field], [lambda t: 1 - t, lambda t: t])(states(), TIMES)
    for row, time in enumerate(TIMES.tolist()):
        fixed = blend([A.field, B.field], [1 - time, time])(states(), TIMES)
        torch.testing.assert_close(mixed.data[row], fixed.data[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed.noise[row], fixed.noise[row], rtol=0, atol=1e-12)
    begin = blend([A.field, B.field], [lambda t: (t < 0.5).to(t), lambda t: (t >= 0.5).to(t)])(states(), TIMES)
    assert torch.equal(begin.data[:2], A.field(states(), TIMES).data[:2])
    assert torch.equal(begin.data[2:], B.field(states(), TIMES).data[2:])


def test_classifier_free_guidance_is_a_blend_with_a_negative_weight() -> None:
    guided = cfg(A.field, B.field, 1 + 0.6)(states(), TIMES)
    torch.testing.assert_close(blend([A.field, B.field], [1.6, -0.6])(states(), TIMES), guided, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("path", [COSINE, ddpm(cosine_betas(100))], ids=["cosine", "table"])
def test_a_parent_on_another_path_blends_as_if_it_were_on_this_one(path: NoisePath) -> None:
    unrounded = NoisePath(path.signal, path.noise, path.signal_rate, path.noise_rate, path.time)
    foreign = reschedule(from_noise(lambda x, time: B.on(path)(x, time).noise, unrounded), unrounded)
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
    short, windows = smooth_gaussian(2, scale=0.5), [(0, 4), (1, 2)]
    shares = tail_weights([0.25, 0.75], windows, 4)
    mixed = blend([A.field, window(short.field, 1, 2)], shares)(states(), TIMES)
    longer, shorter = A.field(states(), TIMES), short.field(states()[:, 1:3], TIMES)
    for ours, long_part, short_part in zip(mixed, longer, shorter, strict=True):
        assert torch.equal(ours[:, [0, 3]], long_part[:, [0, 3]])
        torch.testing.assert_close(ours[:, 1:3], 0.25 * long_part[:, 1:3] + 0.75 * short_part, rtol=0, atol=1e-12)


def test_a_window_says_nothing_outside_and_must_lie_in_the_chunk() -> None:
    seen = window(smooth_gaussian(2).field, 1, 2)(states(), TIMES)
    assert seen.data[:, [0, 3]].abs().max() == 0 and seen.noise[:, [0, 3]].abs().max() == 0
    for begin, length in [(3, 2), (0, 5), (-1, 2)]:
        with pytest.raises(ValueError, match=f"{length} actions from {begin} exceed a chunk of 4"):
            window(smooth_gaussian(length).field, begin, length)(states(), TIMES)


def test_the_weight_of_absent_parents_goes_to_those_present() -> None:
    windows = [(0, 6), (0, 2), (1, 3)]
    shares = torch.stack(tail_weights([0.5, 0.3, 0.2], windows, 6))[..., 0]
    torch.testing.assert_close(shares.sum(0), torch.ones(6))
    expected = [[5 / 8, 3 / 8, 0], [0.5, 0.3, 0.2], [5 / 7, 0, 2 / 7], [5 / 7, 0, 2 / 7], [1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(shares.T, torch.tensor(expected))


def test_signed_weights_neither_flip_nor_explode_on_the_tail() -> None:
    positive, negative = torch.stack(tail_weights([1.6, -0.6], [(0, 4), (0, 2)], 4))[..., 0]
    torch.testing.assert_close(positive, torch.tensor([1.6, 1.6, 1, 1]))
    torch.testing.assert_close(negative, torch.tensor([-0.6, -0.6, 0, 0]))
    shares = torch.stack(tail_weights([0.2, -0.6, 1.4], [(0, 3), (0, 3), (0, 2)], 3))[..., 0]
    torch.testing.assert_close(shares.T, torch.tensor([[0.2, -0.6, 1.4], [0.2, -0.6, 1.4], [1.6, -0.6, 0]]))
    shares = torch.stack(tail_weights([0.9, -0.85, 0.95], [(0, 3), (0, 3), (0, 2)], 3))[..., 0]
    torch.testing.assert_close(shares.T, torch.tensor([[0.9, -0.85, 0.95], [0.9, -0.85, 0.95], [1.85, -0.85, 0]]))
    with pytest.raises(ValueError, match="no parent with a positive weight speaks about action 2"):
        tail_weights([1.6, -0.6], [(0, 2), (0, 4)], 4)


OFFSETS = [0.7, torch.tensor([[0.3], [-1], [0], [2]]).double(), torch.linspace(-1, 1, 20).double().view(5, 4, 1)]


@pytest.mark.parametrize("offset", OFFSETS, ids=["number", "chunk", "batch"])
def test_shifted_is_the_exact_field_of_the_shifted_data(offset: float | Tensor) -> None:
    ours = shifted(A.field, offset)(states(), TIMES)
    for row in range(5):
        here = offset[row] if isinstance(offset, Tensor) and offset.dim() == 3 else offset
        exact = Gaussian(A.mean + here, A.covariance).field(states(), TIMES)
        torch.testing.assert_close(ours.data[row], exact.data[row], rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.noise[row], exact.noise[row], rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 3.0])
def test_scaled_is_the_exact_field_of_the_scaled_data(factor: float) -> None:
    t = torch.tensor([0.0, 0.05, 0.5, 0.97, 1.0], dtype=torch.float64)
    exact = Gaussian(factor * A.mean, factor**2 * A.covariance).field(states(), t)
    torch.testing.assert_close(scaled(A.field, factor)(states(), t), exact, rtol=0, atol=1e-9)


def test_a_parent_moves_into_the_normal_units_of_another() -> None:
    theirs, ours = (0.4, 2.0), (-0.3, 0.5)  # offset and scale of each normaliser
    converted = shifted(scaled(A.field, theirs[1] / ours[1]), (theirs[0] - ours[0]) / ours[1])
    physical = A.mean * theirs[1] + theirs[0]
    exact = Gaussian((physical - ours[0]) / ours[1], A.covariance * (theirs[1] / ours[1]) ** 2)
    torch.testing.assert_close(converted(states(), TIMES), exact.field(states(), TIMES), rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan])
def test_scales_that_are_not_positive_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="is not positive"):
        scaled(A.field, factor)


def test_either_is_the_field_of_the_mixture_and_a_blend_is_not() -> None:
    parts, weights = [Gaussian(A.mean - 3, 0.2 * A.covariance), Gaussian(B.mean + 3, B.covariance)], [0.3, 0.7]
    exact = Mixture(torch.tensor(weights, dtype=torch.float64), parts).field(states(), TIMES)
    fields = [part.field for part in parts]
    mixed = either(fields, weights, [part.log_density for part in parts])(states(), TIMES)
    torch.testing.assert_close(mixed, exact, rtol=0, atol=1e-9)
    assert (blend(fields, weights)(states(), TIMES).noise - exact.noise).norm() > 0.3 * exact.noise.norm()


def test_disagreement_is_the_weighted_variance_of_the_scores() -> None:
    x, weights = states(), (0.3, 0.7)
    scores = torch.stack([score(parent.field, x, TIMES).flatten(1) for parent in (A, B)])
    share = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    spread = (share * scores**2).sum(0) - (share * scores).sum(0) ** 2
    expected = (1 - TIMES) / TIMES * spread.sum(1)
    measured = disagreement([A.field, B.field], weights)(x, TIMES)
    torch.testing.assert_close(measured, expected)
    assert disagreement([A.field, A.field], weights)(x, TIMES).max() < 1e-20


def test_spread_is_the_deviation_between_the_data_estimates() -> None:
    noise, low, high = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1), torch.full((2, 4, 1), 2.0)
    high[1] = 6.0
    estimates = [Estimate(low, noise), Estimate(high, noise)]
    torch.testing.assert_close(spread(estimates, [0.5, 0.5]), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(spread(estimates, [0.2, 0.8]), torch.tensor([0.8, 2.4]))
    torch.testing.assert_close(spread(estimates, [1.2, -0.3]), torch.tensor([0.8, 2.4]))
    tail = tail_weights([0.5, 0.5], [(0, 4), (0, 1)], 4)
    torch.testing.assert_close(spread(estimates, tail), torch.tensor([0.5, 1.5]))
    assert spread([estimates[1], estimates[1]], [0.5, 0.5]).abs().max() == 0
    assert spread(estimates, [torch.zeros(4, 1), torch.zeros(4, 1)]).abs().max() == 0


class Composition(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1)

    def field(self, x: Tensor, t: Tensor) -> Estimate:
        return from_noise(lambda state, time: self.network(state) * time[:, None, None])(x, t)

    def forward(self, noise: Tensor, weight: Tensor) -> Tensor:
        part = window(shifted(scaled(self.field, 0.5), 0.3), 1, 2)
        mixed = blend([self.field, part, self.field], [lambda t: 1 - 0.5 * t, weight, 0])
        return solve(straight(mixed), noise, (0.1, 0.5, 1))


def test_a_composition_survives_export_and_onnx_with_weights_chosen_at_run_time(tmp_path: Path) -> None:
    sampler, file = Composition().eval(), tmp_path / "composition.onnx"
    noise, weight = states(1).float(), torch.tensor([0.0, 0.6, 0.6, 0.0])[:, None]
    program = torch.export.export(sampler, (noise, weight))
    torch.onnx.export(program, (), file, input_names=["noise", "weight"], verbose=False)
    session = onnxruntime.InferenceSession(file)
    for share in (weight, 0.5 * weight):
        expected = sampler(noise, share).detach()
        torch.testing.assert_close(program.module()(noise, share).detach(), expected)
        (actions,) = session.run(None, {"noise": noise.numpy(), "weight": share.numpy()})
        np.testing.assert_allclose(actions, expected.numpy(), atol=1e-5)


def test_the_exact_mixture_survives_export() -> None:
    parents = [independent_gaussian(-1, 0.2, 4), independent_gaussian(1, 0.5, 4)]

    def density(mean: float, variance: float) -> LogDensity:
        def at(x: Tensor, t: Tensor) -> Tensor:
            total = (t**2 * variance + (1 - t) ** 2)[:, None, None]
            return -((x - t[:, None, None] * mean) ** 2 / total + total.log()).flatten(1).sum(1) / 2

        return at

    mixed = either([parent.field for parent in parents], [0.3, 0.7], [density(-1, 0.2), density(1, 0.5)])
    exact = Mixture(torch.tensor([0.3, 0.7], dtype=torch.float64), parents).field(states(), TIMES)
    torch.testing.assert_close(exported(lambda *state: mixed(*state).data, states(), TIMES), exact.data)


def test_guides_apply_to_compositions() -> None:
    mask = torch.tensor([True, False, False, False])[:, None]
    mixed = pin(blend([A.field, B.field], [0.5, 0.5]), torch.full((4, 1), 0.25, dtype=torch.float64), mask)
    end = solve(straight(mixed), states(), uniform(5))
    assert (end[:, 0] == 0.25).all() and end[:, 1:].std() > 0.1
