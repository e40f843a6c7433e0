"""Goal videos rendered in a room of kinoflow/VideoNav-v0: what a video model would have to imagine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.video_nav import VideoNavEnv
from envs.video_rooms import COLOURS, DOOR, KINDS, STEP, Landmark, path_to
from policies.spec import Array, ContractError

SPEED = 0.4  # m/s at which the video pretends to walk
NAME = rf"\b({'|'.join(COLOURS)}) ({'|'.join((*KINDS, DOOR))})\b"
STOPPING = r"(?<!not )\b(?:stop|halt|rest|reach|arrive|go to|walk to|drive to)\b"


class Request(Protocol):
    """What is read of a request, see `planners.imagination`."""

    @property
    def prompt(self) -> str: ...
    @property
    def frames(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Rendered:
    """A rendered video: ``frames`` ``(T, 3, S, S)`` uint8, its rate in Hz, and where it comes from."""

    frames: Array
    rate_hz: float
    provenance: str = "rendered"


class MujocoImagination:
    """Plans a path to the landmark at which a sentence says to stop, and films it.

    Args:
        env: Environment with pictures, reset; it is not disturbed.
    """

    def __init__(self, env: VideoNavEnv) -> None:
        self._env = env

    def generate(self, request: Request, seed: int) -> Rendered:
        """Render a walk; the seed makes no difference, because there is nothing to guess.

        Raises:
            ContractError: The sentence names no landmark of the room, or there is no way to it.
        """
        path = self.plan(request.prompt)
        where, points = np.linspace(0, len(path) - 1, request.frames), np.arange(len(path))
        poses = np.stack([np.interp(where, points, column) for column in path.T], -1)
        seconds = (len(path) - 1) * STEP / SPEED
        return Rendered(self._env.film(self._env.base_poses(poses)), (request.frames - 1) / seconds)

    def plan(self, prompt: str) -> Array:
        """Path ``(N, 3)`` x, y in m and yaw in rad to where a sentence says to stop; raises like `generate`."""
        env, goal = self._env, destination(prompt, self._env.landmarks)
        if goal == env.walk.final:
            return env.path
        if goal == env.walk.passed:
            return env.path[: env.walk.middle + 1]
        path = path_to(env.room, env.room.map.routes(env.path[0, :2]), goal)
        if path is None:
            raise ContractError(f"there is no way to the {goal.name} that a robot can follow; choose another landmark")
        return path


def destination(prompt: str, landmarks: Iterable[Landmark]) -> Landmark:
    """The landmark at which a sentence says to stop: the first one named after a word for it, else the last one named.

    Raises:
        ContractError: It names none, or one that is not there.
    """
    known = {landmark.name: landmark for landmark in landmarks}
    text = prompt.lower()
    named = [(match.start(), match[0]) for match in re.finditer(NAME, text)]
    stops = [match.end() for match in re.finditer(STOPPING, text)]
    after = [name for place, name in named if stops and place >= stops[0]]
    goal = after[0] if after else named[-1][1] if named else ""
    if goal not in known:
        raise ContractError(f"the room has no '{goal}' for '{prompt}'; name one of: {', '.join(sorted(known))}")
    return known[goal]
