"""The diffusion U-Net visits the levels of its table as the usual sampler does."""

import pytest
import torch
from drawn import observed
from parents import CORNERS, diffusion, request
from torch import Tensor, nn

from policies.flow import ddpm, squared_cosine_betas
from policies.norm import Normaliser
from policies.spec import ActionSpec, Feature, Spec
from policies.unet import Config, UNet


def test_ten_steps_go_from_the_noisiest_visited_level_to_the_data() -> None:
    policy, levels = diffusion(steps=10), []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x, time, condition = inputs
        assert x.shape == (1, 8, 2) and condition.shape == (1, 2 * CORNERS.shape[0])
        levels.append(round(float(time) * 100))

    policy.head.network.register_forward_pre_hook(note)
    policy.act(*request(policy.spec))
    assert levels == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]


def test_what_is_constant_is_seen_once() -> None:
    features = Feature("pose", (3,), "m", "odom"), Feature("goal", (5,), "m", "odom", constant=True)
    spec = Spec(features, ActionSpec(("vx",), ("m/s",), "base_link", (-1.0,), (1.0,)), 10.0, 2, 8)
    head = UNet(spec, Config((16, 32)))
    estimate = head.bind(Normaliser.identity(spec)(observed(spec, 3)))(torch.randn(3, 8, 1), torch.full((3,), 0.5))
    assert estimate.data.shape == (3, 8, 1)


def test_more_steps_than_levels_are_refused() -> None:
    assert diffusion(steps=100).grid[-1] == 1.0
    with pytest.raises(ValueError, match="steps=101: the table has 100 noise levels"):
        diffusion(steps=101)


def test_its_data_stay_in_the_normal_range() -> None:
    policy = diffusion()
    observation, noise, *_ = request(policy.spec)
    batch = {name: torch.from_numpy(value)[None] for name, value in observation.items()}
    data, _ = policy.bind(batch)(10 * torch.from_numpy(noise)[None], torch.tensor([0.2]))
    assert data.abs().max() == 1


def test_the_squared_cosine_table_ends_in_noise() -> None:
    kept = torch.cumprod(1 - squared_cosine_betas(100), 0)
    assert kept[0] > 0.999 and abs(kept[49] - 0.5) < 0.02 and kept[-1] < 1e-4
    assert ddpm(squared_cosine_betas(100)).level(torch.tensor([99.0])) < 0.01


def test_a_guess_of_no_noise_costs_the_variance_of_the_noise() -> None:
    policy = diffusion()
    observation, *_ = request(policy.spec)
    batch = {name: torch.from_numpy(value)[None].repeat(64, 1, 1) for name, value in observation.items()}
    actions = torch.rand(64, 8, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for parameter in policy.head.network.outlet.parameters():
            parameter.zero_()  # it guesses no noise at all, so the error is that of standard normal numbers
    loss = policy.head.loss(policy.normaliser(batch), actions, torch.Generator().manual_seed(1))
    assert 0.85 < loss < 1.15
