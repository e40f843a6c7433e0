import numpy as np
import pytest

from envs.mazes import CELL, EPISODE, ROAM, SPEED, Maze, sample_maze, sample_points, stitch_trajectories, touches

MAZES = [sample_maze(np.random.default_rng(seed)) for seed in range(10)]


def corridor() -> Maze:
    """Two rows of three cells: along the lower one, up at its end and back; the way up has a door."""
    passages = np.array([[0, 1], [1, 2], [2, 5], [4, 5], [3, 4]])
    return Maze((2, 3), passages, np.array([2]), np.array([False]))


def test_a_maze_is_the_same_for_the_same_seed() -> None:
    again = sample_maze(np.random.default_rng(3))
    np.testing.assert_array_equal(again.passages, MAZES[3].passages)
    np.testing.assert_array_equal(again.walls, MAZES[3].walls)
    assert not np.array_equal(MAZES[4].passages, MAZES[3].passages)


@pytest.mark.parametrize("maze", MAZES, ids=str)
def test_mazes_have_what_they_promise(maze: Maze) -> None:
    degree = np.bincount(maze.passages.ravel(), minlength=maze.cells)
    assert (maze.parts == 0).all() and (degree == 1).any(), "all is connected, with dead ends"
    assert len(maze.passages) > maze.cells - 1, "loops"
    assert len(np.unique(maze.passages, axis=0)) == len(maze.passages) and len(set(maze.doors)) == len(maze.doors)
    gate = maze.with_doors(np.arange(len(maze.doors)) == 0)
    assert np.bincount(gate.parts).min() >= maze.cells / 8, "the first door separates a large part"


def test_walls_are_where_no_passage_is() -> None:
    maze = corridor()
    for first, second, way in ((0, 1, True), (0, 3, False), (1, 4, False), (2, 5, True), (4, 5, True)):
        assert maze.segment_free(maze.middle(np.array(first)), maze.middle(np.array(second))) == way
    assert len(maze.walls) == 4 + 2
    np.testing.assert_allclose(maze.walls[4], [-2.1, 1.9, 2.1, 2.1])


def test_points_in_walls_and_outside_are_not_free() -> None:
    points = np.array([[0, 0], [0, 2], [0, 1.9], [0, 1.899], [8, 2], [-1.95, 0], [-1.85, 0], [100, 0], [9.95, 5.0]])
    assert corridor().free(points).tolist() == [True, False, False, True, True, False, True, False, False]


def test_a_shut_door_is_a_wall() -> None:
    maze, shut = corridor(), corridor().with_doors(True)
    below, above = maze.middle(np.array([2, 5]))
    assert maze.segment_free(below, above) and not shut.segment_free(below, above)
    assert shut.parts.tolist() == [0, 0, 0, 1, 1, 1] and np.isinf(shut.routes[0][0, 3])
    np.testing.assert_allclose(maze.panels, [[5.9, 1.9, 10.1, 2.1]])
    assert len(shut.walls) == len(maze.walls) + 1
    np.testing.assert_array_equal(shut.with_doors(False).walls, maze.walls)


def test_touching_is_exact() -> None:
    box = np.array([[1.0, 1.0, 2.0, 3.0]])
    cases = {
        ((0, 2), (3, 2)): True,  # through
        ((0, 0), (1, 1)): True,  # ends at a corner
        ((0, 2.01), (1.001, 3.02)): False,  # past the corner
        ((0, 1.98), (1.01, 3.0)): True,
        ((0, 0), (0, 9)): False,
        ((1.5, 1.5), (1.5, 1.5)): True,  # a point inside
        ((2, 4), (2, 3.0001)): False,
        ((0, 4), (4, 0)): True,  # touches nothing but a diagonal
        ((0, 1), (3, 0)): False,
    }
    for (start, end), expected in cases.items():
        for one, other in ((start, end), (end, start)):
            assert touches(box, np.array(one), np.array(other)) == expected, (one, other)


def test_touching_agrees_with_many_points_on_the_line() -> None:
    rng, maze = np.random.default_rng(0), MAZES[0]
    start = sample_points(maze, rng, 150)
    end = start + rng.normal(0, 2, start.shape)
    share = np.linspace(0, 1, 301)[:, None, None]
    dense = maze.free(start + share * (end - start)).all(0)
    exact = maze.segment_free(start, end)
    assert not (exact & ~dense).any()
    assert (exact != dense).mean() < 0.03  # points may miss the corner of a wall
    assert 0.2 < exact.mean() < 0.8


def test_the_next_cell_is_one_nearer() -> None:
    distance, following = MAZES[1].routes
    here, there = np.nonzero(distance > 0)
    np.testing.assert_array_equal(distance[following[here, there], there], distance[here, there] - 1)
    pairs = {tuple(sorted(pair)) for pair in zip(here, following[here, there], strict=True)}
    assert pairs == {tuple(pair) for pair in MAZES[1].passages.tolist()}


def test_points_are_free_and_all_over_the_maze() -> None:
    points = sample_points(MAZES[2], np.random.default_rng(0), 3000)
    assert MAZES[2].free(points).all() and points.shape == (3000, 2)
    assert len(np.unique(MAZES[2].cell(points))) == MAZES[2].cells
    np.testing.assert_allclose(np.abs(points - MAZES[2].middle(MAZES[2].cell(points))).mean(), CELL / 4, rtol=0.1)


def test_trajectories_stay_within_a_few_cells_and_out_of_walls() -> None:
    maze = MAZES[5].with_doors(True)
    states = stitch_trajectories(maze, np.random.default_rng(0), 300)
    assert states.shape == (300, EPISODE, 2) and states.dtype == np.float32
    assert maze.segment_free(states[:, :-1].astype(float), states[:, 1:].astype(float)).mean() > 0.9999  # rounded
    assert np.abs(np.diff(states, axis=1)).max() <= SPEED + 1e-5
    cells = maze.cell(states)
    far = np.take_along_axis(maze.routes[0][cells[:, 0]], cells, axis=1)
    assert far.max() <= ROAM + 1  # the noise can carry it over a border
    assert len(np.unique(cells)) == maze.cells, "together they go everywhere"
    walked = np.linalg.norm(np.diff(states, axis=1), axis=-1).sum(1)
    assert np.median(walked) > 0.8 * SPEED * (EPISODE - 1)


def test_trajectories_are_the_same_for_the_same_seed() -> None:
    one, again, other = (stitch_trajectories(MAZES[0], np.random.default_rng(seed), 5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_robot_that_is_walled_in_stays_there() -> None:
    maze = Maze((1, 2), np.array([[0, 1]]), np.array([0]), np.array([True]))
    states = stitch_trajectories(maze, np.random.default_rng(0), 20)
    cells = maze.cell(states)
    assert maze.free(states).all() and (cells == cells[:, :1]).all()
