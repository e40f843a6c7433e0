"""The exact flow between two pictures fits what MuJoCo renders, and what is hidden is known to be."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from envs.flow_pairs import FARTHEST, NEAREST, Pair, after, exact_flow, pairs_of, stack_cells, visible
from envs.pictures import unavailable
from policies.spec import Array

SIDE, SEED = 96, 520_100
HORIZON = SIDE // 2  # what lies below is floor and objects on it, more or less
pytestmark = pytest.mark.skipif(bool(unavailable()), reason="no OpenGL library")


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(pairs_of([SEED, SEED + 1], 6))


def warped(pair: Pair, off: tuple[float, float] = (0.0, 0.0)) -> Array:
    """Mean grey difference of the first picture to the second fetched along the flow, below the horizon."""
    places = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE))) + pair.flow + np.reshape(off, (2, 1, 1))
    x, y = places.astype(np.float32)
    fetched = cv2.remap(pair.second.transpose(1, 2, 0), x, y, cv2.INTER_LINEAR).transpose(2, 0, 1)
    difference = np.abs(fetched.astype(float) - pair.first).mean(0)
    return difference[HORIZON:][pair.seen[HORIZON:]].mean()


def test_the_flow_takes_the_second_picture_onto_the_first(pairs: list[Pair]) -> None:
    right = np.mean([warped(pair) for pair in pairs])
    still = np.mean([np.abs(pair.second.astype(float) - pair.first)[:, HORIZON:].mean() for pair in pairs])
    assert right < 0.3 * still
    for off in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # half a pixel of a mistake would show
        assert right < np.mean([warped(pair, off) for pair in pairs])


def test_drives_are_what_they_should_be(pairs: list[Pair]) -> None:
    moved = np.array([pair.moved for pair in pairs])
    assert (moved >= NEAREST).all() and (moved <= FARTHEST).all() and len(np.unique(moved[:, 2])) == len(pairs)


def test_the_same_seeds_give_the_same_pairs(pairs: list[Pair]) -> None:
    (again,) = pairs_of([SEED], 1)
    for name in ("first", "second", "flow", "seen", "moved"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs[0], name))


def test_twist_drives_the_displacement(pairs: list[Pair]) -> None:
    pose = np.zeros(3)
    for _ in range(2000):  # Euler's method
        pose = after(pose, pairs[0].twist / 2000)
    np.testing.assert_allclose(pose, pairs[0].moved, atol=1e-4)


def test_flow_of_a_wall_that_comes_nearer() -> None:
    depth = np.full((SIDE, SIDE), 2.0)
    flow, there = exact_flow(depth, np.array([1.0, 0, 0]), 0.0)
    np.testing.assert_allclose(there, 1.0)
    along = np.arange(SIDE) + 0.5 - SIDE / 2
    np.testing.assert_allclose(flow[0], np.broadcast_to(along, (SIDE, SIDE)), atol=1e-4)  # twice as large
    seen = visible(flow, there, np.full((SIDE, SIDE), 1.0))
    assert seen[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].all() and seen.sum() == SIDE**2 // 4


def test_what_something_else_hides_is_not_seen() -> None:
    depth = np.full((SIDE, SIDE), 2.0)
    flow, there = exact_flow(depth, np.zeros(3), 0.0)
    behind = depth.copy()
    behind[40:60, 40:60] = 1.0
    seen = visible(flow, there, behind)
    assert not seen[42:58, 42:58].any() and seen.sum() >= SIDE**2 - 400


def test_cells_leave_out_what_is_not_seen() -> None:
    flow, seen = np.zeros((2, SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), bool)
    flow[:, :, 1], flow[:, :, 0], seen[:, 0], seen[:4, 4:8] = 3.0, 1e6, False, False
    pair = Pair(flow, flow, flow, seen, np.zeros(3), 1.2, 0.0)
    cells, share = pair.cells
    np.testing.assert_allclose(cells[:, :, 0], 1.0)  # 3, 0 and 0
    np.testing.assert_allclose(cells[:, :, 1:], 0.0)
    assert share[0, 1] == 0 and share[5, 0] == 0.75 and share[5, 5] == 1


def test_arrays_to_train_on(pairs: list[Pair]) -> None:
    arrays = stack_cells(pairs)
    shapes = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
    assert shapes == {
        "first": (np.uint8, (3, SIDE, SIDE)),
        "second": (np.uint8, (3, SIDE, SIDE)),
        "flow": (np.float32, (2, 24, 24)),
        "share": (np.float32, (24, 24)),
    }
    assert all(len(array) == len(pairs) and np.isfinite(array).all() for array in arrays.values())
