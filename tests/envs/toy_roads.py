"""Small scenes to score drives in, and drives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from envs.metrics import (
    EgoState,
    Lane,
    RoadUsers,
    ScoredScene,
    score_states,
)
from envs.metrics.tracker import HEADING, SPEED, X, Y
from policies.spec import Array

TIME = np.arange(41) * 0.1
FRONT, HALF = 4.049, 2.297 / 2  # m, of the car


def box(left: float, right: float, low: float, high: float) -> Array:
    return np.array([[left, low], [right, low], [right, high], [left, high]])


def road(*users: RoadUsers, **changes: Any) -> ScoredScene:
    """A lane along x around y=0, the one of the other direction around y=3.5, and nothing else to drive on."""
    given: dict[str, Any] = dict(
        ego=EgoState(0, 0, 0, 5),
        lanes=[Lane(box(-60, 300, -1.75, 1.75)), Lane(box(-60, 300, 1.75, 5.25), on_route=False)],
        drivable=[box(-60, 300, -1.75, 5.25)],
        centreline=np.array([[-60.0, 0], [300, 0]]),
        reference=10.0,
    )
    if users:
        given["road_users"] = users[0]
    return ScoredScene(**given | changes)


def user(x: float, y: float = 0, speed: float = 0, kind: str = "vehicle", heading: float = 0, **more: Any) -> RoadUsers:
    """One of 4 m x 2 m that keeps its speed."""
    time = np.arange(51) * 0.1
    way = np.stack([np.cos(heading) * speed * time, np.sin(heading) * speed * time, 0 * time], -1)
    return RoadUsers((way + np.array([x, y, heading]))[None], np.array([[4.0, 2.0]]), [kind], **more)


def drive(speed: float | Array = 5.0, y: float | Array = 0.0, samples: int = 41, heading: float = 0.0) -> Array:
    """States ``(1, samples, 8)`` along x from the origin."""
    states = np.zeros((1, samples, 8))
    states[..., SPEED], states[..., Y], states[..., HEADING] = speed, y, heading
    states[:, 1:, X] = np.cumsum(states[:, :-1, SPEED], 1) * 0.1
    return states


def one(name: str, states: Array, scene: ScoredScene, **more: Any) -> float:
    return float(getattr(score_states(states, scene, **more), name)[0])


def random_scene(seed: int, **changes: Any) -> ScoredScene:
    """A curved road with two lanes, an intersection and others on it."""
    rng = np.random.default_rng(seed)
    along, bend = np.linspace(-40, 120, 40), rng.normal(0, 0.003)

    def strip(offset: float) -> Array:
        y = bend * along**2 + offset
        return np.concatenate([np.stack([along, y - 1.75], -1), np.stack([along, y + 1.75], -1)[::-1]])

    count, time = 6, np.arange(rng.integers(1, 60)) * 0.1
    place, speed = rng.uniform(-30, 60, count), rng.uniform(-8, 10, count)
    x = place[:, None] + speed[:, None] * time
    y = bend * x**2 + rng.choice([0, 3.5, -4, 1.8], count)[:, None]
    poses = np.stack([x, y, np.arctan(2 * bend * x)], -1)
    given: dict[str, Any] = dict(
        ego=EgoState(0, 0, 0, rng.uniform(1, 12), rng.normal(0, 0.5), rng.normal(0, 0.02)),
        lanes=[Lane(strip(0)), Lane(strip(3.5), on_route=False), Lane(strip(-3.5), intersection=True)],
        centreline=np.stack([along, bend * along**2], -1),
        road_users=RoadUsers(
            poses,
            rng.uniform(0.5, 5, (count, 2)),
            rng.choice(["vehicle", "pedestrian", "bicycle", "static"], count).tolist(),
            rng.random((count, len(time))) < 0.9,
        ),
        drivable=[strip(0), strip(3.5), strip(-3.5), box(-40, 120, -2, 2)],
        intersections=[box(20, 35, -10, 20)],
        red_lights=[box(45, 60, -1, 1)],
        speed_limit=rng.uniform(8, 15),
    )
    return ScoredScene(**given | changes)


def random_plans(seed: int, scene: ScoredScene, count: int = 12) -> Array:
    rng = np.random.default_rng(seed)
    speed = np.maximum(scene.ego.speed + rng.normal(0, 1.5, (count, 1)) * TIME, 0)
    heading = np.cumsum(speed * rng.normal(0, 0.01, (count, 1)) * 0.1, 1)
    step = np.stack([np.cos(heading), np.sin(heading)], -1) * speed[..., None] * 0.1
    plans = np.concatenate([np.cumsum(step, 1) - step[:, :1], heading[..., None]], -1)
    return plans


def moved(scene: ScoredScene, turn: float, shift: Array) -> tuple[ScoredScene, Any]:
    """The same scene somewhere else, and the function that takes points, poses and states there."""
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]])

    def move(values: Any) -> Array:
        values = np.array(values, float)
        values[..., :2] = values[..., :2] @ matrix.T + shift
        if values.shape[-1] > 2:
            values[..., 2] += turn
        return values

    def areas(polygons: Any) -> list[Array]:
        return [move(np.array(area.exterior.coords)[:-1]) for area in polygons]

    users, pose = scene.road_users, move(scene.ego.pose)
    lanes = zip(areas(scene.lane_areas), scene.lanes, strict=True)
    return replace(
        scene,
        ego=replace(scene.ego, x=pose[0], y=pose[1], heading=pose[2]),
        lanes=[replace(lane, polygon=area) for area, lane in lanes],
        centreline=move(scene.centreline),
        road_users=replace(users, poses=move(users.poses)),
        drivable=areas(scene.drivable),
        intersections=areas(scene.intersections),
        red_lights=areas(scene.red_lights),
    ), move
