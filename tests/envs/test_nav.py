from typing import Any

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401 (registers the environment)
from envs.experts.nav import NavExpert
from envs.g1.assets import available
from envs.nav import BEAMS, SCAN_RANGE, TIME_LIMIT
from envs.rooms import HALF_SIZE, Obstacle, Room


def nav(seed: int | None = 0, **kwargs: Any) -> Any:
    env: Any = gymnasium.make("kinoflow/Nav-v0", disable_env_checker=True, **kwargs).unwrapped
    env.reset(seed=seed)
    return env


def in_room(monkeypatch: pytest.MonkeyPatch, room: Room, **kwargs: Any) -> Any:
    monkeypatch.setattr("envs.nav.sample_room", lambda *arguments: room)
    return nav(**kwargs)


def room(*obstacles: Obstacle, start: tuple = (0.0, 0.0, 0.0), goal: tuple = (3.0, 0.0, 0.0)) -> Room:
    far = Obstacle("cylinder", -4.5, -4.5, (0.2, 0.2), 0.0)
    return Room((*obstacles, far), start, goal)


def drive(env: Any, command: list[float], seconds: float) -> None:
    for _ in range(round(seconds / env.step_dt)):
        env.step(np.array(command, np.float32))


@pytest.mark.parametrize("embodiment", ["wheeled", "drone"])
def test_physics_runs_at_200_hz_or_finer(embodiment: str) -> None:
    env = nav(embodiment=embodiment)
    assert env.model.opt.timestep <= 0.005
    before = env.data.time
    env.step(np.zeros(env.body.action.dim, np.float32))
    assert env.data.time - before == pytest.approx(env.step_dt)


def test_the_base_follows_a_command_with_a_first_order_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(), step_hz=50)
    drive(env, [0.4, 0.0, 0.0], 0.25)
    assert env.body.twist(env.data)[0] == pytest.approx(0.4 * (1 - np.exp(-1)), abs=0.01)
    drive(env, [0.4, 0.0, 0.0], 2.0)
    np.testing.assert_allclose(env.twist, [0.4, 0.0, 0.0], atol=5e-3)


def test_velocity_is_in_the_base_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(start=(0.0, 0.0, np.pi / 2)))
    drive(env, [0.5, 0.0, 0.0], 2.0)
    x, y, _, yaw = env.pose
    assert abs(x) < 1e-6
    assert y > 0.7
    assert yaw == pytest.approx(np.pi / 2)


def test_the_goal_is_seen_in_the_base_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(start=(0.0, 0.0, np.pi / 2), goal=(0.0, 3.0, 0.0)))
    np.testing.assert_allclose(env.observe()["goal"], [3.0, 0.0], atol=1e-6)


def test_beams_measure_walls_and_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Obstacle("box", 2.0, 0.0, (0.5, 0.5), 0.0)
    scan = in_room(monkeypatch, room(box, start=(0.0, 1.0, -np.pi / 2), goal=(-3.0, 0.0, 0.0))).observe()["scan"]
    ahead, left, back = scan[BEAMS // 2], scan[3 * BEAMS // 4], scan[0]
    assert back == pytest.approx(HALF_SIZE - 1.0, abs=1e-4)
    assert ahead == pytest.approx(SCAN_RANGE, abs=1e-4) or ahead == pytest.approx(HALF_SIZE + 1.0, abs=1e-4)
    assert left == pytest.approx(HALF_SIZE, abs=1e-4)
    facing = in_room(monkeypatch, room(box)).observe()["scan"]
    assert facing[BEAMS // 2] == pytest.approx(1.5, abs=1e-4)


def test_the_robot_does_not_see_itself() -> None:
    assert nav().observe()["scan"].min() > 0.3


def test_touching_an_obstacle_ends_the_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(Obstacle("cylinder", 1.0, 0.0, (0.3, 0.3), 0.0)))
    for _ in range(50):
        _, reward, terminated, _, info = env.step(np.array([0.6, 0.0, 0.0], np.float32))
        if terminated:
            break
    assert terminated
    assert info["collision"]
    assert not info["success"]
    assert reward < -0.5
    assert env.pose[0] == pytest.approx(1.0 - 0.3 - 0.25, abs=0.03)


def test_success_needs_to_stop_at_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(goal=(1.0, 0.0, 0.0)))
    while env.distance > 0.1:
        _, _, terminated, _, _ = env.step(np.array([0.6, 0.0, 0.0], np.float32))
        assert not terminated, "passing through is no success"
    drive(env, [-0.3, 0.0, 0.0], 0.3)
    while not env.success and env.time < 10:
        _, _, terminated, _, info = env.step(np.zeros(3, np.float32))
    assert terminated
    assert info["success"]


def test_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room())
    env.time = TIME_LIMIT - 0.15
    assert [env.step(np.zeros(3, np.float32))[3] for _ in range(2)] == [False, True]


def test_progress_is_rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room())
    before = env.distance
    rewards = sum(env.step(np.array([0.5, 0.0, 0.0], np.float32))[1] for _ in range(20))
    assert rewards == pytest.approx(before - env.distance, abs=1e-6)


def test_the_drone_flies_to_a_height(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(goal=(0.2, 0.0, 1.5)), embodiment="drone")
    assert env.observe()["goal"].shape == (3,)
    assert env.distance == pytest.approx(np.hypot(0.2, 0.5))
    drive(env, [0.0, 0.0, 0.3, 0.0], 1.0)
    assert env.pose[2] > 1.15


def test_the_drone_may_not_touch_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    env = in_room(monkeypatch, room(goal=(2.0, 0.0, 1.0)), embodiment="drone")
    drive(env, [0.0, 0.0, -0.3, 0.0], 4.0)
    assert env.collision


@pytest.mark.parametrize(("kwargs", "message"), [({"embodiment": "car"}, "car"), ({"step_hz": 30}, "step_hz=30")])
def test_unusable_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nav(**kwargs)


def test_both_step_rates_simulate_the_same() -> None:
    slow, fast = nav(step_hz=10), nav(step_hz=50)
    slow.step(np.array([0.5, 0.1, 0.3], np.float32))
    for _ in range(5):
        fast.step(np.array([0.5, 0.1, 0.3], np.float32))
    np.testing.assert_array_equal(slow.state, fast.state)


@pytest.mark.skipif(available() is not None, reason=f"the G1 is not available: {available()}")
def test_the_g1_walks_to_the_goal_in_full_physics() -> None:
    env = nav(seed=2, embodiment="g1", step_hz=50)
    assert env.model.nu == 29, "29 actuated joints carry the robot"
    expert, ended = NavExpert(env), False
    while not ended:
        _, _, terminated, truncated, info = env.step(expert.command())
        ended = terminated or truncated
    assert info["success"]
    assert not info["fall"]
    assert info["travelled"] > 3.0
