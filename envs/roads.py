"""Procedural road scenes by seed: lanes, routes through them, and who else is on the road. SI units, world frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import shapely

from policies.spec import Array

LANE_WIDTH = 3.5  # m
SPACING = 1.0  # m between points of a path
ARM = 90.0  # m, length of a road up to its junction
BOX = 14.0  # m from the centre of a junction to where its arms begin
KERB = 0.75  # m of drivable ground beside a lane
WIDE = 1.2  # m of it where lanes cross, for long vehicles that cut corners
CAR, PEDESTRIAN, STATIC = "vehicle", "pedestrian", "static"
UserKind = Literal["vehicle", "pedestrian", "static"]
COMMANDS = ("left", "straight", "right")
TURN = np.radians(30)  # rad, a route that turns by less goes straight


class Lane(NamedTuple):
    """One lane.

    Args:
        centre: ``(M, 2)`` in driving direction.
        intersection: Whether lanes cross here.
        width: In m.
    """

    centre: Array
    intersection: bool = False
    width: float = LANE_WIDTH

    @property
    def polygon(self) -> Array:
        """Its outline ``(N, 2)``."""
        reach = self.width / 2 + (WIDE if self.intersection else KERB)
        shape = shapely.LineString(self.centre).buffer(reach, cap_style="flat", join_style="mitre")
        return np.array(shape.exterior.coords)


class RoadUser(NamedTuple):
    """Somebody else on the road, or something.

    Args:
        path: ``(M, 2)`` points `SPACING` apart that its centre follows.
        place: How far along the path it begins, in m.
        speed: It begins with, in m/s.
        limit: It wants to go, in m/s.
        size: Length and width in m.
        kind: What it is.
    """

    path: Array
    place: float
    speed: float
    limit: float
    size: tuple[float, float]
    kind: UserKind


@dataclass(frozen=True)
class Scene:
    """A place and a moment.

    Args:
        kind: One of `KINDS`.
        lanes: All lanes; the drivable ground is their union.
        routes: Ways the car may take, ``(M, 2)`` points `SPACING` apart each, for its rear axle, left ones first.
        paths: Where lanes lead the car, like ``routes`` but without going around anything.
        chosen: Which of the routes the demonstrator takes.
        commanded: Whether the car is told which; if not, any is right.
        start: x, y in m and heading in rad of the rear axle.
        speed: The car begins with, in m/s.
        limit: Speed limit in m/s.
        others: Who else is there.
    """

    kind: str
    lanes: tuple[Lane, ...]
    routes: tuple[Array, ...]
    paths: tuple[Array, ...]
    chosen: int
    commanded: bool
    start: tuple[float, float, float]
    speed: float
    limit: float
    others: tuple[RoadUser, ...]

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """Per route what to tell the car."""
        return tuple(command_of(route) for route in self.routes)

    @property
    def command(self) -> str:
        """What the car is told, empty if nothing."""
        return self.commands[self.chosen] if self.commanded else ""


class Network(NamedTuple):
    """Roads before anybody is on them: lanes, routes of the car, and paths of others.

    Args:
        lanes: All lanes.
        routes: Of the car.
        traffic: Paths of other vehicles.
        paths: Where lanes lead the car, as far as anybody can see; the routes unless something is in their way.
        choice: Whether the routes are equally right.
    """

    lanes: list[Lane]
    routes: list[Array]
    traffic: list[Array]
    paths: list[Array]
    choice: bool = False


def headings(path: Array) -> Array:
    """Direction ``(M,)`` in rad of a path ``(M, 2)`` at its points, continuous."""
    steps = np.gradient(path, axis=0)
    return np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))


def resampled(path: Array, spacing: float = SPACING) -> Array:
    """A path ``(M, 2)`` with points at equal distances; the rest at its end is left out."""
    along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=-1))]
    places = np.arange(0, along[-1] + 1e-9, spacing)
    return np.stack([np.interp(places, along, path[:, axis]) for axis in (0, 1)], -1)


def command_of(route: Array) -> str:
    """One of `COMMANDS`: to which side a route turns, all in all."""
    turned = headings(route)[-1] - headings(route)[0]
    return "straight" if abs(turned) < TURN else "left" if turned > 0 else "right"


def beside(path: Array, offset: Array | float) -> Array:
    """The path ``(M, 2)`` that goes ``offset`` m to the left of another, one number or one per point ``(M,)``."""
    angle = headings(path)
    return path + np.stack([-np.sin(angle), np.cos(angle)], -1) * np.broadcast_to(offset, len(path))[:, None]


def line(length: float, start: tuple[float, float, float] = (0, 0, 0)) -> Array:
    """A straight path from a pose."""
    x, y, yaw = start
    places = np.arange(0, length + SPACING / 2, SPACING)
    return np.array([x, y]) + places[:, None] * [np.cos(yaw), np.sin(yaw)]


def arc(radius: float, angle: float, start: tuple[float, float, float] = (0, 0, 0)) -> Array:
    """A path that turns by ``angle`` rad, to the left if it is positive, from a pose."""
    x, y, yaw = start
    turned = np.linspace(0, angle, max(3, round(abs(angle) * radius / SPACING)))
    radius = np.copysign(radius, angle)
    return np.stack(
        [x + radius * (np.sin(yaw + turned) - np.sin(yaw)), y - radius * (np.cos(yaw + turned) - np.cos(yaw))], -1
    )


def join(*paths: Array) -> Array:
    """Paths one behind the other, resampled; where one ends the next begins."""
    return resampled(np.concatenate([paths[0], *(path[1:] for path in paths[1:])]))


def end(path: Array) -> tuple[float, float, float]:
    """Pose at the end of a path."""
    step = path[-1] - path[-2]
    return float(path[-1, 0]), float(path[-1, 1]), float(np.arctan2(step[1], step[0]))


def bend(start: Array, goal: Array) -> Array:
    """A smooth path from the end of one path to the begin of another."""
    (x, y, yaw), (u, v, angle) = end(start), end(goal[1::-1])
    angle += np.pi
    pull = 0.39 * np.hypot(u - x, v - y)  # of a circle, if it turns by a quarter
    points = np.array(
        [
            [x, y],
            [x + pull * np.cos(yaw), y + pull * np.sin(yaw)],
            [u - pull * np.cos(angle), v - pull * np.sin(angle)],
            [u, v],
        ]
    )
    t = np.linspace(0, 1, 40)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return weights @ points


def _two_way(middle: Array) -> tuple[Array, Array]:
    """Lanes right and, against the direction, left of a line in the middle of a road."""
    return resampled(beside(middle, -LANE_WIDTH / 2)), resampled(beside(middle, LANE_WIDTH / 2)[::-1])


def _straight(rng: np.random.Generator) -> Network:
    own, against = _two_way(line(2 * ARM))
    return Network([Lane(own), Lane(against)], [own], [own, against], [own])


def _lane(rng: np.random.Generator) -> Network:
    own = line(2 * ARM)
    return Network([Lane(own)], [own], [], [own])


def _curve(rng: np.random.Generator) -> Network:
    first = line(rng.uniform(30, 50))
    turn = arc(rng.uniform(22, 50), rng.choice([-1, 1]) * rng.uniform(0.6, 1.9), end(first))
    middle = join(first, turn, line(ARM, end(turn)))
    own, against = _two_way(middle)
    return Network([Lane(own), Lane(against)], [own], [own, against], [own])


def _fork(rng: np.random.Generator) -> Network:
    first, radius = line(rng.uniform(35, 50)), rng.uniform(28, 45)
    ways = []
    for side in (1, -1):
        turn = arc(radius, side * rng.uniform(0.6, 0.9), end(first))
        ways.append(join(first, turn, line(ARM, end(turn))))
    return Network([Lane(way) for way in ways], ways, ways, ways, choice=True)


def _junction(angles: Sequence[float], connect: Callable[[Array, Array], Array]) -> Network:
    """Two-way roads that meet; the car comes in on the first, which lies at an angle of pi."""
    inward, outward = [], []
    for angle in angles:
        away = line(ARM, (BOX * np.cos(angle), BOX * np.sin(angle), angle))
        leaving, entering = _two_way(away)
        inward.append(entering)
        outward.append(leaving)
    lanes = [Lane(path) for path in (*inward, *outward)]
    ways: list[list[Array]] = []
    for entry, entering in enumerate(inward):
        ways.append([])
        for leave, leaving in enumerate(outward):
            if leave != entry:
                middle = connect(entering, leaving)
                lanes.append(Lane(middle, intersection=True))
                ways[-1].append(join(entering, middle, leaving))
    return Network(lanes, ways[0], [way for of_entry in ways for way in of_entry], ways[0])


def _tee(rng: np.random.Generator) -> Network:
    return _junction([np.pi, np.pi / 2 + rng.uniform(-0.2, 0.2), -np.pi / 2 + rng.uniform(-0.2, 0.2)], bend)


def _four_way(rng: np.random.Generator) -> Network:
    angles = np.array([np.pi, np.pi / 2, 0, -np.pi / 2]) + np.r_[0, rng.uniform(-0.2, 0.2, 3)]
    return _junction([*angles], bend)


def _merge(rng: np.random.Generator) -> Network:
    main = line(3 * ARM, (-ARM, 0, 0))
    side = rng.choice([-1, 1])
    ramp = line(ARM / 2, (-20 - ARM / 2 * np.cos(0.35), side * (6 + ARM / 2 * np.sin(0.35)), -side * 0.35))
    rest = main[main[:, 0] > 15]
    own = join(ramp, bend(ramp, rest), rest)
    return Network([Lane(main), Lane(own)], [own], [main], [own])


def _roundabout(rng: np.random.Generator) -> Network:
    radius, angles = (
        rng.uniform(13, 17),
        np.array([np.pi, np.pi / 2, 0, -np.pi / 2]) + np.r_[0, rng.uniform(-0.15, 0.15, 3)],
    )
    reach = radius + 13
    quarters = [arc(radius, np.pi / 2 + 0.35, (radius * np.cos(a), radius * np.sin(a), a + np.pi / 2)) for a in angles]
    lanes, inward, outward = [Lane(quarter, intersection=True) for quarter in quarters], [], []
    for angle in angles:
        leaving, entering = _two_way(line(ARM - BOX, (reach * np.cos(angle), reach * np.sin(angle), angle)))
        inward.append(entering)
        outward.append(leaving)
    ways: list[list[Array]] = []
    for entry, angle in enumerate(angles):
        ways.append([])
        on = angle + 0.55
        for leave, goal in enumerate(angles):
            if leave == entry:
                continue
            off = goal - 0.55
            around = (off - on) % (2 * np.pi)
            turn = arc(radius, around, (radius * np.cos(on), radius * np.sin(on), on + np.pi / 2))
            enter, exit_ = bend(inward[entry], turn), bend(turn, outward[leave])
            ways[-1].append(join(inward[entry], enter, turn, exit_, outward[leave]))
            lanes += [Lane(enter, intersection=True), Lane(exit_, intersection=True)]
    lanes += [Lane(path) for path in (*inward, *outward)]
    return Network(lanes, ways[0], [way for of_entry in ways for way in of_entry], ways[0])


NETWORKS: dict[str, Callable[[np.random.Generator], Network]] = {
    "straight": _straight,
    "curve": _curve,
    "fork": _fork,
    "tee": _tee,
    "four-way": _four_way,
    "merge": _merge,
    "roundabout": _roundabout,
    "narrow": _lane,
    "parked": _straight,
}
KINDS = tuple(NETWORKS)
