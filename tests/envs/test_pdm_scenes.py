"""What must not change the score of whole plans in random scenes, and the terms once more in plain loops."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import shapely
from toy_roads import TIME, drive, moved, random_plans, random_scene, road, user

from envs.metrics import (
    EgoState,
    PdmScore,
    RoadUsers,
    ScoredScene,
    pdm_score,
    score_states,
)
from envs.metrics.tracker import track
from policies.spec import Array


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_scores_do_not_depend_on_the_frame(version: int, quirks: bool, seed: int) -> None:
    scene = random_scene(seed)
    plans, rng = random_plans(seed, scene), np.random.default_rng(seed)
    elsewhere, move = moved(scene, rng.uniform(-3, 3), rng.uniform(-500, 500, 2))
    here = pdm_score(plans, scene, version=version, reference_quirks=quirks)
    there = pdm_score(move(plans), elsewhere, version=version, reference_quirks=quirks)
    for field in fields(PdmScore):
        np.testing.assert_allclose(getattr(here, field.name), getattr(there, field.name), atol=1e-6, err_msg=field.name)
        if field.name != "progress_m":
            assert (getattr(here, field.name) >= 0).all() and (getattr(here, field.name) <= 1).all()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_one_more_road_user_never_helps(version: int, seed: int) -> None:
    scene = random_scene(seed, reference=20.0)
    plans, users = random_plans(seed, scene), scene.road_users
    speeds = np.asarray(users.speeds)
    few = RoadUsers(users.poses[:-1], users.sizes[:-1], users.kinds[:-1], users.valid[:-1], speeds[:-1])  # type: ignore[index]
    for quirks in (False, True):
        crowded = pdm_score(plans, scene, version=version, reference_quirks=quirks)
        empty = pdm_score(plans, replace(scene, road_users=few), version=version, reference_quirks=quirks)
        for name in ("no_collision", "time_to_collision", "total"):
            assert (getattr(crowded, name) <= getattr(empty, name) + 1e-9).all()


@pytest.mark.parametrize("kind", ["static", "vehicle", "pedestrian"])
def test_moving_an_obstacle_into_the_path_never_helps(kind: str) -> None:
    plans = drive(6.0)[..., :3]
    totals = [pdm_score(plans, road(user(18, y, kind=kind))).total[0] for y in np.linspace(6, 0, 25)]
    assert (np.diff(totals) <= 1e-9).all()
    assert totals[0] == 1 and totals[-1] < 0.5


def test_a_plan_is_scored_as_it_is_driven_and_alone() -> None:
    scene = random_scene(1)
    plans = random_plans(1, scene)
    together = pdm_score(plans, scene, version=2)
    driven = score_states(track(plans, scene.ego.state()), scene, version=2)
    for field in fields(PdmScore):
        np.testing.assert_array_equal(getattr(together, field.name), getattr(driven, field.name))
        alone = [getattr(pdm_score(plan[None], scene, version=2), field.name)[0] for plan in plans]
        np.testing.assert_allclose(getattr(together, field.name), alone, atol=1e-9)


@pytest.mark.parametrize("samples", [5, 6, 15, 41, 120])
@pytest.mark.parametrize("version", [1, 2])
def test_drives_may_have_any_length(samples: int, version: int) -> None:
    for scene in (road(user(100)), road(user(100), reference=None)):
        for quirks in (False, True):
            score = score_states(drive(5.0, samples=samples), scene, version=version, reference_quirks=quirks)
            assert np.isfinite(score.total).all()
            assert score.progress_m[0] == pytest.approx(0.5 * (samples - 1))
            assert score.no_collision[0] == 1


def test_sanity_of_the_ranking() -> None:
    scene = road(user(60, speed=8), reference=None, ego=EgoState(0, 0, 0, 8), speed_limit=10.0)
    keep, off, brake = drive(8.0)[0, :, :3], drive(8.0)[0, :, :3].copy(), drive(8.0)[0, :, :3].copy()
    off[:, 1] = -0.2 * TIME**2
    brake[:, 0] = np.minimum(8 * TIME - 3 * TIME**2, 16 / 3)
    total = pdm_score(np.stack([keep, off, brake]), scene).total
    assert total[0] > total[2] > total[1] == 0


# ---------------------------------------------------------------------------------------------------- in plain loops


def car_polygon(state: Array) -> shapely.Polygon:
    return placed(state[:3], (-1.127, 4.049), 2.297 / 2)


def placed(pose: Array, along: tuple[float, float], half: float) -> shapely.Polygon:
    """A box; its first and its last corner are in front."""
    x, y, heading = pose
    places = ((along[1], half), (along[0], half), (along[0], -half), (along[1], -half))
    cos, sin = np.cos(heading), np.sin(heading)
    return shapely.Polygon([(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in places])


def angle_to(state: Array, point: shapely.Point) -> float:
    way = np.array([point.x - state[0], point.y - state[1]])
    cosine = way @ [np.cos(state[2]), np.sin(state[2])] / np.linalg.norm(way)
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def slow_terms(states: Array, scene: ScoredScene, version: int) -> dict[str, float]:
    """Terms of one drive ``(41, 8)`` in a scene whose road users are known for 50 samples."""
    users, boxes = scene.road_users, {}
    poses, valid = users.until(50)
    for k, size in enumerate(users.sizes):
        for t in np.flatnonzero(valid[k]).tolist():
            boxes[k, t] = placed(poses[k, t], (-size[0] / 2, size[0] / 2), size[1] / 2)
    cars = [car_polygon(state) for state in states]
    corners = [[shapely.Point(place) for place in car.exterior.coords[:4]] for car in cars]
    middles = [shapely.Point(s[0] + 1.461 * np.cos(s[2]), s[1] + 1.461 * np.sin(s[2])) for s in states]
    off = [not all(any(a.contains(c) for a in scene.drivable_areas) for c in four) for four in corners]
    held = [[sum(lane.contains(c) for c in four) for lane in scene.lane_areas] for four in corners]
    astray = [off[t] or (sum(n > 0 for n in held[t]) > 1 and 4 not in held[t]) for t in range(41)]
    crossing = [any(a.contains(m) for a in scene.intersection_areas) for m in middles]

    collision, ignored = 1.0, set()
    for t, k in ((t, k) for t in range(41) for k in range(len(users.kinds))):
        if k in ignored or (k, t) not in boxes or not cars[t].intersects(boxes[k, t]):
            continue
        bumper = shapely.LineString([cars[t].exterior.coords[0], cars[t].exterior.coords[3]])
        known = min(t, np.asarray(users.speeds).shape[1] - 1)
        if abs(states[t, 3]) <= 0.05:
            fault = False
        elif users.kinds[k] == "static" or np.asarray(users.speeds)[k, known] <= 0.05:
            fault = True
        elif angle_to(states[t], boxes[k, t].centroid) > 150:
            fault = False
        else:
            fault = bumper.intersects(boxes[k, t]) or astray[t]
        ignored.add(k)
        if fault:
            collision = min(collision, 0.5 if users.kinds[k] == "static" else 0.0)

    ttc, ignored = 1.0, set()
    for t in range(41 if version == 1 else 32):
        for ahead, k in ((ahead, k) for ahead in (0, 3, 6, 9) for k in range(len(users.kinds))):
            way = states[t, 3] * ahead * 0.1 * np.array([np.cos(states[t, 2]), np.sin(states[t, 2])])
            there = boxes.get((k, t + ahead))
            if k in ignored or there is None or abs(states[t, 3]) < 5e-3:
                continue
            if not shapely.transform(cars[t], lambda points, way=way: points + way).intersects(there):
                continue
            angle, rear = angle_to(states[t], there.centroid), shapely.Point(states[t, :2])
            inside = any(a.contains(rear) for a in scene.intersection_areas)
            if angle < 30 or ((astray[t] or inside) and angle <= 150):
                ttc = 0.0
            ignored.add(k)

    wrong = [0.0]
    for t in range(1, 41):
        away = not any(a.contains(middles[t]) for a in scene.route_areas) and not (version == 2 and crossing[t])
        wrong.append(middles[t].distance(middles[t - 1]) if away else 0.0)
    worst, run, kept = max(sum(wrong[max(0, t - 9) : t + 1]) for t in range(41)), 0, 1.0
    for t in range(41):
        if not crossing[t]:
            run = run + 1 if middles[t].distance(scene.route) > 0.5 else 0
            kept = 0.0 if run >= 20 else kept
    red = any(car.intersects(area) for car in cars for area in scene.red_lights)
    return dict(
        no_collision=collision,
        drivable_area=float(not any(off)),
        driving_direction=1.0 if worst < 2 else 0.5 if worst < 6 else 0.0,
        time_to_collision=ttc,
        lane_keeping=kept if version == 2 else 1.0,
        traffic_light=float(not red) if version == 2 else 1.0,
        progress_m=max(0.0, scene.route.project(middles[-1]) - scene.route.project(middles[0])),
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seed", range(10, 22))
def test_terms_are_those_of_plain_loops(version: int, seed: int) -> None:
    scene = random_scene(seed, reference=10.0)
    states = track(random_plans(seed, scene), scene.ego.state())
    score = score_states(states, scene, version=version)
    for index, drive_states in enumerate(states):
        for name, value in slow_terms(drive_states, scene, version).items():
            assert getattr(score, name)[index] == pytest.approx(value, abs=1e-9), name


def test_random_scenes_are_not_all_alike() -> None:
    scores = []
    for seed in range(10, 22):
        scene = random_scene(seed, reference=20.0)
        scores.append(pdm_score(random_plans(seed, scene), scene, version=2))
    for name in ("no_collision", "drivable_area", "time_to_collision", "lane_keeping", "comfort", "total"):
        values = np.concatenate([getattr(score, name) for score in scores])
        assert 0.03 < values.mean() < 0.97, name
