"""The rule-based planner whose progress is what a plan's is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_roads import FRONT, box, drive, one, road, user

from envs.metrics import (
    EgoState,
    reference_progress,
    score_states,
)
from envs.metrics.reference_planner import idm_acceleration, proposals


def test_the_driver_model() -> None:
    free = idm_acceleration(np.array([0.0, 10.0, 12.0]), np.full(3, 10.0), np.full(3, np.inf), np.zeros(3))
    np.testing.assert_allclose(free, [1.5, 0.0, -3.0])
    behind = idm_acceleration(np.array([0.0, 5.0]), np.full(2, 10.0), np.array([1.0, 8.5]), np.array([0.0, 5.0]))
    np.testing.assert_allclose(behind, [0.0, -1.5 * 0.5**10], atol=1e-9)


def test_proposals_follow_the_line_and_keep_their_speed() -> None:
    scene = road(ego=EgoState(0, 0.3, 0, 5), speed_limit=10.0)
    poses = proposals(scene)
    assert poses.shape == (15, 41, 3)
    np.testing.assert_allclose(poses[:, 0, 0], 0)
    np.testing.assert_allclose(poses[..., 1], np.repeat([0, 1, -1], 5)[:, None] * np.ones(41))
    np.testing.assert_allclose(poses[..., 2], 0)
    speeds = np.diff(poses[:5, :, 0], axis=1)[:, -1] / 0.1
    np.testing.assert_allclose(speeds, [2, 4, 6, 8, 10], atol=1.2)
    assert (np.diff(speeds) > 0.5).all()
    faster = np.diff(proposals(road(ego=EgoState(0, 0, 0, 14)))[4, :, 0])[-1] / 0.1
    assert 14 < faster < 15


@pytest.mark.parametrize("what", ["car", "static", "red light", "end"])
def test_proposals_stop_in_time(what: str) -> None:
    changes: dict[str, Any] = {}
    users = [user(28, kind="vehicle" if what == "car" else "static")] if what in ("car", "static") else []
    if what == "red light":
        changes["red_lights"] = [box(26, 60, -1.75, 1.75)]
    if what == "end":
        changes["centreline"] = np.array([[-60.0, 0], [26, 0]])
    poses = proposals(road(*users, **changes), samples=150)
    last = poses[:, -1, 0] + FRONT
    assert (last <= 26 + 1e-6).all() and (last[:5] > 22).all()


def test_proposals_ignore_what_is_beside_or_behind() -> None:
    free = proposals(road())
    for other in (user(28, 4.0), user(-20, speed=4), user(28, -6)):
        np.testing.assert_allclose(proposals(road(other)), free)


def test_proposals_follow_who_is_slower() -> None:
    poses = proposals(road(user(20, speed=4)), samples=200)
    np.testing.assert_allclose(np.diff(poses[1:5, :, 0])[:, -1] / 0.1, [4, 4, 4, 4], atol=1.0)


def test_the_reference_is_driven_where_it_is_not_given() -> None:
    scene = road(reference=None, speed_limit=10.0)
    best = reference_progress(scene)
    assert 22 < best < 40
    assert one("progress", drive(), scene) == pytest.approx(20 / best)
    known = replace(scene, reference=best)
    np.testing.assert_array_equal(score_states(drive(), scene).total, score_states(drive(), known).total)
    blocked = road(user(20, kind="vehicle"), reference=None, ego=EgoState(0, 0, 0, 5))
    assert reference_progress(blocked) < best
    assert reference_progress(scene, samples=81) > 1.5 * best


def test_proposals_turn_with_the_line() -> None:
    angle = np.linspace(0, np.pi, 60)
    line = np.stack([30 * np.sin(angle), 30 - 30 * np.cos(angle)], -1)
    poses = proposals(road(centreline=line))
    radius = np.hypot(poses[..., 0], poses[..., 1] - 30)
    np.testing.assert_allclose(radius, np.repeat([30, 29, 31], 5)[:, None] * np.ones(41), atol=0.05)
    np.testing.assert_allclose(poses[..., 2], np.arctan2(poses[..., 0], 30 - poses[..., 1]), atol=0.05)


def test_lines_with_kinks_and_repeated_points_are_fine() -> None:
    line = np.array([[-60.0, 0], [10, 0], [10, 0], [10, 60]])
    poses = proposals(road(centreline=line), samples=100)
    np.testing.assert_allclose(poses[:, -1, 0], np.repeat([10, 9, 11], 5), atol=1e-9)
    assert np.isfinite(poses).all()
