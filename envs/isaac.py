"""kinoflow/IsaacVideoNav-v0: the task of kinoflow/VideoNav-v0 with the physics and pictures of NVIDIA Isaac Sim.

Isaac Sim moves the robot, reports what it touches and takes every picture. Its motion is repeated by the joints of
`VideoNavEnv`, so room, goal video, stops, success, metrics and contract are computed by the same code.

Written against Isaac Lab 2.3.2 (package isaaclab 2.3.2.post1, quaternions w, x, y, z) on Isaac Sim 5.1, from its
documentation and sources: https://isaac-sim.github.io/IsaacLab/v2.3.2/. Run so far: `envs.stage`, this file up to
`IsaacStage` with MuJoCo in its place, `_settings` with Isaac Lab's own configuration classes but no simulator, and
`hang` on plain USD. Never run: anything inside Isaac Sim. Brightness and the number of renders until a picture has
settled are estimates.

One simulation per process holds one room; a reset builds the next. The G1 is not offered: its walking policy is tied
to its MuJoCo model.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import cv2
import gymnasium
import mujoco
import numpy as np

from envs.bodies import CONTROL_DT, PHYSICS_DT, DroneBody, PlanarBody, WheeledBody
from envs.stage import (
    Motion,
    Poster,
    Primitive,
    Scene,
    Stage,
    Vector,
    heading,
    posters,
    primitives,
    quaternion,
    servo,
    upright,
)
from envs.video_nav import CAMERA, CAMERA_FOVY, VideoNavEnv
from policies.spec import Array, ContractError

INSTALL = "https://isaac-sim.github.io/IsaacLab/v2.3.2/source/setup/installation/pip_installation.html"
STILL = 1e-10  # s, time step of a MuJoCo model that only repeats what another simulator does
CLIPPING = (0.05, 20.0)  # m
APERTURE = 20.0  # only its ratio to the focal length matters
RENDERS = 4  # per picture
AMBIENT, LAMP = 1000.0, 1500.0  # intensities of the lights at brightness 1
TOUCH = 1.0  # N


def focal_length(fovy: float) -> float:
    """Focal length, in the unit of `APERTURE`, of a square picture with a field of view in rad."""
    return float(APERTURE / 2 / np.tan(fovy / 2))


def linear(colour: Vector) -> Vector:
    """RGB of a displayed colour in the linear scale that materials are given in (sRGB, IEC 61966-2-1)."""
    value = np.asarray(colour, float)
    scaled = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return (float(scaled[0]), float(scaled[1]), float(scaled[2]))


def picture(pixels: Array) -> Array:
    """A picture ``(3, H, W)`` uint8 of a batch of one, ``(1, H, W, 3)``."""
    return np.ascontiguousarray(np.asarray(pixels, np.uint8)[0].transpose(2, 0, 1))


class Puppet(PlanarBody):
    """A body that a stage moves: its joints repeat the motion, so that all that is computed from them holds."""

    stage: Stage
    touched = False

    def reset(self, model: mujoco.MjModel, data: mujoco.MjData, x: float, y: float, yaw: float) -> None:
        super().reset(model, data, x, y, yaw)
        self.touched = False
        self.stage.place(self.pose(data))

    def control(self, model: mujoco.MjModel, data: mujoco.MjData, command: Array) -> None:
        order = {"x": 0, "y": 1, "z": 2, "yaw": 5}
        where = [order[axis] for axis in self._axes]
        velocity, wanted = np.zeros(6), np.zeros(6)
        velocity[where], wanted[where] = data.qvel, command
        motion = self.stage.tick(velocity, wanted)
        self.touched = self.touched or motion.touched
        x, y, z, yaw = motion.pose
        yaw = np.unwrap([data.qpos[-1], yaw])[1]
        values = {"x": x, "y": y, "z": z - self._height, "yaw": yaw}
        data.qpos[:], data.qvel[:] = [values[axis] for axis in self._axes], motion.velocity[where]


class PuppetWheels(Puppet, WheeledBody):
    """The wheeled base, moved by a stage."""


class PuppetDrone(Puppet, DroneBody):
    """The drone, moved by a stage; what it collides with there is the cylinder around it."""


PUPPETS: dict[str, Callable[[], Puppet]] = {"wheeled": PuppetWheels, "drone": PuppetDrone}


class IsaacVideoNavEnv(VideoNavEnv):
    """`VideoNavEnv` in Isaac Sim: spaces, rewards, episodes and `render`, the picture from outside, are the same.

    Args:
        embodiment: ``"wheeled"`` or ``"drone"``.
        options: The other arguments of `VideoNavEnv`.

    Raises:
        ImportError: Isaac Sim or Isaac Lab is not installed.
        ValueError: There is no such embodiment here.
    """

    simulator: ClassVar[Callable[[], Stage]]

    def __init__(self, embodiment: Literal["wheeled", "drone"] = "wheeled", **options: Any) -> None:
        if embodiment not in PUPPETS:
            raise ValueError(f"there is no embodiment '{embodiment}' in Isaac Sim; choose one of {sorted(PUPPETS)}")
        self.stage = type(self).simulator()
        super().__init__(embodiment, **options)
        self.body = self.puppet = PUPPETS[embodiment]()
        self.puppet.stage = self.stage

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        super()._furnish(spec)
        spec.option.timestep = STILL

    def _build(self) -> None:
        super()._build()
        mujoco.mj_kinematics(self.model, self.data)
        hull = self.model.geom("hull")
        round_about = hull.type[0] == mujoco.mjtGeom.mjGEOM_CYLINDER
        radius, half = float(hull.size[0]), float(hull.size[1 if round_about else 2])
        light = np.empty(4)
        mujoco.mju_quatZ2Vec(light, -self.room.look.light)
        scene = Scene(
            primitives=primitives(self.room),
            posters=posters(self.model, self.data),
            hull=Primitive("robot", "cylinder", (2 * radius, 2 * radius, 2 * half), (0.0, 0.0, 1.0)),
            light=light,
            brightness=self.room.look.brightness,
            picture_size=self.picture_size if self.images else 0,
        )
        self.stage.build(scene)

    def _touches(self) -> bool:
        return self.puppet.touched or super()._touches()

    def _see(self, data: mujoco.MjData, depth: bool = False) -> Array:
        if not self.images:
            raise ContractError("this environment was made with images=False; make it with images=True to see")
        camera = data.camera(CAMERA)
        return self.stage.see(camera.xpos, camera.xmat.reshape(3, 3), depth)

    def close(self) -> None:
        super().close()
        self.stage.close()


class IsaacStage:
    """A stage of Isaac Sim that holds one room at a time.

    Raises:
        ImportError: Isaac Sim or Isaac Lab is not installed.
    """

    def __init__(self) -> None:
        missing = [name for name in ("isaacsim", "isaaclab") if find_spec(name) is None]
        if missing:
            raise ImportError(
                f"kinoflow/IsaacVideoNav-v0 needs {' and '.join(missing)}; install Isaac Sim 5.1 and Isaac Lab 2.3.2 "
                f"in an environment of their own, which needs an NVIDIA RTX GPU: {INSTALL}"
            )
        self._held = ExitStack()
        self._scene: Any = None

    def build(self, scene: Scene) -> None:
        """Replace the scene."""
        _launch()
        import isaaclab.sim as isaac
        from isaaclab.scene import InteractiveScene

        self.close()
        folder = Path(self._held.enter_context(TemporaryDirectory()))
        # light without shadows passes the ceiling, and one body does not fill a GPU
        render = isaac.RenderCfg(enable_shadows=False, enable_reflections=False, antialiasing_mode="FXAA")
        settings = isaac.SimulationCfg(dt=PHYSICS_DT, device="cpu", use_fabric=False, render=render)
        self._simulation = self._held.enter_context(isaac.build_simulation_context(sim_cfg=settings))
        self._scene = InteractiveScene(_settings(scene))
        for poster in scene.posters:
            hang(isaac.get_current_stage(), poster, folder)
        self._simulation.reset()
        self._scene.update(PHYSICS_DT)

    def place(self, pose: Array) -> None:
        """Put the robot at a pose ``(4,)``, at rest."""
        robot = self._scene["robot"]
        tensor = robot.data.root_pos_w.new_tensor
        robot.write_root_pose_to_sim(tensor([[*pose[:3], *upright(pose[3])]]))
        robot.write_root_velocity_to_sim(tensor([[0.0] * 6]))

    def tick(self, velocity: Array, command: Array) -> Motion:
        """Go on for `CONTROL_DT`."""
        motion, robot, touched = self._motion(), self._scene["robot"], False
        for _ in range(round(CONTROL_DT / PHYSICS_DT)):
            wanted = servo(velocity, float(motion.pose[3]), command)
            robot.write_root_velocity_to_sim(robot.data.root_pos_w.new_tensor(wanted[None]))
            self._simulation.step(render=False)
            self._scene.update(PHYSICS_DT)
            motion = self._motion()
            velocity, touched = motion.velocity, touched or motion.touched
        return Motion(motion.pose, motion.velocity, touched)

    def _motion(self) -> Motion:
        state, force = self._scene["robot"].data, self._scene["contact"].data.net_forces_w
        position, rotation = state.root_pos_w[0].cpu().numpy(), state.root_quat_w[0].cpu().numpy()
        velocity = np.concatenate([state.root_lin_vel_w[0].cpu().numpy(), state.root_ang_vel_w[0].cpu().numpy()])
        pose = np.array([*position, heading(rotation)], float)
        return Motion(pose, velocity.astype(float), float(force.norm(dim=-1).max()) > TOUCH)

    def see(self, position: Array, axes: Array, depth: bool) -> Array:
        """Take a picture or measure distances."""
        camera = self._scene["camera"]
        camera.set_world_poses(np.asarray(position, np.float32)[None], quaternion(axes)[None], convention="opengl")
        for _ in range(RENDERS):
            self._simulation.render()
        camera.update(0.0, force_recompute=True)
        output = camera.data.output["depth" if depth else "rgb"].cpu().numpy()
        return output[0, ..., 0].copy() if depth else picture(output)

    def close(self) -> None:
        """End the simulation; the application goes on until the process ends."""
        self._scene = None
        self._held.close()


@cache
def _launch() -> Any:
    from isaaclab.app import AppLauncher

    arguments, sys.argv = sys.argv, sys.argv[:1]  # the application reads the command line and knows another one
    try:
        app = AppLauncher(headless=True, enable_cameras=True).app
    finally:
        sys.argv = arguments
    atexit.register(app.close)
    return app


def _settings(scene: Scene) -> Any:
    import isaaclab.sim as isaac
    from isaaclab.assets import AssetBaseCfg, RigidObjectCfg
    from isaaclab.scene import InteractiveSceneCfg
    from isaaclab.sensors import ContactSensorCfg, TiledCameraCfg

    def static(
        name: str, spawn: Any, position: Vector = (0.0, 0.0, 0.0), rotation: Vector = (1.0, 0.0, 0.0, 0.0)
    ) -> Any:
        state = AssetBaseCfg.InitialStateCfg(pos=position, rot=rotation)
        return AssetBaseCfg(prim_path=f"{{ENV_REGEX_NS}}/{name}", spawn=spawn, init_state=state)

    settings = InteractiveSceneCfg(num_envs=1, env_spacing=1.0)
    for item in scene.primitives:
        setattr(settings, item.name, static(item.name, _spawner(item), item.position, upright(item.yaw)))
    free = isaac.RigidBodyPropertiesCfg(disable_gravity=True, linear_damping=0.0, angular_damping=0.0)
    body = {"rigid_props": free, "mass_props": isaac.MassPropertiesCfg(mass=PlanarBody.MASS)}
    hull = _spawner(scene.hull, visible=False, activate_contact_sensors=True, **body)
    at_first = RigidObjectCfg.InitialStateCfg(pos=scene.hull.position)
    settings.robot = RigidObjectCfg(prim_path="{ENV_REGEX_NS}/robot", spawn=hull, init_state=at_first)
    settings.contact = ContactSensorCfg(prim_path="{ENV_REGEX_NS}/robot")
    if scene.picture_size:
        settings.camera = TiledCameraCfg(
            prim_path="{ENV_REGEX_NS}/camera",
            width=scene.picture_size,
            height=scene.picture_size,
            data_types=["rgb", "depth"],
            spawn=isaac.PinholeCameraCfg(
                focal_length=focal_length(CAMERA_FOVY), horizontal_aperture=APERTURE, clipping_range=CLIPPING
            ),
        )
    settings.sky = static("sky", isaac.DomeLightCfg(intensity=AMBIENT * scene.brightness))
    lamp = isaac.DistantLightCfg(intensity=LAMP * scene.brightness)
    settings.lamp = static("lamp", lamp, rotation=tuple(map(float, scene.light)))
    return settings


def _spawner(item: Primitive, **more: Any) -> Any:
    import isaaclab.sim as isaac

    material = isaac.PreviewSurfaceCfg(diffuse_color=linear(item.colour), roughness=1.0)
    more |= {"visual_material": material, "collision_props": isaac.CollisionPropertiesCfg() if item.solid else None}
    radius, height = item.size[0] / 2, item.size[2]
    if item.kind == "cuboid":
        return isaac.CuboidCfg(size=item.size, **more)
    if item.kind == "sphere":
        return isaac.SphereCfg(radius=radius, **more)
    shape = isaac.CylinderCfg if item.kind == "cylinder" else isaac.ConeCfg
    return shape(radius=radius, height=height, axis="Z", **more)


def hang(stage: Any, poster: Poster, folder: Path) -> None:
    """Add a poster to a USD stage; its texture becomes a file in a folder."""
    from pxr import Sdf, UsdGeom, UsdShade

    types, path, file = Sdf.ValueTypeNames, f"/World/posters/{poster.name}", folder / f"{poster.name}.png"
    cv2.imwrite(str(file), cv2.cvtColor(poster.texture, cv2.COLOR_RGB2BGR))
    mesh = UsdGeom.Mesh.Define(stage, path)
    mesh.CreatePointsAttr(poster.corners.tolist())
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    places = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar("st", types.TexCoord2fArray, UsdGeom.Tokens.vertex)
    places.Set(poster.places.tolist())
    material = UsdShade.Material.Define(stage, f"{path}/material")
    nodes = {name: UsdShade.Shader.Define(stage, f"{path}/material/{name}") for name in ("place", "image", "surface")}
    kinds = {"place": "UsdPrimvarReader_float2", "image": "UsdUVTexture", "surface": "UsdPreviewSurface"}
    for name, node in nodes.items():
        node.CreateIdAttr(kinds[name])
    nodes["place"].CreateInput("varname", types.String).Set("st")
    values = {"file": (types.Asset, str(file)), "sourceColorSpace": (types.Token, "sRGB")}
    for name, (kind, value) in (values | {f"wrap{axis}": (types.Token, "repeat") for axis in "ST"}).items():
        nodes["image"].CreateInput(name, kind).Set(value)
    read = nodes["place"].CreateOutput("result", types.Float2)
    nodes["image"].CreateInput("st", types.Float2).ConnectToSource(read)
    seen = nodes["image"].CreateOutput("rgb", types.Float3)
    nodes["surface"].CreateInput("diffuseColor", types.Color3f).ConnectToSource(seen)
    nodes["surface"].CreateInput("roughness", types.Float).Set(1.0)
    material.CreateSurfaceOutput().ConnectToSource(nodes["surface"].CreateOutput("surface", types.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


IsaacVideoNavEnv.simulator = IsaacStage
gymnasium.register("kinoflow/IsaacVideoNav-v0", entry_point="envs.isaac:IsaacVideoNavEnv", kwargs={"images": True})
