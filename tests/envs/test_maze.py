"""OGBench's mazes for a point and for a puck: what they promise, and the data that their robots leave behind."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.maze import ACCELERATION, RADIUS, SLACK, SPEED, STEP, MazeEnv, PuckMazeEnv
from envs.maze_data import point_explore, point_stitch, puck_stitch, wander
from envs.mazes import EPISODE, Maze, sample_maze, slide
from envs.racing_line import racing_drive
from policies.spec import ContractError

pytest.importorskip("ogbench", reason="needs OGBench: pip install 'kinoflow[maze]'")


def drive(env: Any, command: Any, steps: int) -> dict[str, Any]:
    for _ in range(steps):
        *_, terminated, truncated, info = env.step(command)
        if terminated or truncated:
            break
    return info


def test_layouts_are_those_of_ogbench() -> None:
    for layout, cells in (("medium", 26), ("large", 46), ("giant", 79)):
        env = MazeEnv(layout)
        assert len(env.maze.free_cells) == (env.game.maze_map == 0).sum()
        assert len({*env.maze.parts[env.maze.free_cells]}) == 1  # one can get anywhere
        walls = env.game.maze_map[1:-1, 1:-1] == 1
        np.testing.assert_array_equal(np.flatnonzero(walls), env.maze.blocks)
        for task in env.game.task_infos:
            assert env.maze.free(np.array([task["init_xy"], task["goal_xy"]]), RADIUS).all()
        assert abs(cells - len(env.maze.free_cells)) <= 40


def test_the_seed_alone_decides_the_episode() -> None:
    env, again = MazeEnv("medium"), MazeEnv("medium")
    for seed in range(7):
        env.reset(seed=seed)
        np.random.seed(seed + 1)  # OGBench's own noise is that of the global generator
        again.reset(seed=seed)
        np.testing.assert_array_equal([*env.pose, *env.goal], [*again.pose, *again.goal])
        assert env.task == again.task == seed % 5 + 1
        task = env.game.task_infos[env.task - 1]
        assert np.abs(env.goal - task["goal_xy"]).max() <= 1 and np.abs(env.pose - task["init_xy"]).max() <= 1


def test_success_is_ogbenchs_and_the_goal_ends_the_episode() -> None:
    env = MazeEnv("medium", task=1)
    env.reset(seed=0, options={"start": np.array([0.0, 0.0]), "goal": np.array([0.0, 3.0])})
    assert not env.success and not env.game.compute_success()
    info = drive(env, np.array([0.0, SPEED]), 20)
    assert info["success"] and env.game.compute_success() and env.time < 1.2


def test_a_point_is_stopped_by_walls_and_a_puck_crashes() -> None:
    for kind in (MazeEnv, PuckMazeEnv):
        env = kind("medium", task=1)
        env.reset(seed=0, options={"start": np.array([0.0, 0.0]), "goal": np.array([0.0, 18.0])})
        info = drive(env, env.action.low, 200)
        assert info["crash"] == (kind is PuckMazeEnv) and not info["success"]
        assert env.maze.free(env.pose) and env.pose[0] > -2


def test_a_puck_has_the_inertia_that_its_data_were_made_with() -> None:
    env = PuckMazeEnv("medium", task=1)
    env.reset(seed=0, options={"start": np.array([0.0, 0.0]), "goal": np.array([0.0, 18.0])})
    for _ in range(10):
        env.step(np.array([0.0, ACCELERATION]))
    np.testing.assert_allclose(env.data.qvel, [0, ACCELERATION * 1.0], atol=1e-6)
    env.step(np.array([0.0, 0.0]))
    np.testing.assert_allclose(env.data.qvel, [0, ACCELERATION * 1.0], atol=1e-6)  # nothing slows it down


def test_a_puck_has_a_fifth_more_time_than_its_expert_needs() -> None:
    env = PuckMazeEnv("medium", task=1)
    env.reset(seed=0)
    assert env.time_limit == pytest.approx(SLACK * racing_drive(env.maze, env.pose, env.goal, ACCELERATION, STEP).x[-1])


@pytest.mark.parametrize(("layout", "task"), [("nowhere", None), ("medium", 6)])
def test_unknown_layouts_and_tasks_are_refused(layout: str, task: int | None) -> None:
    with pytest.raises(ContractError, match=r"choose (medium|1 to 5)"):
        MazeEnv(layout, task)


@pytest.mark.parametrize("recipe", [point_stitch, point_explore, puck_stitch])
def test_data_keep_out_of_walls_and_move_as_the_robot_can(recipe: Any) -> None:
    maze = MazeEnv("medium").maze
    episodes = recipe(maze, np.random.default_rng(0), 60)
    assert len(episodes) == 60 and max(map(len, episodes)) == EPISODE
    for states in episodes:
        assert maze.segment_free(states[:-1, :2], states[1:, :2], RADIUS - 1e-3).all()
        if recipe is puck_stitch:
            change = np.abs(np.diff(states[:, 2:], axis=0))
            assert change.max(initial=0) <= ACCELERATION * STEP + 1e-5
        else:
            assert np.abs(np.diff(states, axis=0)).max() <= SPEED * STEP + 1e-5
    again = recipe(maze, np.random.default_rng(0), 60)
    assert all(np.array_equal(*pair) for pair in zip(episodes, again, strict=True))


def test_point_data_are_what_ogbenchs_physics_does() -> None:
    env = MazeEnv("medium", task=1)
    rng = np.random.default_rng(3)
    env.reset(seed=0)
    place, steps = env.pose, 0
    while not env.game.data.ncon or steps < 20:  # contacts of the physics are softer
        action = np.clip(rng.normal(0.3, 0.5, 2), -1, 1)
        env.step(SPEED * action)
        place, steps = slide(env.maze, place[None], SPEED * STEP * action[None], RADIUS)[0], steps + 1
        np.testing.assert_allclose(env.pose, place, atol=0.01)


def test_a_stitch_episode_goes_four_cells_and_stays() -> None:
    maze = MazeEnv("giant").maze
    episodes = np.stack(point_stitch(maze, np.random.default_rng(0), 200))
    away = maze.routes[0][maze.cell(episodes[:, 0]), maze.cell(episodes[:, -1])]
    assert np.mean(np.abs(away - 4) <= 1) > 0.9
    assert np.linalg.norm(episodes[:, -30:] - episodes[:, -1:], axis=-1).mean() < 1.0


def test_recipes_that_are_not_there_are_refused() -> None:
    for env, kind in ((PuckMazeEnv("medium"), "explore"), (gymnasium.make("kinoflow/Nav-v0").unwrapped, "stitch")):
        with pytest.raises(ContractError, match="no recipe"):
            wander(env, kind, np.random.default_rng(0), 5)


def test_a_racing_line_keeps_its_distance_and_its_limits() -> None:
    maze = MazeEnv("giant").maze
    for start, goal in (((0, 0), (52, 36)), ((0, 36), (28, 8))):
        curve = racing_drive(maze, np.array(start, float), np.array(goal, float), ACCELERATION, STEP)
        moments = np.arange(0, curve.x[-1], 0.05)
        places, forces = curve(moments), np.abs(curve(moments, 2))
        assert maze.segment_free(places[:-1], places[1:], RADIUS + 0.05).all()
        assert np.quantile(forces, 0.97) <= 1.2 * ACCELERATION
        np.testing.assert_allclose(curve([0, curve.x[-1]]), [start, goal], atol=1e-6)


def test_blocks_and_margins() -> None:
    filled = np.zeros((3, 3), bool)
    filled[1, 1] = True
    maze = Maze.of_blocks(filled)
    middle = maze.middle(np.array(4))
    assert not maze.free(middle) and maze.free(np.array([0.0, 0.0]))
    beside = middle - [2.5, 0]
    assert maze.free(beside) and maze.free(beside, 0.4) and not maze.free(beside, 0.6)
    assert not maze.segment_free(np.array([0.0, 4.0]), np.array([8.0, 4.0]))
    thin = sample_maze(np.random.default_rng(0))
    assert (thin.free_cells == np.arange(thin.cells)).all()
