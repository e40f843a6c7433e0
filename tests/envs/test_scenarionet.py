"""Scenarios of ScenarioNet, written by hand and by what is simulated here, read and scored."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from toy_logs import COUNT, boxes, toy_scenario, track

import envs  # noqa: F401 (registers the environments)
from envs.experts.driving import DRIVERS
from envs.logs.scenarionet import Scenario, read_scenario, recorded, write_scenario
from envs.metrics import pdm_score
from envs.metrics.tracker import sampled
from policies.spec import Array, ContractError


def written(path: Path, **changes: Any) -> Path:
    path.write_bytes(pickle.dumps(toy_scenario(**changes)))
    return path


def plans(scenario: Scenario, *speeds: float) -> Array:
    ahead = np.array(speeds)[:, None] * 0.5 * np.arange(1, 9)
    return sampled(np.stack([ahead, 0 * ahead, 0 * ahead], -1), 0.5, scenario.drive()[0])


def test_everything_is_read(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path / "a.pkl"))
    assert (scenario.name, scenario.ego, len(scenario.times)) == ("scenario-1", "ego", COUNT)
    assert scenario.tracks["7"].size.tolist() == [4.6, 1.9, 1.5] and scenario.tracks["8"].kind == "PEDESTRIAN"
    assert scenario.tracks["9"].size.tolist() == [0.5, 0.5, 0.5]  # a cone of no size has a usual one
    assert scenario.features["1"].polyline.shape == (30, 2) and scenario.features["1"].area.area == pytest.approx(490)
    assert scenario.features["3"].area.area == pytest.approx(490)
    assert scenario.lights["light"].lane == "1" and scenario.lights["light"].states[19:21] == (
        "TRAFFIC_LIGHT_RED",
        "TRAFFIC_LIGHT_GREEN",
    )


def test_the_drive_is_that_of_the_rear_axle(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path / "a.pkl"))
    way = scenario.drive()
    assert way.shape == (COUNT, 3) and scenario.vehicle.length == pytest.approx(4.6)
    np.testing.assert_allclose(way[:, 0], 0.6 * np.arange(COUNT) - scenario.vehicle.ahead, atol=1e-9)
    with pytest.raises(ContractError, match=r"there for 10 samples from sample 50 on, asked for are 41"):
        scenario.drive(50, 41)
    with pytest.raises(ContractError, match="start is 99"):
        scenario.drive(99)


def test_scenes_are_scored(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path / "a.pkl"))
    scene = scenario.scored(speed_limit=10.0)
    assert [one.on_route for one in scene.lanes] == [True, False, False] and len(scene.red_lights) == 1
    assert not any(one.intersection for one in scene.lanes)
    assert len(scene.drivable) == 1 and scene.ego.speed == 6.0
    score = pdm_score(plans(scenario, 6.0, 0.0), scene)
    assert score.no_collision.tolist() == [1, 1] and score.drivable_area.tolist() == [1, 1]
    np.testing.assert_allclose(score.progress_m, [24, 6.6], atol=0.5)  # it cannot stop at once
    assert not scenario.scored(30).red_lights
    aside = pdm_score(scenario.drive(samples=41)[None] + [0, 3.5, 0.0], scene)
    assert aside.no_collision.tolist() == [0]


def test_ground_where_lanes_cross_is_an_intersection(tmp_path: Path) -> None:
    features = toy_scenario()["map_features"]
    features["2"]["type"] = "LANE_SURFACE_UNSTRUCTURE"
    scene = read_scenario(written(tmp_path / "a.pkl", map_features=features)).scored()
    assert [one.intersection for one in scene.lanes] == [False, True, False]


def test_other_rates_are_resampled(tmp_path: Path) -> None:
    given = toy_scenario()
    given["metadata"]["ts"] = 0.2 * np.arange(COUNT)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(given))
    scenario = read_scenario(tmp_path / "a.pkl")
    assert len(scenario.drive()) == 119
    np.testing.assert_allclose(np.diff(scenario.drive()[:, 0]), 0.3, atol=1e-9)


def test_whoever_leaves_is_gone(tmp_path: Path) -> None:
    given = toy_scenario()
    gone = given["tracks"]["7"]["state"]
    gone["valid"][10:] = False
    gone["position"][10:] = np.nan
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(given))
    users = read_scenario(tmp_path / "a.pkl").scored().road_users
    assert np.asarray(users.valid).sum(1).tolist() == [10, COUNT, COUNT]


def test_writing_and_reading_is_nothing(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path / "a.pkl"))
    write_scenario(tmp_path / "b.pkl", scenario)
    again = read_scenario(tmp_path / "b.pkl")
    assert again.name == scenario.name and again.lights == scenario.lights
    for name, one in scenario.tracks.items():
        for part in ("position", "heading", "velocity", "size", "valid"):
            np.testing.assert_array_equal(getattr(again.tracks[name], part), getattr(one, part))
    for name, feature in scenario.features.items():
        np.testing.assert_array_equal(again.features[name].polygon, feature.polygon)


@pytest.mark.parametrize("kind", ["four-way", "parked"])
def test_what_is_simulated_can_be_written_and_scores_the_same(tmp_path: Path, kind: str) -> None:
    env = gymnasium.make("kinoflow/Driving-v0", disable_env_checker=True, kind=kind, step_hz=10).unwrapped
    env.reset(seed=3)
    driver = DRIVERS["expert"](env)
    for _ in range(45):
        env.step(driver.command())
    write_scenario(tmp_path / "a.pkl", recorded(env, "ours"))
    scenario = read_scenario(tmp_path / "a.pkl")
    driven = np.stack([car[:3] for car, *_ in env.history])
    np.testing.assert_allclose(scenario.drive()[:, :2], driven[:, :2], atol=1e-6)
    scene, ours = scenario.scored(), env.scored_scene()
    assert scene.ego.speed == pytest.approx(ours.ego.speed) and scene.vehicle.length == pytest.approx(5.176)
    there = np.asarray(ours.road_users.valid).any(1)
    np.testing.assert_allclose(scene.road_users.poses, np.asarray(ours.road_users.poses)[there], atol=1e-6)
    plan = driven[None, :41]
    scores = pdm_score(plan, scene), pdm_score(plan, ours)
    for term in ("no_collision", "drivable_area", "time_to_collision", "comfort"):
        np.testing.assert_array_equal(*(getattr(score, term) for score in scores))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tracks": {}}, "metadata sdc_id is 'ego'"),
        ({"metadata": {}}, "no scenario of ScenarioNet: KeyError"),
        ({"metadata": {"ts": np.zeros(3)}}, "not increasing"),
        ({"map_features": {"1": {"type": "LANE", "polyline": np.full((3, 2), np.inf)}}}, "polyline of map feature '1'"),
        ({"tracks": {"ego": track("ego", "VEHICLE", boxes(np.zeros(5)))}}, r"valid of track 'ego' has shape \(5,\)"),
        ({"dynamic_map_states": {"l": {"state": {"object_state": ["x"]}}}}, "light 'l' has 1 states"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(ContractError, match=said) as refusal:
        read_scenario(written(tmp_path / "drive.pkl", **changes))
    assert "drive.pkl" in str(refusal.value)


def test_a_map_without_lanes_cannot_be_scored(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path / "a.pkl", map_features={}))
    with pytest.raises(ContractError, match="0 lanes with an area"):
        scenario.scored()


def test_cut_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "drive.pkl")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ContractError, match=r"drive\.pkl is damaged or no pickle, near byte \d+"):
        read_scenario(path)


def test_a_scenario_that_runs_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'trace'}",)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps(toy_scenario(metadata={"ts": Trap()})))
    with pytest.raises(ContractError, match=r"wants to run 'posix\.system'.*nothing was run"):
        read_scenario(tmp_path / "a.pkl")
    assert not (tmp_path / "trace").exists()
