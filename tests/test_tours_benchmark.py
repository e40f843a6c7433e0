from json import dumps, loads

import numpy as np
import pytest

pytest.importorskip("ortools", reason="needs OR-tools: pip install 'kinoflow[planning]'")

from benchmarks.tours import AT, KINDS, LOOK, NOISE, SIGHT, TOUR, as_text, follow, measure, plan, sight
from envs.mazes import Maze, sample_maze
from planners.circuit import NoTour
from planners.search import Route
from planners.tour import Tour

ROOMS = Maze((1, 2), np.empty((0, 2), int), np.empty(0, int), np.empty(0, bool))  # a wall between two cells


def test_walls_and_distance_hide_points() -> None:
    places = np.array([[0.0, 0.0], [1.5, 0.0], [-1.5, 0.0], [4.0, 0.0]])
    assert sight(ROOMS, 2.0)(places, np.array([0.0, 0.0])).tolist() == [True, True, True, False]
    assert sight(ROOMS, 1.0)(places, np.array([0.0, 0.0])).tolist() == [True, False, False, False]
    assert sight(ROOMS, 9.0)(places, np.array([4.0, 0.0])).tolist() == [False, False, False, True]


def test_a_robot_follows_a_free_route_and_is_held_by_a_wall() -> None:
    times = np.array([0.0, 7.5, 15.0])
    there_and_back = Route(np.array([[-1.5, 0.0], [0.0, 0.0], [-1.5, 0.0]], np.float32), times)
    drive = follow(ROOMS, there_and_back, np.random.default_rng(0))
    assert np.linalg.norm(drive.positions, axis=-1).min() < AT and not drive.contacts
    assert np.linalg.norm(drive.positions[-1] - [-1.5, 0]) < AT and len(drive.positions) < 40
    through = Route(np.array([[0.0, 0.0], [4.0, 0.0]], np.float32), np.array([0.0, 20.0]))
    drive = follow(ROOMS, through, np.random.default_rng(0))
    assert drive.contacts > 10 and drive.positions[:, 0].max() < 2.0
    assert len(drive.positions) == 161  # patience


def test_what_is_refused_is_left_out_by_number() -> None:
    def make(points: np.ndarray) -> Tour:
        if len(lost := np.flatnonzero(points[1:, 0] > 5)):
            raise NoTour(lost.tolist(), "too far")
        return Tour(Route(points, np.arange(len(points))), np.arange(len(points)), 0.0, 0.0)

    points = np.array([[9.0, 0.0], [1.0, 0.0], [7.0, 0.0], [2.0, 0.0]])
    assert plan(points, make, 1)[1][:, 0].tolist() == [9, 1, 2]


def test_a_small_run_is_consistent_and_has_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.graph_planning.EPISODES", 200)
    monkeypatch.setattr("benchmarks.graph_planning.NODES", 400)
    monkeypatch.setattr("benchmarks.tours.sample_maze", lambda rng: sample_maze(rng, (4, 4)))
    result = loads(dumps(measure(1, 2.0, 1007, (4, 8))))
    assert [*result["kinds"]] == list(KINDS) and result["sight"] == SIGHT and result["noise"] == NOISE
    for kind in KINDS:
        for count in (4, 8):
            row, one = result["mazes"][0]["points"][str(count)][kind], result["kinds"][kind][str(count)]
            assert row["points"] + row["refused"] == count - (kind == LOOK)
            assert 0 <= row["done"] <= row["points"] and row["bound"] <= row["cost"] and row["optimal"]
            assert one["coverage"]["mean"] == pytest.approx(row["done"] / row["points"])
            assert one["over_bound"] == pytest.approx(1, abs=1e-3) and row["arrived"] and one["steps_over_cost"] > 0.9
            if kind == TOUR:
                assert row["nearest"] >= row["cost"] - 1e-6
    visit, look = (result["kinds"][kind]["8"]["cost"] for kind in KINDS)
    assert look <= visit + 1e-6, "who has been everywhere has seen everything"
    text = as_text(result)
    assert TOUR in text and LOOK in text and "1/1" in text
