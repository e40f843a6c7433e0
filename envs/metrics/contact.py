"""Where the car is and what it touches: corners, areas, boxes; everything for many plans at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from envs.metrics.tracker import HEADING, Vehicle, X, Y, wrapped
from policies.spec import Array


def shifted(states: Array, forward: float | Array, left: float = 0.0) -> Array:
    """Points ``(..., 2)`` in m at a place of the car, relative to its rear axle, of states ``(..., 8)``."""
    cos, sin = np.cos(states[..., HEADING]), np.sin(states[..., HEADING])
    return np.stack([states[..., X] + cos * forward - sin * left, states[..., Y] + sin * forward + cos * left], -1)


def corners(states: Array, vehicle: Vehicle) -> Array:
    """Corners ``(..., 4, 2)`` in m of the car: front left, rear left, rear right, front right."""
    half = vehicle.width / 2
    places = ((vehicle.front, half), (-vehicle.rear, half), (-vehicle.rear, -half), (vehicle.front, -half))
    return np.stack([shifted(states, *place) for place in places], -2)


def inside(area: shapely.Polygon, points: Array) -> Array:
    """Which points ``(..., 2)`` are strictly inside one polygon."""
    x, y = points[..., 0], points[..., 1]
    low_x, low_y, high_x, high_y = area.bounds
    result = (x > low_x) & (x < high_x) & (y > low_y) & (y < high_y)
    result[result] = shapely.contains_xy(area, x[result], y[result])
    return result


def inside_any(areas: Sequence[shapely.Polygon], points: Array) -> Array:
    """Which points ``(..., 2)`` are strictly inside at least one polygon: what is on a seam is in none."""
    flat = points.reshape(-1, 2)
    result, open_ = np.zeros(len(flat), bool), np.arange(len(flat))
    for area in areas:
        found = inside(area, flat[open_])
        result[open_[found]] = True
        open_ = open_[~found]
    return result.reshape(points.shape[:-1])


def in_multiple_lanes(lanes: Sequence[shapely.Polygon], boxes: Array) -> Array:
    """Which boxes ``(N, 4, 2)`` have corners in more than one lane and all four corners in none."""
    touched, whole = np.zeros(len(boxes), int), np.zeros(len(boxes), bool)
    for lane in lanes:
        count = inside(lane, boxes).sum(-1)
        touched += count > 0
        whole |= count == 4
    return (touched > 1) & ~whole


def boxes_touch(place: Array, heading: Array, half: Array, other: Array, other_half: Array) -> Array:
    """Which pairs of oriented boxes touch or overlap: none of their four axes separates them.

    Args:
        place: ``(N, 2)`` middles, m.
        heading: ``(N,)`` rad.
        half: ``(2,)`` half of length and width, m; a length of 0 is a line across.
        other: ``(N, 3)`` x, y, heading of the others' middles.
        other_half: ``(2,)`` half of their length and width, m.
    """
    cos, sin = np.cos(heading), np.sin(heading)
    x, y = other[:, 0] - place[:, 0], other[:, 1] - place[:, 1]
    ahead, left = cos * x + sin * y, cos * y - sin * x
    turn = other[:, 2] - heading
    cos, sin = np.cos(turn), np.sin(turn)
    wide, high = np.abs(cos), np.abs(sin)
    return (
        (np.abs(ahead) <= half[0] + other_half[0] * wide + other_half[1] * high)
        & (np.abs(left) <= half[1] + other_half[0] * high + other_half[1] * wide)
        & (np.abs(cos * ahead + sin * left) <= other_half[0] + half[0] * wide + half[1] * high)
        & (np.abs(cos * left - sin * ahead) <= other_half[1] + half[0] * high + half[1] * wide)
    )


def contacts(place: Array, heading: Array, half: Array, other: Array, other_half: Array, there: Array) -> Array:
    """When ``(P, T)`` boxes that move touch another one that moves.

    Args:
        place: ``(P, T, 2)`` middles, m.
        heading: ``(P, T)`` rad.
        half: ``(2,)`` half of length and width, m.
        other: ``(T, 3)`` x, y, heading of the other one's middle.
        other_half: ``(2,)`` half of its length and width, m.
        there: ``(T,)`` or ``(P, T)`` whether the pair counts.
    """
    reach = np.hypot(*half) + np.hypot(*other_half)
    distance = (place[..., 0] - other[:, 0]) ** 2 + (place[..., 1] - other[:, 1]) ** 2
    result = (distance <= reach**2 + 1e-9) & there
    if result.any():
        time = np.nonzero(result)[1]
        result[result] = boxes_touch(place[result], heading[result], half, other[time], other_half)
    return result


def bearing(states: Array, points: Array) -> Array:
    """Absolute angle ``(N,)`` in rad between the heading and the way from the rear axle to points ``(N, 2)``."""
    way = points - states[:, :2]
    angle = np.abs(wrapped(np.arctan2(way[:, 1], way[:, 0]) - states[:, HEADING]))
    return np.where((way == 0).all(-1), 0.0, angle)


def touches(area: shapely.Polygon, states: Array, vehicle: Vehicle) -> Array:
    """Which cars with states ``(N, 8)`` touch a polygon."""
    boxes = corners(states, vehicle)
    low, high = boxes.min(-2), boxes.max(-2)
    bounds = np.array(area.bounds)
    result = (low <= bounds[2:]).all(-1) & (high >= bounds[:2]).all(-1)
    result[result] = shapely.intersects(area, shapely.polygons(boxes[result]))
    return result
