import dataclasses

import cv2
import numpy as np
import pytest

from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH, VideoNavEnv
from envs.video_nav import FRAMES as FRAMES_OF_A_VIDEO
from policies import senses
from policies.egomotion import Camera, floor_depth, jacobian
from policies.senses import CAMERA, FRAMES, GOAL_VIDEO, SENSES, Sensing, fit_displacement, goal_path, outer, video_path
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

CAMERA_MODEL = Camera(senses.SIDE, senses.FOVY, senses.HEIGHT, senses.PITCH)
GOAL_PATH = SENSES["goal_path"].feature
TWIST = Feature("twist", (3,), "m/s, rad/s", "base_link")
ACTION = ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", (-1.0,) * 3, (1.0,) * 3)
SPEC = Spec((TWIST, GOAL_PATH), ACTION, 10.0, 2, 8)

# An endless floor with soft blots on it, that fades into grey far away.
BLOTS = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(512, 512, 3)), (0, 0), 2.5)
TEXTURE = np.clip(127 + 500 * BLOTS, 0, 255).astype(np.float32)
CELL = 0.06  # m per texel


def look(pose: Array) -> Array:
    """What the head camera sees from x, y, yaw, ``(3, 96, 96)`` uint8."""
    rays = CAMERA_MODEL.rays(senses.SIDE).numpy().astype(float)
    distance = senses.HEIGHT / np.maximum(rays[:, 1], 1e-3)
    ahead, left = rays[:, 2] * distance, -rays[:, 0] * distance
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    where = np.stack([pose[0] + cos * ahead - sin * left, pose[1] + sin * ahead + cos * left], -1)
    column, row = (where / CELL % 512).T.astype(np.float32)
    colours = cv2.remap(TEXTURE, column[:, None], row[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[:, 0]
    colours = 127 + (colours - 127) * np.clip(rays[:, 1:2] / 0.3, 0, 1)
    return colours.reshape(senses.SIDE, senses.SIDE, 3).transpose(2, 0, 1).astype(np.uint8)


def walk(length: float = 0.35) -> Array:
    """Poses ``(16, 3)`` along an arc, steps of so many metres."""
    yaw = np.linspace(0, 1.2, FRAMES)
    step = length * np.stack([np.cos(yaw + 0.04), np.sin(yaw + 0.04)], -1)
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(step[:-1], 0)])
    return np.concatenate([places, yaw[:, None]], 1)


VIDEO = np.stack([look(pose) for pose in walk()])


def seen_from(pose: Array, poses: Array) -> Array:
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return np.concatenate([(poses[:, :2] - pose[:2]) @ [[cos, -sin], [sin, cos]], poses[:, 2:] - pose[2]], 1)


@pytest.mark.parametrize("frame", [0, 6, 14])
def test_the_path_of_a_video_is_seen_from_beside_it(frame: int) -> None:
    poses = walk()
    here = poses[frame] + (0.1, -0.12, 0.15)
    path = goal_path(look(here), VIDEO)
    found = int(path[:, 3].argmax())
    assert abs(found - frame) <= 1 and (path[:, 3] > 0).sum() == 1
    truth = seen_from(here, poses)
    np.testing.assert_allclose(path[found, :3], truth[found], atol=0.05)
    near = slice(max(frame - 2, 0), frame + 3)
    np.testing.assert_allclose(path[near, :3], truth[near], atol=0.15)


@pytest.mark.parametrize("length", [0.07, 0.12, 0.35, 0.6])
def test_short_and_long_videos_are_measured(length: float) -> None:
    poses = walk(length)
    found = video_path(np.stack([look(pose) for pose in poses]))
    assert np.linalg.norm(found[-1, :2] - poses[-1, :2]) < 0.1 * 15 * length


def test_a_place_that_is_not_in_the_video_gives_nothing() -> None:
    assert not goal_path(look(np.array([40.0, 3.0, 2.0])), VIDEO).any()
    assert not goal_path(np.zeros((3, 96, 96), np.uint8), VIDEO).any()


def test_the_fit_recovers_the_motion_of_a_floor_past_what_stands_on_it() -> None:
    rng = np.random.default_rng(1)
    steps = rng.uniform(-0.3, 0.3, (5, 3))
    flow = senses._floor_flow(steps, senses.CELLS) + rng.normal(0, 0.1, (5, senses.CELLS**2, 2))
    flow[:, 300:380] = rng.uniform(-5, 5, 2)  # an obstacle
    found = fit_displacement(flow, np.zeros((5, 3)), np.ones(senses.CELLS**2))
    np.testing.assert_allclose(found[:, :3], steps, atol=0.01)
    assert (found[:, 3] > 0.5).all()


def test_the_flow_of_the_floor_is_that_of_the_geometry() -> None:
    places = CAMERA_MODEL.places(senses.CELLS)
    depth = floor_depth(CAMERA_MODEL, places)
    near = (depth < 5).numpy()
    step = np.array([0.002, -0.001, 0.003])
    expected = (jacobian(CAMERA_MODEL, places, depth).numpy() @ step)[near]
    np.testing.assert_allclose(senses._floor_flow(step[None], senses.CELLS)[0][near], expected, atol=5e-3)


class Echo:
    """A policy that returns what it sees of the path."""

    spec = SPEC

    def act(self, observation: dict[str, Array], noise: Array, committed: Array, hold: Array) -> Array:
        self.spec.check(observation)
        return observation["goal_path"][-1, :8, :3]


def test_a_policy_behind_its_senses_takes_pictures() -> None:
    policy = Sensing(Echo())
    assert [feature.name for feature in policy.spec.observations] == ["twist", "camera", "goal_video"]
    pictures = np.stack([look(walk()[3]), look(walk()[4])])
    observation = {"twist": np.zeros((2, 3), np.float32), "camera": pictures, "goal_video": VIDEO[None]}
    actions = policy.act(observation, np.zeros((8, 3)), np.zeros((8, 3)), np.zeros(8))
    np.testing.assert_array_equal(actions, goal_path(pictures[1], VIDEO)[:8, :3])
    with pytest.raises(ContractError, match="camera"):
        policy.act({**observation, "camera": pictures[:1]}, np.zeros((8, 3)), np.zeros((8, 3)), np.zeros(8))


def test_contracts_without_senses_stay_as_they_are() -> None:
    plain = dataclasses.replace(SPEC, observations=(TWIST, CAMERA, GOAL_VIDEO))
    assert outer(plain) == plain


def test_the_camera_is_the_one_of_the_environment() -> None:
    assert (VideoNavEnv("wheeled", images=False).picture_size, FRAMES_OF_A_VIDEO) == (senses.SIDE, senses.FRAMES)
    geometry = senses.FOVY, senses.HEIGHT, senses.PITCH
    np.testing.assert_allclose(geometry, (CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH), rtol=1e-3)
