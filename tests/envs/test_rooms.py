import numpy as np
import pytest

from envs.rooms import HALF_SIZE, Map, Obstacle, Room, sample_point, sample_room

ROOMS = [sample_room(np.random.default_rng(seed)) for seed in range(40)]


def test_rooms_are_as_promised() -> None:
    for room in ROOMS:
        start, goal = np.array(room.start[:2]), np.array(room.goal[:2])
        assert 6 <= len(room.obstacles) <= 12
        assert 4 <= np.linalg.norm(goal - start) <= 8
        assert room.clearance(np.stack([start, goal])).min() > 0.6
        assert room.map.routes(goal).reachable(start)


def test_in_at_least_half_of_the_rooms_the_goal_is_hidden() -> None:
    hidden = [not room.in_sight(np.array(room.start[:2]), np.array(room.goal[:2])) for room in ROOMS]
    assert np.mean(hidden) >= 0.5


def test_distance_to_a_rotated_box() -> None:
    box = Obstacle("box", 1.0, 0.0, (1.0, 0.5), np.pi / 2)
    points = np.array([[1.0, 2.0], [2.5, 0.0], [1.0, 0.0], [2.5, 2.0]])
    np.testing.assert_allclose(box.distance(points), [1.0, 1.0, -0.5, np.sqrt(2)], atol=1e-9)


def test_distance_to_a_cylinder() -> None:
    assert Obstacle("cylinder", 0.0, 0.0, (0.5, 0.5), 0.0).distance(np.array([3.0, 4.0])) == pytest.approx(4.5)


def blocked() -> Room:
    wall = Obstacle("box", 0.0, -1.0, (0.2, 3.9), 0.0)  # leaves a gap at the top
    return Room((wall,), (-3.0, 0.0, 0.0), (3.0, 0.0, 0.0))


def test_routes_go_around_and_keep_their_distance() -> None:
    room = blocked()
    path = room.map.routes(np.array([3.0, 0.0])).path(np.array([-3.0, 0.0]))
    assert path[:, 1].max() > 2.9
    assert room.clearance(path).min() > room.map.INFLATION - 0.1
    np.testing.assert_allclose(path[-1], [3.0, 0.0])


def test_the_length_of_a_route_is_that_of_the_taut_path() -> None:
    routes = blocked().map.routes(np.array([3.0, 0.0]), comfortable=False)
    over_the_corner = 2 * np.hypot(3.0 - 0.2, 2.9 + Map.INFLATION) + 0.4
    assert routes.length(np.array([-3.0, 0.0])) == pytest.approx(over_the_corner, rel=0.04)
    assert routes.length(np.array([1.5, 0.0])) == pytest.approx(1.5, abs=0.1)


def test_an_unreachable_goal_is_refused() -> None:
    closed = Room((Obstacle("box", 0.0, 0.0, (0.2, HALF_SIZE), 0.0),), (-3.0, 0.0, 0.0), (3.0, 0.0, 0.0))
    routes = closed.map.routes(np.array([3.0, 0.0]))
    assert not routes.reachable(np.array([-3.0, 0.0]))
    with pytest.raises(ValueError, match="cannot be reached"):
        routes.path(np.array([-3.0, 0.0]))


def test_sampled_points_are_free() -> None:
    rng = np.random.default_rng(0)
    points = np.stack([sample_point(ROOMS[0], rng, clearance=0.7) for _ in range(20)])
    assert ROOMS[0].clearance(points).min() > 0.7
