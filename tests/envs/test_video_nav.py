import warnings
from typing import Any

import envs  # isort: skip (registers the environment; before MuJoCo loads)  # noqa: F401
import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.collect import record
from envs.experts.nav import StraightLine
from envs.experts.video_nav import CRUISE, DRIVERS, PathExpert, Replay
from envs.g1.assets import available
from envs.pictures import unavailable
from envs.rooms import HALF_SIZE
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH, FRAMES, INSTRUCTIONS, TEXT
from envs.video_rooms import COLOURS, DOOR

needs_opengl = pytest.mark.skipif(unavailable() != "", reason=unavailable())
needs_g1 = pytest.mark.skipif(available() is not None, reason=f"the G1 is not available: {available()}")
every_body = pytest.mark.parametrize("embodiment", ["wheeled", "drone", pytest.param("g1", marks=needs_g1)])


def video_nav(seed: int = 0, instruction: str | None = None, images: bool = False, **kwargs: Any) -> Any:
    env: Any = gymnasium.make("kinoflow/VideoNav-v0", disable_env_checker=True, images=images, **kwargs).unwrapped
    env.reset(seed=seed, options={"instruction": instruction} if instruction else None)
    return env


def drive(env: Any, driver: Any) -> dict[str, float]:
    ended = False
    while not ended:
        _, _, terminated, truncated, _ = env.step(driver.command())
        ended = terminated or truncated
    return {"success": float(env.success), **env.metrics}


def rest(env: Any, seconds: float) -> bool:
    """Stand still until the episode ends; whether it does."""
    return any(env.step(env.rest)[2] for _ in range(round(seconds / env.step_dt)))


def test_gymnasiums_own_checker_passes() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(symmetric and normalized|infinity).*")
        check_env(video_nav(), skip_render_check=True)


@pytest.mark.parametrize("images", [False, pytest.param(True, marks=needs_opengl)])
@every_body
def test_observations_are_the_contract(embodiment: str, images: bool) -> None:
    env = video_nav(images=images, embodiment=embodiment, picture_size=32)
    observation = env.step(env.rest)[0]
    env.contract.check({name: value[None] for name, value in observation.items()})
    shapes = {feature.name: (feature.shape, feature.dtype, feature.constant) for feature in env.contract.observations}
    assert shapes == {
        "camera": ((3, 32, 32), "uint8", False),
        "twist": ((env.body.action.dim,), "float32", False),
        "goal_video": ((FRAMES, 3, 32, 32), "uint8", True),
        "instruction": ((TEXT,), "uint8", True),
        "embodiment": ((3,), "float32", True),
    }
    assert env.observation_space.contains(observation)
    assert bool(observation["goal_video"].any()) == bool(observation["camera"].any()) == images
    names = ("wheeled", "drone", "g1")
    assert names[int(observation["embodiment"].argmax())] == embodiment
    env.close()


def test_the_same_seed_gives_the_same_episode() -> None:
    def episode(images: bool) -> tuple[np.ndarray, str, str]:
        env = video_nav(11, images=images, push=0.3)
        env.action_space.seed(5)
        for _ in range(40):
            env.step(env.action_space.sample())
        env.close()
        return env.state, env.instruction, env.active

    first, second = episode(False), episode(not unavailable())
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_the_instruction_names_where_to_stop() -> None:
    env = video_nav()
    active, phrases = [], set()
    for seed in range(40):
        observation, _ = env.reset(seed=seed)
        text = bytes(observation["instruction"]).rstrip(b"\0").decode()
        passed, final = env.walk.passed.name, env.walk.final.name
        assert text == env.instruction
        assert len(text) <= TEXT
        assert passed in text
        assert env.active == "first" or final in text
        np.testing.assert_array_equal(env.stop_pose[:2], env.stops[env.active][:2])
        active.append(env.active)
        phrases.add(text.replace(passed, "{passed}").replace(final, "{final}"))
    assert 0.3 < np.mean([name == "first" for name in active]) < 0.7
    assert phrases == {phrase for of_name in INSTRUCTIONS.values() for phrase in of_name}


