"""Demonstrator and baselines for kinoflow/MetaDrive-v0."""

from __future__ import annotations

import numpy as np

from envs.experts.driving import ConstantVelocity, RouteFollower
from envs.metadrive import CAR
from envs.metrics.reference_planner import idm_acceleration
from envs.metrics.tracker import SPEED
from envs.roads import SPACING
from envs.traffic import SOON, Paths
from policies.spec import Array

SIGHT = 60.0  # m
ASIDE = 0.4  # m beside the car that belong to its way
LATER = (0.0, 1.0, 2.0)  # s in which others may be in its way


class Expert(RouteFollower):
    """Follows its route behind whoever is in its way, or soon will be, by the intelligent driver model."""

    def _speed(self, path: Paths, place: float) -> float:
        traffic = self._env.traffic
        speed = float(traffic.car[0, SPEED])
        gap, pace = self._leader(path, place)
        wish = max(super()._speed(path, place), 0.5)
        change = idm_acceleration(np.array(speed), np.array(wish), np.array(gap), np.array(pace))
        return max(0.0, speed + SOON * float(change))

    def _leader(self, path: Paths, place: float) -> tuple[float, float]:
        """Gap in m to the first one in the way, and its speed in m/s."""
        traffic = self._env.traffic
        route = path.points[0]
        begin = round((place + CAR.front) / SPACING)
        ahead = route[begin : begin + round(SIGHT / SPACING)]
        best, pace = np.inf, 0.0
        for index in np.flatnonzero(traffic.present[0]):
            direction = traffic.direction[0, index]
            for later in LATER:
                spots = _outline(traffic.centre[0, index], direction, traffic.size[0, index])
                spots = spots + later * traffic.speed[0, index] * direction
                apart = np.linalg.norm(ahead[:, None] - spots, axis=-1).min(1) if len(ahead) else np.empty(0)
                near = np.flatnonzero(apart < CAR.width / 2 + ASIDE)
                way = route[min(begin + 1, len(route) - 1)] - route[min(begin, len(route) - 2)]
                # Somebody who drives on ahead of the car is where he is now: he leaves before it comes.
                along = later > 0 and direction @ way > 0.8 * np.linalg.norm(way)
                if len(near) and not along and near[0] * SPACING < best:
                    best, pace = near[0] * SPACING, float(max(0.0, traffic.speed[0, index] * (direction @ way)))
        return float(best), pace if best < np.inf else 0.0


def _outline(centre: Array, direction: Array, size: Array) -> Array:
    """Points ``(15, 2)`` all over a box."""
    along, left = np.meshgrid(np.linspace(-0.5, 0.5, 5), np.linspace(-0.5, 0.5, 3))
    side = np.array([-direction[1], direction[0]])
    return centre + (along.ravel() * size[0])[:, None] * direction + (left.ravel() * size[1])[:, None] * side


DRIVERS = {"expert": Expert, "route at the limit": RouteFollower, "constant velocity": ConstantVelocity}
