from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from policies.spec import ContractError
from ros_nodes import convert

NAMES = ("vx", "vy", "vz", "wz")
BEAMS, REACH = 72, 6.0


def vector(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z)


def pose(x: float, y: float, yaw: float, tilt: float = 0.0, scale: float = 1.0) -> SimpleNamespace:
    """A ``Pose`` that is first turned by ``yaw`` and then pitched by ``tilt``."""
    w, px, py, pz = (
        math.cos(yaw / 2) * math.cos(tilt / 2),
        -math.sin(yaw / 2) * math.sin(tilt / 2),
        math.cos(yaw / 2) * math.sin(tilt / 2),
        math.sin(yaw / 2) * math.cos(tilt / 2),
    )
    orientation = SimpleNamespace(x=px * scale, y=py * scale, z=pz * scale, w=w * scale)
    return SimpleNamespace(position=vector(x, y, 0.3), orientation=orientation)


def scan(ranges: Any, start: float, step: float, frame: str = "base_link", nearest: float = 0.05) -> SimpleNamespace:
    header = SimpleNamespace(frame_id=frame)
    return SimpleNamespace(
        header=header, ranges=ranges, angle_min=start, angle_increment=step, range_min=nearest, range_max=30.0
    )


def directions() -> np.ndarray:
    """Angles of the policy's beams."""
    return -np.pi + 2 * np.pi / BEAMS * np.arange(BEAMS)


def test_module_needs_no_ros() -> None:
    code = "import sys; sys.modules['rclpy'] = None; import ros_nodes.convert, ros_nodes.pilot; print('loaded')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "loaded"


def test_twist_follows_the_order_of_the_names() -> None:
    twist = SimpleNamespace(linear=vector(1, 2, 3), angular=vector(z=4))
    assert convert.twist_values(twist, NAMES).tolist() == [1, 2, 3, 4]
    assert convert.twist_values(twist, ("wz", "vx")).tolist() == [4, 1]


@pytest.mark.parametrize("yaw", [-3.0, -1.2, 0.0, 0.4, 3.1])
def test_pose_gives_the_heading_also_of_a_tilted_robot(yaw: float) -> None:
    np.testing.assert_allclose(convert.pose_values(pose(1, 2, yaw)), [1, 2, 0.3, yaw])
    np.testing.assert_allclose(convert.pose_values(pose(1, 2, yaw, tilt=0.3)), [1, 2, 0.3, yaw], atol=1e-12)


@pytest.mark.parametrize("bad", [pose(math.nan, 0, 0), pose(0, math.inf, 0), pose(0, 0, 1.0, scale=0.0)])
def test_pose_that_is_not_one_is_refused(bad: SimpleNamespace) -> None:
    with pytest.raises(ContractError, match="not valid; check the source of odometry"):
        convert.pose_values(bad)


def test_goal_in_base_frame() -> None:
    base = np.array([1.0, 2.0, 0.5, np.pi / 2])
    np.testing.assert_allclose(convert.goal_in_base(np.array([1.0, 5.0, 1.5]), base, 3), [3, 0, 1], atol=1e-6)
    np.testing.assert_allclose(convert.goal_in_base(np.array([0.0, 2.0, 0.0]), base, 2), [0, 1], atol=1e-6)


@pytest.mark.parametrize("beams", [72, 360, 720])
@pytest.mark.parametrize("clockwise", [False, True])
@pytest.mark.parametrize("start", [-np.pi, 0.0, 1.0])
def test_scan_of_any_scanner_keeps_its_directions(beams: int, clockwise: bool, start: float) -> None:
    step = 2 * np.pi / beams * (-1 if clockwise else 1)
    angles = start + step * np.arange(beams)
    seen = convert.scan_values(scan(2 + np.cos(angles), start, step), BEAMS, REACH)
    assert seen.shape == (BEAMS,) and seen.dtype == np.float32
    assert np.abs(seen - (2 + np.cos(directions()))).max() <= np.pi / beams + 1e-5


def test_scan_without_return_has_the_reach_and_too_near_the_minimum() -> None:
    ranges = np.full(BEAMS, 3.0)
    ranges[:5] = [np.inf, 20.0, -np.inf, 0.0, 6.0]
    assert convert.scan_values(scan(ranges, -np.pi, 2 * np.pi / BEAMS), BEAMS, REACH)[:6].tolist() == pytest.approx(
        [6, 6, 0.05, 0.05, 6, 3]
    )


def test_scan_that_cannot_be_used_is_refused() -> None:
    step, ranges = 2 * np.pi / BEAMS, np.ones(BEAMS)
    with pytest.raises(ContractError, match="2 beams that are not a number"):
        convert.scan_values(scan([np.nan, *ranges[2:], np.nan], -np.pi, step), BEAMS, REACH)
    with pytest.raises(ContractError, match="36 of the 72 beams of a full circle"):
        convert.scan_values(scan(ranges[:36], -np.pi / 2, step), BEAMS, REACH)
    with pytest.raises(ContractError, match="frame 'laser', 'base_link' is needed"):
        convert.scan_values(scan(ranges, -np.pi, step, frame="laser"), BEAMS, REACH)
    for start, increment in ((-np.pi, 0.0), (-np.pi, np.nan), (np.nan, step), (-np.pi, np.inf), (-np.pi, 7.0)):
        with pytest.raises(ContractError, match="angle_increment"):
            convert.scan_values(scan(ranges, start, increment), BEAMS, REACH)
    blind = scan(ranges, -np.pi, step)
    for blind.range_min in (np.nan, -1.0, REACH):
        with pytest.raises(ContractError, match="range_min"):
            convert.scan_values(blind, BEAMS, REACH)


def test_messages_survive_the_way_there_and_back() -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from builtin_interfaces.msg import Time

    stamp, place, twist = Time(sec=12, nanosec=500), np.array([1.0, -2.0, 0.7, 2.5]), np.array([0.3, -0.1, 0.2, 0.6])
    assert convert.nanoseconds(stamp) == 12_000_000_500
    command = convert.twist_message(twist, NAMES, stamp)
    assert command.header.frame_id == "base_link" and command.header.stamp == stamp
    np.testing.assert_allclose(convert.twist_values(command.twist, NAMES), twist, rtol=1e-6)
    odometry = convert.odometry_message(place, twist, NAMES, stamp)
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "base_link")
    np.testing.assert_allclose(convert.pose_values(odometry.pose.pose), place)
    np.testing.assert_allclose(convert.twist_values(odometry.twist.twist, NAMES), twist, rtol=1e-6)
    goal = convert.pose_message(place, "map", stamp)
    np.testing.assert_allclose(convert.point_values(goal.pose.position), place[:3])


def test_scan_message_survives_the_way_there_and_back() -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from builtin_interfaces.msg import Time

    ranges = np.random.default_rng(0).uniform(0.2, 8, BEAMS).clip(None, REACH).astype(np.float32)
    message = convert.scan_message(ranges, REACH, 0.1, Time())
    assert math.inf in message.ranges and message.angle_min == pytest.approx(-math.pi)
    np.testing.assert_array_equal(convert.scan_values(message, BEAMS, REACH), ranges)


def test_status_values_keep_their_types() -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from builtin_interfaces.msg import Time

    values = {"fault": None, "rate_hz": 49.5, "interventions": {"stale": 1}, "path": [1, 2], "text": 'a "b"'}
    (status,) = convert.status_message("guard_node", 2, "stopped", values, "g1", Time()).status
    assert convert.status_values(status) == values
    assert (status.name, status.level, status.message, status.hardware_id) == ("guard_node", b"\2", "stopped", "g1")