def test_the_longest_instruction_fits() -> None:
    longest = f"{max(COLOURS, key=len)} cylinder"
    for phrase in (phrase for of_name in INSTRUCTIONS.values() for phrase in of_name):
        assert len(phrase.format(passed=longest, final=longest).encode()) <= TEXT
    assert all(len(set(of_name)) >= 6 for of_name in INSTRUCTIONS.values())


def test_two_instructions_share_one_walk() -> None:
    first, last = video_nav(4, "first"), video_nav(4, "last")
    np.testing.assert_array_equal(first.path, last.path)
    np.testing.assert_array_equal(first.pose, last.pose)
    assert first.landmarks == last.landmarks
    assert first.instruction != last.instruction
    np.testing.assert_array_equal(last.stop_pose, last.base_poses(last.path[-1]))
    np.testing.assert_array_equal(first.stop_pose, first.base_poses(first.path[first.walk.middle]))
    assert np.linalg.norm(first.stop_pose - last.stop_pose) > 2 * first.radius
    with pytest.raises(ValueError, match="instruction is 'middle'"):
        first.reset(options={"instruction": "middle"})


@every_body
def test_the_expert_succeeds(embodiment: str) -> None:
    env = video_nav(embodiment=embodiment)
    for seed in range(4):
        env.reset(seed=seed)
        metrics = drive(env, DRIVERS["expert"](env))
        assert metrics["success"] == 1.0, f"seed {seed}"
        assert metrics["spl"] > 0.9
        assert metrics["gave_up"] == metrics["stopped_at_other"] == metrics["timeout"] == 0.0


def test_stopping_at_the_other_place_is_a_language_error() -> None:
    told, other = video_nav(2, "last"), video_nav(2, "first")
    expert, ended = PathExpert(other), False
    while not ended:
        command = expert.command()
        other.step(command)
        ended = told.step(command)[2]
    assert other.success
    assert told.gave_up
    assert told.metrics["stopped_at_other"] == told.metrics["gave_up"] == 1.0
    assert told.metrics["timeout"] == told.metrics["collision"] == other.metrics["stopped_at_other"] == 0.0
    assert told.time < 30


def test_resting_before_the_first_move_is_no_surrender() -> None:
    env = video_nav()
    assert not rest(env, 8.0)
    assert not env.gave_up


def test_success_needs_half_a_metre() -> None:
    env = video_nav(0, "last")
    expert = PathExpert(env)
    while env.distance > 0.49:
        assert not env.step(expert.command())[2], "passing is no success"
    assert rest(env, 2.0)
    assert env.success


def test_the_replay_repeats_the_video_whatever_it_is_told() -> None:
    for instruction in ("first", "last"):
        env = video_nav(5, instruction)
        x, y, yaw = env.path[0]
        env.body.reset(env.model, env.data, x, y, yaw)
        replay = Replay(env)
        for _ in range(round(len(env.path) * 0.05 / CRUISE / env.step_dt) + 10):
            env.step(replay.command())
        assert np.linalg.norm(env.pose[:2] - env.path[-1, :2]) < 0.4, "from the nominal start it comes close"
        np.testing.assert_array_equal(replay.command(), env.rest)


def test_the_baselines_are_not_enough() -> None:
    rates: dict[str, list[float]] = {}
    for name in ("straight line", "replay"):
        env = video_nav()
        rates[name] = []
        for seed in range(12):
            env.reset(seed=seed)
            rates[name].append(drive(env, DRIVERS[name](env))["success"])
    assert DRIVERS["straight line"] is StraightLine
    assert np.mean(rates["straight line"]) < 0.9
    assert np.mean(rates["replay"]) < 0.6


