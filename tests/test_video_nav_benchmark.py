"""The benchmark on kinoflow/VideoNav-v0: what it counts, and one room with the shipped policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.video_nav import CONDITIONS, Condition, Drive, Probe, _drive, _mirrored, effect, report
from envs.drive import Row
from envs.pictures import unavailable

BUNDLE = Path(__file__).parents[1] / "models" / "videonav_wheeled.kfb"


def drive(seed: int, success: bool, other: bool = False, off_px: float = 2.0, change: float = 0.5) -> Drive:
    row = Row(seed, success, 9.0, {"stopped_at_other": float(other), "collision": 0.0}, [(0.0, 0.0)])
    return row, Probe(
        [[[0.2, -0.2], [0.5, -0.4]], [[0.3, -0.1], [-0.3, -0.3]], [[0, 0], [0.01, 0]]], [off_px], [change]
    )


def test_right_and_wrong_places_are_counted() -> None:
    found = {name: [drive(0, True), drive(1, False), drive(2, False, other=True)] for name in CONDITIONS}
    result = report(found)
    told = result["stopped where told"]
    assert told["mean"] == pytest.approx(1 / 3) and told["at the other place"] == 2
    assert told["of those at either"]["mean"] == 0.5, "who rests at neither place is not asked which one it was"
    assert result["both sentences of a room"]["mean"] == pytest.approx(1 / 3)
    assert result["pushed, policy - replay"]["mean"] == 0
    for name, opposite in (("vy", 1.0), ("wz", 0.5)):
        mirrored = result["mirrored"][name]
        assert (mirrored["clear"], mirrored["opposite"]) == (12, opposite) and -1 <= mirrored["correlation"] <= 1
    assert json.loads(json.dumps(result))["conditions"]["first"]["success"]["mean"] == pytest.approx(1 / 3)


def test_on_and_off_are_compared_room_by_room() -> None:
    result = effect(
        {
            "on": [drive(0, True, off_px=1.0), drive(1, True, off_px=2.0)],
            "off": [drive(0, False, off_px=2.0, change=1.2), drive(1, True, off_px=4.0)],
        }
    )
    assert result["on - off"]["success"]["mean"] == 0.5 and result["on - off"]["misalignment_px"]["mean"] == -1.5
    assert result["policies"]["off"]["largest_change"] == {"share_of_limit": 1.2, "chunks_beyond": 0.5}


def test_a_mirrored_world_is_seen_and_felt_the_other_way_round() -> None:
    picture = np.arange(12).reshape(1, 1, 3, 4)
    turn = np.array([1.0, -1.0, -1.0], np.float32)
    np.testing.assert_array_equal(_mirrored("camera", picture, turn)[0, 0, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(_mirrored("twist", np.ones((2, 3)), turn), [turn, turn])
    np.testing.assert_array_equal(_mirrored("instruction", picture, turn), picture)


@pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
def test_a_room_is_driven_and_watched() -> None:
    ((row, probe),) = _drive((str(BUNDLE), "wheeled", Condition("last"), range(500_000, 500_001)))
    assert row.seed == 500_000 and row.time_s > 1
    assert len(probe.left) == len(probe.off_px) == len(probe.change) // 5 > 3
    assert max(probe.change) <= 1 + 1e-4, "a chunk asks for more than the limits of acceleration"
