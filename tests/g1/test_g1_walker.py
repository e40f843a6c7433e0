from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs.g1.walker import G1Body
from policies.spec import Array

Walk = Callable[..., Array]
World = tuple[mujoco.MjModel, mujoco.MjData]


@pytest.fixture
def world(body: G1Body, scene: mujoco.MjSpec) -> World:
    body.add_to(scene)
    model = scene.compile()
    data = mujoco.MjData(model)
    body.reset(model, data, 0, 0, 0)
    mujoco.mj_forward(model, data)
    return model, data


def test_reset_stands_the_robot_on_its_feet_where_it_is_told_to(body: G1Body, world: World) -> None:
    model, data = world
    body.reset(model, data, 1.0, -2.0, 2.5)
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(body.pose(data)[[0, 1, 3]], [1, -2, 2.5], atol=1e-6)
    np.testing.assert_array_equal(body.twist(data), 0)
    assert not body.fallen(data)
    feet = model.geom_priority == 1
    assert 0 < data.geom_xpos[feet, 2].min() < model.geom_size[feet, 0].max() + 0.005


def test_stands_still_for_five_seconds(body: G1Body, world: World, walk: Walk) -> None:
    pose = walk(body, *world, (0, 0, 0), 5.0)[-1, 3:]
    assert np.hypot(*pose[:2]) < 0.05
    assert abs(pose[3]) < 0.1


@pytest.mark.parametrize("command", [(0.4, 0, 0), (-0.2, 0, 0), (0, 0.15, 0), (0, 0, 0.5), (0, 0, -0.5), (0.4, 0, 0.4)])
def test_mean_velocity_follows_the_command(body: G1Body, world: World, walk: Walk, command: tuple[float, ...]) -> None:
    walk(body, *world, command, 1.0)
    mean = walk(body, *world, command, 4.0)[:, :3].mean(0)
    np.testing.assert_allclose(mean, command, atol=0.08)


def test_walks_straight_ahead_in_the_world(body: G1Body, world: World, walk: Walk) -> None:
    model, data = world
    body.reset(model, data, 0, 0, np.pi / 2)
    rows = walk(body, model, data, (0.4, 0, 0), 5.0)
    travelled = rows[-1, 3:5] - rows[49, 3:5]
    np.testing.assert_allclose(travelled, (0, 1.6), atol=0.25)


def test_calibration_brings_the_robot_closer_to_the_command(scene: mujoco.MjSpec, body: G1Body, walk: Walk) -> None:
    errors = []
    for walker in (body, G1Body(calibrated=False)):
        spec = scene.copy()
        walker.add_to(spec)
        model = spec.compile()
        data = mujoco.MjData(model)
        walker.reset(model, data, 0, 0, 0)
        walk(walker, model, data, (0.5, 0, 0), 1.0)
        errors.append(abs(walk(walker, model, data, (0.5, 0, 0), 4.0)[:, 0].mean() - 0.5))
    assert errors[0] < errors[1] / 2


def test_stays_up_while_the_command_jumps(body: G1Body, world: World, walk: Walk) -> None:
    rng = np.random.default_rng(0)
    for count in range(12):
        walk(body, *world, rng.uniform(body.action.low, body.action.high) * (count % 3 > 0), 1.5)


def test_reset_forgets_the_walk_before(body: G1Body, world: World, walk: Walk) -> None:
    model, data = world
    runs = []
    for _ in range(2):
        mujoco.mj_resetData(model, data)
        body.reset(model, data, 0, 0, 0)
        runs.append(walk(body, model, data, (0.3, 0.1, 0.2), 0.7))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_shares_a_scene_with_other_moving_things(body: G1Body, scene: mujoco.MjSpec, walk: Walk) -> None:
    box = scene.worldbody.add_body(name="box", pos=[3, 3, 0.1])
    box.add_freejoint()
    box.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.1, 0.1, 0.1])
    body.add_to(scene)
    model = scene.compile()
    data = mujoco.MjData(model)
    body.reset(model, data, 0, 0, 0)
    mean = walk(body, model, data, (0.4, 0, 0), 5.0)[50:, :3].mean(0)
    np.testing.assert_allclose(mean, (0.4, 0, 0), atol=0.08)
    np.testing.assert_allclose(data.body("box").xpos[:2], (3, 3), atol=0.01)


def test_twist_is_the_velocity_of_the_pose(body: G1Body, world: World, walk: Walk) -> None:
    walk(body, *world, (0.4, 0, 0.3), 1.0)
    rows = walk(body, *world, (0.4, 0, 0.3), 2.0)
    twist, pose = rows[:, :3], rows[:, 3:]
    yaw = np.unwrap(pose[:, 3])
    np.testing.assert_allclose(twist[1:, 2].mean() * 0.02 * 99, yaw[-1] - yaw[0], atol=0.03)
    cos, sin = np.cos(yaw[1:]), np.sin(yaw[1:])
    steps = np.stack([cos * twist[1:, 0] - sin * twist[1:, 1], sin * twist[1:, 0] + cos * twist[1:, 1]], -1)
    np.testing.assert_allclose(0.02 * steps.sum(0), pose[-1, :2] - pose[0, :2], atol=0.03)


@pytest.mark.parametrize("tilt, fallen", [(0.0, False), (0.9, False), (1.2, True), (3.1, True)])
def test_fallen_means_tilted_by_more_than_sixty_degrees(body: G1Body, world: World, tilt: float, fallen: bool) -> None:
    data = world[1]
    data.qpos[3:7] = (np.cos(tilt / 2), np.sin(tilt / 2), 0, 0)
    assert body.fallen(data) is fallen


def test_lying_low_means_fallen(body: G1Body, world: World) -> None:
    data = world[1]
    data.qpos[2] = 0.3
    assert body.fallen(data)