def test_pushes_push() -> None:
    calm, pushed = video_nav(1), video_nav(1, push=0.5)
    speeds: list[float] = []
    ways: list[float] = []
    for _ in range(60):
        calm.step(calm.rest)
        pushed.step(pushed.rest)
        speeds.append(float(np.linalg.norm(pushed.data.qvel[:2])))
        ways.append(float(np.linalg.norm(pushed.pose[:2] - calm.pose[:2])))
    assert np.abs(calm.data.qvel).max() < 1e-6
    assert 0.2 < max(speeds) <= 0.5
    assert max(ways) == pytest.approx(0.5 * pushed.body.LAG, rel=0.2), "the servos of the base bring it to rest again"


def test_doors_are_flush_and_objects_are_solid() -> None:
    env = video_nav(0)
    for landmark in env.landmarks:
        inside = np.array([landmark.x, landmark.y])
        if landmark.kind == DOOR:
            inside *= (HALF_SIZE - 0.3) / HALF_SIZE  # the hull of the robot all but touches the wall
        env.body.reset(env.model, env.data, *inside, 0.0)
        env.data.qvel[:] = env.collision = 0
        env.step(env.rest)
        assert env.collision == (landmark.kind != DOOR), landmark


def test_who_rests_elsewhere_gives_up_even_if_pushed() -> None:
    env = video_nav(2, "last", push=0.3)
    expert = PathExpert(env)
    while env.travelled < 1.0:
        env.step(expert.command())
    begin = env.time
    assert rest(env, 20.0)
    assert env.gave_up
    assert env.failed
    assert 3.0 < env.time - begin < 15.0


@needs_opengl
@every_body
def test_the_camera_shows_what_the_film_of_its_pose_shows(embodiment: str) -> None:
    env = video_nav(3, images=True, embodiment=embodiment)
    camera = env.observe()["camera"].astype(int)
    filmed = env.film(env.pose[None])[0].astype(int)
    assert np.abs(camera - filmed).mean() < 0.1
    assert camera.std() > 10
    env.step(np.full(env.body.action.dim, 0.2, np.float32))
    later = env.observe()["camera"].astype(int)
    assert np.abs(later - camera).mean() > 0.1, "it moved"
    if embodiment != "g1":  # which sways
        assert np.abs(later - env.film(env.pose[None])[0].astype(int)).mean() < 0.1
    env.close()


@needs_opengl
def test_filming_does_not_disturb_the_episode() -> None:
    alone, filmed = video_nav(6), video_nav(6, images=True)
    for _ in range(5):
        filmed.film(filmed.base_poses(filmed.path[:3]))
        filmed.depth(filmed.stop_pose)
        for env in (alone, filmed):
            env.step(np.array([0.5, 0.1, 0.3], np.float32))
        np.testing.assert_array_equal(alone.state, filmed.state)
    filmed.close()


@needs_opengl
def test_the_video_goes_from_the_begin_of_the_path_to_its_end() -> None:
    env = video_nav(7, images=True)
    video = env.observe()["goal_video"]
    ends = env.film(env.base_poses(env.path[[0, -1]]))
    np.testing.assert_array_equal(video[[0, -1]], ends)
    assert np.abs(np.diff(video.astype(int), axis=0)).mean((1, 2, 3)).min() > 1, "every frame differs from the last"
    np.testing.assert_array_equal(env.step(env.rest)[0]["goal_video"], video)
    env.reset(seed=8)
    assert not np.array_equal(env.observe()["goal_video"], video)
    env.close()


def pixel(env: Any, pose: np.ndarray, point: np.ndarray) -> tuple[int, int]:
    """Row and column where a pinhole camera sees a world point, from its constants alone."""
    x, y, _, yaw = pose
    offset = np.array(point) - (x, y, env.camera_height)
    ahead, left = offset[:2] @ (np.cos(yaw), np.sin(yaw)), offset[:2] @ (-np.sin(yaw), np.cos(yaw))
    cos, sin = np.cos(env.camera_pitch), np.sin(env.camera_pitch)
    depth, down = ahead * cos - offset[2] * sin, -ahead * sin - offset[2] * cos
    focal = env.picture_size / 2 / np.tan(CAMERA_FOVY / 2)
    middle = env.picture_size / 2
    return int(middle + focal * down / depth), int(middle - focal * left / depth)


