from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from analytic import Gaussian, exported, independent_gaussian, smooth_gaussian, terminal
from diffusers import DDPMScheduler
from torch import Tensor

from policies.flow import (
    Field,
    blend,
    certain,
    cfg,
    clip,
    consistent,
    ddpm,
    descend,
    from_noise,
    from_velocity,
    heun,
    hold,
    pin,
    reschedule,
    residual_cfg,
    sde,
    solve,
    straight,
    toward,
    uniform,
)

TIMES = torch.tensor([0.0, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
H, FROZEN = 8, 3
PLAN = smooth_gaussian(H)
PREFIX = (torch.arange(H) < FROZEN).double()[None]
OFFSET = torch.tensor([0.8, 1.0, 1.1, 0, 0, 0, 0, 0], dtype=torch.float64)[:, None]


def states(batch: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, H, 1, generator=generator, dtype=torch.float64)


GUIDES: dict[str, Callable[[Field, Tensor, Tensor], Field]] = {
    "cfg": lambda field, other, weights: cfg(field, certain(other), 1.5),
    "residual_cfg": lambda field, other, weights: residual_cfg(field, other, 1.5, delta=0.8),
    "pin": lambda field, other, weights: pin(field, other, weights[..., None] > 0.5),
    "toward": lambda field, other, weights: toward(field, other, 2.0),
    "descend": lambda field, other, weights: descend(field, lambda data: data - other),
    "hold": lambda field, other, weights: hold(field, other, weights),
    "clip": lambda field, other, weights: clip(field, -0.5, 0.5),
    "consistent": lambda field, other, weights: consistent(clip(field, -0.5, 0.5)),
}
EXACT: dict[str, Callable[[Field, Tensor, Tensor], Field]] = {
    "descend": lambda field, other, weights: descend(field, lambda data: data - other, "exact"),
    "hold": lambda field, other, weights: hold(field, other, weights, "exact"),
}


@pytest.mark.parametrize("name", GUIDES)
def test_guides_survive_export_with_every_input_at_run_time(name: str) -> None:
    def run(x: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        field = GUIDES["pin"](GUIDES[name](PLAN.field, other, weights), -other, 1 - weights)
        return solve(heun(field), x, uniform(3))

    inputs = states(2), states(2, seed=1), torch.linspace(1, 0, H).double().expand(2, H).clone()
    torch.testing.assert_close(exported(run, *inputs), run(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("guide", [*GUIDES.values(), *EXACT.values()])
def test_guides_keep_the_state_and_need_no_gradient_mode(guide: Callable[[Field, Tensor, Tensor], Field]) -> None:
    other, weights = states(seed=1), torch.linspace(1, 0, H).double().expand(5, H)
    with torch.inference_mode():
        data, noise = guide(PLAN.field, other, weights)(states(), TIMES)
    assert torch.isfinite(data).all() and torch.isfinite(noise).all()
    if guide not in (GUIDES["clip"], GUIDES["hold"]):
        t = TIMES[:, None, None]
        torch.testing.assert_close(t * data + (1 - t) * noise, states(), rtol=0, atol=1e-12)


def test_cfg_at_zero_and_one_is_a_parent_bit_for_bit_and_extrapolates_beyond() -> None:
    conditional, unconditional, x = PLAN.field, independent_gaussian(0.2, 0.5, H).field, states()
    for weight, parent in [(0.0, unconditional), (1.0, conditional)]:
        assert torch.equal(cfg(conditional, unconditional, weight)(x, TIMES).velocity, parent(x, TIMES).velocity)
    base, full = unconditional(x, TIMES).velocity, conditional(x, TIMES).velocity
    guided = cfg(conditional, unconditional, 2.5)(x, TIMES).velocity
    torch.testing.assert_close(guided, base + 2.5 * (full - base), rtol=0, atol=1e-12)
    swapped = blend([conditional, unconditional], [2.5, -1.5])(x, TIMES).velocity
    torch.testing.assert_close(swapped, guided, rtol=0, atol=1e-12)


def test_residual_cfg_is_cfg_against_the_velocity_to_the_reference() -> None:
    x, reference = states(), states(seed=1)
    virtual = from_velocity(lambda state, t: 0.7 * (reference - state) / (1 - t)[:, None, None])
    expected = cfg(PLAN.field, virtual, 1.5)(x, TIMES)
    torch.testing.assert_close(residual_cfg(PLAN.field, reference, 1.5, 0.7)(x, TIMES), expected, rtol=0, atol=1e-9)
    assert torch.equal(residual_cfg(PLAN.field, reference, 1.0)(x, TIMES).data, PLAN.field(x, TIMES).data)


def test_clip_keeps_the_raw_noise() -> None:
    raw, clipped = PLAN.field(states(), TIMES), clip(PLAN.field, -0.5, 0.5)(states(), TIMES)
    assert torch.equal(clipped.noise, raw.noise)
    assert torch.equal(clipped.data, raw.data.clamp(-0.5, 0.5)) and (raw.data.abs() > 0.5).any()


def test_consistent_keeps_the_data_and_the_ancestral_sampler_with_it_is_that_of_ddpm() -> None:
    clipped = clip(PLAN.field, -0.5, 0.5)
    assert torch.equal(consistent(clipped)(states(), TIMES).data, clipped(states(), TIMES).data)

    def network(x: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(2 * x.roll(1, 1) + k.to(x)[:, None, None] / 50)

    scheduler: Any = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(10)
    start, path = states().float(), ddpm(scheduler.betas)
    native, generator = start, torch.Generator().manual_seed(3)
    for k in scheduler.timesteps:
        native = scheduler.step(network(native, k.expand(5)), k, native, generator=generator).prev_sample
    field = clip(reschedule(from_noise(network, path), path), -1, 1)
    grid = [*path.level(scheduler.timesteps).tolist(), 1.0]
    begin = start / path.total(scheduler.timesteps[:1])
    for guide, same in [(consistent, True), (lambda field: field, False)]:
        ours = solve(sde(guide(field), torch.Generator().manual_seed(3)), begin, grid)
        error = (ours - native).abs().max()
        assert error < 1e-5 if same else error > 1e-2  # the raw noise is not what DDPM uses


def test_pin_is_the_exact_conditional_of_independent_actions() -> None:
    plan, mask = independent_gaussian(0.7, 0.3, H), PREFIX[0, :, None] > 0
    samples = terminal(lambda _: straight(pin(plan.field, OFFSET, mask)), uniform(100), H)
    free = terminal(lambda _: straight(plan.field), uniform(100), H)
    assert torch.equal(samples.mean[:FROZEN], OFFSET[:FROZEN])
    assert samples.covariance[:FROZEN].abs().max() == 0
    torch.testing.assert_close(samples.mean[FROZEN:], free.mean[FROZEN:], rtol=0, atol=1e-12)
    torch.testing.assert_close(samples.covariance[FROZEN:, FROZEN:], free.covariance[FROZEN:, FROZEN:])


def test_toward_minimises_the_proximal_objective() -> None:
    x, target, weight = states(), states(seed=1), 3.0
    data = PLAN.field(x, TIMES).data
    variance = ((1 - TIMES) ** 2 / (TIMES**2 + (1 - TIMES) ** 2))[:, None, None]

    def objective(moved: Tensor) -> Tensor:
        return ((moved - data) ** 2 / (2 * variance) + weight / 2 * (moved - target) ** 2).sum()

    slope = torch.func.grad(objective)(toward(PLAN.field, target, weight)(x, TIMES).data)
    assert slope.abs().max() < 1e-9


@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0])
def test_toward_samples_the_tilted_distribution_of_unit_variance_data(weight: float) -> None:
    plan, target = independent_gaussian(0.7, 1.0), torch.tensor(-1.0, dtype=torch.float64)
    samples = terminal(lambda _: heun(toward(plan.field, target, weight)), uniform(200), 2)
    assert samples.mean.flatten().tolist() == pytest.approx([(0.7 - weight) / (1 + weight)] * 2, abs=1e-3)
    assert samples.covariance.diagonal().tolist() == pytest.approx([1 / (1 + weight)] * 2, rel=1e-2)


@pytest.mark.parametrize("weight", [1e3, 1e9])
def test_toward_is_stable_for_any_weight(weight: float) -> None:
    target = torch.full((H, 1), 0.4, dtype=torch.float64)
    for n in (1, 2, 5, 50):
        end = solve(straight(toward(PLAN.field, target, weight)), states(), uniform(n))
        assert (end - target).abs().max() < 1


def test_descent_of_a_linear_cost_is_exact_on_correlated_data_with_the_exact_jacobian() -> None:
    slope = torch.linspace(-0.5, 1, H, dtype=torch.float64)[:, None]
    tilted = Gaussian(PLAN.mean - PLAN.covariance @ slope, PLAN.covariance)
    guided = descend(PLAN.field, lambda data: slope.expand_as(data), "exact", limit=1e6)
    x, t = states(4), TIMES[1:]
    torch.testing.assert_close(guided(x, t), tilted.field(x, t), rtol=0, atol=1e-9)


def test_descent_in_closed_form_is_exact_on_unit_variance_data() -> None:
    plan, slope = independent_gaussian(0.7, 1.0, H), torch.linspace(-0.5, 1, H, dtype=torch.float64)[:, None]
    tilted = Gaussian(plan.mean - slope, plan.covariance)
    guided = descend(plan.field, lambda data: slope.expand_as(data))
    torch.testing.assert_close(guided(states(), TIMES), tilted.field(states(), TIMES), rtol=0, atol=1e-12)


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
def test_hold_without_weight_is_no_hold(jacobian: str) -> None:
    guide = GUIDES["hold"] if jacobian == "identity" else EXACT["hold"]
    held = guide(PLAN.field, states(seed=1), torch.zeros(5, H, dtype=torch.float64))(states(), TIMES)
    free = PLAN.field(states(), TIMES)
    assert torch.equal(held.data, free.data) and torch.equal(held.noise, free.noise)


@pytest.mark.parametrize("guide", [GUIDES["hold"], EXACT["hold"]], ids=["identity", "exact"])
@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_hold_with_full_weight_ends_on_the_committed_actions_exactly(guide: Callable, n: int) -> None:
    committed, weights = states(seed=1), torch.linspace(1.5, 0, H).clamp(max=1).double().expand(5, H)
    end = solve(straight(guide(PLAN.field, committed, weights)), states(), uniform(n))
    assert torch.equal(end[weights == 1], committed[weights == 1])


def test_hold_never_overshoots_a_committed_action() -> None:
    committed, weights = states(seed=1) * 5, torch.rand(5, H, generator=torch.Generator().manual_seed(2)).double()
    free, held = PLAN.field(states(), TIMES).data, hold(PLAN.field, committed, weights)(states(), TIMES).data
    assert ((held - free) * (committed - held) >= -1e-12).all()


def test_closed_hold_with_weights_of_zero_and_one_is_pin() -> None:
    committed, weights = states(seed=1), PREFIX.expand(5, H)
    held, pinned = (GUIDES[name](PLAN.field, committed, weights)(states(), TIMES) for name in ("hold", "pin"))
    assert torch.equal(held.data, pinned.data) and torch.equal(held.noise, pinned.noise)


def test_exact_hold_adds_the_published_velocity_up_to_its_limit() -> None:
    field = from_velocity(lambda x, t: 0.5 * x)
    x, committed, weights = states(), states(seed=1), torch.full((5, H), 0.5, dtype=torch.float64)
    t, data = TIMES[:, None, None], field(x, TIMES).data
    published = ((t**2 + (1 - t) ** 2) / (t * (1 - t)).clamp(min=1e-12)).clamp(max=5)
    expected = 0.5 * x + published * (1 + 0.5 * (1 - t)) * 0.5 * (committed - data)
    guided = hold(field, committed, weights, "exact")(x, TIMES)
    torch.testing.assert_close(guided.velocity, expected, rtol=0, atol=1e-9)


def tail_errors(guide: Callable[[Field, Tensor, Tensor], Field], scale: float, n: int) -> tuple[float, float]:
    """Relative errors of mean shift and covariance of the free actions against the exact conditional."""
    plan, batch = smooth_gaussian(H, scale), 4000
    committed = plan.mean + scale * OFFSET
    exact = plan.conditional(committed[:FROZEN], FROZEN)
    held = guide(plan.field, committed.expand(batch, H, 1), PREFIX.expand(batch, H))
    tail = solve(straight(held), states(batch), uniform(n))[:, FROZEN:]
    mean = (tail.mean(0) - exact.mean).norm() / (exact.mean - plan.mean[FROZEN:]).norm()
    covariance = (torch.cov(tail[..., 0].T) - exact.covariance).norm() / exact.covariance.norm()
    return mean.item(), covariance.item()


def test_published_guidance_makes_the_rest_follow_a_prefix_on_unit_variance_data() -> None:
    mean, covariance = tail_errors(EXACT["hold"], 1.0, 10)
    assert mean < 0.1 and covariance < 0.2
    assert 0.3 < tail_errors(EXACT["hold"], 0.5, 10)[0] < 0.45


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0])
def test_the_closed_form_follows_a_prefix_by_a_third_at_most(scale: float) -> None:
    for n in (5, 10, 50):
        mean, covariance = tail_errors(GUIDES["hold"], scale, n)
        assert 0.65 < mean < 0.75 and covariance < 0.65


def test_hold_runs_in_onnx_with_weights_chosen_at_run_time(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def velocity(self, x: Tensor, t: Tensor) -> Tensor:
            return self.network(torch.cat([x, t[:, None, None].expand_as(x)], -1))

        def forward(self, noise: Tensor, committed: Tensor, weights: Tensor) -> Tensor:
            return solve(straight(hold(from_velocity(self.velocity), committed, weights)), noise, uniform(4))

    policy = Policy().eval()
    inputs = states(1).float(), states(1, seed=1).float(), torch.zeros(1, H)
    file = tmp_path / "policy.onnx"
    torch.onnx.export(policy, inputs, file, dynamo=True, input_names=["noise", "committed", "weights"], verbose=False)
    session = onnxruntime.InferenceSession(file)
    for weights in (torch.zeros(1, H), torch.linspace(1, 0, H)[None]):
        values = {"noise": inputs[0].numpy(), "committed": inputs[1].numpy(), "weights": weights.numpy()}
        (actions,) = session.run(None, values)
        expected = policy(inputs[0], inputs[1], weights).detach().numpy()
        np.testing.assert_allclose(actions, expected, atol=1e-5)
