"""What a simulated robot needs beside its environment to run in real time. Loads without ROS 2."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from envs.maze_nav import MazeNavEnv
from envs.nav import POLICY_HZ, NavEnv
from envs.rooms import HALF_SIZE, Room
from envs.video_nav import VideoNavEnv
from policies.runtime.loop import Loop
from policies.spec import Array, ContractError

# Mesa's software rasteriser reads this before it draws first. Its threads do not share the priority of the loop that
# waits for them, and small pictures are done sooner without.
os.environ.setdefault("LP_NUM_THREADS", "0")

NAV, VIDEO_NAV, MAZE_NAV = "kinoflow/Nav-v0", "kinoflow/VideoNav-v0", "kinoflow/MazeNav-v0"
MAP_CELL = 0.05  # m
MARGIN = 0.1  # m of the map around the room


def simulated(env: str, embodiment: str, step_hz: float) -> NavEnv:
    """Make an environment for a robot that is driven in real time; its pictures come from `Eyes`.

    Args:
        env: Gymnasium id.
        embodiment: Robot: wheeled, drone or g1.
        step_hz: Steps per second.

    Raises:
        ContractError: Robots do not run in this environment.
    """
    if env == VIDEO_NAV:
        return VideoNavEnv(embodiment, step_hz, images=False)  # type: ignore[arg-type]
    if env == MAZE_NAV:
        return MazeNavEnv(embodiment, step_hz)  # type: ignore[arg-type]
    if env != NAV:
        known = f"{NAV}, {VIDEO_NAV} or {MAZE_NAV}"
        raise ContractError(f"env is '{env}', robots run in {known}; for others there is kinoflow eval")
    return NavEnv(embodiment, step_hz)  # type: ignore[arg-type]


def occupancy(room: Room) -> tuple[Array, float, Array]:
    """Cells of a room that something is in or touches.

    Returns:
        ``(rows, columns)`` bool along y and x, the width of a cell in m, lowest x and y ``(2,)`` in m.
    """
    low = -HALF_SIZE - MARGIN
    middles = np.arange(low + MAP_CELL / 2, -low, MAP_CELL)
    points = np.stack(np.meshgrid(middles, middles), -1)
    return room.clearance(points) <= MAP_CELL / 2, MAP_CELL, np.array([low, low])


def outcome(env: NavEnv) -> dict[str, bool]:
    """Say what has come of an episode so far.

    A language error is to rest at the place where the instruction does not say to stop.
    """
    found = {"success": env.success, "collision": env.collision, "fall": env.body.fallen(env.data)}
    if isinstance(env, VideoNavEnv):
        found |= {"gave_up": env.gave_up, "language_error": env.metrics["stopped_at_other"] > 0}
    return {name: bool(value) for name, value in found.items()}


class Eyes:
    """What the head camera of a simulated robot sees, drawn ten times a second by a loop of its own.

    An OpenGL context belongs to the thread that made it, and physics in real time does not wait for pictures.

    Args:
        embodiment: Robot in kinoflow/VideoNav-v0.
        seed: Seed of the episode.
        take: Called from that loop with a picture ``(3, S, S)`` uint8 and what `look` was given as ``when``.

    Raises:
        RuntimeError: No picture can be rendered.
    """

    def __init__(self, embodiment: str, seed: int, take: Callable[[Array, Any], None]) -> None:
        self._env, self._seed, self._take = VideoNavEnv(embodiment), seed, take  # type: ignore[arg-type]
        self._state: tuple[Array, Any] | None = None
        self._ready, self._closing = threading.Event(), False
        self._loop = Loop(1 / POLICY_HZ, self._tick, on_error=lambda error: self._end())
        self._loop.start()
        self._ready.wait()
        self.check()

    def look(self, positions: Array, when: Any) -> None:
        """Say where everything is now; the next picture shows the newest.

        Args:
            positions: ``(nq,)`` of the simulation; kept, so give a copy.
            when: Handed on with the picture.
        """
        self._state = positions, when

    def check(self) -> None:
        """Raise what has ended the loop, if something has."""
        if not self._loop.running:
            self._loop.join()

    def close(self) -> None:
        """End the loop and free what it drew with."""
        self._closing = True
        self._loop.join()

    def _tick(self, now: float) -> None:
        state, self._state = self._state, None
        if not self._ready.is_set():
            self._env.reset(seed=self._seed)
            self._ready.set()
        elif self._closing:
            self._end()
            self._loop.stop()
        elif state is not None:
            self._env.data.qpos[:], when = state
            self._env.time += 1 / POLICY_HZ
            self._take(self._env.observe()["camera"], when)

    def _end(self) -> None:
        self._env.close()
        self._ready.set()
