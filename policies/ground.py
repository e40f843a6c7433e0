"""Where a robot may be, read off what it observes: how much room there is around poses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from policies.norm import Normaliser
from policies.raster import BACK, EDGE, PER_METRE, PIXEL, PIXELS, RASTER
from policies.spec import Spec

OTHERS = "others"
"""Table with a row each: x, y, cos and sin of the heading, speed, length, width, kind; zeros where there is nobody."""
SCAN = "scan"
"""Ranges in m over 360 degrees, beam 0 pointing backwards, counter-clockwise."""

AHEAD = ("nothing", "vehicle", "person", "thing")
CORRIDOR, FAR, ROBOT_FAR = 1.6, 30.0, 2.0  # m: half of the width of the way straight ahead, and how far it counts
CAR = ((4.049, 1.15), (4.049, -1.15), (-1.127, 1.15), (-1.127, -1.15))  # corners about the rear axle, m
CAR_DISCS, CAR_RADIUS = ((0.02, 0.0), (1.46, 0.0), (2.9, 0.0)), 1.15  # about the rear axle, m; corners stick out
ROBOT_RADIUS = 0.3  # m


class Ground(nn.Module, ABC):
    """Says how much room there is. Observations are in normal units; `prepare` tells what these stand for."""

    def prepare(self, normaliser: Normaliser) -> None:
        """Take note of what normal units stand for."""

    @abstractmethod
    def margin(self, observation: Mapping[str, Tensor], poses: Tensor) -> Tensor:
        """Room in m around poses ``(B, N, 3)``, negative where the robot must not be: ``(B, N)``."""

    def clearance(self, observation: Mapping[str, Tensor], poses: Tensor, dt: float) -> Tensor:
        """Least room in m along paths ``(B, N, T, 3)`` with ``dt`` s between poses, others moving on: ``(B, N)``."""
        return self.margin(observation, poses.flatten(1, 2)).unflatten(1, poses.shape[1:3]).amin(-1)

    def ahead(self, observation: Mapping[str, Tensor]) -> Tensor:
        """What is first in the way straight ahead, index into `AHEAD`: ``(B,)``."""
        values = max(observation.values(), key=len)  # what is constant may be given once for several
        return torch.zeros(len(values), dtype=torch.long, device=values.device)


class Anywhere(Ground):
    """Nothing is known of the ground."""

    def margin(self, observation: Mapping[str, Tensor], poses: Tensor) -> Tensor:
        return torch.ones_like(poses[..., 0])


class ScanGround(Ground):
    """Free is what a laser scan reaches, less the radius of the robot."""

    beams: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        beams = next(feature for feature in spec.observations if feature.name == SCAN).shape[0]
        angles = -math.pi + 2 * math.pi / beams * torch.arange(beams)
        self.register_buffer("beams", torch.stack([angles.cos(), angles.sin()], -1), persistent=False)
        self.register_buffer("offset", torch.zeros(beams))
        self.register_buffer("scale", torch.ones(beams))

    def prepare(self, normaliser: Normaliser) -> None:
        for buffer, value in zip((self.offset, self.scale), normaliser.statistics_of(SCAN), strict=True):
            buffer.copy_(value)

    def margin(self, observation: Mapping[str, Tensor], poses: Tensor) -> Tensor:
        ranges = observation[SCAN][:, -1] * self.scale + self.offset
        places = poses[..., :2]
        hits = ranges[..., None] * self.beams
        nearest = (places[:, :, None] - hits[:, None]).norm(dim=-1).amin(-1)
        towards = (places[:, :, None] * self.beams).sum(-1).argmax(-1)  # no matrix product: bfloat16 is too coarse
        in_sight = ranges.gather(1, towards) - places.norm(dim=-1)
        return torch.minimum(nearest, in_sight) - ROBOT_RADIUS

    def ahead(self, observation: Mapping[str, Tensor]) -> Tensor:
        ranges = observation[SCAN][:, -1] * self.scale + self.offset
        x, y = (ranges[..., None] * self.beams).unbind(-1)
        blocked = ((x > 0) & (x < ROBOT_FAR) & (y.abs() < 1.5 * ROBOT_RADIUS)).any(-1)
        return AHEAD.index("thing") * blocked.long()


class RasterGround(Ground):
    """Free is the road of a raster from above; others are where their speed takes them."""

    corners: Tensor
    points: Tensor
    radius: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.register_buffer("corners", torch.tensor(CAR), persistent=False)
        self.register_buffer("points", torch.tensor(CAR_DISCS + CAR), persistent=False)
        self.register_buffer("radius", torch.tensor([CAR_RADIUS] * len(CAR_DISCS) + [0.0] * len(CAR)), persistent=False)
        rows = [feature.shape for feature in spec.observations if feature.name == OTHERS]
        self.knows_others = bool(rows)
        if rows:
            self.register_buffer("offset", torch.zeros(rows[0]))
            self.register_buffer("scale", torch.ones(rows[0]))

    def prepare(self, normaliser: Normaliser) -> None:
        if self.knows_others:
            for buffer, value in zip((self.offset, self.scale), normaliser.statistics_of(OTHERS), strict=True):
                buffer.copy_(value)

    def margin(self, observation: Mapping[str, Tensor], poses: Tensor) -> Tensor:
        cos, sin = poses[..., 2, None].cos(), poses[..., 2, None].sin()
        x = poses[..., 0, None] + cos * self.corners[:, 0] - sin * self.corners[:, 1]
        y = poses[..., 1, None] + sin * self.corners[:, 0] + cos * self.corners[:, 1]
        half = PIXELS * PIXEL / 2  # the grid spans [-1, 1] from edge to edge, first its column, then its row
        places = torch.stack([-y / half, 1 - (x + BACK) / half], -1)
        edge = observation[RASTER.name][:, -1, :1].float()
        seen = functional.grid_sample(edge, places, padding_mode="border", align_corners=False)
        return (seen[:, 0].amin(-1) - EDGE) / PER_METRE

    def clearance(self, observation: Mapping[str, Tensor], poses: Tensor, dt: float) -> Tensor:
        road = super().clearance(observation, poses, dt)
        if not self.knows_others:
            return road
        others = (observation[OTHERS][:, -1] * self.scale + self.offset)[:, None, None]  # (B, 1, 1, M, 8)
        x, y, cos, sin, speed, length, width, _ = others.unbind(-1)
        after = dt * torch.arange(1, poses.shape[2] + 1, device=poses.device)[:, None] * speed
        own_cos, own_sin = poses[..., 2, None].cos(), poses[..., 2, None].sin()
        own_x = poses[..., 0, None] + own_cos * self.points[:, 0] - own_sin * self.points[:, 1]  # (B, N, T, points)
        own_y = poses[..., 1, None] + own_sin * self.points[:, 0] + own_cos * self.points[:, 1]
        dx = own_x[..., None] - (x + after * cos)[..., None, :]
        dy = own_y[..., None] - (y + after * sin)[..., None, :]
        cos, sin, length, width = (part[..., None, :] for part in (cos, sin, length, width))
        along = (cos * dx + sin * dy).abs() - length / 2
        beside = (cos * dy - sin * dx).abs() - width / 2
        outside = (along.clamp(min=0).square() + beside.clamp(min=0).square() + 1e-9).sqrt()
        gap = outside + torch.maximum(along, beside).clamp(max=0) - self.radius[:, None]
        gap = torch.where(length > 0.01, gap, 1e3)
        return torch.minimum(road, gap.flatten(-3).amin(-1))

    def ahead(self, observation: Mapping[str, Tensor]) -> Tensor:
        if not self.knows_others:
            return super().ahead(observation)
        x, y, _, _, _, length, _, kind = (observation[OTHERS][:, -1] * self.scale + self.offset).unbind(-1)
        there = (length > 0.01) & (x > 0) & (x < FAR) & (y.abs() < CORRIDOR)
        first = torch.where(there, x, torch.inf).argmin(-1, keepdim=True)
        what = torch.where(kind > 0.5, AHEAD.index("person"), torch.where(kind < -0.5, AHEAD.index("thing"), 1))
        return torch.where(there.any(-1), what.gather(1, first)[:, 0], 0)


def ground_of(spec: Spec) -> Ground:
    """What tells the free ground among the observations of a contract."""
    names = {feature.name for feature in spec.observations}
    if RASTER.name in names:
        return RasterGround(spec)
    return ScanGround(spec) if SCAN in names else Anywhere()
