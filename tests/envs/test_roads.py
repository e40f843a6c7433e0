"""Procedural road scenes."""

import numpy as np
import pytest
import shapely

from envs.roads import COMMANDS, KINDS, SPACING, arc, command_of, headings, join, line, resampled
from envs.scenes import BEHIND, CLEAR, MOST, sample_scene
from policies.spec import ContractError


def scenes(kind: str, count: int = 12) -> list:
    return [sample_scene(np.random.default_rng(seed), kind) for seed in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_routes_begin_behind_the_car_and_stay_on_the_road(kind: str) -> None:
    for scene in scenes(kind):
        road = shapely.union_all([shapely.Polygon(lane.polygon) for lane in scene.lanes])
        for route in scene.routes:
            steps = np.linalg.norm(np.diff(route, axis=0), axis=-1)
            assert steps == pytest.approx(SPACING, rel=0.1)  # a bend beside another line is longer or shorter
            nearest = np.linalg.norm(route - scene.start[:2], axis=-1)
            assert nearest.min() < 0.05
            assert nearest.argmin() * SPACING <= BEHIND + 1
            ahead = route[nearest.argmin() : nearest.argmin() + 80]
            assert shapely.contains_xy(road, *ahead.T).mean() > 0.98  # seams belong to neither lane


@pytest.mark.parametrize("kind", KINDS)
def test_routes_can_be_driven(kind: str) -> None:
    for scene in scenes(kind):
        for route in scene.routes:
            curvature = np.abs(np.gradient(headings(route)))[2:-2]
            assert curvature.max() < 1 / 4.5  # the car turns on a circle of 1.8 m at its tightest


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_begins_on_top_of_somebody_else(kind: str) -> None:
    for scene in scenes(kind):
        assert len(scene.others) <= MOST
        moving = [user.path[round(user.place)] for user in scene.others if user.limit and user.kind == "vehicle"]
        places = [np.array(scene.start[:2]), *moving]
        apart = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]]
        assert min(apart, default=np.inf) > CLEAR - 1  # they begin between two points of their paths


def test_forks_leave_the_choice_and_junctions_command_it() -> None:
    for scene in scenes("fork"):
        assert len(scene.routes) == 2
        assert scene.command == ""
    commanded = [scene for kind in ("tee", "four-way", "roundabout") for scene in scenes(kind)]
    assert {scene.command for scene in commanded} == set(COMMANDS)
    for scene in commanded:
        assert scene.command == command_of(scene.routes[scene.chosen])


def test_the_same_seed_draws_the_same_scene() -> None:
    one, other = (sample_scene(np.random.default_rng(7)) for _ in range(2))
    assert one.kind == other.kind
    np.testing.assert_array_equal(one.routes[0], other.routes[0])
    assert [user.place for user in one.others] == [user.place for user in other.others]


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ContractError, match="'motorway'; choose one of straight"):
        sample_scene(np.random.default_rng(0), "motorway")


def test_an_arc_turns_by_its_angle_and_joins_smoothly() -> None:
    path = join(line(10), arc(20, np.pi / 2, (10, 0, 0)))
    assert headings(path)[-3] == pytest.approx(np.pi / 2, abs=0.15)
    assert path[-1] == pytest.approx([30, 20], abs=1.0)
    assert command_of(path) == "left"
    assert np.linalg.norm(np.diff(resampled(path), axis=0), axis=-1) == pytest.approx(SPACING, rel=0.02)
