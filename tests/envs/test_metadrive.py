"""The task of kinoflow/Driving-v0 in MetaDrive; what needs the package is skipped without it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401 (registers the environment)
from envs.collect import drivers, record
from envs.driving import DrivingEnv
from envs.logs.scenarionet import read_scenario, recorded, write_scenario
from envs.metrics import pdm_score
from envs.roads import SPACING

needs_metadrive = pytest.mark.skipif(
    find_spec("metadrive") is None, reason="MetaDrive is not installed: pip install 'kinoflow[drive]'"
)
NAME = "kinoflow/MetaDrive-v0"


def make(**options: Any) -> Any:
    return gymnasium.make(NAME, disable_env_checker=True, **options).unwrapped


@pytest.fixture
def world() -> Iterator[Any]:
    """There can be only one at a time."""
    env = make()
    yield env
    env.close()


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "metadrive"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "metadrive", None)
    with pytest.raises(ImportError, match=r"pip install 'kinoflow\[drive\]'"):
        make()


def test_it_is_registered_with_the_contract_of_driving() -> None:
    from envs.metadrive import MetaDriveEnv

    assert NAME in gymnasium.registry and MetaDriveEnv.contract is DrivingEnv.contract


@needs_metadrive
def test_observations_are_the_contract(world: Any) -> None:
    seen = set()
    for seed in range(4):
        observation, _ = world.reset(seed=seed)
        world.contract.check({name: value[None] for name, value in observation.items()})
        assert world.observation_space.contains(observation)
        paths = observation["paths"]
        assert paths[0, 0] == 1 and (np.abs(paths[paths[:, 0] == 1, 2]) < 1).all()  # they begin beside the car
        assert observation["raster"][0, 48, 32] > 128
        seen.add(world.scene.command)
        assert observation["command"].any() == bool(world.scene.command)
    assert len(seen) > 1
    driver, others = drivers(world)["expert"](world), []
    for _ in range(60):
        observation, *_ = world.step(driver.command())
        others.append(observation["others"])
    nearest = np.stack(others)[:, 0]
    there = nearest[:, 5] > 0
    assert there.any() and (np.abs(nearest[there, :2]) <= 60).all() and (nearest[there, 5:7] > 0.3).all()
    world.images = False
    assert not world.observe()["raster"].any()


@needs_metadrive
def test_gymnasiums_own_checker_passes(world: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(symmetric and normalized|infinity).*")
        check_env(world, skip_render_check=True, skip_close_check=True)  # which would open a second one


@needs_metadrive
def test_routes_lead_over_lanes(world: Any) -> None:
    for seed in range(6):
        world.reset(seed=seed)
        assert 0 <= world.scene.chosen < len(world.scene.routes) <= 3
        for route in world.scene.routes:
            np.testing.assert_allclose(np.linalg.norm(np.diff(route, axis=0), axis=-1), SPACING, rtol=0.1)
            assert (world._map.distance(route[14:]) > 0.5).mean() > 0.98


@needs_metadrive
def test_the_same_seed_gives_the_same_episode(world: Any) -> None:
    def episode() -> tuple[Any, list[float]]:
        world.reset(seed=11)
        rewards = [world.step(np.array([7.0, 0.05 * np.sin(index)], np.float32))[1] for index in range(20)]
        return world.state, rewards

    (first, first_rewards), (second, second_rewards) = episode(), episode()
    np.testing.assert_array_equal(first, second)
    assert first_rewards == second_rewards


@needs_metadrive
def test_the_car_does_what_it_is_told() -> None:
    env = make(step_hz=10, density=0.0)
    env.reset(seed=1)
    for _ in range(30):
        observation, *_ = env.step(np.array([6.0, 0.0], np.float32))
    assert observation["car"][0] == pytest.approx(6.0, abs=0.3)
    for _ in range(8):
        observation, *_ = env.step(np.array([6.0, 0.25], np.float32))
    assert env.traffic.car[0, 6] == pytest.approx(0.25, abs=0.06)
    for _ in range(25):
        observation, *_ = env.step(env.rest)
    assert observation["car"][0] == pytest.approx(0.0, abs=0.3)
    env.close()


@needs_metadrive
def test_a_second_one_has_to_wait(world: Any) -> None:
    world.reset(seed=0)
    with pytest.raises(RuntimeError, match="close the other environment first"):
        make()
    world.close()
    other = make()
    other.reset(seed=0)
    other.close()


@needs_metadrive
def test_bad_actions_are_refused(world: Any) -> None:
    world.reset(seed=0)
    for action in (np.full(2, np.nan), np.zeros(3)):
        with pytest.raises(ValueError, match="action must be"):
            world.step(action)


@needs_metadrive
def test_the_expert_drives_better_than_going_straight_on(world: Any) -> None:
    scores = {}
    for name in ("expert", "constant velocity"):
        metrics = []
        for seed in range(3):
            world.reset(seed=seed)
            driver, ended = drivers(world)[name](world), False
            while not ended:
                _, _, terminated, truncated, _ = world.step(driver.command())
                ended = terminated or truncated
            metrics.append(world.metrics)
        scores[name] = {key: np.mean([row[key] for row in metrics]) for key in ("pdm", "collision", "off_road")}
    assert scores["expert"]["pdm"] > scores["constant velocity"]["pdm"] + 0.2
    assert scores["expert"]["off_road"] == 0 < scores["constant velocity"]["off_road"]


@needs_metadrive
def test_demonstrations_are_recorded(world: Any) -> None:
    episode = record(world, seed=0, noise=0.0)
    assert episode is not None


@needs_metadrive
def test_its_own_driver_stays_on_the_road_and_can_be_replayed(tmp_path: Path) -> None:
    env = make(own_driver=True, step_hz=10)
    env.reset(seed=1)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.rest)
        ended = terminated or truncated
    assert info["success"] and env.metrics["no_collision"] == env.metrics["drivable_area"] == 1
    write_scenario(tmp_path / "sd_a.pkl", recorded(env, "a"))
    env.close()
    scenario = read_scenario(tmp_path / "sd_a.pkl")
    score = pdm_score(scenario.drive(samples=41)[None], scenario.scored())
    assert score.no_collision[0] == score.drivable_area[0] == 1
    from metadrive.scenario.scenario_description import ScenarioDescription
    from metadrive.scenario.utils import read_scenario_data

    ScenarioDescription.sanity_check(read_scenario_data(str(tmp_path / "sd_a.pkl")), valid_check=True)
