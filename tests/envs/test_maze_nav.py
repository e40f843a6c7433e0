from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

import envs  # noqa: F401 (registers the environment)
from envs.collect import drivers
from envs.g1.assets import available
from envs.maze_nav import CELL, PASSAGES, TIME_LIMIT, to_maze, to_world
from envs.nav import BEAMS
from envs.rooms import HALF_SIZE

STOP = np.zeros(3, np.float32)
NEEDS_G1 = pytest.mark.skipif(available() is not None, reason=f"the G1 is not available: {available()}")


def maze_nav(seed: int = 0, **kwargs: Any) -> Any:
    env: Any = gymnasium.make("kinoflow/MazeNav-v0", disable_env_checker=True, **kwargs).unwrapped
    env.reset(seed=seed)
    return env


def stand(env: Any, before: int, after: int) -> None:
    """Place the robot in the middle of one cell, facing another beside it."""
    here, there = to_world(env.maze.middle(np.array([before, after])))
    env.body.reset(env.model, env.data, *here, np.arctan2(*(there - here)[::-1]))
    mujoco.mj_forward(env.model, env.data)


def ahead(env: Any) -> float:
    return float(env.observe()["scan"][BEAMS // 2])


def drive(env: Any, seconds: float) -> None:
    for _ in range(round(seconds / env.step_dt)):
        env.step(np.eye(env.body.action.dim, dtype=np.float32)[0] / 2)


def run(env: Any) -> dict[str, Any]:
    expert, ended = drivers(env)["expert"](env), False
    while not ended:
        _, _, terminated, truncated, info = env.step(expert.command())
        ended = terminated or truncated
    return info


def cells(env: Any) -> np.ndarray:
    return env.maze.cell(to_maze(np.array([env.room.start[:2], env.room.goal[:2]])))


def detour() -> tuple[Any, int]:
    """A maze with a door on the shortest route, and another route that is longer; and the door."""
    for seed in range(100):
        env = maze_nav(seed, step_hz=50)
        start, goal = cells(env)
        for index in range(len(env.maze.doors)):
            shut = env.maze.with_doors(np.arange(len(env.maze.doors)) == index)
            if env.maze.routes[0][start, goal] < shut.routes[0][start, goal] < np.inf:
                return env, index
    raise AssertionError("no such maze")


def test_the_maze_follows_from_the_seed() -> None:
    one, again, other = maze_nav(3), maze_nav(3), maze_nav(4)
    np.testing.assert_array_equal(one.maze.walls, again.maze.walls)
    assert one.room == again.room
    assert not np.array_equal(one.maze.passages, other.maze.passages)


@pytest.mark.parametrize("embodiment", ["wheeled", "drone"])
def test_mazes_are_as_promised(embodiment: str) -> None:
    env = maze_nav(embodiment=embodiment)
    for seed in range(30):
        env.reset(seed=seed)
        start, goal = np.array([env.room.start[:2], env.room.goal[:2]])
        passages = env.maze.routes[0][tuple(cells(env))]
        assert PASSAGES <= passages < np.inf and not env.maze.shut.any()
        assert 0.5 * passages * CELL < env.shortest < (passages + 1) * CELL  # it cuts corners
        assert env.room.clearance(np.array([start, goal])).min() >= 0.6 - 1e-9
        assert env.room.goal[2] == 0 if embodiment == "wheeled" else 0.6 <= env.room.goal[2] <= 1.6


def test_the_maze_fills_the_room() -> None:
    env, points = maze_nav(), np.random.default_rng(0).uniform(-HALF_SIZE, HALF_SIZE, (5000, 2))
    np.testing.assert_allclose(to_world(env.maze.middle(np.array([0, 12, 24]))), [[-4, -4], [0, 0], [4, 4]])
    np.testing.assert_allclose(to_world(to_maze(points)), points)
    np.testing.assert_array_equal(env.room.clearance(points) > 0, env.maze.free(to_maze(points)))
    assert (env.room.clearance(points) > 0).mean() == pytest.approx(0.95, abs=0.01)


def test_beams_measure_what_the_map_knows() -> None:
    env = maze_nav()
    for index in (0, 2):
        env.shut_door(index)
    for cell in range(env.maze.cells):
        stand(env, cell, cell + 1 if cell % 5 < 4 else cell - 1)
        nearest = env.observe()["scan"].min()
        assert nearest == pytest.approx(env.room.clearance(env.pose[:2]), abs=0.01) or nearest > 1.3  # corners


def test_a_wall_is_hit() -> None:
    env = maze_nav(step_hz=50)
    links = {tuple(pair) for pair in env.maze.passages.tolist()}
    cell = next(cell for cell in range(20) if (cell, cell + 5) not in links)
    stand(env, cell, cell + 5)
    assert ahead(env) == pytest.approx(CELL / 2 - 0.05, abs=1e-4)
    drive(env, 1.2)
    assert not env.collision
    drive(env, 1.5)
    assert env.collision and env.failed
    reached = np.linalg.norm(env.pose[:2] - to_world(env.maze.middle(np.array(cell))))
    assert reached == pytest.approx(CELL / 2 - 0.05 - env.body.radius, abs=0.03)


@pytest.mark.parametrize(
    ("embodiment", "index"),
    [*(("wheeled", index) for index in range(4)), ("drone", 0), pytest.param("g1", 0, marks=NEEDS_G1)],
)
def test_a_shut_door_is_seen_and_blocks_and_an_open_one_does_not(embodiment: str, index: int) -> None:
    env = maze_nav(embodiment=embodiment, step_hz=50)
    before, after = env.maze.passages[env.maze.doors[index]]
    middles = to_world(env.maze.middle(np.array([before, after])))
    stand(env, before, after)
    free = env.observe()["scan"]
    assert ahead(env) > CELL and env.segment_free(*middles)
    env.shut_door(index)
    assert ahead(env) == pytest.approx(CELL / 2 - 0.05, abs=1e-4)
    assert not env.segment_free(*middles) and env.room.clearance(middles.mean(0)) < 0
    drive(env, 3.0)
    assert env.collision and env.maze.cell(to_maze(env.pose[:2])) == before
    env.collision = False
    env.open_door(index)
    stand(env, before, after)
    np.testing.assert_array_equal(env.observe()["scan"], free)
    drive(env, 4.0)
    assert not env.collision and env.maze.cell(to_maze(env.pose[:2])) == after


def test_doors_are_open_after_a_reset() -> None:
    env = maze_nav(5)
    before, after = env.maze.passages[env.maze.doors[1]]
    env.shut_door(1)
    env.shut_door(1)
    assert env.maze.shut.tolist() == [False, True, False, False]
    env.reset(seed=5)
    stand(env, before, after)
    assert not env.maze.shut.any() and ahead(env) > CELL


def test_a_door_does_not_shut_on_the_robot() -> None:
    env = maze_nav(step_hz=50)
    before, after = env.maze.passages[env.maze.doors[0]]
    stand(env, before, after)
    drive(env, 2.0)
    with pytest.raises(ValueError, match=r"the robot stands in it; drive 0\.\d\d m on first"):
        env.shut_door(0)
    assert not env.maze.shut.any() and ahead(env) > CELL / 2
    env.shut_door(1)
    drive(env, 1.5)
    env.shut_door(0)
    env.step(STOP)
    assert not env.collision


@pytest.mark.parametrize("index", [-1, 4])
def test_an_unknown_door_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="choose one from 0 to 3"):
        maze_nav().open_door(index)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_free_lines_keep_their_margin(margin: float) -> None:
    env, rng, finest = maze_nav(1), np.random.default_rng(0), 0.01
    env.shut_door(0)
    start = rng.uniform(-HALF_SIZE, HALF_SIZE, (1000, 2))
    end = start + rng.normal(0, 1, start.shape)
    share = np.linspace(0, 1, 501)[:, None, None]
    clearance = env.room.clearance(start + share * (end - start)).min(0)
    free = env.segment_free(start, end, margin)
    assert 0.1 < free.mean() < 0.9
    assert (clearance[free] > margin).all()
    assert (clearance[~free] < np.sqrt(2) * margin + finest).all()
    assert (free != (clearance > margin)).mean() < 0.03, "only corners differ"


def test_the_expert_takes_another_way_when_a_door_shuts() -> None:
    env, index = detour()
    expert = drivers(env)["expert"](env)
    shortest = env.shortest
    for _ in range(100):
        env.step(expert.command())
    env.shut_door(index)
    info = None
    while not (env.success or env.failed or env.time > TIME_LIMIT):
        *_, info = env.step(expert.command())
    assert info is not None and info["success"]
    assert env.travelled > shortest + 1.0
    assert env.shortest == shortest and 0 < env.metrics["spl"] < 1


def test_a_goal_behind_a_shut_door_has_metrics() -> None:
    for seed in range(20):
        env = maze_nav(seed)
        env.shut_door(0)
        if len(set(env.maze.parts[cells(env)])) == 2:
            break
    assert np.isinf(env.maze.routes[0][tuple(cells(env))])
    env.step(STOP)
    assert env.metrics["spl"] == 0 and np.isfinite(env.shortest)


def test_time_runs_out_late_enough_for_any_route() -> None:
    env = maze_nav()
    assert 2 * (env.maze.cells - 1) * CELL / 0.3 <= TIME_LIMIT + 1e-6
    env.time = 61.0
    assert not env.step(STOP)[3]
    env.time = TIME_LIMIT - 0.15
    assert [env.step(STOP)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("seed", range(10, 14))
def test_the_expert_reaches_the_goal(seed: int) -> None:
    env = maze_nav(seed)
    assert run(env)["success"]


@NEEDS_G1
def test_the_g1_walks_through_the_maze() -> None:
    env = maze_nav(seed=1, embodiment="g1", step_hz=50)
    info = run(env)
    assert info["success"] and not info["fall"]
    assert info["travelled"] > 2 * PASSAGES - 1
