"""kinoflow/VideoNav-v0: drive the way a goal video shows and stop where a sentence says, on MuJoCo physics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np

from envs.bodies import SCENE_GROUP
from envs.nav import BODIES, FILM_SIZE, GOAL_SPEED, POLICY_HZ, Embodiment, NavEnv
from envs.video_rooms import ENCLOSURE_GROUP, Landmark, VideoRoom, sample_video_room
from policies.sentence import sentence_bytes
from policies.spec import Array, Feature, Spec

CAMERA = "head_camera"
CAMERA_FOVY = np.radians(80)  # rad, vertical and horizontal: pictures are square
CAMERA_HEIGHT = 1.2  # m above the floor; the drone carries the camera in its body
CAMERA_PITCH = np.radians(10)  # rad downwards
MOUNTS = {"wheeled": "base", "drone": "base", "g1": "g1/torso_link"}
TILT, RISE = np.radians(2), 0.03  # rad and m, how far a camera is off its nominal mount

FRAMES = 16  # of a goal video
TEXT = 96  # bytes of an instruction
# m, s, m: who stays within this for so long, slower than 0.05 m/s, after travelling so far has given up
REST_RADIUS, REST_TIME, MOVED = 0.15, 3.0, 0.5
STOP_FRAME = Feature("stop_frame", (1,), "1", "goal_video", constant=True, label=True)
PUSH_EVERY = (2.0, 4.0)  # s
SPEEDING, TURNING = 1.0, 2.0  # m/s^2 and rad/s^2, most that a policy may ask for

# Each seed draws one phrasing of each; training and evaluation share them. Two names may mean either place, whichever
# comes first.
INSTRUCTIONS = {
    "first": (
        "Stop at the {passed}.",
        "Go as far as the {passed} and stop there.",
        "Walk until you reach the {passed}.",
        "Halt next to the {passed}.",
        "Follow the way and stop beside the {passed}.",
        "Come to rest at the {passed}.",
        "Stop at the {passed}, do not go on to the {final}.",
        "The {final} is too far, stop at the {passed}.",
    ),
    "last": (
        "Walk past the {passed} and stop at the {final}.",
        "Go past the {passed}, then stop in front of the {final}.",
        "Pass the {passed} and halt at the {final}.",
        "Keep going past the {passed} until you reach the {final}.",
        "Stop at the {final} after passing the {passed}.",
        "Do not stop at the {passed}, go on to the {final}.",
        "Follow the way by the {passed} and come to rest at the {final}.",
        "The {passed} is not the place to stop, the {final} is.",
    ),
}


class VideoNavEnv(NavEnv):
    """Follow a first-person video of a walk through a room and stop where an instruction says.

    Observation: ``camera`` (3, S, S) uint8, what the head camera sees, taken ten times a second; ``twist`` as in
    `NavEnv`; ``goal_video`` (16, 3, S, S) uint8, a walk seen by the same camera, uniform in path length;
    ``instruction`` (96,) uint8, UTF-8 padded with zeros; ``embodiment`` (3,) one-hot: wheeled, drone, G1.
    Action: as in `NavEnv`.

    The video passes one landmark and ends in front of another. The instruction says where to stop: ``"first"`` on
    the path beside the passed one, ``"last"`` at its end. The seed chooses, unless `reset`
    gets ``options={"instruction": "first"}`` or ``"last"``; everything else of the episode is then the same.

    An episode succeeds when the robot rests within 0.5 m of that point. It fails on a collision or a fall, and when
    the robot has given up: it stayed within 0.15 m for 3 s elsewhere after moving more than 0.5 m. Reward and time
    limit are those of `NavEnv`. Room, textures, light and the mount of the camera come from the seed.

    Args:
        embodiment: ``"wheeled"``, ``"drone"`` or ``"g1"``.
        step_hz: Steps per simulated second: 10 or 50.
        picture_size: Height and width of a picture in pixels.
        images: Render what is observed, which needs an OpenGL library; pictures are black without.
        push: Velocity in m/s that a push from a random side adds every 2 to 4 s.
        render_mode: ``"rgb_array"`` for pictures of the robot from outside.

    Raises:
        RuntimeError: There is no OpenGL library; raised by `reset`, as are errors of the options (ValueError).
    """

    alone = True
    LABELS: ClassVar[tuple[Feature, ...]] = (STOP_FRAME,)
    radius: ClassVar[float] = 0.5
    room: VideoRoom

    def __init__(
        self,
        embodiment: Embodiment = "wheeled",
        step_hz: float = POLICY_HZ,
        picture_size: int = 96,
        images: bool = True,
        push: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.picture_size, self.images, self.push = picture_size, images, push
        super().__init__(embodiment, step_hz, render_mode)

    def _contract(self) -> Spec:
        steps = tuple(TURNING if unit == "rad/s" else SPEEDING for unit in self.body.action.units)
        action = replace(self.body.action, acceleration=steps)
        picture = (3, self.picture_size, self.picture_size)
        return Spec(
            observations=(
                Feature("camera", picture, "1", CAMERA, "uint8"),
                Feature("twist", (action.dim,), "m/s, rad/s", "base_link"),
                Feature("goal_video", (FRAMES, *picture), "1", CAMERA, "uint8", constant=True),
                Feature("instruction", (TEXT,), "1", "text", "uint8", constant=True),
                Feature("embodiment", (len(BODIES),), "1", "base_link", constant=True),
            ),
            action=action,
            rate_hz=POLICY_HZ,
            history=1,
            horizon=1,
        )

    def _sample(self, options: Mapping[str, Any]) -> VideoRoom:
        room, self.walk = sample_video_room(self.np_random)
        phrases = {name: str(self.np_random.choice(of_name)) for name, of_name in INSTRUCTIONS.items()}
        drawn = str(self.np_random.choice(list(INSTRUCTIONS)))
        self.active = options.get("instruction", drawn)
        if self.active not in INSTRUCTIONS:
            raise ValueError(f"option instruction is '{self.active}'; choose one of {sorted(INSTRUCTIONS)}")
        self.instruction = self._phrased(phrases[self.active])
        self._offset = self.np_random.uniform(-1, 1, 2) * (RISE, TILT)
        return room

    def _furnish(self, spec: mujoco.MjSpec) -> None:
        super()._furnish(spec)
        spec.body(MOUNTS[self.embodiment]).add_camera(name=CAMERA, fovy=np.degrees(CAMERA_FOVY))
        spec.stat.extent = 10.0
        spec.visual.map.znear, spec.visual.map.zfar = 0.005, 2.0  # of the extent
        spec.visual.quality.offsamples = spec.visual.quality.shadowsize = 0
        height, width = FILM_SIZE if self.render_mode else (0, 0)
        spec.visual.global_.offheight = max(self.picture_size, height)
        spec.visual.global_.offwidth = max(self.picture_size, width)

    def _place(self) -> None:
        super()._place()
        self._height = float(self.pose[2])
        self.goal = self.base_poses(self.stops[self.active])[:3]
        nominal = self._height if self._flies else CAMERA_HEIGHT
        self.camera_height, self.camera_pitch = np.array([nominal, CAMERA_PITCH]) + self._offset
        self._mount()
        self._stage = mujoco.MjData(self.model)
        mujoco.mj_kinematics(self.model, self._stage)
        mujoco.mj_camlight(self.model, self._stage)
        self._frame = -1
        self._video: Array | None = None
        self._rested_at, self._rests_since, self.gave_up = self.pose[:3], 0.0, False
        self._next_push = self.np_random.uniform(*PUSH_EVERY)

    def _mount(self) -> None:
        """Fix the camera to its body so that it is where it belongs now that the robot stands upright."""
        camera, (position, axes) = self.model.camera(CAMERA), self._viewpoint(self.pose)
        body = self.data.body(int(camera.bodyid[0]))
        to_body = body.xmat.reshape(3, 3).T
        camera.pos[:] = to_body @ (position - body.xpos)
        mujoco.mju_mat2Quat(camera.quat, (to_body @ axes).ravel())

    def _viewpoint(self, pose: Array) -> tuple[Array, Array]:
        """Position ``(3,)`` and axes ``(3, 3)`` (columns: right, up, back) of the camera for a base pose ``(4,)``."""
        x, y, z, yaw = np.asarray(pose, float)
        cos, sin, tilt, fall = np.cos(yaw), np.sin(yaw), np.cos(self.camera_pitch), np.sin(self.camera_pitch)
        right, up, back = (sin, -cos, 0), (fall * cos, fall * sin, tilt), (-tilt * cos, -tilt * sin, fall)
        return np.array([x, y, z + self.camera_height - self._height]), np.array([right, up, back]).T

    @property
    def sentences(self) -> dict[str, list[str]]:
        """Every way to say where to stop in this room, by instruction."""
        return {name: [self._phrased(phrase) for phrase in phrases] for name, phrases in INSTRUCTIONS.items()}

    @property
    def stop_frames(self) -> dict[str, float]:
        """At which frame of the goal video to stop, by instruction; between two frames it is no whole number."""
        share = (FRAMES - 1) / (len(self.path) - 1)
        return {"first": self.walk.middle * share, "last": FRAMES - 1.0}

    @property
    def labels(self) -> dict[str, Array]:
        """What recorded episodes hold beside the observations, by the names of `LABELS`."""
        return {STOP_FRAME.name: np.array([self.stop_frames[self.active]], np.float32)}

    @property
    def targets(self) -> dict[str, Landmark]:
        """The landmark to stop at, by instruction."""
        return {"first": self.walk.passed, "last": self.walk.final}

    def _phrased(self, phrase: str) -> str:
        return phrase.format(passed=self.walk.passed.name, final=self.walk.final.name)

    @property
    def path(self) -> Array:
        """``(N, 3)`` x, y in m and yaw in rad of the walk in the video, evenly spaced."""
        return self.walk.path

    @property
    def landmarks(self) -> tuple[Landmark, ...]:
        """All objects and doors of the room."""
        return self.room.landmarks

    @property
    def stops(self) -> dict[str, Array]:
        """Where to stop, ``(3,)`` x, y, yaw, by instruction."""
        return {"first": self.path[self.walk.middle], "last": self.path[-1]}

    @property
    def stop_pose(self) -> Array:
        """``(4,)`` x, y, z of the base in m and yaw in rad where the instruction says to stop."""
        return self.base_poses(self.stops[self.active])

    def base_poses(self, path: Array) -> Array:
        """Base poses ``(..., 4)`` x, y, z, yaw of a robot that stands or flies along a path ``(..., 3)``."""
        return np.insert(np.asarray(path, float), 2, self._height, axis=-1)

    @property
    def shortest(self) -> float:
        """Length in metres of the path up to where to stop."""
        last = self.walk.middle if self.active == "first" else len(self.path) - 1
        return float(np.linalg.norm(np.diff(self.path[: last + 1, :2], axis=0), axis=1).sum())

    @property
    def failed(self) -> bool:
        """Whether the robot has touched something, fallen or given up."""
        return super().failed or self.gave_up

    @property
    def metrics(self) -> dict[str, float]:
        """What came of the episode so far, see `NavEnv`; a language error is to have stopped at the other place."""
        (other,) = (stop for name, stop in self.stops.items() if name != self.active)
        near = np.linalg.norm(self.pose[:2] - other[:2]) < self.radius
        mistaken = near and (self.gave_up or self.speed < GOAL_SPEED) and not self.success
        return super().metrics | {"stopped_at_other": float(mistaken), "gave_up": float(self.gave_up)}

    def _tick(self, command: Array) -> None:
        super()._tick(command)
        position = self.pose[:3]
        if np.linalg.norm(position - self._rested_at) > REST_RADIUS or self.distance < self.radius:
            self._rested_at, self._rests_since = position, self.time
        rested = self.time - self._rests_since
        self.gave_up = self.gave_up or (rested > REST_TIME and self.travelled > MOVED)
        if self.push and self.time > self._next_push:
            self._next_push += self.np_random.uniform(*PUSH_EVERY)
            angle = self.np_random.uniform(-np.pi, np.pi)
            self.data.qvel[:2] += self.push * np.array([np.cos(angle), np.sin(angle)])  # every body begins with x, y

    def observe(self) -> dict[str, Array]:
        """Return the current observation, in arrays of its own; only this renders."""
        return {
            "camera": self._camera().copy(),
            "twist": self.twist.astype(np.float32),
            "goal_video": self.goal_video.copy(),
            "instruction": sentence_bytes(self.instruction, TEXT),
            "embodiment": np.array([name == self.embodiment for name in BODIES], np.float32),
        }

    @property
    def goal_video(self) -> Array:
        """``(16, 3, S, S)`` uint8; black without images."""
        if self._video is None:
            blank = np.zeros((FRAMES, 3, self.picture_size, self.picture_size), np.uint8)
            self._video = self.film(self.base_poses(self.frame_poses)) if self.images else blank
        return self._video

    @property
    def frame_poses(self) -> Array:
        """``(16, 3)`` x, y in m and yaw in rad where the frames of the goal video are taken."""
        where, points = np.linspace(0, len(self.path) - 1, FRAMES), np.arange(len(self.path))
        return np.stack([np.interp(where, points, column) for column in self.path.T], -1)

    def _camera(self) -> Array:
        frame = int(self.time * POLICY_HZ + 1e-6)
        if frame != self._frame:
            self._frame = frame
            if self.images:
                mujoco.mj_kinematics(self.model, self.data)  # a step ends before it moves what is seen
                mujoco.mj_camlight(self.model, self.data)
            self._picture = self._see(self.data) if self.images else np.zeros_like(self.goal_video[0])
        return self._picture

    def film(self, poses: Array) -> Array:
        """Pictures ``(N, 3, S, S)`` uint8 by the head camera of an upright robot that is not in them.

        Args:
            poses: ``(N, 4)`` x, y, z of the base in m and yaw in rad. The episode is not disturbed.
        """
        return np.stack([self._see(self._at(pose)) for pose in poses])

    def depth(self, pose: Array) -> Array:
        """Distances ``(S, S)`` float32 in m along the optical axis, as `film` sees from one pose ``(4,)``."""
        return self._see(self._at(pose), depth=True)

    def _at(self, pose: Array) -> mujoco.MjData:
        position, axes = self._viewpoint(pose)
        self._stage.camera(CAMERA).xpos[:], self._stage.camera(CAMERA).xmat[:] = position, axes.ravel()
        return self._stage

    def _see(self, data: mujoco.MjData, depth: bool = False) -> Array:
        camera = mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self.model.camera(CAMERA).id
        size = (self.picture_size, self.picture_size)
        picture = self._shoot(data, camera, (SCENE_GROUP, ENCLOSURE_GROUP), size, depth=depth)
        return picture if depth else np.ascontiguousarray(picture.transpose(2, 0, 1))


gymnasium.register("kinoflow/VideoNav-v0", entry_point="envs.video_nav:VideoNavEnv", kwargs={"images": True})
