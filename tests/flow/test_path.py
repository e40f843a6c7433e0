from typing import Any

import pytest
import torch
from analytic import Gaussian, Mixture, cosine_betas, exported, smooth_gaussian
from diffusers import DDIMScheduler
from torch import Tensor

from policies.flow import (
    COSINE,
    LINEAR,
    Path,
    clip,
    ddpm,
    from_data,
    from_noise,
    from_score,
    from_velocity,
    reschedule,
    sde,
    solve,
    straight,
)
from policies.flow.path import expand

VARIANCE_EXPLODING = Path(
    signal=torch.ones_like,
    noise=lambda sigma: sigma,
    signal_rate=torch.zeros_like,
    noise_rate=torch.ones_like,
    time=lambda t: (1 - t) / t,
)
REVERSED = Path(
    signal=lambda tau: 1 - tau,
    noise=lambda tau: tau,
    signal_rate=lambda tau: -torch.ones_like(tau),
    noise_rate=torch.ones_like,
    time=lambda t: 1 - t,
)
TABLE = ddpm(cosine_betas(100))
PATHS = {"linear": LINEAR, "cosine": COSINE, "table": TABLE, "exploding": VARIANCE_EXPLODING, "reversed": REVERSED}
TIMES = torch.tensor([0.03, 0.2, 0.5, 0.77, 0.98], dtype=torch.float64)


@pytest.fixture(params=PATHS, ids=str)
def path(request: pytest.FixtureRequest) -> Path:
    return PATHS[request.param]


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def modes() -> Mixture:
    covariance = smooth_gaussian(4).covariance
    parts = [Gaussian(centre * torch.ones(4, 1, dtype=torch.float64), scale * covariance) for centre, scale in CENTRES]
    return Mixture(torch.tensor([0.3, 0.7], dtype=torch.float64), parts)


CENTRES = [(-1.5, 0.1), (1.0, 0.3)]


def test_native_time_and_level_are_inverse(path: Path) -> None:
    torch.testing.assert_close(path.level(path.time(TIMES)), TIMES, rtol=0, atol=1e-12)


def test_every_native_prediction_gives_back_the_pair(path: Path) -> None:
    data, noise = states(2, 5, 4, 3)
    time = path.time(TIMES)
    signal, scale, x = expand(path.signal(time), data), expand(path.noise(time), data), path.at(data, noise, time)
    velocity = expand(path.signal_rate(time), data) * data + expand(path.noise_rate(time), data) * noise
    assert torch.equal(x, signal * data + scale * noise)
    for convert, output in [
        (from_noise, noise),
        (from_data, data),
        (from_velocity, velocity),
        (from_score, -noise / scale),
    ]:
        estimate = convert(lambda *_, output=output: output, path)(x, time)
        torch.testing.assert_close(estimate.data, data, rtol=0, atol=1e-9)
        torch.testing.assert_close(estimate.noise, noise, rtol=0, atol=1e-9)


def test_rescheduled_score_of_a_gaussian_is_its_field_on_the_linear_path(path: Path) -> None:
    gaussian, x = smooth_gaussian(4), states(5, 4, 1)
    label_free = Path(path.signal, path.noise, path.signal_rate, path.noise_rate, path.time)
    field = reschedule(from_score(lambda state, time: gaussian.score(state, time, path), label_free), label_free)
    torch.testing.assert_close(field(x, TIMES), gaussian.field(x, TIMES), rtol=0, atol=1e-9)


def test_rescheduling_there_and_back_is_the_identity(path: Path) -> None:
    field, x = modes().field, states(5, 4, 1)
    back = reschedule(reschedule(field, LINEAR, path), path)
    torch.testing.assert_close(back(x, TIMES), field(x, TIMES), rtol=0, atol=1e-9)


def test_the_score_of_a_mixture_gives_its_field() -> None:
    mixture, x = modes(), states(5, 4, 1)
    score = torch.func.grad(lambda state, t: mixture.log_density(state, t).sum())
    torch.testing.assert_close(from_score(score)(x, TIMES), mixture.field(x, TIMES), rtol=0, atol=1e-9)


