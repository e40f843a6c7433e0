"""Demonstrator and baselines for kinoflow/Driving-v0."""

from __future__ import annotations

import numpy as np

from envs.driving import DrivingEnv
from envs.metrics.tracker import PACIFICA, SPEED, YAW_RATE
from envs.roads import SPACING
from envs.traffic import DISCS, SOON, Paths
from policies.spec import Array

SHARES = np.array([1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0])  # of the wanted speed, tried in this order
HORIZON, STEP = 6.0, 0.25  # s
LEAD = 2  # steps ahead is the speed that is commanded, because the car needs as long to follow
THRUST, BRAKING, HARDEST = 1.5, 1.8, 5.0  # m/s^2
MARGIN, DOUBT = 0.4, 0.1  # m around everybody, and m/s by which that grows
REACTION = 0.2  # s until the wheels are turned
JERK = 2.0  # m/s^3, three times that to slow down, unless it has to brake hard
CLOSER = 0.05  # m
SLOW = 3.0  # m/s
GENTLE, BRISK = 1.0, 3.5  # m/s^2, of braking
USUAL, STRAYS = 0.5, 0.5  # of the time, and of the rest
SAME_WAY = 0.3  # m beside the right way, where another has not parted from it yet


class RouteFollower:
    """Follows a route: speed from a plan, yaw rate from pure pursuit.

    Args:
        env: Its simulation is only read.
        share: Of the speed limit that it goes at most.
    """

    def __init__(self, env: DrivingEnv, share: float = 1.0) -> None:
        self._env = env
        self._limit = share * env.scene.limit
        self._take(env.scene.chosen)

    def _take(self, route: int) -> None:
        self._route, self._path = route, Paths([self._env.scene.routes[route]])

    def command(self) -> Array:
        """Return the ``(2,)`` float32 command, speed in m/s and yaw rate in rad/s."""
        place = self._place()
        speed = self._speed(self._path, place)
        return np.array([speed, speed * self._curvature(self._path, place)], np.float32)

    def _place(self) -> float:
        """How far along the route the car is, in m."""
        route = self._path.points[0]
        index = int(np.linalg.norm(route - self._env.pose[:2], axis=-1).argmin())
        ahead = route[min(index + 1, len(route) - 1)] - route[max(index - 1, 0)]
        return index * SPACING + float((self._env.pose[:2] - route[index]) @ ahead / max(np.linalg.norm(ahead), 1e-9))

    def _curvature(self, path: Paths, place: float) -> float:
        """Of the arc to a point ahead on the route, in 1/m, from where the car will be when it has steered."""
        x, y, yaw, speed = self._env.traffic.car[0, :4]
        later = REACTION + self._env.step_dt / 2
        turned = self._env.traffic.car[0, YAW_RATE] * later
        x, y, yaw = (
            x + speed * later * np.cos(yaw + turned / 2),
            y + speed * later * np.sin(yaw + turned / 2),
            yaw + turned,
        )
        point, _ = path.at(np.zeros(1, int), np.array([place + speed * later + max(4.0, 0.7 * speed)]))
        dx, dy = point[0] - (x, y)
        left = np.cos(yaw) * dy - np.sin(yaw) * dx
        return float(2 * left / max(dx**2 + dy**2, 1.0))

    def _speed(self, path: Paths, place: float) -> float:
        return min(self._limit, self._bends(path, place))

    def _bends(self, path: Paths, place: float) -> float:
        return float(path.bend_speed(np.zeros(1, int), np.array([place]))[0])


