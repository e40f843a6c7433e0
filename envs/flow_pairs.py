"""Pairs of pictures of VideoNav-v0 rooms, a short drive apart, and the exact optical flow between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from envs.rooms import sample_point
from envs.video_nav import CAMERA_FOVY, VideoNavEnv
from policies.spec import Array

NEAREST, FARTHEST = (0.0, -0.1, -0.3), (0.35, 0.1, 0.3)  # m ahead, m to the left, rad counter-clockwise
CLEARANCE = 0.4  # m, a camera on a robot comes no nearer to anything
CELL = 4  # px per side of a cell of the network's flow
COLUMNS = ("first", "second", "flow", "share")
HIDDEN = 0.02  # of the depth; what is as much nearer hides a point


@dataclass(frozen=True)
class Pair:
    """Two pictures of a static scene and what moved between them.

    Args:
        first: ``(3, S, S)`` uint8.
        second: Like ``first``, after the drive.
        flow: ``(2, S, S)`` float32, how far right and down in px each pixel of ``first`` has moved in ``second``.
        seen: ``(S, S)`` bool, which pixels of ``first`` are also in ``second``; the flow of others is no task.
        moved: ``(3,)`` m ahead, m to the left and rad counter-clockwise, from where ``first`` was taken.
        height: Of the camera above the floor in m.
        pitch: Of the camera in rad downwards.
    """

    first: Array
    second: Array
    flow: Array
    seen: Array
    moved: Array
    height: float
    pitch: float

    @property
    def twist(self) -> Array:
        """``(3,)`` m, m and rad: the constant planar twist that drives this displacement in one unit of time."""
        x, y, turn = self.moved
        half = 0.5 * turn
        along = half / np.tan(half) if half else 1.0
        return np.array([along * x + half * y, along * y - half * x, turn])

    @property
    def cells(self) -> tuple[Array, Array]:
        """Mean flow ``(2, S / 4, S / 4)`` of what is seen of each cell, and the share that is, ``(S / 4, S / 4)``."""
        share = means(self.seen.astype(np.float32))
        return means(self.seen * self.flow) / np.maximum(share, 1e-6), share


def means(values: Array) -> Array:
    """Means over cells, ``(..., S, S)`` to ``(..., S / 4, S / 4)``."""
    side = values.shape[-1] // CELL
    return values.reshape(*values.shape[:-2], side, CELL, side, CELL).mean((-3, -1), dtype=np.float32)


def exact_flow(depth: Array, moved: Array, pitch: float) -> tuple[Array, Array]:
    """Flow of a static scene when the camera drives over a plane.

    Args:
        depth: ``(S, S)`` m along the optical axis, of the first picture.
        moved: ``(3,)`` displacement as in `Pair`.
        pitch: Of the camera in rad downwards.

    Returns:
        ``(2, S, S)`` float32 px right and down, and the depth ``(S, S)`` in m of each pixel from where the second
        picture is taken, not positive behind it.
    """
    focal = 0.5 * len(depth) / np.tan(0.5 * CAMERA_FOVY)
    right, down = _places(len(depth)) / focal * depth
    level = np.array([[np.cos(pitch), -np.sin(pitch)], [np.sin(pitch), np.cos(pitch)]])  # to (ahead, below), and back
    ahead, below = np.einsum("ij,jhw->ihw", level, np.stack([depth, down]))
    x, y = ahead - moved[0], -right - moved[1]
    cos, sin = np.cos(moved[2]), np.sin(moved[2])
    left = cos * y - sin * x
    there, down = np.einsum("ji,jhw->ihw", level, np.stack([cos * x + sin * y, below]))
    flow = focal * np.stack([-left, down]) / np.maximum(there, 1e-6) - _places(len(depth))
    return flow.astype(np.float32), there


def _places(side: int) -> Array:
    """Centres of the pixels, ``(2, S, S)`` px right of and below the middle of the picture."""
    along = np.arange(side) + 0.5 - 0.5 * side
    return np.stack(np.meshgrid(along, along))


def visible(flow: Array, there: Array, depth: Array) -> Array:
    """Which pixels ``(S, S)`` are in the second picture, whose depths ``(S, S)`` are given, and not hidden there."""
    side = len(depth)
    column, row = np.floor(_places(side) + flow + 0.5 * side).astype(int)
    inside = (there > 0) & (np.minimum(column, row) >= 0) & (np.maximum(column, row) < side)
    # of the neighbours the farthest: a slanted surface must not hide itself
    padded = np.pad(depth, 1, mode="edge")
    around = np.max([padded[i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=0)
    return inside & (there < (1 + HIDDEN) * around[row.clip(0, side - 1), column.clip(0, side - 1)])


def take_pair(env: VideoNavEnv, pose: Array, moved: Array) -> Pair:
    """Photograph a pair in the room that an environment is in.

    Args:
        env: Environment after `reset`.
        pose: ``(3,)`` x, y in m and yaw in rad where the first picture is taken.
        moved: ``(3,)`` displacement as in `Pair`.
    """
    poses = env.base_poses(np.stack([pose, after(pose, moved)]))
    depth, behind = (env.depth(pose) for pose in poses)
    height, pitch = float(env.camera_height), float(env.camera_pitch)
    flow, there = exact_flow(depth, moved, pitch)
    first, second = env.film(poses)
    return Pair(first, second, flow, visible(flow, there, behind), moved, height, pitch)


def after(pose: Array, moved: Array) -> Array:
    """Where a displacement leads to, ``(3,)`` x, y, yaw."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return pose + np.array([cos * moved[0] - sin * moved[1], sin * moved[0] + cos * moved[1], moved[2]])


def sample_pairs(env: VideoNavEnv, count: int, rng: np.random.Generator) -> Iterator[Pair]:
    """Pairs from random places of the room that an environment is in, with random displacements."""
    while count:
        pose = np.array([*sample_point(env.room, rng, CLEARANCE), rng.uniform(-np.pi, np.pi)])
        moved = rng.uniform(NEAREST, FARTHEST)
        if env.room.clearance(after(pose, moved)[:2]) > CLEARANCE:
            count -= 1
            yield take_pair(env, pose, moved)


def pairs_of(seeds: Iterable[int], count: int) -> Iterator[Pair]:
    """Take so many pairs in each of the rooms with these seeds; the same ones every time."""
    env = VideoNavEnv("wheeled")
    try:
        for seed in seeds:
            env.reset(seed=seed)
            yield from sample_pairs(env, count, np.random.default_rng([seed, 2]))
    finally:
        env.close()


def stack_cells(pairs: Iterable[Pair]) -> dict[str, Array]:
    """Arrays to train on: ``first``, ``second`` (N, 3, S, S), ``flow`` and ``share`` of the cells, see `Pair.cells`."""
    rows = [(pair.first, pair.second, *pair.cells) for pair in pairs]
    return {
        name: np.stack(column)
        for name, column in zip(("first", "second", "flow", "share"), zip(*rows, strict=True), strict=True)
    }
