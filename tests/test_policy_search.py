"""More network evaluations buy a chunk that a reward prefers, within the budget."""

import numpy as np
import pytest
import torch
from parents import diffusion, flow, request

from policies.composition import compose
from policies.policy import Policy

TARGET = 0.3


def reward(actions: torch.Tensor) -> torch.Tensor:
    """Highest where every action is `TARGET`, in SI units."""
    return -(actions - TARGET).square().flatten(1).mean(1)


@pytest.mark.parametrize("policy", [flow(), diffusion(), compose([flow(), diffusion()], [0.5, 0.5])])
def test_a_larger_budget_earns_more_and_is_never_exceeded(policy: Policy) -> None:
    observation, *_ = request(policy.spec)
    means = []
    for budget in (policy.steps, 40):
        rewards = []
        for seed in range(6):
            noise = np.random.default_rng(seed).standard_normal(policy.spec.noise_shape).astype(np.float32)
            found = policy.search(observation, noise, reward, budget, torch.Generator().manual_seed(seed))
            assert found.evaluations <= budget and found.chunk.shape == (1, policy.spec.horizon, 2)
            assert found.reward == pytest.approx(float(reward(found.chunk)), abs=1e-5)
            rewards.append(found.reward)
        means.append(np.mean(rewards))
    assert means[1] > means[0]


def test_a_budget_below_one_chunk_is_refused() -> None:
    policy = flow()
    observation, noise, *_ = request(policy.spec)
    with pytest.raises(ValueError, match="budget"):
        policy.search(observation, noise, reward, policy.steps - 1, torch.Generator())
