"""What a plan is scored against: the car, the map and the other road users, all in one common frame (SI, x, y, z-up).

The frame may be any: scores do not change when the whole scene and its plans are moved or turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import shapely

from envs.metrics.tracker import PACIFICA, STATE_SIZE, STEP, Vehicle
from policies.spec import Array, ContractError

KINDS = ("vehicle", "pedestrian", "bicycle", "static")
FARTHEST = 1e7  # m, farther coordinates are taken for a mistake
FASTEST = 150.0  # m/s
HARDEST = 100.0  # m/s^2


def checked(name: str, value: Any, shape: tuple[int | None, ...], largest: float = np.inf) -> Array:
    """A float array of a shape, where None is any length, whose values are finite and not larger than promised.

    Raises:
        ContractError: Names the field, both values and the remedy.
    """
    array = np.asarray(value, float)
    wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
    if array.ndim != len(shape) or any(
        size not in (None, found) for size, found in zip(shape, array.shape, strict=True)
    ):
        raise ContractError(f"{name} has shape {array.shape}, needed is {wanted}; reshape it")
    if not np.isfinite(array).all():
        raise ContractError(f"{name} is not finite, needed are finite values; check where it comes from")
    if array.size and np.abs(array).max() > largest:
        raise ContractError(f"{name} reaches {np.abs(array).max():g}, allowed is {largest:g}; use SI units")
    return array


def polygon(name: str, value: Any) -> shapely.Polygon:
    """A valid polygon from itself or from its corners ``(N, 2)`` in m.

    Raises:
        ContractError: It has no area, crosses itself or is not finite.
    """
    if not isinstance(value, shapely.Polygon):
        corners = checked(name, value, (None, 2), FARTHEST)
        if len(corners) < 3:
            raise ContractError(f"{name} has {len(corners)} corners, needed are 3 at least; give all of them")
        value = shapely.Polygon(corners)
    if value.is_empty or not shapely.is_valid(value) or value.area <= 0:
        reason = shapely.is_valid_reason(value) if not value.is_empty else "it is empty"
        raise ContractError(f"{name} is no simple polygon with an area ({reason}); order its corners around the area")
    if max(map(abs, value.bounds)) > FARTHEST:
        raise ContractError(f"{name} reaches {max(map(abs, value.bounds)):g} m, allowed is {FARTHEST:g}; use metres")
    shapely.prepare(value)
    return value


@dataclass(frozen=True)
class EgoState:
    """The car at t=0.

    Args:
        x: Of the rear axle, m.
        y: Of the rear axle, m.
        heading: rad.
        speed: Along the heading, m/s.
        acceleration: Along the heading, m/s^2.
        steering: Angle of the front wheels, rad, left is positive.
    """

    x: float
    y: float
    heading: float
    speed: float
    acceleration: float = 0.0
    steering: float = 0.0

    def __post_init__(self) -> None:
        limits = {"x": FARTHEST, "y": FARTHEST, "heading": 1e3, "speed": FASTEST, "acceleration": HARDEST}
        for name, limit in (limits | {"steering": 1.5}).items():
            checked(f"ego {name}", getattr(self, name), (), limit)

    @property
    def pose(self) -> Array:
        """``(3,)`` x, y, heading of the rear axle."""
        return np.array([self.x, self.y, self.heading])

    def state(self, vehicle: Vehicle = PACIFICA) -> Array:
        """``(8,)`` state of `envs.metrics.tracker`; the yaw rate is that of the bicycle."""
        rate = self.speed * np.tan(self.steering) / vehicle.wheelbase
        return np.array([*self.pose, self.speed, self.acceleration, self.steering, rate, 0.0])


@dataclass(frozen=True)
class Lane:
    """A lane or the connection of two lanes across an intersection.

    Args:
        polygon: Its area, a shapely polygon or corners ``(N, 2)`` in m.
        on_route: Whether the route leads along it.
        intersection: Whether it crosses an intersection.
    """

    polygon: Any
    on_route: bool = True
    intersection: bool = False


@dataclass(frozen=True)
class RoadUsers:
    """Boxes of everything that can be hit, at 10 Hz from t=0.

    Args:
        poses: ``(K, T, 3)`` x, y, heading of the middle of the box; m and rad. What is not valid is not read.
        sizes: ``(K, 2)`` length and width, m.
        kinds: One of `KINDS` each. "static" are objects that cannot move: cones, barriers.
        valid: ``(K, T)`` whether one is there; everywhere by default.
        speeds: ``(K, T)`` m/s; from the poses by default.
    """

    poses: Array = field(default_factory=lambda: np.zeros((0, 1, 3)))
    sizes: Array = field(default_factory=lambda: np.zeros((0, 2)))
    kinds: Sequence[str] = ()
    valid: Array | None = None
    speeds: Array | None = None

    def __post_init__(self) -> None:
        poses = np.asarray(self.poses, float)
        valid = np.ones(poses.shape[:2], bool) if self.valid is None else np.asarray(self.valid, bool)
        if valid.shape != poses.shape[:2]:
            raise ContractError(f"road users' valid has shape {valid.shape}, their poses {poses.shape}; give (K, T)")
        poses = checked("road users' poses", np.where(valid[..., None], poses, 0.0), (None, None, 3), FARTHEST)
        count, samples = poses.shape[:2]
        if samples < 1:
            raise ContractError("road users' poses have 0 samples, needed is 1 at least; give the pose at t=0")
        sizes = checked("road users' sizes", self.sizes, (count, 2), 200)
        if (sizes <= 0).any():
            raise ContractError(f"road users' sizes reach {sizes.min():g} m, needed are positive ones; measure again")
        kinds = tuple(self.kinds)
        if len(kinds) != count or set(kinds) - set(KINDS):
            raise ContractError(f"road users' kinds are {kinds} for {count} of them; give one of {KINDS} each")
        speeds = self._speeds(poses, valid) if self.speeds is None else np.asarray(self.speeds, float)
        if speeds.shape != valid.shape:
            raise ContractError(f"road users' speeds have shape {speeds.shape}, their poses {poses.shape}; give (K, T)")
        speeds = checked("road users' speeds", np.where(valid, speeds, 0.0), (count, samples), FASTEST)
        for name, value in dict(poses=poses, sizes=sizes, kinds=kinds, valid=valid, speeds=speeds).items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _speeds(poses: Array, valid: Array) -> Array:
        """Speeds ``(K, T)`` towards the next sample, or from the one before where there is no next one."""
        step = np.linalg.norm(np.diff(poses[..., :2], axis=1), axis=-1) / STEP
        both = valid[:, 1:] & valid[:, :-1]
        none = np.zeros((len(poses), 1))
        towards, since = (np.concatenate(pair, 1) for pair in ((step, none), (none, step)))
        has_next, has_last = (np.concatenate(pair, 1) for pair in ((both, none > 0), (none > 0, both)))
        return np.where(has_next, towards, np.where(has_last, since, 0.0))

    def until(self, samples: int) -> tuple[Array, Array]:
        """Poses ``(K, samples, 3)`` and validity ``(K, samples)``.

        Those who are there at the last known sample go on as they went between the last two, those of whom there is
        one sample only, and those of kind "static", stay; all others are gone.
        """
        poses, valid = np.asarray(self.poses), np.asarray(self.valid)
        known = poses.shape[1]
        if samples <= known:
            return poses[:, :samples], valid[:, :samples]
        more = np.arange(1, samples - known + 1)
        velocity = np.zeros_like(poses[:, -1])
        if known > 1:
            moving = valid[:, -1] & valid[:, -2] & (np.array(self.kinds, object) != "static")
            velocity[:, :2] = np.where(moving[:, None], poses[:, -1, :2] - poses[:, -2, :2], 0.0)
        later = poses[:, -1:] + velocity[:, None] * more[:, None]
        return np.concatenate([poses, later], 1), np.concatenate([valid, np.repeat(valid[:, -1:], len(more), 1)], 1)


@dataclass(frozen=True)
class ScoredScene:
    """Everything that a plan is scored against.

    Args:
        ego: The car at t=0.
        lanes: Of all directions.
        centreline: ``(M, 2)`` of the route, m, in driving direction.
        road_users: All others.
        drivable: Polygons that all four corners of the car have to be in; one corner may be in one and the next in
            another one, but the seam between two belongs to neither. By default the lanes and intersections.
        intersections: Polygons of whole intersections, in addition to the lanes that are flagged.
        red_lights: Polygons of the lanes, on the route, that are closed by a red light.
        speed_limit: m/s, for the reference planner; None if it is unknown.
        reference: Progress in m that the reference planner makes, times its multipliers; None to have it driven, see
            `envs.metrics.reference_planner`.
        history: ``(N, 8)`` states at 10 Hz before t=0, the oldest first; the one of t=0 is not among them.
        vehicle: Measures of the car.
    """

    ego: EgoState
    lanes: Sequence[Lane]
    centreline: Array
    road_users: RoadUsers = field(default_factory=RoadUsers)
    drivable: Sequence[Any] = ()
    intersections: Sequence[Any] = ()
    red_lights: Sequence[Any] = ()
    speed_limit: float | None = None
    reference: float | None = None
    history: Array | None = None
    vehicle: Vehicle = PACIFICA

    def __post_init__(self) -> None:
        lanes = tuple(
            Lane(polygon(f"lane {index}", lane.polygon), lane.on_route, lane.intersection)
            for index, lane in enumerate(self.lanes)
        )
        centreline = checked("centreline", self.centreline, (None, 2), FARTHEST)
        length = np.linalg.norm(np.diff(centreline, axis=0), axis=-1).sum() if len(centreline) else 0.0
        if length <= 0:
            raise ContractError(
                f"centreline is {length:g} m long with {len(centreline)} points; give 2 places at least"
            )
        values: dict[str, Any] = dict(lanes=lanes, centreline=centreline)
        for name in ("drivable", "intersections", "red_lights"):
            values[name] = tuple(polygon(f"{name} {index}", item) for index, item in enumerate(getattr(self, name)))
        if not lanes and not values["drivable"]:
            raise ContractError("lanes and drivable are empty; one of them has to say where a car may be")
        if self.speed_limit is not None and not 0 < self.speed_limit <= FASTEST:
            raise ContractError(f"speed_limit is {self.speed_limit}, allowed is (0, {FASTEST:g}] m/s; use None")
        if self.reference is not None and not 0 <= self.reference < FARTHEST:
            raise ContractError(f"reference is {self.reference}, allowed are finite metres from 0 on; use None")
        if self.history is not None:
            values["history"] = checked("history", self.history, (None, STATE_SIZE), FARTHEST)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @cached_property
    def lane_areas(self) -> tuple[shapely.Polygon, ...]:
        """All lanes."""
        return tuple(lane.polygon for lane in self.lanes)

    @cached_property
    def route_areas(self) -> tuple[shapely.Polygon, ...]:
        """Lanes on the route."""
        return tuple(lane.polygon for lane in self.lanes if lane.on_route)

    @cached_property
    def intersection_areas(self) -> tuple[shapely.Polygon, ...]:
        """Intersections and the lanes across them."""
        return (*self.intersections, *(lane.polygon for lane in self.lanes if lane.intersection))

    @cached_property
    def drivable_areas(self) -> tuple[shapely.Polygon, ...]:
        """Where the corners of the car may be."""
        return tuple(self.drivable) or (*self.lane_areas, *self.intersections)

    @cached_property
    def route(self) -> shapely.LineString:
        """The centreline."""
        line = shapely.LineString(self.centreline)
        shapely.prepare(line)
        return line
