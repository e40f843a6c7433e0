"""A video generator without a simulator: a camera moves through a room of textured planes, drawn by casting rays."""

from __future__ import annotations

import math

import numpy as np

from planners.imagination import Request, Video
from policies.egomotion import Camera

Array = np.ndarray

CAMERA = Camera(size=96, fovy=math.radians(80), height=1.2, pitch=math.radians(10))
RATE_HZ = 8.0
CEILING = 2.6  # m
TEXEL = 0.03  # m


class TexturedRoom:
    """Drives a smooth curve from rest to rest through a room with boxes and films it; the seed decides on everything.

    Args:
        contrast: Of the textures, 0 to 1; by default the seed decides.
        bob: Whether the camera sways like that of a walking robot; by default the seed decides.
        still: Pictures at the end for which the camera stands.
    """

    def __init__(self, contrast: float | None = None, bob: bool | None = None, still: int = 4) -> None:
        self._contrast, self._bob, self._still = contrast, bob, still

    def generate(self, request: Request, seed: int) -> Video:
        rng = np.random.default_rng(seed)
        path = self._path(request.frames, rng)
        boxes = _boxes(path, rng)
        textures = [
            _texture(rng, rng.uniform(0.3, 1.0) if self._contrast is None else self._contrast) for _ in range(8)
        ]
        rays = _rays(request.size)
        frames = np.stack([_draw(pose, rays, boxes, textures) for pose in path])
        frames = frames.reshape(-1, *request.size, 3).transpose(0, 3, 1, 2)
        noise = rng.normal(0, rng.uniform(0, 2), frames.shape)
        noise[len(frames) - self._still :] = noise[-1] if self._still else noise[-1:]
        return Video(np.clip(frames + noise, 0, 255).astype(np.uint8), RATE_HZ, "rendered")

    def _path(self, frames: int, rng: np.random.Generator) -> Array:
        """``(frames, 5)``: x, y, z, yaw, pitch of the camera."""
        time = np.arange(frames) / RATE_HZ
        moving = time[-1 - self._still] if self._still else time[-1]
        ramp = np.clip(np.minimum(time + 1 / RATE_HZ, moving - time) / 0.8, 0, 1)
        speed = ramp * rng.uniform(0.25, 0.55)
        turning = ramp * rng.uniform(0.1, 0.6) * np.sin(rng.uniform(0.3, 0.9) * time + rng.uniform(0, 2 * np.pi))
        yaw = np.cumsum(turning) / RATE_HZ
        bobs = rng.random() < 0.5 if self._bob is None else self._bob
        sway = np.sin(2 * np.pi * 1.7 * time) * ramp * bobs
        x, y = np.cumsum(speed * np.cos(yaw)) / RATE_HZ, np.cumsum(speed * np.sin(yaw)) / RATE_HZ
        return np.stack([x, y, CAMERA.height + 0.015 * sway, yaw, CAMERA.pitch + 0.01 * sway], -1)


def _boxes(path: Array, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Corners of the room, then of up to six boxes that leave the path free."""
    low, high = path[:, :2].min(0), path[:, :2].max(0)
    room = np.array([*(low - rng.uniform(1.5, 4, 2)), 0.0]), np.array([*(high + rng.uniform(1.5, 4, 2)), CEILING])
    boxes = [room]
    for _ in range(6):
        centre, half = rng.uniform(room[0][:2], room[1][:2]), rng.uniform(0.15, 0.5, 2)
        if np.linalg.norm(path[:, :2] - centre, axis=1).min() > 0.5 + np.linalg.norm(half):
            boxes.append((np.array([*(centre - half), 0.0]), np.array([*(centre + half), rng.uniform(0.4, 1.8)])))
    return boxes


def _texture(rng: np.random.Generator, contrast: float) -> Array:
    """``(256, 256, 3)`` smooth noise that can be laid side by side."""
    import cv2

    colour, picture = rng.uniform(90, 165, 3), np.zeros((256, 256, 3))
    for cells, weight in ((8, 0.4), (24, 0.6), (48, 0.6)):
        grid = np.tile(rng.uniform(-1, 1, (cells, cells, 3)), (3, 3, 1))
        size = 3 * 256
        picture += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)[256:512, 256:512]
    return (colour + 75 * contrast * picture).astype(np.float32)


def _rays(size: tuple[int, int]) -> Array:
    """``(H * W, 3)`` directions of a level camera that looks along x: x forward, y left, z up."""
    height, width = size
    focal = 0.5 * height / math.tan(0.5 * CAMERA.fovy)
    down, right = np.meshgrid(np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2, indexing="ij")
    return np.stack([np.full(down.size, focal), -right.ravel(), -down.ravel()], -1) / focal


def _draw(pose: Array, rays: Array, boxes: list[tuple[Array, Array]], textures: list[Array]) -> Array:
    import cv2

    yaw, pitch = pose[3:]
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    dip = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    directions = rays @ (turn @ dip).T
    nearest, places, surface = np.full(len(rays), np.inf), np.zeros((len(rays), 2)), np.zeros(len(rays), int)
    for index, (low, high) in enumerate(boxes):
        with np.errstate(divide="ignore"):
            one, other = (low - pose[:3]) / directions, (high - pose[:3]) / directions
        enter, leave = np.minimum(one, other), np.maximum(one, other)
        axis = leave.argmin(1) if index == 0 else enter.argmax(1)  # the room is seen from within
        distance = leave.min(1) if index == 0 else np.where(enter.max(1) < leave.min(1), enter.max(1), np.inf)
        hit = (distance > 0) & (distance < nearest)
        points = pose[:3] + directions[hit] * distance[hit, None]
        kept = np.array([[1, 2], [0, 2], [0, 1]])[axis[hit]]
        places[hit] = np.take_along_axis(points, kept, 1) / TEXEL + 37 * index
        floor = (axis[hit] == 2) & (points[:, 2] < 0.5 * CEILING) & (index == 0)
        surface[hit] = np.where(floor, 0, 1 + (index + axis[hit]) % 7)
        nearest[hit] = distance[hit]
    picture = np.zeros((len(rays), 3), np.float32)
    for index, texture in enumerate(textures):
        hit = surface == index
        if hit.any():
            x, y = places[hit].T.astype(np.float32)
            found = cv2.remap(texture, x[:, None], y[:, None], cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
            picture[hit] = found[:, 0]
    return picture
