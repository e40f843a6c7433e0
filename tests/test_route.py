"""Where a chunk leads, and how far that is off the way of a video."""

import math

import pytest
import torch

from policies.egomotion import Camera, floor_depth, flow_of, jacobian
from policies.route import CELLS, misalignment, travelled
from policies.senses import FOVY, HEIGHT, PITCH, SIDE

NAMES = ("vx", "vy", "wz")


def test_a_constant_twist_leads_along_an_arc() -> None:
    speed, turn, dt = 0.5, 0.7, 0.01
    poses = travelled(torch.tensor([speed, 0.0, turn]).expand(1, 200, 3), NAMES, dt)
    angle = turn * dt * torch.arange(1, 201)
    arc = torch.stack([speed / turn * angle.sin(), speed / turn * (1 - angle.cos()), angle], -1)
    torch.testing.assert_close(poses[0], arc, atol=1e-4, rtol=0)


def test_components_are_taken_by_name() -> None:
    chunk = torch.tensor([[[0.1, 0.2, 9.0, 0.0]]])
    torch.testing.assert_close(travelled(chunk, ("vx", "vy", "vz", "wz"), 0.5), torch.tensor([[[0.05, 0.1, 0.0]]]))


def path() -> torch.Tensor:
    """A way that bends to the left, ``(1, 6, 3)``."""
    yaw = torch.linspace(0, 1.0, 6)
    return torch.stack([2 * yaw.sin(), 2 * (1 - yaw.cos()), yaw], -1)[None]


def test_poses_on_the_path_are_aligned() -> None:
    way = path()
    between = (way[:, :-1] + way[:, 1:]) / 2
    for poses in (way, between):
        assert misalignment(poses, way).max() < 0.01


@pytest.mark.parametrize("missing", [(0.0, 0.05, 0.0), (0.0, 0.0, 0.05), (-0.2, 0.0, 0.0)])
def test_misalignment_is_the_flow_of_what_is_missing(missing: tuple[float, float, float]) -> None:
    """Beside, turned away from, and behind the begin of a straight way; the floor shows how far."""
    way = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    poses = torch.tensor(missing)[None, None]
    camera = Camera(SIDE, FOVY, HEIGHT, PITCH)
    depth = floor_depth(camera, CELLS)
    flow = flow_of(-torch.tensor(missing, dtype=torch.float64), jacobian(camera, CELLS, depth).double())
    expected = flow[depth.isfinite()].square().sum(-1).mean().sqrt()
    assert float(misalignment(poses, way)) == pytest.approx(float(expected), rel=1e-3)


def test_misalignment_does_not_depend_on_the_frame() -> None:
    way, poses = path(), torch.tensor([[[0.5, 0.3, -0.2], [1.0, 0.1, 0.4]]])

    def moved(given: torch.Tensor) -> torch.Tensor:
        angle = 3.0
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        return torch.cat([given[..., :2] @ turn + 1.0, given[..., 2:] + angle], -1)

    torch.testing.assert_close(misalignment(moved(poses), moved(way)), misalignment(poses, way), atol=1e-3, rtol=1e-3)
