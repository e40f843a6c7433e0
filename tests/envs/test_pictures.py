import envs  # isort: skip (chooses the OpenGL library before MuJoCo loads)  # noqa: F401
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs.pictures import SceneRenderer, unavailable

needs_opengl = pytest.mark.skipif(unavailable() != "", reason=unavailable())
SIZE = (48, 64)


def scene(colour: list[float]) -> tuple[mujoco.MjModel, mujoco.MjData, mujoco.MjvCamera]:
    """A camera 2 m above a plane, upright picture: the box lies to the upper right."""
    spec = mujoco.MjSpec()
    spec.worldbody.add_light(pos=[0, 0, 3], dir=[0, 0, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[9, 9, 1], rgba=[1, 1, 1, 1])
    box = mujoco.mjtGeom.mjGEOM_BOX
    spec.worldbody.add_geom(type=box, size=[0.3, 0.3, 0.25], pos=[1, 0.7, 0.25], rgba=[*colour, 1], group=1)
    spec.worldbody.add_camera(pos=[0, 0, 2], fovy=60)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    return model, data, camera


@needs_opengl
def test_pictures_are_upright_and_show_the_groups_asked_for() -> None:
    renderer = SceneRenderer()
    view = scene([1, 0, 0])
    picture = renderer.shoot(*view, (0, 1), SIZE).astype(int)
    red = picture[..., 0] - picture[..., 1] > 50
    rows, columns = np.nonzero(red)
    assert rows.max() < SIZE[0] / 2
    assert columns.min() > SIZE[1] / 2
    without = renderer.shoot(*view, (0,), SIZE).astype(int)
    assert np.ptp(without[..., 0] - without[..., 1]) < 5
    renderer.close()


@needs_opengl
def test_depth_is_in_metres_along_the_optical_axis() -> None:
    renderer = SceneRenderer()
    view = scene([1, 0, 0])
    depth = renderer.shoot(*view, (0,), SIZE, depth=True)
    assert depth.shape == SIZE
    np.testing.assert_allclose(depth, 2.0, atol=1e-3)
    assert renderer.shoot(*view, (0, 1), SIZE, depth=True).min() == pytest.approx(1.5, abs=1e-3)
    renderer.close()


@needs_opengl
def test_scenes_and_renderers_do_not_mix() -> None:
    one, other = SceneRenderer(), SceneRenderer()
    red, blue = scene([1, 0, 0]), scene([0, 0, 1])
    expected = one.shoot(*red, (0, 1), SIZE)
    different = other.shoot(*blue, (0, 1), SIZE)
    assert not np.array_equal(expected, different)
    np.testing.assert_array_equal(one.shoot(*blue, (0, 1), SIZE), different)
    np.testing.assert_array_equal(one.shoot(*red, (0, 1), SIZE), expected)
    other.close()
    np.testing.assert_array_equal(one.shoot(*red, (0, 1), SIZE), expected)
    one.close()
    one.close()


def test_without_opengl_the_packages_are_named() -> None:
    code = "from envs.pictures import SceneRenderer, unavailable; assert unavailable(); SceneRenderer()"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": "disable"}
    )
    assert run.returncode == 1
    assert "RuntimeError: no picture can be rendered" in run.stderr
    assert "libegl1" in run.stderr
