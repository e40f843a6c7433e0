from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.g1.assets import AssetError
from envs.g1.robot import robot_spec
from envs.g1.walker import G1Body


def compiled(body: G1Body) -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.004
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
    body.add_to(spec)
    return spec.compile()


def test_mass_joints_and_actuators_are_those_of_the_robot(body: G1Body) -> None:
    model = compiled(body)
    assert mujoco.mj_getTotalmass(model) == pytest.approx(33.34, abs=0.01)
    assert (model.nq, model.nv, model.nu) == (36, 35, 29)
    knee = model.actuator("g1/left_knee_joint")
    assert model.actuator_trnid[knee.id, 0] == model.joint("g1/left_knee_joint").id
    assert knee.gainprm[0] == -knee.biasprm[1] == pytest.approx(99.1, abs=0.1)
    assert knee.biasprm[2] == pytest.approx(-6.31, abs=0.01)
    assert knee.forcerange.tolist() == [-139, 139]
    assert model.joint("g1/left_knee_joint").armature[0] == pytest.approx(0.0251)


def test_options_of_the_scene_win(body: G1Body) -> None:
    assert compiled(body).opt.timestep == 0.004


def test_geoms_are_in_the_groups_of_the_robot(body: G1Body) -> None:
    model = compiled(body)
    assert model.geom_group[0] == 0
    assert set(model.geom_group[1:].tolist()) == {3}


def test_feet_bring_their_friction(body: G1Body) -> None:
    model = compiled(body)
    feet = model.geom_priority == 1
    assert feet.sum() == 14
    assert (model.geom_friction[feet, 0] == 0.6).all()


def test_visual_meshes_change_nothing_but_pictures(body: G1Body) -> None:
    shown = G1Body(render_meshes=True)
    bare, full = compiled(body), compiled(shown)
    assert full.nmesh > 30 and bare.nmesh == 0
    np.testing.assert_allclose(full.body_mass, bare.body_mass)
    np.testing.assert_allclose(full.body_inertia, bare.body_inertia)
    assert set(full.geom_group.tolist()) == {0, 2, 3}
    states = []
    for walker, model in ((body, bare), (shown, full)):
        data = mujoco.MjData(model)
        walker.reset(model, data, 0, 0, 0)
        for _ in range(50):
            walker.control(model, data, np.array([0.4, 0, 0.2]))
            mujoco.mj_step(model, data, 5)
        states.append(data.qpos.copy())
    np.testing.assert_allclose(states[0], states[1], atol=1e-9)


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g1.xml"
    path.write_text("<mujoco><worldbody><body><joint name='hinge'/><geom size='1'/></body></worldbody></mujoco>")
    with pytest.raises(AssetError, match="hinge"):
        robot_spec(path, ["left_knee_joint"], [1.0], [1.0], meshes=False)