class Expert(RouteFollower):
    """Goes as fast along its route as it can without coming near anybody within six seconds.

    It knows everybody's paths and takes their speeds to be constant.
    """

    def __init__(self, env: DrivingEnv, share: float = 1.0) -> None:
        super().__init__(env, share)
        self._acceleration, self._braking = 0.0, BRAKING

    def _speed(self, path: Paths, place: float) -> float:
        speed, lead = float(self._env.traffic.car[0, SPEED]), LEAD * STEP
        pace, hurry = self._profiles(path, place, speed, self._braking), False
        free = self._free(path, place, pace)
        if not free.any():
            pace, hurry = self._profiles(path, place, speed, HARDEST), True
            free = self._free(path, place, pace)
        best = int(free.argmax()) if free.any() else -1
        change = JERK * self._env.step_dt
        wanted = (pace[best, LEAD] - speed) / lead - self._acceleration
        self._acceleration += float(np.clip(wanted, -np.inf if hurry else -3 * change, change))
        return max(0.0, speed + SOON * self._acceleration)

    def _profiles(self, path: Paths, place: float, speed: float, braking: float) -> Array:
        """Speeds ``(P, T)`` in m/s that each proposal would have."""
        wish = SHARES * self._limit
        pace = np.empty((len(SHARES), round(HORIZON / STEP) + 1))
        pace[:, 0], where = speed, np.full(len(SHARES), place)
        for step in range(1, pace.shape[1]):
            change = np.minimum(wish, path.bend_speed(np.zeros(1, int), where)) - pace[:, step - 1]
            pace[:, step] = pace[:, step - 1] + np.clip(change, -braking * STEP, THRUST * STEP)
            where = where + STEP * pace[:, step]
        return pace

    def _free(self, path: Paths, place: float, pace: Array) -> Array:
        """Whether each proposal ``(P, T)`` keeps clear of everybody ``(P,)``."""
        traffic = self._env.traffic
        along = place + STEP * np.cumsum(np.c_[np.zeros(len(pace)), pace[:, 1:]], 1)
        rear, ahead = path.at(np.zeros(along.shape, int), along)
        reach = PACIFICA.ahead + (PACIFICA.length - PACIFICA.width) / 2 * DISCS
        own = rear[:, :, None] + reach[:, None] * ahead[:, :, None]  # (P, T, 3, 2)
        moments = STEP * np.arange(pace.shape[1])
        there = np.flatnonzero(traffic.present[0])
        if not len(there):
            return np.ones(len(pace), bool)
        rows = np.broadcast_to(there[:, None], (len(there), len(moments)))
        centre, facing = traffic.paths.at(rows, traffic.place[0, there, None] + traffic.speed[0, there, None] * moments)
        size = traffic.size[0, there]
        length = np.maximum(0, size[:, 0] - size[:, 1])[:, None, None] / 2 * DISCS[None, None]
        others = centre[:, :, None] + length[..., None] * facing[:, :, None]  # (N, T, 3, 2)
        apart = np.linalg.norm(own[:, None, :, :, None] - others[None, :, :, None], axis=-1)  # (P, N, T, 3, 3)
        doubt = DOUBT * moments * (traffic.speed[0, there, None] > 0)
        needed = 0.55 * (PACIFICA.width + size[:, 1, None]) + MARGIN + doubt
        apart = apart.min((3, 4))
        nearer = apart < apart[:, :, :1] - CLOSER  # whoever is near already may be left
        return ~((apart < needed) & nearer).any((1, 2))


class VariedExpert(Expert):
    """The expert half of the time, so that it shows what is usual, and else one with a will of its own.

    Then it speeds up, slows down or stops, and often takes another way than it is told: to learn commands from.
    """

    longest = 32  # steps; later ones show little of what was decided

    def __init__(self, env: DrivingEnv) -> None:
        super().__init__(env, env.np_random.uniform(0.4, 1.0))

    def choose(self) -> None:
        """Decide anew how to drive on."""
        rng, speed, routes = self._env.np_random, self._env.traffic.car[0, SPEED], self._env.scene.routes
        self._limit, self._braking = self._env.scene.limit, BRAKING
        self._take(self._env.scene.chosen)
        if rng.random() < USUAL:
            return
        faster, slower = rng.uniform(1.2, 1.6) * max(speed, SLOW), rng.uniform(0.3, 0.8) * speed
        self._limit, self._braking = rng.choice([faster, slower, 0.0]), rng.uniform(GENTLE, BRISK)
        if rng.random() < STRAYS:
            beside = np.array([np.linalg.norm(route - self._env.pose[:2], axis=-1).min() for route in routes])
            self._take(int(rng.choice(np.flatnonzero(beside < beside[self._route] + SAME_WAY))))


class ConstantVelocity:
    """Baseline: goes on as it began, straight ahead."""

    def __init__(self, env: DrivingEnv) -> None:
        self._env = env

    def command(self) -> Array:
        """Return the ``(2,)`` float32 command."""
        return np.array([self._env.scene.speed, 0.0], np.float32)


DEMONSTRATORS = {"varied": VariedExpert}
DRIVERS = {"expert": Expert, "route at the limit": RouteFollower, "constant velocity": ConstantVelocity}
