import pytest
import torch
from analytic import independent_gaussian
from torch import Tensor

from policies.flow import Estimate, Field, from_velocity, logit_normal_times, matching_loss, uniform_times
from policies.flow.path import LINEAR


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 2, 1, generator=generator, dtype=torch.float64)
    data = 0.7 + 0.5 * torch.randn(count, 2, 1, generator=generator, dtype=torch.float64)
    return data, noise, uniform_times(count, generator).double()


def moved(field: Field, shift: float) -> Field:
    return from_velocity(lambda x, t: field(x, t).velocity + shift)


def test_a_field_that_knows_the_pair_has_no_loss() -> None:
    data, noise, t = batch(16)
    assert matching_loss(lambda x, _: Estimate(data, noise), data, noise, t) == 0


def test_loss_is_the_mean_square_of_the_velocity_error() -> None:
    data, noise, t = batch(16)
    off = Estimate(data + 0.3, noise)
    assert matching_loss(lambda x, _: off, data, noise, t).item() == pytest.approx(0.09)


def test_the_true_field_is_the_minimum() -> None:
    data, noise, t = batch(4000)
    exact = independent_gaussian(0.7, 0.25).field
    least = matching_loss(exact, data, noise, t)
    for shift in (-0.1, 0.1):
        assert matching_loss(moved(exact, shift), data, noise, t) > least
    x = LINEAR.at(data, noise, t)
    expected = ((data - noise - exact(x, t).velocity) ** 2).mean()
    torch.testing.assert_close(least, expected)


def test_times_stay_inside_and_follow_their_generator() -> None:
    for draw in (uniform_times, logit_normal_times):
        first, again = (draw(20000, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(first, again) and first.shape == (20000,)
        assert first.min() >= 0 and first.max() < 1
        assert first.mean().item() == pytest.approx(0.5, abs=0.01)


def test_logit_normal_times_gather_where_they_are_sent() -> None:
    generator = torch.Generator().manual_seed(1)
    times = logit_normal_times(20000, generator, mean=1.0, std=0.5)
    logits = torch.logit(times.double())
    assert logits.mean().item() == pytest.approx(1.0, abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)