@needs_opengl
def test_a_landmark_is_where_the_constants_of_the_camera_say() -> None:
    env = video_nav(images=True)
    found = 0
    for seed in range(6):
        env.reset(seed=seed)
        assert abs(env.camera_height - CAMERA_HEIGHT) <= 0.03
        assert abs(env.camera_pitch - CAMERA_PITCH) <= np.radians(2)
        final, passed = env.walk.final, env.walk.passed
        seen = next(pose for pose in env.path[: env.walk.middle] if env.room.sees(pose, passed))
        for pose, target in ((env.base_poses(env.path[-1]), final), (env.base_poses(seen), passed)):
            height = target.height - target.half if target.kind == "ball" else 0.6 * target.height
            row, column = pixel(env, pose, np.array([target.x, target.y, height]))
            colour = env.film(pose[None])[0][:, row, column].astype(float) / 255
            expected = np.array(COLOURS[target.colour])
            if np.ptp(expected) > 0.3:  # shades of white and black depend on the light alone
                assert expected @ colour / np.linalg.norm(expected) / np.linalg.norm(colour) > 0.95, target
                found += 1
    assert found >= 5
    env.close()


@needs_opengl
def test_depth_is_the_distance_along_the_optical_axis() -> None:
    env = video_nav(images=True)
    pose = np.array([0.0, 0.0, 0.25, 0.3])
    depth = env.depth(pose)
    assert depth.shape == (96, 96)
    assert depth.dtype == np.float32
    focal = 48 / np.tan(CAMERA_FOVY / 2)
    axes = env._viewpoint(pose)[1]
    for row, column in ((90, 20), (60, 70), (40, 48), (5, 90)):
        ray = axes @ np.array([(column + 0.5 - 48) / focal, (48 - row - 0.5) / focal, -1])
        hit = np.zeros(1, np.int32)
        seen = np.array([1, 1, 0, 0, 0, 0], np.uint8)
        camera = np.array([0.0, 0.0, env.camera_height])
        length = mujoco.mj_ray(env.model, env.data, camera, ray, seen, 1, -1, hit, None)
        assert depth[row, column] == pytest.approx(length, rel=0.02)  # in units of the ray, which is 1 m along the axis
    env.close()


@needs_opengl
def test_the_camera_takes_ten_pictures_a_second() -> None:
    env = video_nav(1, images=True, step_hz=50)
    expert = PathExpert(env)
    pictures = [env.step(expert.command())[0]["camera"] for _ in range(50)]
    changes = [index for index in range(1, 50) if not np.array_equal(pictures[index - 1], pictures[index])]
    assert {index % 5 for index in changes} == {4}
    assert len(changes) >= 8
    env.close()


@needs_opengl
def test_the_robot_is_seen_from_outside_only() -> None:
    env = video_nav(1, images=True, render_mode="rgb_array")
    before = env.observe()["camera"].copy()
    outside = env.render()
    assert outside.shape == (480, 640, 3)
    assert outside.std() > 10
    np.testing.assert_array_equal(env.film(env.pose[None])[0], before)
    env.close()


@needs_opengl
def test_episodes_can_be_recorded() -> None:
    env = video_nav(images=True, picture_size=24)
    episode = record(env, 1_000_000)
    assert episode is not None
    assert episode.observations["camera"].shape == (len(episode), 3, 24, 24)
    assert episode.observations["goal_video"].shape == (1, FRAMES, 3, 24, 24)
    assert {episode.observations[name].dtype for name in ("camera", "goal_video", "instruction")} == {np.dtype("uint8")}
    env.close()
