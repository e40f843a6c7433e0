"""Optical flow of a static scene is linear in the twist of the body that carries the camera; here both ways.

Body: x forward, y left, z up, yaw rate counter-clockwise (REP-103). Camera: X right, Y down, Z along the optical axis,
to which depths refer; it sits above the point the twist refers to. Places in the picture are px right of and below its
centre. Everything works on leading batch dimensions and survives `torch.export`, except `ego_motion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from policies.spec import Array

Grid = int | Tensor
"""Cells along each side of the picture, or ``(..., N, 2)`` places in it."""

PLANAR = ("vx", "vy", "wz")
TRANSLATIONS = {"vx": (0.0, 0.0, 1.0), "vy": (-1.0, 0.0, 0.0), "vz": (0.0, -1.0, 0.0)}  # in the level camera frame
ROTATIONS = {"wz": (0.0, -1.0, 0.0)}
NOISE_PX = 0.25  # of a good flow; whatever misses by much more belongs to something else
ROUNDS = 6
RIDGE = 1e-4  # squared px per squared unit of the twist, a millionth of what a floor in sight gives


@dataclass(frozen=True)
class Camera:
    """Pinhole camera with a square picture that looks forward.

    Args:
        size: Side of the picture in px.
        fovy: Vertical field of view in rad.
        height: Of the camera above the floor in m.
        pitch: Angle of the optical axis below the horizon in rad.
    """

    size: int
    fovy: float
    height: float
    pitch: float

    @property
    def focal(self) -> float:
        """Focal length in px."""
        return 0.5 * self.size / math.tan(0.5 * self.fovy)

    @property
    def levelling(self) -> Tensor:
        """``(3, 3)`` rotation from the camera frame to the level one, which looks at the horizon."""
        sine, cosine = math.sin(self.pitch), math.cos(self.pitch)
        return torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]], dtype=torch.float64)

    def places(self, grid: Grid) -> Tensor:
        """Centres of the cells of a grid row by row, ``(grid * grid, 2)`` px; given places come back as they are."""
        if isinstance(grid, Tensor):
            return grid
        along = (torch.arange(grid, dtype=torch.float32) + 0.5) * (self.size / grid) - 0.5 * self.size
        down, right = torch.meshgrid(along, along, indexing="ij")
        return torch.stack([right, down], -1).reshape(-1, 2)

    def directions(self, grid: Grid) -> Tensor:
        """``(..., N, 3)`` directions of depth 1 in the camera frame."""
        return functional.pad(self.places(grid) / self.focal, (0, 1), value=1.0)

    def rays(self, grid: Grid) -> Tensor:
        """``(..., N, 3)`` directions of depth 1 in the level camera frame: times the depth they are scene points."""
        directions = self.directions(grid)
        return directions @ self.levelling.mT.to(directions.dtype)


class EgoMotion(NamedTuple):
    """Motion of a body as its camera saw it.

    Args:
        twist: ``(A,)`` velocities in m/s and rad/s.
        weights: ``(n, n)`` in [0, 1], how well each cell agrees with the motion of a floor; 0 above the horizon.
        error: Weighted mean distance of the flow from that motion in px; large when there is no such motion.
    """

    twist: Array
    weights: Array
    error: float


def floor_depth(camera: Camera, grid: Grid) -> Tensor:
    """Depth ``(..., N)`` of the floor in m where a place sees it, infinite from the horizon upwards."""
    down = camera.rays(grid)[..., 1]
    return torch.where(down > 0, camera.height / down.clamp_min(1e-9), torch.inf)


def jacobian(camera: Camera, grid: Grid, depth: Tensor, names: Sequence[str] = PLANAR) -> Tensor:
    """Flow per unit of the twist, ``(..., N, 2, A)`` in px/s per m/s or rad/s.

    A scene point moves by ``-t - w x P`` in the frame of a camera with the velocities t and w; its picture moves by the
    part of that across the line of sight, divided by the depth.

    Args:
        camera: Camera on the body.
        grid: Cells per side, or places.
        depth: ``(..., N)`` m along the optical axis; infinite ones move by rotation only.
        names: Components of the twist, of vx, vy, vz and wz.

    Raises:
        ValueError: A component is none of these.
    """
    unknown = [name for name in names if name not in TRANSLATIONS | ROTATIONS]
    if unknown:
        raise ValueError(f"no flow is known for '{unknown[0]}'; a twist is made of {[*TRANSLATIONS, *ROTATIONS]}")
    rays = camera.directions(grid)[..., None, :]
    translation, rotation = (_axes(camera, table, names).to(rays.dtype) for table in (TRANSLATIONS, ROTATIONS))
    motion = -translation / depth[..., None, None] - torch.linalg.cross(rotation.expand(*rays.shape[:-2], -1, -1), rays)
    return camera.focal * (motion[..., :2] - rays[..., :2] * motion[..., 2:]).mT


def _axes(camera: Camera, table: dict[str, tuple[float, float, float]], names: Sequence[str]) -> Tensor:
    """Camera velocity ``(A, 3)`` in its own frame per component of the twist."""
    level = torch.tensor([table.get(name, (0.0, 0.0, 0.0)) for name in names], dtype=torch.float64)
    return level @ camera.levelling


def flow_of(twist: Tensor, jacobian: Tensor) -> Tensor:
    """Flow ``(..., N, 2)`` in px/s of a twist ``(..., A)``; times the time between two pictures it is px."""
    return (jacobian @ twist[..., None, :, None])[..., 0]


def twist_of(flow: Tensor, jacobian: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares.

    Args:
        flow: ``(..., N, 2)`` px/s.
        jacobian: ``(..., N, 2, A)``.
        weights: ``(..., N)``, not negative; their scale does not matter. Where all are 0 the twist is 0.

    Returns:
        twist ``(..., A)`` and residual ``(..., N, 2)``, the flow it leaves unexplained, in px/s.
    """
    shares = weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
    weighted = (shares[..., None, None] * jacobian).flatten(-3, -2).mT
    inverse = _inverse(weighted @ jacobian.flatten(-3, -2))
    twist, residual = torch.zeros_like(weighted[..., 0]), flow
    for _ in range(2):  # the second time mends what rounding left, which differs from one runtime to the next
        twist = twist + (inverse @ (weighted @ residual.flatten(-2)[..., None]))[..., 0]
        residual = flow - flow_of(twist, jacobian)
    return twist, residual


