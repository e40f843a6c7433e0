"""PDM-Closed (arXiv 2306.07962): the rule-based planner whose progress is what a plan's progress is compared with.

It unrolls the intelligent driver model (IDM) along the centreline and beside it at several speeds, drives each of these
15 proposals and takes the one with the best score.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely

from envs.metrics.pdm import SHORT_PROGRESS, score_states
from envs.metrics.scene import ScoredScene
from envs.metrics.tracker import STEP, track
from policies.spec import Array

SPEED_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the speed limit
OFFSETS = (0.0, 1.0, -1.0)  # m to the left of the centreline
FALLBACK_LIMIT = 15.0  # m/s, where the limit is unknown
GAP, HEADWAY = 1.0, 1.5  # m and s to the one in front
LARGEST_ACCELERATION, LARGEST_BRAKING = 1.5, 3.0  # m/s^2
EXPONENT = 10  # of the speed, as in nuPlan; 4 in the original model


def idm_acceleration(speed: Array, target: Array, gap: Array, leader: Array) -> Array:
    """Acceleration in m/s^2 of the intelligent driver model, within its limits.

    Args:
        speed: m/s.
        target: Speed on a free road, m/s.
        gap: To the one in front, bumper to bumper, m; infinite on a free road.
        leader: Its speed, m/s.
    """
    wanted = GAP + speed * HEADWAY + speed * (speed - leader) / (2 * np.sqrt(LARGEST_ACCELERATION * LARGEST_BRAKING))
    pull = 1 - (np.maximum(speed, 0) / target) ** EXPONENT - (wanted / np.maximum(gap, GAP)) ** 2
    return np.clip(LARGEST_ACCELERATION * pull, -LARGEST_BRAKING, LARGEST_ACCELERATION)


def proposals(scene: ScoredScene, samples: int = 41) -> Array:
    """Poses ``(15, samples, 3)`` at 10 Hz: all speeds on the centreline, then to its left, then to its right.

    They start where the lines are nearest to the rear axle. The end of the centreline is a place to stop at.

    Args:
        scene: With the car, the centreline, the other road users and red lights.
        samples: Number of poses.
    """
    return np.concatenate([_on_line(_beside(scene.centreline, offset), scene, samples) for offset in OFFSETS])


def reference_progress(
    scene: ScoredScene, *, version: int = 1, reference_quirks: bool = False, samples: int = 41
) -> float:
    """Progress in m of the planner's choice, times its multipliers: what `ScoredScene.reference` is.

    Args:
        scene: Its own reference is not read.
        version: Of the multipliers, 1 or 2.
        reference_quirks: How it is driven and scored, see `envs.metrics.pdm`.
        samples: At 10 Hz, of the drive that is compared with it.
    """
    states = track(
        proposals(scene, samples),
        scene.ego.state(scene.vehicle),
        STEP,
        scene.vehicle,
        reference_quirks=reference_quirks,
    )
    free = replace(scene, reference=0.0, history=None)
    terms = score_states(states, free, version=version, reference_quirks=reference_quirks)
    credited = terms.progress_m * terms.multipliers(version)
    progress = credited / credited.max() if credited.max() > SHORT_PROGRESS else np.ones(len(credited))
    best = replace(terms, progress=progress).combined(version).argmax()
    return float(credited[best])


def _beside(points: Array, offset: float) -> Array:
    """Points ``(N, 2)`` of the line that is ``offset`` m to the left of another one ``(M, 2)``, N at most M."""
    steps = np.diff(points, axis=0)
    moved = np.linalg.norm(steps, axis=-1) > 0
    points, steps = points[np.r_[True, moved]], steps[moved]
    normals = np.stack([-steps[:, 1], steps[:, 0]], -1) / np.linalg.norm(steps, axis=-1, keepdims=True)
    before, after = normals[np.r_[0, : len(normals)]], normals[np.r_[: len(normals), -1]]
    # At a bend the point that is beside both edges, unless it is so sharp that this one would be far away.
    return points + offset * (before + after) / np.maximum(1 + (before * after).sum(-1, keepdims=True), 0.5)


def _on_line(points: Array, scene: ScoredScene, samples: int) -> Array:
    """Poses ``(5, samples, 3)`` of the driver model along a line ``(M, 2)``."""
    line, vehicle = shapely.LineString(points), scene.vehicle
    shapely.prepare(line)
    rear, front, speeds = _leaders(line, scene, samples)
    limit = FALLBACK_LIMIT if scene.speed_limit is None else scene.speed_limit
    target = np.array(SPEED_SHARES) * limit
    place = np.full(len(target), shapely.line_locate_point(line, shapely.Point(scene.ego.x, scene.ego.y)))
    speed = np.full(len(target), max(scene.ego.speed, 0.0))
    places = [place]
    for index in range(samples - 1):
        # Whoever is passed already, or is under the car from the start, is not a leader.
        ahead = front[:, index] > place[:, None] + vehicle.front
        gap = np.where(ahead, rear[:, index] - place[:, None] - vehicle.front, np.inf)
        nearest = gap.argmin(1)
        leader = speeds[nearest, index]
        push = idm_acceleration(speed, target, gap[np.arange(len(gap)), nearest], leader)
        place, speed = place + STEP * speed, np.maximum(speed + STEP * push, 0.0)
        places.append(place)
    return _poses(points, np.stack(places, 1))


def _leaders(line: shapely.LineString, scene: ScoredScene, samples: int) -> tuple[Array, Array, Array]:
    """Rear, front and speed along a line, each ``(K, samples)``, of what is on it; the rest is infinitely far behind.

    The rear and front of a box are those of its corners, edges and middle: exact for what drives along the line.
    """
    users, vehicle = scene.road_users, scene.vehicle
    poses, valid = users.until(samples)
    half, grid = np.asarray(users.sizes)[:, None, None] / 2, np.linspace(-1, 1, 5)
    unit = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    cos, sin = np.cos(poses[..., 2, None]), np.sin(poses[..., 2, None])
    along, left = unit[:, 0] * half[..., 0], unit[:, 1] * half[..., 1]
    spots = np.stack([cos * along - sin * left, sin * along + cos * left], -1) + poses[:, :, None, :2]
    dots = shapely.points(spots)
    near = shapely.dwithin(line, dots, vehicle.width / 2) & valid[..., None]
    reached = np.full(near.shape, np.nan)
    reached[near] = shapely.line_locate_point(line, dots[near])
    on_line = near.any(-1)
    rear = np.where(on_line, np.where(near, reached, np.inf).min(-1), -np.inf)
    front = np.where(on_line, np.where(near, reached, -np.inf).max(-1), -np.inf)
    steps = np.diff(poses[..., :2], axis=1, append=2 * poses[:, -1:, :2] - poses[:, -2:-1, :2])
    pace = np.linalg.norm(steps, axis=-1) / STEP
    middle = np.where(on_line, (rear + front) / 2, 0.0)
    # A negative way would be one from the end of the line.
    ways = (np.maximum(middle - 0.1, 0.0), middle + 0.1)
    here, there = (shapely.get_coordinates(shapely.line_interpolate_point(line, way)) for way in ways)
    direction = np.arctan2(*(there - here).T[::-1]).reshape(pace.shape)
    speeds = pace * np.cos(poses[..., 2] - direction)
    walls = _walls(line, scene)
    return (
        np.concatenate([rear, np.repeat(walls[:, :1], samples, 1)]),
        np.concatenate([front, np.repeat(walls[:, 1:], samples, 1)]),
        np.concatenate([speeds, np.zeros((len(walls), samples))]),
    )


def _walls(line: shapely.LineString, scene: ScoredScene) -> Array:
    """Begin and end ``(W, 2)`` along a line of red lights and, at last, of the end of the line."""
    walls = []
    for area in scene.red_lights:
        across = shapely.get_coordinates(shapely.intersection(line, area))
        if len(across):
            places = shapely.line_locate_point(line, shapely.points(across))
            walls.append((places.min(), places.max()))
    start = shapely.line_locate_point(line, shapely.Point(scene.ego.x, scene.ego.y)) + scene.vehicle.front
    # A car that is over the line of a red light goes on.
    ahead = [wall for wall in walls if wall[0] > start]
    return np.array([*ahead, (line.length, np.inf)])


def _poses(points: Array, places: Array) -> Array:
    """Poses ``(..., 3)`` at ways ``(...)`` in m along a line ``(M, 2)``; headings turn linearly between its edges."""
    steps = np.diff(points, axis=0)
    lengths = np.linalg.norm(steps, axis=-1)
    steps, lengths = steps[lengths > 0], lengths[lengths > 0]
    corners = np.r_[0.0, np.cumsum(lengths)]
    line = np.concatenate([points[:1], points[:1] + np.cumsum(steps, 0)])
    headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    middles = (corners[1:] + corners[:-1]) / 2
    x, y = (np.interp(places, corners, line[:, axis]) for axis in (0, 1))
    return np.stack([x, y, np.interp(places, middles, headings)], -1)
