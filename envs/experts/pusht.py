"""Demonstrator for kinoflow/PushT-v0."""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.experts.pusht_block import (
    ARENA,
    BERTH,
    CENTRE,
    GYRATION,
    HALF,
    OFFSET,
    RADIUS,
    Contact,
    Pose,
    Routes,
    Stroke,
    blocked,
)
from envs.experts.pusht_planner import plan
from policies.spec import Array

PUSH_LEAD = 22.0  # px ahead of the agent; it moves by 0.4 of that per step
TRAVEL_LEAD = 40.0
OVERSHOOT = 1.0  # px beyond the end of a stroke, which is otherwise approached for ever
JUMP = 30.0  # px, between successive commands
LANE = 14.0  # px beside a contact within which the agent closes in on it
STRAIGHT = 4.0  # px beside a contact within which it pushes at full speed
DONE = 0.6  # px, travel of the contact left of a finished stroke
DRIFT = 5.0  # px, beside the arc
STEER = 20.0  # px, travel over which deviations are corrected
CORRECTION = 10.0  # px, largest correction of the lever


class Expert:
    """Plans a stroke, walks around the block to its contact, pushes along its arc, and plans anew.

    A stroke is given up when the block has left its arc. Commands move by at most `JUMP` per step.

    Args:
        env: A `envs.pusht.PushTEnv`; its simulation is only read.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._stroke: Stroke | None = None
        self._last: complex | None = None

    def command(self) -> Array:
        """Return the ``(2,)`` float32 position in px to move to."""
        if self._env.time == 0:
            self._stroke = self._last = None
        agent = complex(*self._env.game.agent.position)
        target = agent if self._env.success else self._target(agent)
        last = agent if self._last is None else self._last
        self._last = last + (target - last) * min(1.0, JUMP / max(abs(target - last), 1e-9))
        return np.clip([self._last.real, self._last.imag], 0, ARENA).astype(np.float32)

    def _target(self, agent: complex) -> complex:
        pose = self._pose()
        routes = Routes(pose, agent)
        stroke = self._rest(pose)
        if stroke is None:
            self._stroke = stroke = plan(pose, self._goal(), routes)
            self._end = stroke.applied(pose)
        point = _push(pose, stroke, routes.agent)
        return complex(pose.world(_ahead(routes.path(stroke.contact)))) if point is None else point

    def _pose(self) -> Pose:
        block = self._env.game.block
        return Pose(np.array(complex(*block.local_to_world((0, CENTRE.imag)))), np.array(block.angle))

    def _goal(self) -> Pose:
        x, y, angle = self._env.game.goal_pose
        return Pose(np.array(x + 1j * y + CENTRE * np.exp(1j * angle)), np.array(angle))

    def _rest(self, pose: Pose) -> Stroke | None:
        """What is left of the present stroke, at a contact that steers towards its end; None when it is over."""
        if self._stroke is None:
            return None
        face, lever = self._stroke.contact
        way, turn = pose.to(self._end)
        way = way / self._stroke.contact.normal
        effort = self._stroke.contact.effort
        length = (way.real + lever * turn) / effort
        astray = abs(way - length) + 55 * abs(turn - lever * length / GYRATION)
        if length * effort < DONE or abs(way.imag) > DRIFT or astray > 3 * DRIFT:
            return None
        steering = (turn * GYRATION - lever * length) / max(length, STEER)
        lever = lever + np.clip(steering, -CORRECTION, CORRECTION)
        lever = np.clip(lever, OFFSET[face] - HALF[face], OFFSET[face] + HALF[face])
        return Stroke(Contact(face, lever), length)


def _push(pose: Pose, stroke: Stroke, agent: complex) -> complex | None:
    """Where to move from in front of the contact: beside it towards it, then along the stroke's arc; None elsewhere."""
    contact = stroke.contact
    offset = (agent - contact.agent(0)) / contact.normal
    gap, slip = -offset.real - RADIUS, abs(offset.imag)
    if not (-6 < gap < BERTH - RADIUS + 3 and slip < LANE):
        return None
    lead = min(PUSH_LEAD, max(gap, 0) + stroke.length * contact.effort + OVERSHOOT)
    lead *= np.clip((LANE - slip) / (LANE - STRAIGHT), 0, 1)
    ahead = Stroke(contact, np.maximum(lead - max(gap, 0), 0) / contact.effort)
    return complex(ahead.applied(pose).world(contact.agent(RADIUS + max(gap - lead, 0))))


def _ahead(path: Array) -> Array:
    """The farthest point of a path within the lead that is in sight of its begin."""
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(path)))])
    away = np.arange(TRAVEL_LEAD, 0, -4.0)
    points = np.interp(away, length, path.real) + 1j * np.interp(away, length, path.imag)
    seen = ~blocked(path[0], points, RADIUS + 1)
    return points[seen.argmax() if seen.any() else np.abs(away - abs(path[1] - path[0])).argmin()]


DRIVERS = {"expert": Expert}
