"""What another simulator has to build, move and show to carry kinoflow/VideoNav-v0, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import mujoco
import numpy as np

from envs.bodies import PHYSICS_DT, PlanarBody
from envs.rooms import HALF_SIZE
from envs.video_rooms import CEILING, DOOR, VideoRoom
from policies.spec import Array

Vector = tuple[float, ...]

SLAB, GAP = 0.2, 0.002  # m, thickness of a wall, and how far its texture hangs in front of it
POST = (0.05, (0.4, 0.4, 0.4))  # m and colour, what balls stand on


@dataclass(frozen=True)
class Primitive:
    """A solid of one colour; the axis of round ones is z."""

    name: str
    kind: Literal["cuboid", "cylinder", "cone", "sphere"]
    size: Vector  # m, extents along its own axes
    position: Vector  # m, of its centre in the world frame
    yaw: float = 0.0  # rad
    colour: Vector = (0.5, 0.5, 0.5)  # RGB in [0, 1] as it is displayed (sRGB)
    solid: bool = True  # whether it can be touched


@dataclass(frozen=True)
class Poster:
    """A rectangle with a texture that repeats."""

    name: str
    corners: Array  # (4, 3) in m, world frame, counter-clockwise seen from the front
    places: Array  # (4, 2) of the corners in the texture, which is 1 x 1
    texture: Array  # (H, W, 3) uint8


@dataclass(frozen=True)
class Scene:
    """What a simulator has to build: the room, the hull of the robot, the light and the camera."""

    primitives: list[Primitive]
    posters: list[Poster]
    hull: Primitive
    light: Array  # (4,) quaternion of a lamp that shines along its -z axis
    brightness: float
    picture_size: int  # pixels; 0 without a camera


@dataclass(frozen=True)
class Motion:
    """How the robot moves."""

    pose: Array  # (4,) x, y, z in m and yaw in rad
    velocity: Array  # (6,) linear in m/s and angular in rad/s, world frame
    touched: bool  # whether it touched something


class Stage(Protocol):
    """A simulator that a robot can be moved and seen in."""

    def build(self, scene: Scene) -> None:
        """Replace the scene."""

    def place(self, pose: Array) -> None:
        """Put the robot at a pose ``(4,)``, at rest."""

    def tick(self, velocity: Array, command: Array) -> Motion:
        """Go on for `CONTROL_DT` from a velocity ``(6,)`` in the world frame under a command ``(6,)`` in its own."""

    def see(self, position: Array, axes: Array, depth: bool) -> Array:
        """Take a picture ``(3, S, S)`` uint8, or distances ``(S, S)`` float32 in m along the optical axis.

        The camera is at ``position`` (3,); the columns of ``axes`` (3, 3) point right, up and back.
        """

    def close(self) -> None:
        """Free everything."""


def quaternion(axes: Array) -> Array:
    """Quaternion ``(4,)`` w, x, y, z float32 of a rotation matrix ``(3, 3)``.

    The axes of a MuJoCo camera, right, up and back, are those of OpenGL and of a USD camera. In the optical frame of
    ROS, right, down and forward, the last two are reversed.
    """
    result = np.empty(4)
    mujoco.mju_mat2Quat(result, np.asarray(axes, float).ravel())
    return result.astype(np.float32)


def upright(yaw: float) -> Vector:
    """Quaternion w, x, y, z of a turn about the vertical axis."""
    return (float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2)))


def heading(rotation: Array) -> float:
    """Yaw in rad of a quaternion ``(4,)`` w, x, y, z."""
    w, x, y, z = rotation
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def servo(velocity: Array, yaw: float, command: Array) -> Array:
    """Velocity ``(6,)`` in the world frame one physics step later: the lag of `PlanarBody` under a command ``(6,)``."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    wanted = np.array([cos * command[0] - sin * command[1], sin * command[0] + cos * command[1], *command[2:]])
    return velocity + (wanted - velocity) * PHYSICS_DT / PlanarBody.LAG


def primitives(room: VideoRoom) -> list[Primitive]:
    """Landmarks, doors, walls, floor and ceiling of a room."""
    solids: list[Primitive] = []
    for index, item in enumerate(room.landmarks):
        colour, width = tuple(room.look.colour(item.colour)[:3]), 2 * item.half
        name, place = f"landmark{index}", (item.x, item.y)
        if item.kind == "ball":
            stand, (radius, grey) = item.height - width, POST
            size = (2 * radius, 2 * radius, stand)
            solids.append(Primitive(f"post{index}", "cylinder", size, (*place, stand / 2), 0.0, grey))
            solids.append(Primitive(name, "sphere", (width,) * 3, (*place, stand + item.half), 0.0, colour))
        elif item.kind == DOOR:
            size = (0.02, width, item.height)
            solids.append(Primitive(name, "cuboid", size, (*place, item.height / 2), item.yaw, colour, solid=False))
        else:
            kind: Any = {"box": "cuboid"}.get(item.kind, item.kind)
            size = (width, width, item.height)
            solids.append(Primitive(name, kind, size, (*place, item.height / 2), item.yaw, colour))
    return solids + _enclosure(room)


def _enclosure(room: VideoRoom) -> list[Primitive]:
    look, out, side = room.look, HALF_SIZE + SLAB / 2, 2 * (HALF_SIZE + SLAB)
    flat = (side, side, SLAB)
    slabs = [
        Primitive("floor", "cuboid", flat, (0.0, 0.0, -SLAB / 2), 0.0, tuple(look.floor.first)),
        Primitive("ceiling", "cuboid", flat, (0.0, 0.0, CEILING + SLAB / 2), 0.0, tuple(np.clip(look.ceiling, 0, 1))),
    ]
    for index, (x, y) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        place, size = (x * out, y * out, CEILING / 2), (SLAB, side, CEILING)
        slabs.append(Primitive(f"wall{index}", "cuboid", size, place, index * np.pi / 2, tuple(look.walls.first)))
    return slabs


def posters(model: mujoco.MjModel, data: mujoco.MjData) -> list[Poster]:
    """What floor and walls look like: their rectangles, and the textures that MuJoCo drew."""
    found = []
    for name in ("floor", *(f"wall{index}" for index in range(4))):
        geom, shape = data.geom(name), model.geom(name)
        across = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * shape.size[:2]
        flat = np.column_stack([across, np.full(4, GAP)])
        material = model.mat(int(shape.matid[0]))
        texture = model.tex(int(material.texid[mujoco.mjtTextureRole.mjTEXROLE_RGB]))
        height, width, first = (int(value[0]) for value in (texture.height, texture.width, texture.adr))
        pixels = model.tex_data[first : first + height * width * 3].reshape(height, width, 3)
        corners = geom.xpos + flat @ geom.xmat.reshape(3, 3).T
        found.append(Poster(name, corners, across * material.texrepeat, pixels.copy()))
    return found
