"""What every environment has to do. Environments are discovered: a new file in envs/ is tested without being listed."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import registry
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401 (registers the environments)
from envs.collect import drivers

# environments that render what they observe have a test of their own: they need an OpenGL library and are slow
IDS = sorted(name for name, spec in registry.items() if name.startswith("kinoflow/") and not spec.kwargs.get("images"))


def make(name: str, **kwargs: Any) -> Any:
    return gymnasium.make(name, disable_env_checker=True, **kwargs).unwrapped


def test_there_is_an_environment() -> None:
    assert "kinoflow/Nav-v0" in IDS


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_own_checker_passes(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(symmetric and normalized|infinity).*")
        check_env(make(name), skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_the_same_seed_gives_the_same_episode(name: str) -> None:
    def episode() -> tuple[np.ndarray, list[float]]:
        env = make(name)
        env.reset(seed=11)
        env.action_space.seed(5)
        rewards = [env.step(env.action_space.sample())[1] for _ in range(20)]
        return env.state, rewards

    (first, first_rewards), (second, second_rewards) = episode(), episode()
    np.testing.assert_array_equal(first, second)
    assert first_rewards == second_rewards


@pytest.mark.parametrize("name", IDS)
def test_observations_are_the_contract(name: str) -> None:
    env = make(name)
    observation, _ = env.reset(seed=0)
    env.contract.check({key: value[None] for key, value in observation.items()})
    dtypes = {feature.name: np.dtype(feature.dtype) for feature in env.contract.observations}
    assert {key: value.dtype for key, value in observation.items()} == dtypes


@pytest.mark.parametrize("name", IDS)
def test_bad_actions_are_refused(name: str) -> None:
    env = make(name)
    env.reset(seed=0)
    dim = env.contract.action.dim
    for action in (np.full(dim, np.nan), np.zeros(dim + 1)):
        with pytest.raises(ValueError, match="action must be"):
            env.step(action)


@pytest.mark.parametrize("name", IDS)
def test_the_expert_succeeds(name: str) -> None:
    env = make(name)
    for seed in range(3):
        env.reset(seed=seed)
        expert, ended = drivers(env)["expert"](env), False
        while not ended:
            _, _, terminated, truncated, info = env.step(expert.command())
            ended = terminated or truncated
        assert info["success"], f"seed {seed}"