def _inverse(matrix: Tensor) -> Tensor:
    """Gauss-Jordan elimination: ONNX has no solver, and a positive definite matrix needs no pivoting."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    system = torch.cat([matrix + RIDGE * identity, identity.expand_as(matrix)], -1)
    for k, unit in enumerate(identity.unbind()):
        row = system[..., k : k + 1, :] / system[..., k : k + 1, k : k + 1]
        system = system - (system[..., :, k : k + 1] - unit[:, None]) * row
    return system[..., matrix.shape[-1] :]


def robust_twist_of(flow: Tensor, jacobian: Tensor, weights: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Least squares that loses interest in what does not fit (Geman & McClure's weights, by graduated non-convexity).

    Args:
        flow: ``(..., N, 2)`` px/s.
        jacobian: ``(..., N, 2, A)``.
        weights: ``(..., N)`` in [0, 1], trust in each place beforehand.
        noise: Usual error of the flow in px/s.

    Returns:
        twist ``(..., A)`` and the trust ``(..., N)`` afterwards.
    """
    trust = weights
    for k in reversed(range(ROUNDS)):  # from a scale at which all may fit down to the noise
        _, residual = twist_of(flow, jacobian, trust)
        trust = weights / (1 + residual.square().sum(-1) / (noise * 2**k) ** 2).square()
    return twist_of(flow, jacobian, trust)[0], trust


def ego_motion(flow: Array, camera: Camera, dt: float, names: Sequence[str] = PLANAR) -> EgoMotion:
    """Estimate how the body moved between two pictures from what the floor did.

    The relation is taken where each floor point was halfway, so its error is of third order in the displacement.

    Args:
        flow: ``(2, n, n)`` px of the full picture, right and down, on a grid of n cells per side.
        camera: Camera on the body.
        dt: Time between the pictures in s.
        names: Components of the twist.
    """
    cells = torch.from_numpy(np.asarray(flow, np.float32)).flatten(1).mT
    halfway = camera.places(flow.shape[-1]) + 0.5 * cells
    depth = floor_depth(camera, halfway)
    # The closer the floor would be, the less likely something stands in front of it. What has left is a guess.
    stays = (halfway + 0.5 * cells).abs().amax(-1) < 0.5 * camera.size
    prior = stays * (camera.height / depth).clamp_max(1)
    relation = jacobian(camera, halfway, depth, names)
    twist, trust = robust_twist_of(cells / dt, relation, prior, NOISE_PX / dt)
    distance = (cells - dt * flow_of(twist, relation)).norm(dim=-1)
    error = float((trust * distance).sum() / trust.sum().clamp_min(1e-9))
    return EgoMotion(twist.numpy().astype(np.float32), trust.reshape(flow.shape[1:]).numpy(), error)