def test_linear_velocity_is_data_minus_noise() -> None:
    x, velocity = states(2, 5, 4, 3)
    torch.testing.assert_close(from_velocity(lambda *_: velocity)(x, TIMES).velocity, velocity, rtol=0, atol=1e-12)


def test_conversions_stay_finite_at_both_ends() -> None:
    x, output = states(2, 2, 4, 3)
    for convert in (from_noise, from_data, from_velocity, from_score):
        estimate = convert(lambda *_: output)(x, torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert torch.isfinite(estimate.data).all() and torch.isfinite(estimate.noise).all()


def test_table_levels_are_the_published_ones() -> None:
    levels = TABLE.level(torch.tensor([-1.0, 0, 10, 50, 90, 99, 100]).double())
    expected = torch.tensor([1, 0.9755, 0.8435, 0.4891, 0.1237, 0.00049, 0], dtype=torch.float64)
    torch.testing.assert_close(levels, expected, rtol=0, atol=5e-5)


def test_table_is_variance_preserving_and_matches_its_betas_at_every_level() -> None:
    k, kept = torch.arange(100).double(), torch.cumprod(1 - cosine_betas(100), 0)
    torch.testing.assert_close(TABLE.signal(k), kept.sqrt(), rtol=0, atol=1e-12)
    torch.testing.assert_close(TABLE.noise(k), (1 - kept).sqrt(), rtol=0, atol=1e-12)


def test_table_labels_are_trained_levels_even_in_single_precision() -> None:
    k = torch.arange(100)
    assert torch.equal(TABLE.label(TABLE.time(TABLE.level(k.float()))), k)
    assert TABLE.label(TABLE.time(torch.tensor([0.0, 1.0]))).tolist() == [99, 0]


def foreign_network(x: Tensor, k: Tensor) -> Tensor:
    """Random network on native states ``(B, 3, 2)`` and integer levels."""
    assert not k.is_floating_point()
    generator = torch.Generator().manual_seed(1)
    first, last = torch.randn(2, 6, 32, generator=generator) / 6
    hidden = torch.tanh(x.flatten(1) @ first + k[:, None] / 15)
    return (hidden @ last.mT).view_as(x) + 0.8 * x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_foreign_diffusion_model_reproduces_its_own_sampler(kind: str, clipped: bool, eta: float) -> None:
    scheduler: Any = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=clipped, prediction_type=kind)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(2)
    start, draws = torch.randn(8, 3, 2, generator=generator), torch.randn(10, 8, 3, 2, generator=generator)

    native = start
    for k, fresh in zip(scheduler.timesteps, draws, strict=True):
        output = foreign_network(native, k.expand(8))
        native = scheduler.step(output, k, native, eta=eta, variance_noise=fresh if eta else None).prev_sample

    path = ddpm(scheduler.betas)
    convert = {"epsilon": from_noise, "sample": from_data, "v_prediction": from_velocity}[kind]
    field = reschedule(convert(foreign_network, path), path)
    field = clip(field, -1, 1) if clipped else field
    remaining = iter(draws)
    step = sde(field, lambda _: next(remaining), eta) if eta else straight(field)
    grid = [*path.level(scheduler.timesteps).tolist(), 1.0]
    ours = solve(step, start / path.total(scheduler.timesteps[:1]), grid)
    size = max(1.0, native.abs().max().item())
    torch.testing.assert_close(ours / size, native / size, rtol=0, atol=1e-5)


def test_rescheduling_survives_export(path: Path) -> None:
    x, times = states(5, 4, 1), TIMES
    network = torch.nn.Linear(1, 1, dtype=torch.float64)
    field = reschedule(from_noise(lambda state, _: network(state), path), path)
    torch.testing.assert_close(exported(lambda *inputs: field(*inputs).data, x, times), field(x, times).data)
