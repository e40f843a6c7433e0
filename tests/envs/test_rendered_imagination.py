from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest

from envs.imagination import SPEED, ClippingImagination, MujocoImagination, StrayingImagination, destination
from envs.pictures import unavailable
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH, INSTRUCTIONS, VideoNavEnv
from envs.video_rooms import STEP, Landmark
from planners.imagination import Orchestrator
from planners.memory import Memory
from planners.prompt import RulePolicy
from planners.validate import FlowValidator
from policies.egomotion import Camera
from policies.spec import ContractError

BOX, DOOR = Landmark("box", "red", 0.0, 0.0), Landmark("door", "blue", 1.0, 0.0)


@pytest.fixture(scope="module")
def env() -> Iterator[VideoNavEnv]:
    made = VideoNavEnv("wheeled", images=not unavailable())
    made.reset(seed=7)
    yield made
    made.close()


@pytest.mark.parametrize("which", INSTRUCTIONS)
def test_every_instruction_of_the_environment_is_understood(which: str) -> None:
    expected = BOX if which == "first" else DOOR
    for phrase in INSTRUCTIONS[which]:
        understood = destination(phrase.format(passed=BOX.name, final=DOOR.name), (BOX, DOOR))
        assert understood == expected, phrase


def test_a_landmark_that_is_not_there_is_named() -> None:
    with pytest.raises(ContractError, match=r"no 'green ball'.*blue door, red box"):
        destination("walk past the red box and stop at the green ball", (BOX, DOOR))
    with pytest.raises(ContractError, match="name one of"):
        destination("dance", (BOX, DOOR))


def test_the_walk_ends_where_the_sentence_says(env: VideoNavEnv) -> None:
    imagination, walk = MujocoImagination(env), env.walk
    last = imagination.plan(f"walk past the {walk.passed.name} and stop at the {walk.final.name}")
    np.testing.assert_array_equal(last[-1], env.stops["last"])
    np.testing.assert_array_equal(imagination.plan(f"stop at the {walk.passed.name}")[-1], env.stops["first"])


@pytest.mark.skipif(bool(unavailable()), reason="no OpenGL library")
def test_a_rendered_walk_passes_the_check(env: VideoNavEnv) -> None:
    size = (env.picture_size, env.picture_size)
    camera = Camera(env.picture_size, CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH)
    loop = Orchestrator(
        MujocoImagination(env), FlowValidator(camera), RulePolicy(), Memory(None), attempts=1, frames=64, size=size
    )
    trace = loop.run(f"stop at the {env.walk.final.name}", 0)
    assert trace.accepted and trace.video.provenance == "rendered"
    assert trace.video.rate_hz == pytest.approx(63 * SPEED / ((len(env.path) - 1) * STEP))
    np.testing.assert_array_equal(trace.video.frames[[0, -1]], env.film(env.base_poses(env.path[[0, -1]])))


def test_requests_need_no_more_than_they_say(env: VideoNavEnv) -> None:
    request = SimpleNamespace(prompt=f"stop at the {env.walk.final.name}", frames=3)
    assert len(MujocoImagination(env).generate(request, 0).frames) == 3


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_that_strays_ends_elsewhere_without_touching_anything(env: VideoNavEnv, seed: int) -> None:
    for which, target in (("first", env.walk.passed), ("last", env.walk.final)):
        request = SimpleNamespace(prompt=f"stop at the {target.name}", frames=40)
        poses = StrayingImagination(env).generate(request, seed).poses
        assert np.linalg.norm(poses[-1, :2] - env.stops[which][:2]) > env.radius
        assert env.room.clearance(poses[:, :2]).min() > env.body.radius


@pytest.mark.parametrize("room", range(7, 11))
def test_a_camera_that_clips_goes_through_something_without_a_sharp_turn(room: int) -> None:
    with closing(VideoNavEnv("wheeled", images=not unavailable())) as env:
        env.reset(seed=room)
        request = SimpleNamespace(prompt=f"stop at the {env.walk.final.name}", frames=200)
        poses = ClippingImagination(env).generate(request, 0).poses
        assert env.room.clearance(poses[:, :2]).min() < 0
    steps = np.diff(poses, axis=0)
    assert (np.abs(steps[:, 3]) < 1.2 * np.linalg.norm(steps[:, :2], axis=1)).all()
