"""Traffic of many scenes at once: a kinematic car each, and others on their paths who see it and keep their distance.

Vehicles follow the intelligent driver model (Treiber et al., arXiv cond-mat/0002177) behind whatever is first in the
corridor of their path, the car included. Everything is an array with a row per scene.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.metrics.tracker import HEADING, PACIFICA, SPEED, STATE_SIZE, STEERING, STEP, bicycle_step
from envs.roads import SPACING, RoadUser, Scene, UserKind
from envs.scenes import MOST
from policies.spec import Array

TICK = STEP  # s
SOON = 0.4  # s within which a car shall have the speed it is told to
STEERING_RATE = 0.8  # rad/s
SLOWEST = 1.0  # m/s, a yaw rate is a curvature at this speed at least
LOOK = np.arange(1.0, 41.0, 2.0)  # m ahead of its front where a driver looks for others
LATERAL, TURNING = 2.0, 0.6  # m/s^2 and rad/s in bends
BRAKING, THRUST = 2.0, 1.5  # m/s^2, comfortable
HARDEST = 6.0  # m/s^2
GAP, HEADWAY = 2.0, 1.2  # m, s behind a leader
ROOM = 0.3  # m beside a vehicle that belong to its corridor
FORESIGHT = 1.0  # s by which the motion of those is thought ahead whom a driver gives way to
DISCS = np.array([-1.0, 0.0, 1.0])  # where along a vehicle are the discs that stand for it
CAR_SIZE = np.array([PACIFICA.length, PACIFICA.width])
_WHO = np.repeat(np.arange(MOST + 1), len(DISCS))[None, None, :]
ITSELF = np.arange(MOST)[:, None, None] == _WHO
GIVES_WAY = np.arange(MOST)[:, None, None] < _WHO  # one of two has to go first
PERSON: UserKind = "pedestrian"
STILL: UserKind = "static"


class Paths:
    """Paths of equal spacing behind one another in an array, read at any place along them.

    Args:
        paths: ``(M, 2)`` each.
    """

    def __init__(self, paths: Sequence[Array]) -> None:
        longest = max(map(len, paths))
        self.points = np.stack([np.pad(path, ((0, longest - len(path)), (0, 0)), mode="edge") for path in paths])
        self.length = np.array([(len(path) - 1) * SPACING for path in paths])
        steps = np.stack(
            [np.pad(np.gradient(path, axis=0), ((0, longest - len(path)), (0, 0)), mode="edge") for path in paths]
        )
        self.direction = steps / np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1e-9)
        self._bend_speed = np.stack([_bend_speed(path, longest) for path in paths])

    def at(self, rows: Array, place: Array) -> tuple[Array, Array]:
        """Points and directions, ``(..., 2)`` each, of paths ``rows`` at places along them in m."""
        where = np.clip(place / SPACING, 0, self.points.shape[1] - 1.001)
        index = where.astype(int)
        share = (where - index)[..., None]
        found = (1 - share) * self.points[rows, index] + share * self.points[rows, index + 1]
        return found, self.direction[rows, index]

    def bend_speed(self, rows: Array, place: Array) -> Array:
        """How fast in m/s to be on paths ``rows`` at places along them in m, so that bends are comfortable."""
        return self._bend_speed[rows, np.clip(place / SPACING, 0, self.points.shape[1] - 1).astype(int)]


def _bend_speed(path: Array, longest: int) -> Array:
    """How fast to be at every point so that bends are comfortable, also those to come."""
    turned = np.unwrap(np.arctan2(*np.gradient(path, axis=0).T[::-1]))
    curvature = np.abs(np.gradient(turned)) / SPACING
    speed = np.minimum(np.sqrt(LATERAL / np.maximum(curvature, 1e-3)), TURNING / np.maximum(curvature, 1e-3))
    for index in range(len(speed) - 2, -1, -1):
        speed[index] = min(speed[index], np.sqrt(speed[index + 1] ** 2 + 2 * BRAKING * SPACING))
    return np.pad(speed, (0, longest - len(path)), mode="edge")


class Traffic:
    """Scenes that go on together, `TICK` by `TICK`.

    ``car`` (B, 8) are states of `envs.metrics.tracker`; ``centre`` (B, N, 2), ``direction`` (B, N, 2), ``speed``
    (B, N) in m/s and ``present`` (B, N) are the others.

    Args:
        scenes: Whose cars and others these are.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        count = len(scenes)
        nobody = RoadUser(np.array([[1e4, 1e4], [1e4 + SPACING, 1e4]]), 0.0, 0.0, 0.0, (0.1, 0.1), STILL)
        users = [user for scene in scenes for user in (*scene.others, *[nobody] * (MOST - len(scene.others)))]
        self.paths = Paths([user.path for user in users])
        self._rows = np.arange(len(users)).reshape(count, MOST)
        self.place, self.speed, self.limit = (
            np.array([getattr(user, name) for user in users], float).reshape(count, MOST)
            for name in ("place", "speed", "limit")
        )
        self.size = np.array([user.size for user in users]).reshape(count, MOST, 2)
        self.person, self.still = (
            np.array([user.kind == kind for user in users]).reshape(count, MOST) for kind in (PERSON, STILL)
        )
        self.present = np.array([user is not nobody for user in users]).reshape(count, MOST)
        self.car = np.zeros((count, STATE_SIZE))
        self.car[:, : SPEED + 1] = [[*scene.start, scene.speed] for scene in scenes]
        self._locate()

    def _locate(self) -> None:
        self.centre, self.direction = self.paths.at(self._rows, self.place)

    @property
    def boxes(self) -> tuple[Array, Array]:
        """Poses ``(B, N, 3)`` of the centres and sizes ``(B, N, 2)`` of all others; absent ones are far away."""
        return np.dstack([self.centre, np.arctan2(self.direction[..., 1], self.direction[..., 0])]), self.size

    def step(self, commands: Array) -> None:
        """Go on by one tick.

        Args:
            commands: ``(B, 2)`` speed in m/s and yaw rate in rad/s of the cars.
        """
        acceleration = self._acceleration()
        self.car = bicycle_step(self.car, *self._tracked(commands))
        self.car[:, SPEED] = np.maximum(self.car[:, SPEED], 0.0)  # it has no reverse gear
        self.speed = np.maximum(0.0, self.speed + acceleration * TICK)
        self.place = self.place + self.speed * TICK
        self.present &= self.place < self.paths.length[self._rows] + 0.5 * (self.still | (self.limit == 0))
        self._locate()
        self.centre[~self.present] = 1e4

    def _tracked(self, commands: Array) -> tuple[Array, Array]:
        """Acceleration and steering rate towards a command.

        It is held for one tick, so that there is nothing to look ahead on; whole plans are tracked by an LQR, see
        `envs.metrics.tracker`.
        """
        change = (commands[:, 0] - self.car[:, SPEED]) / SOON
        curvature = commands[:, 1] / np.maximum(commands[:, 0], SLOWEST)
        turn = (np.arctan(PACIFICA.wheelbase * curvature) - self.car[:, STEERING]) / TICK
        return np.clip(change, -HARDEST, HARDEST), np.clip(turn, -STEERING_RATE, STEERING_RATE)

    def discs(self, ahead: float = 0.0) -> tuple[Array, Array]:
        """Centres ``(B, 3 * (N + 1), 2)`` and radii ``(B, 3 * (N + 1))`` of discs that cover everybody, the car last.

        Args:
            ahead: Seconds by which they are thought to have gone on straight ahead.
        """
        own, _ = self.own_box
        facing = np.concatenate([self.direction, np.dstack([np.cos(own[:, None, 2]), np.sin(own[:, None, 2])])], 1)
        centre = np.concatenate([self.centre, own[:, None, :2]], 1)
        speed = np.concatenate([self.speed, self.car[:, SPEED, None]], 1)
        centre = centre + (ahead * speed)[..., None] * facing
        size = np.concatenate([self.size, np.broadcast_to(CAR_SIZE, (len(own), 1, 2))], 1)
        reach = np.maximum(0.0, size[..., 0] - size[..., 1]) / 2
        places = centre[:, :, None] + (reach[..., None] * DISCS)[..., None] * facing[:, :, None]
        radius = np.repeat(0.55 * size[..., 1], len(DISCS), axis=1)
        return places.reshape(len(centre), -1, 2), radius

    @property
    def collided(self) -> Array:
        """Whether each car touches anybody ``(B,)``."""
        own = box_corners(*self.own_box)[:, None]
        return np.asarray(overlap(own, box_corners(*self.boxes)).any(-1))

    @property
    def own_box(self) -> tuple[Array, Array]:
        """Poses ``(B, 3)`` of the middles of the cars, and their size ``(2,)``."""
        forward = np.stack([np.cos(self.car[:, HEADING]), np.sin(self.car[:, HEADING]), np.zeros(len(self.car))], -1)
        return self.car[:, : HEADING + 1] + PACIFICA.ahead * forward, CAR_SIZE

    def _acceleration(self) -> Array:
        """What the others do about whatever is first in their corridor, ``(B, N)`` in m/s^2."""
        gap, pace = self._leader()
        wish = np.minimum(self.limit, self.paths.bend_speed(self._rows, self.place))
        closing = self.speed * (self.speed - pace) / (2 * np.sqrt(THRUST * BRAKING))
        wanted = GAP + np.maximum(0.0, HEADWAY * self.speed + closing)
        free = 1 - (self.speed / np.maximum(wish, 0.1)) ** 4
        model = THRUST * (free - (wanted / np.maximum(gap, 0.1)) ** 2)
        walking = np.where(gap < 1.0, -self.speed, self.limit - self.speed) / TICK  # people stop and go at once
        return np.where(self.person, walking, np.clip(model, -HARDEST, THRUST)) * (self.limit > 0)

    def _leader(self) -> tuple[Array, Array]:
        """Gap in m to the first thing in the corridor, and its speed along the path, ``(B, N)`` each."""
        count = len(self.car)
        reach = self.place[..., None] + self.size[..., :1] / 2 + LOOK
        points, along = self.paths.at(self._rows[..., None], reach)
        discs, radius = self.discs()
        room = (radius[:, None, None] + self.size[..., 1, None, None] / 2 + ROOM) ** 2
        near = ((points[:, :, :, None] - discs[:, None, None]) ** 2).sum(-1) < room
        near &= ~ITSELF
        later = ((points[:, :, :, None] - self.discs(FORESIGHT)[0][:, None, None]) ** 2).sum(-1) < room
        near |= later & GIVES_WAY
        hit = near.any(-1)
        first = hit.argmax(-1)
        who = np.take_along_axis(near.argmax(-1), first[..., None], -1)[..., 0] // len(DISCS)
        angle = self.car[:, HEADING]
        car = self.car[:, SPEED, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        velocity = np.concatenate([self.speed[..., None] * self.direction, car[:, None]], 1)
        of_leader = velocity[np.arange(count)[:, None], who]
        pace = (of_leader * np.take_along_axis(along, first[..., None, None], 2)[:, :, 0]).sum(-1)
        found = hit.any(-1)
        return np.where(found, LOOK[first] - 0.5, 1e3), np.where(found, np.maximum(pace, 0), self.speed)


def box_corners(poses: Array, sizes: Array) -> Array:
    """Corners ``(..., 4, 2)`` of boxes with poses ``(..., 3)`` of their middles and sizes ``(..., 2)`` in m."""
    cos, sin = np.cos(poses[..., 2]), np.sin(poses[..., 2])
    local = sizes[..., None, :] / 2 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    x = cos[..., None] * local[..., 0] - sin[..., None] * local[..., 1]
    y = sin[..., None] * local[..., 0] + cos[..., None] * local[..., 1]
    return poses[..., None, :2] + np.stack([x, y], -1)


def overlap(one: Array, other: Array) -> Array:
    """Whether rectangles with corners ``(..., 4, 2)`` have a point in common: no side of either parts them."""
    parted = np.zeros(np.broadcast_shapes(one.shape, other.shape)[:-2], bool)
    for corners in (one, other):
        for side in (corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 1, :]):
            mine, theirs = ((box * side[..., None, :]).sum(-1) for box in (one, other))
            parted |= (mine.max(-1) < theirs.min(-1)) | (theirs.max(-1) < mine.min(-1))
    return ~parted
