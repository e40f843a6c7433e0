"""The task of VideoNav on another simulator: what needs no Isaac Sim is tested with MuJoCo standing in for it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import envs  # isort: skip (registers the environment; before MuJoCo loads)  # noqa: F401
import cv2
import gymnasium
import mujoco
import numpy as np
import pytest

from envs.bodies import CONTROL_DT, PHYSICS_DT
from envs.collect import drivers, record, recorded_contract
from envs.episodes import read_episodes, write_episodes
from envs.isaac import APERTURE, INSTALL, IsaacStage, IsaacVideoNavEnv, focal_length, hang, linear, picture
from envs.pictures import SceneRenderer, unavailable
from envs.stage import Motion, Poster, Scene, heading, quaternion, servo, upright
from envs.video_nav import CAMERA, CAMERA_FOVY
from policies.spec import Array, ContractError

needs_opengl = pytest.mark.skipif(unavailable() != "", reason=unavailable())
installed = find_spec("isaaclab") is not None and find_spec("isaacsim") is not None
SHAPES = {
    "cuboid": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
}


class MujocoStage:
    """Builds what Isaac Sim is told to build, and moves a point instead of a robot."""

    def __init__(self) -> None:
        self.touched = False
        self._renderer: SceneRenderer | None = None

    def build(self, scene: Scene) -> None:
        self.scene, self.touched, spec = scene, False, mujoco.MjSpec()
        for item in scene.primitives:
            half = np.array(item.size) / 2
            geom = spec.worldbody.add_geom(
                name=item.name, pos=item.position, quat=upright(item.yaw), rgba=[*item.colour, 1]
            )
            if item.kind == "cone":
                mesh = spec.add_mesh(name=item.name)
                mesh.make_cone(16, 0)
                mesh.scale = half
                geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_MESH, item.name
            else:
                flat = {"cylinder": [half[0], half[2], 0], "sphere": [half[0], 0, 0]}
                geom.type, geom.size = SHAPES[item.kind], flat.get(item.kind, half)
        fovy = 2 * np.arctan(APERTURE / 2 / focal_length(CAMERA_FOVY))
        spec.worldbody.add_camera(name=CAMERA, fovy=np.degrees(fovy))
        spec.stat.extent, spec.visual.map.znear, spec.visual.map.zfar = 10.0, 0.005, 2.0
        spec.visual.quality.offsamples = 0
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)

    def place(self, pose: Array) -> None:
        self.pose = np.array(pose, float)

    def tick(self, velocity: Array, command: Array) -> Motion:
        for _ in range(round(CONTROL_DT / PHYSICS_DT)):
            velocity = servo(velocity, self.pose[3], command)
            self.pose += velocity[[0, 1, 2, 5]] * PHYSICS_DT
        wrapped = heading(np.array(upright(self.pose[3])))
        return Motion(np.array([*self.pose[:3], wrapped]), velocity, self.touched)

    def see(self, position: Array, axes: Array, depth: bool) -> Array:
        self._renderer = self._renderer or SceneRenderer()
        there = self.data.camera(CAMERA)
        turned = np.empty(9)
        mujoco.mju_quat2Mat(turned, quaternion(axes).astype(float))
        there.xpos[:], there.xmat[:] = position, turned
        camera = mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera(CAMERA).id
        seen = self._renderer.shoot(self.model, self.data, camera, (0,), (self.scene.picture_size,) * 2, depth=depth)
        return seen if depth else picture(seen[None])

    def close(self) -> None:
        if self._renderer:
            self._renderer.close()
            self._renderer = None


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IsaacVideoNavEnv, "simulator", MujocoStage)


def make(name: str, **kwargs: Any) -> Any:
    return gymnasium.make(f"kinoflow/{name}-v0", disable_env_checker=True, **kwargs).unwrapped


@pytest.mark.skipif(installed, reason="Isaac Sim is installed")
def test_without_isaac_making_it_says_what_to_install() -> None:
    with pytest.raises(ImportError, match="isaacsim") as error:
        make("IsaacVideoNav")
    assert INSTALL in str(error.value)


def test_only_bodies_it_can_move_are_offered(standing_in: None) -> None:
    with pytest.raises(ValueError, match=r"'g1' in Isaac Sim; choose one of .*drone.*wheeled"):
        make("IsaacVideoNav", embodiment="g1")


@pytest.mark.parametrize("embodiment", ["wheeled", "drone"])
@pytest.mark.parametrize(("name", "seed"), [("expert", 4), ("straight line", 7)])
def test_an_episode_is_that_of_video_nav(standing_in: None, embodiment: str, name: str, seed: int) -> None:
    """Same seed, same room; the same motion, the same stops, metrics and end."""
    ours, theirs = (make(env, embodiment=embodiment, images=False) for env in ("IsaacVideoNav", "VideoNav"))
    assert ours.contract == theirs.contract
    for env in (ours, theirs):
        env.reset(seed=seed)
    np.testing.assert_array_equal(ours.path, theirs.path)
    assert (ours.instruction, ours.stops.keys()) == (theirs.instruction, theirs.stops.keys())
    np.testing.assert_array_equal(ours.stop_pose, theirs.stop_pose)
    ours_drives, theirs_drives = (drivers(env)[name](env) for env in (ours, theirs))
    ended = False
    while not ended:
        ours_end, theirs_end = (
            env.step(driver.command())[1:4] for env, driver in ((ours, ours_drives), (theirs, theirs_drives))
        )
        assert ours_end[1:] == theirs_end[1:]
        ended = any(ours_end[1:])
        if not ours.collision:  # what a collision does to the motion is the simulator's own affair
            assert ours_end[0] == pytest.approx(theirs_end[0], abs=1e-6)
            np.testing.assert_allclose(ours.state, theirs.state, atol=1e-6)
    assert (ours.success, ours.failed) == (theirs.success, theirs.failed) == (name == "expert", name != "expert")
    assert ours.metrics == pytest.approx(theirs.metrics, abs=0.03 if ours.collision else 1e-9)


def test_what_the_simulator_feels_is_a_collision(standing_in: None) -> None:
    env = make("IsaacVideoNav", images=False)
    env.reset(seed=0)
    assert not env.step(env.rest)[2]
    env.stage.touched = True
    terminated = env.step(env.rest)[2]
    assert terminated and env.metrics["collision"] == 1
    env.reset(seed=0)
    assert not env.failed


def test_a_push_reaches_the_simulator(standing_in: None) -> None:
    env = make("IsaacVideoNav", images=False, push=1.0)
    env.reset(seed=0)
    assert max(np.abs(env.step(env.rest)[0]["twist"][:2]).max() for _ in range(50)) > 0.05


@needs_opengl
@pytest.mark.parametrize("embodiment", ["wheeled", "drone"])
def test_the_scene_and_the_camera_are_those_of_video_nav(standing_in: None, embodiment: str) -> None:
    """Distances through the built room, seen with quaternion and focal length as Isaac Sim gets them."""
    ours, theirs = (make(env, embodiment=embodiment) for env in ("IsaacVideoNav", "VideoNav"))
    for seed in range(3):
        ours.reset(seed=seed), theirs.reset(seed=seed)
        for pose in theirs.base_poses(theirs.path[:: len(theirs.path) // 3]):
            differs = np.abs(ours.depth(pose) - theirs.depth(pose)) > 0.02
            assert differs.mean() < 0.01  # pixels on an edge
        video, expected = ours.goal_video.astype(float), theirs.goal_video.astype(float)
        vivid = np.ptp(expected, axis=1) > 100  # landmarks and doors; light and textures differ
        hues = [value / np.linalg.norm(value, axis=1, keepdims=True).clip(1e-3) for value in (video, expected)]
        assert vivid.any() and np.quantile((hues[0] * hues[1]).sum(1)[vivid], 0.02) > 0.95
    assert ours.observe()["camera"].shape == (3, 96, 96)
    ours.close(), theirs.close()


def test_posters_lie_on_the_floor_and_the_walls(standing_in: None) -> None:
    env = make("IsaacVideoNav", images=False)
    env.reset(seed=1)
    slabs = {item.name: item for item in env.stage.scene.primitives}
    assert [poster.name for poster in env.stage.scene.posters] == ["floor", "wall0", "wall1", "wall2", "wall3"]
    for poster in env.stage.scene.posters:
        first, second = poster.corners[1] - poster.corners[0], poster.corners[2] - poster.corners[1]
        normal = np.cross(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
        slab = slabs[poster.name]
        beyond = poster.corners.mean(0) - np.array(slab.position)
        assert 0 < beyond @ normal - 0.1 < 0.01  # just in front of its slab, facing the room
        assert np.linalg.norm(beyond - (beyond @ normal) * normal) < 1e-9
        tiles = np.ptp(poster.places, axis=0) / [np.linalg.norm(first), np.linalg.norm(second)]
        surface = env.room.look.floor if poster.name == "floor" else env.room.look.walls
        np.testing.assert_allclose(tiles, 1 / surface.tile, rtol=1e-5)
        assert poster.texture.shape == (64, 64, 3)


def test_axes_of_the_camera_agree() -> None:
    """Isaac Lab turns (right, up, back), its "opengl", into the optical frame of ROS by half a turn about x."""
    env = make("VideoNav", images=False)
    env.reset(seed=0)
    mujoco.mj_forward(env.model, env.data)
    axes = env.data.camera(CAMERA).xmat.reshape(3, 3)
    turned = np.empty(9)
    mujoco.mju_quat2Mat(turned, quaternion(axes).astype(float))
    np.testing.assert_allclose(turned.reshape(3, 3), axes, atol=1e-6)
    half_turn, optical = np.array([0.0, 1.0, 0.0, 0.0]), np.empty(4)
    mujoco.mju_mulQuat(optical, quaternion(axes).astype(float), half_turn)
    mujoco.mju_quat2Mat(turned, optical)
    np.testing.assert_allclose(turned.reshape(3, 3), axes * [1, -1, -1], atol=1e-6)
    yaw = env.pose[3]
    forward = turned.reshape(3, 3)[:, 2]
    assert np.arctan2(forward[1], forward[0]) == pytest.approx(yaw, abs=1e-6)
    assert forward[2] < 0  # pitched down


def test_conversions() -> None:
    assert 96 * focal_length(CAMERA_FOVY) / APERTURE == pytest.approx(48 / np.tan(CAMERA_FOVY / 2))  # f in pixels
    for yaw in (-3.0, -0.4, 0.0, 1.2):
        assert heading(np.array(upright(yaw))) == pytest.approx(yaw)
    assert linear((0.0, 0.5, 1.0)) == pytest.approx((0.0, 0.21404114, 1.0))
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    np.testing.assert_array_equal(picture(pixels)[2, 1], pixels[0, 1, :, 2])


def test_seeing_without_images_is_refused(standing_in: None) -> None:
    env = make("IsaacVideoNav", images=False)
    observation, _ = env.reset(seed=0)
    assert not observation["goal_video"].any()
    with pytest.raises(ContractError, match="images=False"):
        env.depth(env.pose)


@needs_opengl
def test_its_episodes_are_dataset_files(standing_in: None, tmp_path: Path) -> None:
    env = make("IsaacVideoNav", picture_size=32)
    episode = record(env, seed=4)
    assert episode is not None
    write_episodes(tmp_path / "isaac.hdf5", [episode], "kinoflow/IsaacVideoNav-v0", {}, recorded_contract(env))
    file = read_episodes(tmp_path / "isaac.hdf5")
    assert file.observations["goal_video"].shape == (1, 16, 3, 32, 32)
    assert file.observations["camera"].any() and len(file.actions) == len(episode)
    env.close()


def test_posters_become_usd(tmp_path: Path) -> None:
    """With plain USD, which Isaac Sim brings along."""
    pxr = pytest.importorskip("pxr", reason="needs USD: pip install usd-core")
    assert pxr
    from pxr import Usd, UsdGeom, UsdShade

    texture = np.zeros((4, 4, 3), np.uint8)
    texture[..., 0] = 200
    corners, places = np.eye(4, 3), np.eye(4, 2)
    stage = Usd.Stage.CreateInMemory()
    hang(stage, Poster("floor", corners, places, texture), tmp_path)
    mesh = UsdGeom.Mesh.Get(stage, "/World/posters/floor")
    np.testing.assert_allclose(mesh.GetPointsAttr().Get(), corners)
    np.testing.assert_allclose(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").Get(), places)
    material, _ = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()
    surface, *_ = material.ComputeSurfaceSource()
    image, *_ = surface.GetInput("diffuseColor").GetConnectedSource()
    written = cv2.imread(image.GetInput("file").Get().path)
    assert written is not None
    np.testing.assert_array_equal(written[..., ::-1], texture)


@pytest.mark.skipif(not installed, reason=f"needs Isaac Sim and Isaac Lab: {INSTALL}")
def test_isaac_sim_itself(tmp_path: Path) -> None:
    """The contract inside Isaac Sim: same room, same motion within a few centimetres, the same distances seen."""
    ours, theirs = make("IsaacVideoNav"), make("VideoNav")
    assert isinstance(ours.stage, IsaacStage)
    assert ours.contract == theirs.contract
    for env in (ours, theirs):
        observation, _ = env.reset(seed=4)
        env.contract.check({name: value[None] for name, value in observation.items()})
        assert observation["goal_video"].std() > 5
    pose = theirs.base_poses(theirs.path[0])
    assert (np.abs(ours.depth(pose) - theirs.depth(pose)) > 0.05).mean() < 0.03
    expert = drivers(theirs)["expert"](theirs)
    for _ in range(50):
        command = expert.command()
        ours.step(command), theirs.step(command)
        np.testing.assert_allclose(ours.pose, theirs.pose, atol=0.05)
    episode = record(ours, seed=4)
    assert episode is not None
    write_episodes(tmp_path / "isaac.hdf5", [episode], "kinoflow/IsaacVideoNav-v0", {}, ours.contract)
    assert len(read_episodes(tmp_path / "isaac.hdf5").actions) == len(episode)
    ours.close(), theirs.close()
