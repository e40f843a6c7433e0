"""How far a chunk of velocities leads off the way of a goal video, as optical flow shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from policies.egomotion import Camera, floor_depth, jacobian
from policies.senses import FOVY, HEIGHT, PITCH, SIDE

CELLS = 12  # per side of the picture, at which the flow of the floor is looked at


def travelled(chunk: Tensor, names: Sequence[str], dt: float) -> Tensor:
    """Poses that a chunk of velocities leads to, on the floor.

    Args:
        chunk: ``(B, H, A)`` m/s and rad/s in the base frame.
        names: Components, of which vx, vy and wz count.
        dt: Seconds per action.

    Returns:
        ``(B, H, 3)`` x, y in m and yaw in rad in the frame the robot has before the chunk.
    """
    ahead, left, turn = (dt * chunk[..., names.index(name)] for name in ("vx", "vy", "wz"))
    yaw = turn.cumsum(-1)
    middle = yaw - turn / 2
    x = (ahead * middle.cos() - left * middle.sin()).cumsum(-1)
    y = (ahead * middle.sin() + left * middle.cos()).cumsum(-1)
    return torch.stack([x, y, yaw], -1)


def misalignment(poses: Tensor, path: Tensor) -> Tensor:
    """Flow of the floor between what is seen from poses and from the nearest places on a path.

    It is the planar ego-motion relation ``flow = J(Z) * displacement`` at the camera of `policies.senses`: metres and
    radians are weighed as they show in the picture.

    Args:
        poses: ``(B, H, 3)`` x, y in m and yaw in rad.
        path: ``(B, F, 3)`` poses in the same frame; the path is straight between them.

    Returns:
        ``(B, H)`` root mean square in px.
    """
    begin, step = path[:, None, :-1], _turned(path[:, None].diff(dim=2))
    place = poses[:, :, None]
    length = step[..., :2].square().sum(-1).clamp_min(1e-6)
    share = (((place - begin)[..., :2] * step[..., :2]).sum(-1) / length).clamp(0, 1)
    missing = _turned(begin + share[..., None] * step - place)
    cos, sin = place[..., 2].cos(), place[..., 2].sin()
    x, y = missing[..., 0], missing[..., 1]
    missing = torch.stack([cos * x + sin * y, cos * y - sin * x, missing[..., 2]], -1)
    squared = torch.einsum("bhfi,ij,bhfj->bhf", missing, _seen().to(missing), missing)
    return (squared.amin(-1) + 1e-6).sqrt()


def _turned(difference: Tensor) -> Tensor:
    """Differences of poses with the shorter way around."""
    yaw = (difference[..., 2:] + math.pi) % (2 * math.pi) - math.pi
    return torch.cat([difference[..., :2], yaw], -1)


@lru_cache(1)
def _seen() -> Tensor:
    """``(3, 3)`` mean square of the flow of the floor per squared displacement."""
    camera = Camera(SIDE, FOVY, HEIGHT, PITCH)
    depth = floor_depth(camera, CELLS)
    flow = jacobian(camera, CELLS, depth)[depth.isfinite()]
    return torch.einsum("nka,nkb->ab", flow, flow) / len(flow)
