from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'kinoflow[pusht]'")

import envs  # noqa: F401 (registers the environment)
from envs.experts.pusht import JUMP, Expert
from envs.experts.pusht_block import (
    AREA,
    BERTH,
    CENTRE,
    GYRATION,
    RADIUS,
    TIGHT,
    Contact,
    Pose,
    Routes,
    Stroke,
    blocked,
    uncovered,
)
from envs.experts.pusht_planner import CONTACTS, plan


def pusht(seed: int, state: list[float] | None = None) -> Any:
    env: Any = gymnasium.make("kinoflow/PushT-v0", disable_env_checker=True).unwrapped
    env.reset(seed=seed, options=None if state is None else {"state": state})
    return env


def play(env: Any, noise: float = 0.0, steps: int = 300) -> np.ndarray:
    """Commands of an episode whose actions are disturbed by correlated noise."""
    expert, rng, push = Expert(env), np.random.default_rng(0), np.zeros(2)
    commands: list[np.ndarray] = []
    while not env.success and len(commands) < steps:
        commands.append(expert.command())
        push = 0.8 * push + 0.6 * rng.normal(0, noise, 2)
        env.step(np.clip(commands[-1] + push, 0, 512))
    return np.array(commands)


def pose(x: float, y: float, angle: float) -> Pose:
    return Pose(np.array(x + 1j * y), np.array(angle))


def block(env: Any) -> Pose:
    body = env.game.block
    x, y = body.local_to_world(body.center_of_gravity)
    return pose(x, y, body.angle)


GOAL = pose(256 - 45 * np.sin(np.pi / 4), 256 + 45 * np.cos(np.pi / 4), np.pi / 4)


def test_the_model_has_the_shape_and_inertia_of_the_block() -> None:
    body = pusht(0).game.block
    assert tuple(body.center_of_gravity) == (CENTRE.real, CENTRE.imag)
    assert body.moment / body.mass == pytest.approx(GYRATION)
    assert sum(shape.area for shape in body.shapes) == pytest.approx(AREA)


@pytest.mark.parametrize("face", range(8))
def test_a_stroke_moves_the_simulated_block_along_the_predicted_arc(face: int) -> None:
    contact = CONTACTS.at(np.flatnonzero(CONTACTS.face == face)[1])
    env = pusht(0, [0, 0, 0, 0, 240, 230, 0.7])
    start = block(env)
    stroke = Stroke(contact, np.array(20.0))
    env.game.agent.position = _pair(start.world(contact.agent(RADIUS + 2)))
    for length in np.linspace(0, 20, 26).tolist() + 8 * [20.0]:
        env.step(_pair(stroke._replace(length=np.array(length)).applied(start).world(contact.agent(RADIUS))))
    predicted = stroke.applied(start)
    assert abs(block(env).centre - predicted.centre) < 1.5
    assert abs(block(env).angle - predicted.angle) < 0.04


def _pair(point: Any) -> tuple[float, float]:
    return float(point.real), float(point.imag)


@pytest.mark.parametrize("x, y, angle", [(2, 0, 0), (0, -2, 0), (0, 0, 0.03), (-1, 1, -0.02)])
def test_the_uncovered_share_is_that_of_the_simulation(x: float, y: float, angle: float) -> None:
    env = pusht(0, [10, 10, 0, 0, 256 + x, 256 + y, np.pi / 4 + angle])
    lies = block(env)
    estimate = uncovered(Pose(lies.centre[None], lies.angle[None]), GOAL)[0]
    assert estimate == pytest.approx(1 - env.coverage, abs=0.004)


def test_routes_lead_around_the_block() -> None:
    lies, rng = pose(250, 260, 2.1), np.random.default_rng(0)
    for agent in rng.uniform(0, 512, (20, 2)) @ [1, 1j]:
        routes = Routes(lies, agent)
        for number in range(0, len(CONTACTS.face), 5):
            contact = CONTACTS.at(np.array(number))
            path = routes.path(contact)
            np.testing.assert_allclose(path[[0, -1]], [lies.block(agent), contact.agent(RADIUS)], atol=1e-9)
            assert not any(blocked(a, b, TIGHT) for a, b in pairwise(path[1:-1]))
            length = routes.lengths(Contact(contact.face[None], contact.lever[None]))[0]
            assert np.abs(np.diff(path[:-1])).sum() == pytest.approx(length, abs=0.01)


def test_the_way_to_the_other_side_is_longer_than_the_straight_line() -> None:
    lies = pose(256, 256, 0.0)
    top, bottom = (Contact(np.array([face]), np.array([0.0])) for face in (0, 3))
    routes = Routes(lies, complex(lies.world(top.agent(BERTH + 20))[0]))
    assert routes.lengths(top)[0] == pytest.approx(20, abs=0.01)
    assert routes.lengths(bottom)[0] > 120 + 2 * BERTH + 60


@pytest.mark.parametrize("face", range(8))
def test_a_block_one_stroke_away_is_planned_to_arrive(face: int) -> None:
    contact = CONTACTS.at(np.flatnonzero(CONTACTS.face == face)[1])
    start = GOAL.pushed(contact.normal, contact.lever, np.array(-25.0))
    agent = complex(start.world(contact.agent(BERTH)))
    stroke = plan(start, GOAL, Routes(start, agent))
    assert stroke.contact.face == face
    assert uncovered(Pose(*(part[None] for part in stroke.applied(start))), GOAL)[0] < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_the_expert_succeeds_with_smooth_commands(seed: int) -> None:
    env = pusht(seed)
    commands = play(env)
    assert env.success and len(commands) < 150
    assert commands.dtype == np.float32 and commands.min() >= 0 and commands.max() <= 512
    assert np.linalg.norm(np.diff(commands, axis=0), axis=1).max() < JUMP + 1e-3


@pytest.mark.parametrize("seed, noise", [(1, 5.0), (2, 5.0), (4, 10.0), (6, 10.0)])
def test_the_expert_recovers_from_noise(seed: int, noise: float) -> None:
    env = pusht(seed)
    play(env, noise)
    assert env.success


def test_the_expert_begins_inside_the_block_and_in_a_corner() -> None:
    for state in ([300.0, 330.0, 0, 0, 300, 300, 0.0], [60.0, 400.0, 0, 0, 110, 390, 2.5]):
        env = pusht(0, state)
        play(env)
        assert env.success, state


def test_planning_leaves_simulation_and_global_randomness_alone() -> None:
    env, other = pusht(5), pusht(5)
    expert = Expert(env)
    for _ in range(30):
        before, drawn = env.state, str(np.random.get_state())
        command = expert.command()
        np.testing.assert_array_equal(env.state, before)
        assert str(np.random.get_state()) == drawn
        env.step(command)
        other.step(command)
    np.testing.assert_array_equal(env.state, other.state)


def test_the_same_episode_gives_the_same_commands_and_a_reset_begins_anew() -> None:
    env = pusht(3)
    expert = Expert(env)

    def episode() -> np.ndarray:
        env.reset(seed=3)
        commands = []
        for _ in range(25):
            commands.append(expert.command())
            env.step(commands[-1])
        return np.array(commands)

    np.testing.assert_array_equal(episode(), episode())


def test_the_agent_rests_after_success() -> None:
    env = pusht(1)
    play(env)
    expert = Expert(env)
    for _ in range(10):
        env.step(expert.command())
    assert env.success
    np.testing.assert_allclose(expert.command(), env.rest, atol=1)
