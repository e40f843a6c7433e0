"""Following plans: curves through them, progress along them, commands."""

from __future__ import annotations

import numpy as np
import pytest

from planners.search import Route
from planners.track import AccelerationTracker, Curve, Follower, Reference, TwistTracker, VelocityTracker

STEP = 0.1
LINE = Route(np.stack([np.linspace(0, 10, 21), np.zeros(21)], -1), np.arange(21) * 5.0)
REST = Reference(np.zeros(2), np.zeros(2), np.zeros(2))


def test_a_curve_passes_its_waypoints_and_rests_at_its_end() -> None:
    curve = Curve(LINE, STEP)
    for time, place in zip(LINE.times * STEP, LINE.states, strict=True):
        np.testing.assert_allclose(curve.at(time).position, place, atol=1e-9)
    assert curve.duration == 10.0
    for late in (10.0, 99.0):
        np.testing.assert_array_equal(curve.at(late).velocity, 0)
        np.testing.assert_array_equal(curve.at(late).position, [10, 0])
    np.testing.assert_allclose(curve.at(5.0).velocity, [1, 0], atol=1e-3)


def test_a_curve_begins_as_fast_as_the_robot() -> None:
    np.testing.assert_allclose(Curve(LINE, STEP, np.array([0.4, -0.2])).at(0).velocity, [0.4, -0.2])


def test_waypoints_at_one_place_and_single_ones_are_no_trouble() -> None:
    doubled = Route(LINE.states[[0, 0, 1, 2, 2]], LINE.times[[0, 0, 1, 2, 2]])
    assert np.isfinite(Curve(doubled, STEP).at(0.3).position).all()
    single = Curve(Route(np.array([[3.0, 4.0]]), np.zeros(1)), STEP)
    np.testing.assert_array_equal(single.at(0.05).position, [3, 4])


def test_the_plan_waits_for_who_has_fallen_behind_and_doubt_has_hysteresis() -> None:
    follower = Follower(Curve(LINE, STEP), limit=1.0, patience=0.5)
    for _ in range(200):
        follower.advance(np.zeros(2), STEP)
    assert follower.elapsed < 2.5  # it stands still one limit ahead of a robot that does not move
    assert not follower.lost  # for it has not gone further than that
    follower = Follower(Curve(LINE, STEP), limit=1.0, patience=0.5)
    aside = np.array([0.0, 2.0])
    for count in range(1, 6):
        assert not follower.lost
        follower.advance(aside, STEP)
        if count == 3:
            follower.advance(np.array([0.0, 0.7]), STEP)  # a little nearer takes no doubt away
    assert follower.lost
    follower.advance(follower.curve.at(follower.elapsed).position, STEP)
    assert not follower.lost


def test_a_follower_that_keeps_up_is_over_at_the_end() -> None:
    follower = Follower(Curve(LINE, STEP), 1.0, 0.5)
    for _ in range(101):
        assert not follower.over or follower.elapsed >= 10.0 - 1e-9
        follower.advance(follower.curve.at(follower.elapsed).position, STEP)
    assert follower.over and follower.deviation == 0


@pytest.mark.parametrize("velocity", [np.zeros(2), np.array([0.5, -0.5])])
def test_a_velocity_tracker_closes_the_gap(velocity: np.ndarray) -> None:
    position, curve = np.array([0.0, 1.0]), Curve(LINE, STEP, velocity)
    tracker = VelocityTracker(5.0, 2.0)
    for step in range(50):
        command = tracker.command(position, curve.at(step * STEP))
        assert np.abs(command).max() <= 2.0 and command.dtype == np.float32
        position = position + STEP * command
    assert np.linalg.norm(position - curve.at(5.0).position) < 0.05


def test_an_acceleration_tracker_settles_without_overshoot() -> None:
    tracker, position, velocity, furthest = AccelerationTracker(1.5, 10.0), np.array([-1.0, 0.0]), np.zeros(2), -1.0
    for _ in range(100):
        velocity = velocity + STEP / 5 * tracker.command(np.r_[position, velocity], REST)
        position = position + STEP / 5 * velocity
        for _ in range(4):
            velocity = velocity + STEP / 5 * tracker.command(np.r_[position, velocity], REST)
            position = position + STEP / 5 * velocity
        furthest = max(furthest, float(position[0]))
    assert furthest < 0.02 and np.linalg.norm(position) < 1e-3
    assert np.abs(AccelerationTracker(1.5, 0.5).command(np.array([9.0, 9, 9, 9]), REST)).max() == 0.5


def test_a_twist_tracker_turns_towards_its_way_and_keeps_its_limits() -> None:
    low, high = np.array([-0.3, -0.2, -0.7]), np.array([0.6, 0.2, 0.7])
    tracker = TwistTracker(1.5, 1.8, low, high)
    pose = np.array([0.0, 0.0, 2.5])
    ahead = Reference(np.array([3.0, 0.0]), np.array([0.5, 0.0]), np.zeros(2))
    for _ in range(200):
        command = tracker.command(pose, ahead)
        assert (command >= low - 1e-6).all() and (command <= high + 1e-6).all()
        cos, sin = np.cos(pose[2]), np.sin(pose[2])
        pose = pose + 0.05 * np.array(
            [cos * command[0] - sin * command[1], sin * command[0] + cos * command[1], command[2]]
        )
    assert abs(pose[2]) < 0.2 and pose[0] > 2.0
    assert not tracker.command(np.zeros(3), REST).any()
