"""The relation between optical flow and the twist of the body, against a scene that is moved and projected anew."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from policies.dis import dis_flow
from policies.egomotion import (
    PLANAR,
    Camera,
    ego_motion,
    floor_depth,
    flow_of,
    jacobian,
    robust_twist_of,
    twist_of,
)
from policies.spec import Array

CAMERA = Camera(size=96, fovy=math.radians(80), height=1.2, pitch=math.radians(10))
NAMES = ("vx", "vy", "vz", "wz")
TWIST = (0.5, -0.15, 0.4)
GRID = 24


def project(points: Array, camera: Camera, moved: Array, turned: float) -> Array:
    """Picture ``(N, 2)`` of points (N, 3) given in the body frame at the start, from a body that moved and turned."""
    x, y, z = (points - moved).T
    ahead = math.cos(turned) * x + math.sin(turned) * y
    left = math.cos(turned) * y - math.sin(turned) * x
    below = camera.height - z
    depth = math.cos(camera.pitch) * ahead + math.sin(camera.pitch) * below
    down = math.cos(camera.pitch) * below - math.sin(camera.pitch) * ahead
    return camera.focal * np.stack([-left, down], -1) / depth[:, None]


def scene(camera: Camera, depth: Array) -> Array:
    """Points ``(N, 3)`` in the body frame that the cells of a grid see at the given depths."""
    x, down, ahead = (camera.rays(camera.places(GRID).double()).numpy() * depth[:, None]).T
    return np.stack([ahead, -x, camera.height - down], -1)


def floor_flow(twist: Array, dt: float, grid: int = GRID) -> Array:
    """Exact flow ``(2, grid, grid)`` in px of a floor below a body on an arc; zero where there is no floor."""
    places = CAMERA.places(grid)
    depth = floor_depth(CAMERA, places).double().numpy()
    seen = np.isfinite(depth)
    x, down, ahead = (CAMERA.rays(places.double()).numpy()[seen] * depth[seen, None]).T
    points = np.stack([ahead, -x, CAMERA.height - down], -1)
    angle = twist[2] * dt
    along, across = math.sin(angle) / angle, (1 - math.cos(angle)) / angle
    moved = dt * np.array([along * twist[0] - across * twist[1], across * twist[0] + along * twist[1], 0.0])
    flow = np.zeros((grid * grid, 2))
    flow[seen] = project(points, CAMERA, moved, angle) - places.numpy()[seen]
    return flow.T.reshape(2, grid, grid).astype(np.float32)


def relation(grid: int = GRID, names: tuple[str, ...] = PLANAR) -> tuple[Tensor, Tensor]:
    depth = floor_depth(CAMERA, grid)
    return jacobian(CAMERA, grid, depth, names), depth.isfinite().float()


@pytest.mark.parametrize("pitch", [0.0, 0.17, -0.4])
@pytest.mark.parametrize("axis", range(4), ids=NAMES)
def test_scene_points_move_as_the_jacobian_says(axis: int, pitch: float) -> None:
    camera = Camera(96, 1.2, 1.1, pitch)
    depth = np.random.default_rng(0).uniform(0.5, 5, GRID**2)
    points, step = scene(camera, depth), 1e-5
    moved = np.eye(4)[axis][:3] * step  # the fourth has no part in it
    turned = step * (axis == 3)
    before, after = (project(points, camera, sign * moved, sign * turned) for sign in (-1, 1))
    found = jacobian(camera, camera.places(GRID).double(), torch.from_numpy(depth), NAMES)
    np.testing.assert_allclose(found[..., axis].numpy(), (after - before) / (2 * step), rtol=1e-6, atol=1e-6)


def test_points_at_infinity_move_by_rotation_only() -> None:
    found = jacobian(CAMERA, GRID, torch.full((GRID**2,), torch.inf), NAMES)
    assert (found[..., :3] == 0).all() and (found[..., 3].norm(dim=-1) > 10).all()


def test_turning_left_moves_the_picture_right_and_walking_on_moves_the_floor_down() -> None:
    found, floor = relation()
    seen = found[floor > 0]
    assert (found[:, 0, 2] > 0).all() and (seen[:, 1, 0] > 0).all() and (seen[:, 0, 1] > 0).all()


def test_every_cell_below_the_horizon_sees_the_floor() -> None:
    depth = floor_depth(CAMERA, GRID)
    points = scene(CAMERA, depth.double().numpy())
    below = CAMERA.places(GRID)[:, 1] > -CAMERA.focal * math.tan(CAMERA.pitch)
    assert (depth.isfinite() == below).all()
    np.testing.assert_allclose(points[below.numpy(), 2], 0, atol=1e-4)


def test_a_coarse_grid_sees_the_middle_of_its_cells() -> None:
    fine = CAMERA.places(96).reshape(24, 4, 24, 4, 2).mean((1, 3)).reshape(-1, 2)
    torch.testing.assert_close(CAMERA.places(24), fine)
    assert CAMERA.focal == pytest.approx(48 / math.tan(math.radians(40)))


@pytest.mark.parametrize("names", [PLANAR, NAMES])
def test_a_twist_survives_the_way_to_flow_and_back(names: tuple[str, ...]) -> None:
    found, floor = relation(names=names)
    twist = torch.randn(5, len(names), generator=torch.Generator().manual_seed(0))
    returned, residual = twist_of(flow_of(twist, found), found, floor.expand(5, -1))
    torch.testing.assert_close(returned, twist, rtol=1e-3, atol=1e-3)
    assert residual.abs().max() < 1e-3


def test_least_squares_agree_with_a_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    found, _ = relation()
    flow, weights = torch.randn(GRID**2, 2, generator=generator), torch.rand(GRID**2, generator=generator)
    rows = (weights.sqrt()[:, None, None] * found).flatten(0, 1)
    expected = torch.linalg.lstsq(rows, (weights.sqrt()[:, None] * flow).flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(twist_of(flow, found, weights)[0], expected, rtol=1e-3, atol=1e-5)


def test_without_weights_there_is_no_motion() -> None:
    found, floor = relation()
    twist, residual = twist_of(torch.ones(GRID**2, 2), found, 0 * floor)
    assert (twist == 0).all() and (residual == 1).all()


def test_places_without_weight_are_ignored() -> None:
    found, floor = relation()
    flow = flow_of(torch.tensor(TWIST), found)
    flow[::3] += 200.0
    weights = floor.clone()
    weights[::3] = 0
    torch.testing.assert_close(twist_of(flow, found, weights)[0], torch.tensor(TWIST), rtol=1e-3, atol=1e-3)
    assert (twist_of(flow, found, floor)[0] - torch.tensor(TWIST)).abs().max() > 1


def test_robust_fit_finds_the_outliers_itself() -> None:
    found, floor = relation()
    flow = flow_of(torch.tensor(TWIST), found)
    flow[::3] += torch.tensor([40.0, 25.0])
    twist, trust = robust_twist_of(flow, found, floor, noise=1.0)
    torch.testing.assert_close(twist, torch.tensor(TWIST), rtol=0.01, atol=0.01)
    assert trust[::3].max() < 0.01 and trust[floor.bool()].quantile(0.5) > 0.99


@pytest.mark.parametrize("twist", [TWIST, (0.6, 0.2, -0.7), (-0.3, 0.0, 0.01)])
def test_ego_motion_of_large_steps(twist: tuple[float, float, float]) -> None:
    found = ego_motion(floor_flow(np.array(twist), 0.1), CAMERA, 0.1)
    np.testing.assert_allclose(found.twist, twist, atol=2e-3)
    assert found.twist.dtype == np.float32 and found.weights.shape == (GRID, GRID) and found.error < 0.02


def test_ego_motion_sees_past_what_stands_on_the_floor() -> None:
    flow = floor_flow(np.array(TWIST), 0.1)
    flow[:, 12:18, 4:14] += np.array([2.5, 1.5], np.float32)[:, None, None]
    flow += np.random.default_rng(0).normal(0, 0.1, flow.shape).astype(np.float32)
    found = ego_motion(flow, CAMERA, 0.1)
    np.testing.assert_allclose(found.twist, TWIST, atol=0.03)
    assert found.weights[12:18, 4:14].max() < 0.1 and found.weights[:6].max() == 0


def look(x: float, y: float, yaw: float) -> Array:
    """Picture ``(3, 96, 96)`` of a patterned floor, grey above the horizon."""
    depth = floor_depth(CAMERA, 96).numpy()
    seen = np.isfinite(depth)
    right, _, ahead = (CAMERA.rays(96).numpy()[seen] * depth[seen, None]).T
    there = np.stack([x + np.cos(yaw) * ahead + np.sin(yaw) * right, y + np.sin(yaw) * ahead - np.cos(yaw) * right])
    waves = np.random.default_rng(0).normal(0, 4, (30, 2))
    picture = np.full(96 * 96, 128.0)
    picture[seen] += 60 * np.sin(waves @ there + np.arange(30)[:, None]).mean(0) * 30**0.5
    return np.repeat(np.clip(picture, 0, 255).astype(np.uint8).reshape(1, 96, 96), 3, 0)


def test_ego_motion_from_pictures() -> None:
    (vx, vy, wz), dt = TWIST, 0.1
    middle = 0.5 * wz * dt  # the chord of the arc
    x, y = dt * (math.cos(middle) * vx - math.sin(middle) * vy), dt * (math.sin(middle) * vx + math.cos(middle) * vy)
    found = ego_motion(dis_flow(look(0, 0, 0), look(x, y, wz * dt)), CAMERA, dt)
    np.testing.assert_allclose(found.twist, TWIST, atol=0.05)


def test_flow_that_is_no_motion_leaves_a_large_error() -> None:
    rng = np.random.default_rng(0)
    torn = rng.normal(0, 8, (2, GRID, GRID)).astype(np.float32)
    good, bad = (ego_motion(flow, CAMERA, 0.1) for flow in (floor_flow(np.array(TWIST), 0.1), torn))
    assert good.weights.mean() > 4 * bad.weights.mean() and bad.error > 10 * good.error


def test_a_camera_that_sees_no_floor_sees_no_motion() -> None:
    found = ego_motion(np.ones((2, GRID, GRID), np.float32), Camera(96, 1.0, 1.2, -0.9), 0.1)
    assert (found.twist == 0).all() and (found.weights == 0).all() and found.error == 0


def test_vertical_speed_is_told_apart() -> None:
    found, floor = relation(names=NAMES)
    flow = flow_of(torch.tensor([0.2, 0.1, -0.3, 0.2]), found)
    flow[floor == 0] = 0
    estimate = ego_motion((0.02 * flow).mT.reshape(2, GRID, GRID).numpy(), CAMERA, 0.02, NAMES)
    np.testing.assert_allclose(estimate.twist, [0.2, 0.1, -0.3, 0.2], atol=0.01)


def test_unknown_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="no flow is known for 'wx'"):
        jacobian(CAMERA, GRID, floor_depth(CAMERA, GRID), ("vx", "wx"))


class Relation(nn.Module):
    """Everything a network would use, with depths and weights of its own."""

    def forward(self, twist: Tensor, flow: Tensor, depth: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        found = jacobian(CAMERA, GRID, depth, NAMES)
        estimate, residual = twist_of(flow, found, weights)
        return flow_of(twist, found), estimate, residual, robust_twist_of(flow, found, weights, 1.0)[0]


def test_onnx_computes_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = floor_depth(CAMERA, GRID).expand(2, -1)
    weights = depth.isfinite() * torch.rand(2, GRID**2, generator=generator)
    truth = torch.randn(2, 4, generator=generator)
    flow = flow_of(truth, jacobian(CAMERA, GRID, depth, NAMES)) + torch.randn(2, GRID**2, 2, generator=generator)
    inputs = {"twist": truth, "flow": flow, "depth": depth, "weights": weights}
    program = torch.onnx.export(
        Relation().eval(), tuple(inputs.values()), dynamo=True, verbose=False, input_names=list(inputs)
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for expected, found in zip(Relation()(*inputs.values()), outputs, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
