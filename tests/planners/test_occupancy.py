"""Maps of what is occupied: they agree with the truth they were drawn from, and close the graph where they must."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from envs.maze_nav import MazeNavEnv
from planners.edges import Straight
from planners.graph import StateGraph
from planners.occupancy import OccupancyMap
from planners.search import NoRoute, shortest_path
from policies.spec import Array, ContractError
from ros_nodes.simulation import MAP_CELL, occupancy

RADIUS = 0.25


@pytest.fixture(scope="module")
def env() -> MazeNavEnv:
    env = MazeNavEnv()
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def area(env: MazeNavEnv) -> OccupancyMap:
    return OccupancyMap.of(*occupancy(env.room), RADIUS)


def drawn(count: int) -> Array:
    return np.random.default_rng(1).uniform(-4.9, 4.9, (count, 2))


def test_distances_are_those_of_the_room(env: MazeNavEnv, area: OccupancyMap) -> None:
    points = drawn(5000)
    truth = env.room.clearance(points)
    error = area.at(points) - truth
    assert np.abs(error[truth > 0]).max() < 1.5 * MAP_CELL and np.abs(error[truth > 0]).mean() < MAP_CELL
    assert (area.at(points[truth < 0]) <= 0).all()


def test_free_lines_are_those_of_the_room(env: MazeNavEnv, area: OccupancyMap) -> None:
    start = drawn(2000)
    end = start + np.random.default_rng(2).normal(0, 1, start.shape)
    share = np.linspace(0, 1, 400)[:, None, None]
    inside = (np.abs(end) < 5).all(-1)
    least = np.where(inside, env.room.clearance(start + share * (end - start)).min(0), -np.inf)
    free = area.free(start, end)
    assert free[least > RADIUS + 1.5 * MAP_CELL].all() and not free[least < RADIUS - 1.5 * MAP_CELL].any()
    assert 100 < free.sum() < 1900
    np.testing.assert_array_equal(free, area.free(end, start))


def test_shapes_and_what_is_nowhere() -> None:
    area = OccupancyMap.of(np.zeros((40, 60), bool), 0.05, np.array([-1.0, 2.0]), 0.2)
    middle = np.array([0.5, 3.0])
    assert area.free(middle, middle).shape == () and area.free(middle, middle)
    assert area.free(np.zeros((3, 1, 2)), np.zeros((4, 2))).shape == (3, 4)
    assert area.free(np.empty((0, 2)), np.empty((0, 2))).shape == (0,)
    for bad in ([2.1, 3.0], [0.5, 1.9], [np.nan, 3.0], [np.inf, 3.0], [-0.9, 3.0], [0.5, 3.9]):
        assert not area.free(middle, np.array(bad)) and not area.free(np.array(bad), middle)
    assert area.at(middle) > 0.9


def test_a_wall_of_one_cell_is_not_stepped_over() -> None:
    occupied = np.zeros((40, 200), bool)
    occupied[:, 100] = True
    area = OccupancyMap.of(occupied, 0.05, np.zeros(2), 0.0)
    assert not area.free(np.array([0.5, 1.0]), np.array([9.5, 1.0]))
    assert area.free(np.array([0.5, 1.0]), np.array([4.9, 1.0]))


def test_who_stands_too_near_may_leave_but_not_come_nearer(area: OccupancyMap) -> None:
    position = np.array([4.95 - 0.15, -4.0])  # the wall is at 4.95
    assert not area.free(position, position)
    leaving = area.leaving(position)
    assert leaving.free(position, np.array([4.3, -4.0])) and leaving.free(position, position + np.array([0, 0.1]))
    assert not leaving.free(position, position + np.array([0.12, 0])) and not leaving.free(
        position, position + np.array([0, 0.8])
    )
    assert area.leaving(np.array([4.0, -4.0])) is area
    inside = np.array([5.0, -4.0])
    assert not area.leaving(inside).free(inside, np.array([4.0, -4.0]))


def test_a_shut_door_closes_the_graph(env: MazeNavEnv, area: OccupancyMap) -> None:
    points = drawn(1500)
    points = points[area.at(points) >= RADIUS]
    pairs = np.random.default_rng(3).integers(0, len(points), (40000, 2))
    pairs = pairs[np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=-1) < 1.5]
    pairs = pairs[area.free(points[pairs[:, 0]], points[pairs[:, 1]])]
    graph = StateGraph.build(points, pairs, Straight(0.1))
    assert not area.closed_in(graph).closed_edges.any() and not area.closed_in(graph).closed_nodes.any()
    south, north = np.array([4.0, -1.6]), np.array([4.0, -0.4])
    assert shortest_path(area.closed_in(graph), south, north).cost < 40
    env.shut_door(0)
    shut = OccupancyMap.of(*occupancy(env.room), RADIUS)
    env.open_door(0)
    closed = shut.closed_in(graph)
    assert 0 < closed.closed_edges.sum() < len(graph.edges) / 2
    with pytest.raises(NoRoute) as refusal:
        shortest_path(closed, south, north)
    assert refusal.value.reason == "closed"


def test_maps_travel(area: OccupancyMap) -> None:
    content = pickle.dumps(area)
    other = pickle.loads(content)
    assert len(content) < 4.1 * area.clearance.size
    np.testing.assert_array_equal(other.at(drawn(100)), area.at(drawn(100)))


def test_a_map_without_cells_is_refused() -> None:
    with pytest.raises(ContractError, match=r"the map has shape \(0, 0\)"):
        OccupancyMap.of(np.zeros((0, 0)), 0.1, np.zeros(2), RADIUS)
