"""Goal videos rendered in a room of kinoflow/VideoNav-v0: what a video model would have to imagine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.video_nav import VideoNavEnv
from envs.video_rooms import COLOURS, CURVATURE, DOOR, KINDS, STEP, Landmark, path_to, rounded
from policies.spec import Array, ContractError

SPEED = 0.4  # m/s at which the video pretends to walk
BEHIND = 0.9  # m from the middle of an object to where a camera that went through it stops
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
    """A rendered video: ``frames`` ``(T, 3, S, S)`` uint8, its rate in Hz, and where it comes from.

    ``poses`` ``(T, 4)`` x, y, z, yaw of the robot that films are for a judge; a loop passes on the rest only.
    """

    frames: Array
    rate_hz: float
    poses: Array
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
        return self.film(self.plan(request.prompt), request.frames)

    def film(self, path: Array, frames: int) -> Rendered:
        """Render a walk at constant speed along a path ``(N, 3)``."""
        where, points = np.linspace(0, len(path) - 1, frames), np.arange(len(path))
        poses = self._env.base_poses(np.stack([np.interp(where, points, column) for column in path.T], -1))
        seconds = (len(path) - 1) * STEP / SPEED
        return Rendered(self._env.film(poses), (frames - 1) / seconds, poses)

    def plan(self, prompt: str) -> Array:
        """Path ``(N, 3)`` x, y in m and yaw in rad to where a sentence says to stop; raises like `generate`."""
        env, goal = self._env, destination(prompt, self._env.landmarks)
        if goal == env.walk.final:
            return env.path
        if goal == env.walk.passed:
            return env.path[: env.walk.middle + 1]
        path = self.path_to(goal)
        if path is None:
            raise ContractError(f"there is no way to the {goal.name} that a robot can follow; choose another landmark")
        return path

    def path_to(self, goal: Landmark) -> Array | None:
        """Path from the start of the walk to any landmark, None if there is none that a robot can follow."""
        return path_to(self._env.room, self._env.room.map.routes(self._env.path[0, :2]), goal)


class StrayingImagination(MujocoImagination):
    """Goes wrong: films a faultless walk to another landmark than the sentence says, which the seed chooses."""

    def generate(self, request: Request, seed: int) -> Rendered:
        """Render a walk to a wrong place; raises like that of `MujocoImagination`."""
        env, stop = self._env, self.plan(request.prompt)[-1]
        paths = [path for item in env.landmarks if (path := self.path_to(item)) is not None]
        wrong = [path for path in (*paths, *self._stops()) if np.linalg.norm((path[-1] - stop)[:2]) > env.radius]
        return self.film(wrong[np.random.default_rng(seed).integers(len(wrong))], request.frames)

    def _stops(self) -> tuple[Array, Array]:
        env = self._env
        return env.path, env.path[: env.walk.middle + 1]


class ClippingImagination(MujocoImagination):
    """Goes wrong: the camera goes through an object, which the seed chooses.

    It reaches the right place where no sharp turn is needed for that, which would be another fault, and otherwise stops
    behind the object.
    """

    def generate(self, request: Request, seed: int) -> Rendered:
        """Render a walk that no robot could take; raises like that of `MujocoImagination`."""
        start, end = self.plan(request.prompt)[[0, -1], :2]
        objects = [np.array([item.x, item.y]) for item in self._env.landmarks if item.kind != DOOR]
        paths = [path for middle in objects if _gentle(path := _along(np.array([start, middle, end])))]
        paths = paths or [_along(np.array([start, middle + BEHIND * _unit(middle - start)])) for middle in objects]
        return self.film(paths[np.random.default_rng(seed).integers(len(paths))], request.frames)


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def _along(corners: Array) -> Array:
    """Path ``(N, 3)`` that faces where it goes, along a polyline ``(M, 2)`` whose corners are rounded off."""
    line = rounded(corners)
    direction = np.gradient(line, axis=0)
    return np.column_stack([line, np.unwrap(np.arctan2(direction[:, 1], direction[:, 0]))])


def _gentle(path: Array) -> bool:
    return bool(np.abs(np.diff(path[:, 2])).max() < CURVATURE * STEP)


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
