"""The shipped flow network on pairs of rooms it was not trained on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.flow_pairs import pairs_of
from envs.pictures import unavailable
from policies.learned_flow import learned_flow
from policies.spec import Array

PICTURE = np.zeros((3, 96, 96), np.uint8)
LIMIT = 1.2  # px, mean end-point error


@pytest.mark.skipif(bool(unavailable()), reason="no OpenGL library")
def test_shipped_weights_find_the_flow_of_unseen_rooms() -> None:
    found, still = [], []
    for pair in pairs_of([520_200, 520_201], 6):
        error = np.linalg.norm(learned_flow(pair.first, pair.second) - pair.flow, axis=0)
        found.append(error[pair.seen].mean())
        still.append(np.linalg.norm(pair.flow, axis=0)[pair.seen].mean())
    assert np.mean(found) < LIMIT and np.mean(found) < 0.5 * np.mean(still)


@pytest.mark.parametrize("second", [np.zeros((3, 96, 64), np.uint8), np.zeros((3, 96, 96), np.float32)])
def test_other_pictures_are_refused(second: Array) -> None:
    with pytest.raises(ValueError, match=r"two uint8 pictures \(3, 96, 96\)"):
        learned_flow(PICTURE, second)


def test_missing_weights_say_where_to_get_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors is missing; take .* or train one"):
        learned_flow(PICTURE, PICTURE, Path("nowhere.safetensors"))
