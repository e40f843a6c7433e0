"""ROS 2 messages to numpy and back, as pure functions. Only those that build a message need ROS 2."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policies.sentence import sentence_bytes
from policies.spec import Array, ContractError

BASE_FRAME, ODOMETRY_FRAME, CAMERA_FRAME = "base_link", "odom", "head_camera"
COMPONENTS = {"vx": ("linear", "x"), "vy": ("linear", "y"), "vz": ("linear", "z"), "wz": ("angular", "z")}
"""Field of a Twist per action name."""


def nanoseconds(stamp: Any) -> int:
    """Return a ``builtin_interfaces/Time`` in nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def require_frame(what: str, frame: str, *allowed: str) -> None:
    """Require that data are expressed in one of the allowed frames.

    Raises:
        ContractError: They are not.
    """
    if frame not in allowed:
        raise ContractError(f"{what} is in frame '{frame}', '{' or '.join(allowed)}' is needed; transform it before")


def twist_values(twist: Any, names: Sequence[str]) -> Array:
    """Return ``(A,)`` float32 velocities of a ``Twist``, in the order of the action names, m/s and rad/s."""
    return np.array([getattr(getattr(twist, COMPONENTS[name][0]), COMPONENTS[name][1]) for name in names], np.float32)


def twist_message(values: Array, names: Sequence[str], stamp: Any) -> Any:
    """Return a ``TwistStamped`` in the base frame from ``(A,)`` velocities in the order of the action names."""
    from geometry_msgs.msg import TwistStamped

    message = TwistStamped()
    message.header.frame_id, message.header.stamp = BASE_FRAME, stamp
    _fill(message.twist, values, names)
    return message


def _fill(twist: Any, values: Array, names: Sequence[str]) -> None:
    for name, value in zip(names, values, strict=True):
        part, axis = COMPONENTS[name]
        setattr(getattr(twist, part), axis, float(value))


def pose_values(pose: Any) -> Array:
    """Return ``(4,)`` x, y, z in m and yaw in rad of a ``Pose``.

    Raises:
        ContractError: The position is not finite or the orientation is no unit quaternion.
    """
    q = pose.orientation
    values = np.array([pose.position.x, pose.position.y, pose.position.z, _yaw(q)])
    norm = math.hypot(q.x, q.y, q.z, q.w)
    if not np.isfinite(values).all() or not abs(norm - 1) < 0.01:
        raise ContractError(f"pose {values} with quaternion norm {norm:.3f} is not valid; check the source of odometry")
    return values


def _yaw(q: Any) -> float:
    return math.atan2(2 * (q.w * q.z + q.x * q.y), 1 - 2 * (q.y * q.y + q.z * q.z))


def point_values(point: Any) -> Array:
    """Return ``(3,)`` metres of a ``Point``."""
    return np.array([point.x, point.y, point.z])


def pose_message(pose: Array, frame: str, stamp: Any) -> Any:
    """Return a ``PoseStamped`` from ``(4,)`` x, y, z in m and yaw in rad."""
    from geometry_msgs.msg import PoseStamped

    message = PoseStamped()
    message.header.frame_id, message.header.stamp = frame, stamp
    _place(message.pose, pose)
    return message


def _place(message: Any, pose: Array) -> None:
    x, y, z, yaw = (float(value) for value in pose)
    message.position.x, message.position.y, message.position.z = x, y, z
    message.orientation.z, message.orientation.w = math.sin(yaw / 2), math.cos(yaw / 2)


def odometry_message(pose: Array, twist: Array, names: Sequence[str], stamp: Any) -> Any:
    """Return an ``Odometry`` from ``(4,)`` x, y, z, yaw in the odom frame and ``(A,)`` velocities in the base frame."""
    from nav_msgs.msg import Odometry

    message = Odometry()
    message.header.frame_id, message.header.stamp, message.child_frame_id = ODOMETRY_FRAME, stamp, BASE_FRAME
    _place(message.pose.pose, pose)
    _fill(message.twist.twist, twist, names)
    return message


def goal_in_base(goal: Array, pose: Array, size: int) -> Array:
    """Return a goal point in the base frame.

    Args:
        goal: ``(3,)`` in m, in the frame of the pose.
        pose: ``(4,)`` x, y, z in m and yaw in rad of the base.
        size: 2 on the floor, 3 in the air.

    Returns:
        ``(size,)`` float32 in m.
    """
    x, y, z = goal - pose[:3]
    cos, sin = math.cos(pose[3]), math.sin(pose[3])
    return np.array([cos * x + sin * y, cos * y - sin * x, z][:size], np.float32)


def scan_values(scan: Any, beams: int, reach: float) -> Array:
    """Return the ranges a policy sees: over 360 degrees counter-clockwise, beam 0 pointing backwards.

    A beam without return (infinity) has the reach, one below the scanner's minimum has that minimum (REP 117). Where
    the scanner has other angles than the policy, its nearest beam counts.

    Args:
        scan: ``LaserScan`` in the base frame.
        beams: Number of beams the policy sees.
        reach: Range of the policy's sensor in m.

    Returns:
        ``(beams,)`` float32 in m.

    Raises:
        ContractError: The frame is another one, angles or ranges make no sense, or the scanner does not see all around.
    """
    require_frame("scan", scan.header.frame_id, BASE_FRAME)
    if not 0 <= scan.range_min < reach:
        raise ContractError(f"scan has range_min {scan.range_min}, it must be from 0 to {reach} m; check the scanner")
    ranges = np.asarray(scan.ranges, np.float32)[_beams(scan, beams)]
    if np.isnan(ranges).any():
        raise ContractError(f"scan has {np.isnan(ranges).sum()} beams that are not a number; check the scanner")
    return np.clip(ranges, np.float32(scan.range_min), np.float32(reach))


def _beams(scan: Any, beams: int) -> Array:
    """Index of the scanner's beam per beam of the policy, whichever way the scanner turns."""
    angles = (scan.angle_min, scan.angle_increment)
    if not np.isfinite(angles).all() or not 0 < abs(scan.angle_increment) < 1:
        raise ContractError(f"scan has angle_min and angle_increment {angles}, in rad; check the scanner")
    wanted = -np.pi + 2 * np.pi / beams * np.arange(beams)
    circle = round(2 * math.pi / abs(scan.angle_increment))
    index = np.round((wanted - scan.angle_min) / scan.angle_increment).astype(int) % circle
    if index.max() >= len(scan.ranges):
        raise ContractError(
            f"scan has {len(scan.ranges)} of the {circle} beams of a full circle, the policy sees all around; "
            "use a scanner of 360 degrees or merge several"
        )
    return index


def scan_message(ranges: Array, reach: float, period_s: float, stamp: Any) -> Any:
    """Return a ``LaserScan`` from ``(N,)`` ranges in m over 360 degrees; those at the reach become infinite."""
    from sensor_msgs.msg import LaserScan

    message = LaserScan()
    message.header.frame_id, message.header.stamp = BASE_FRAME, stamp
    message.angle_increment = 2 * math.pi / len(ranges)
    message.angle_min, message.angle_max = -math.pi, math.pi - message.angle_increment
    message.scan_time, message.range_max = period_s, float(reach)
    message.ranges = np.where(ranges >= reach, np.float32(np.inf), np.float32(ranges)).tolist()
    return message


def grid_values(grid: Any) -> tuple[Array, float, Array]:
    """Return what an ``OccupancyGrid`` says is occupied.

    Cells that are more likely occupied than free are occupied, and so are those that nobody has seen.

    Returns:
        ``(rows, columns)`` bool along y and x, the width of a cell in m, lowest x and y ``(2,)`` in m.

    Raises:
        ContractError: It is turned, empty, or has not as many cells as it says.
    """
    info = grid.info
    origin = pose_values(info.origin)
    if abs(origin[3]) > 1e-3:
        raise ContractError(f"the map is turned by {origin[3]:.3f} rad; publish it along the axes of its frame")
    cells, shape = np.array(grid.data, np.int8), (info.height, info.width)
    if not (0 < info.resolution < math.inf) or not cells.size or cells.size != info.height * info.width:
        raise ContractError(f"the map has {cells.size} cells of {info.resolution} m for {shape}; check its source")
    return ((cells >= 50) | (cells < 0)).reshape(shape), float(info.resolution), origin[:2]


def grid_message(occupied: Array, resolution: float, origin: Array, frame: str, stamp: Any) -> Any:
    """Return an ``OccupancyGrid`` from what `grid_values` returns."""
    from nav_msgs.msg import OccupancyGrid

    message = OccupancyGrid()
    message.header.frame_id, message.header.stamp, message.info.map_load_time = frame, stamp, stamp
    message.info.resolution, (message.info.height, message.info.width) = float(resolution), occupied.shape
    _place(message.info.origin, np.array([*origin, 0.0, 0.0]))
    message.data = array("b", (100 * occupied.astype(np.int8)).tobytes())
    return message


def path_message(places: Array, times: Array, frame: str, start: int) -> Any:
    """Return a ``Path`` whose poses look ahead and are stamped with when the robot shall be there.

    Args:
        places: ``(M, 2)`` in m.
        times: When to be there ``(M,)`` in s after the start.
        frame: Of the places.
        start: In nanoseconds.
    """
    from builtin_interfaces.msg import Time
    from nav_msgs.msg import Path

    def stamp(seconds: float) -> Time:
        whole, rest = divmod(start + int(1e9 * seconds), 1_000_000_000)
        return Time(sec=whole, nanosec=rest)

    message = Path()
    message.header.frame_id, message.header.stamp = frame, stamp(0.0)
    ahead = np.diff(places, axis=0, append=places[-1:])
    if len(places) > 1:
        ahead[-1] = ahead[-2]
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    poses = np.column_stack([places, np.zeros(len(places)), yaw])
    message.poses = [pose_message(pose, frame, stamp(time)) for pose, time in zip(poses, times.tolist(), strict=True)]
    return message


def text_values(text: str, length: int) -> Array:
    """Return the ``(length,)`` uint8 a policy sees of a sentence: its UTF-8 bytes, padded with 0.

    Raises:
        ContractError: There is nothing in it, it is too long, or it has a byte that means padding.
    """
    if not text.strip():
        raise ContractError("the instruction is empty; say where to stop")
    return sentence_bytes(text, length)


def status_message(name: str, level: int, text: str, values: Mapping[str, Any], hardware: str, stamp: Any) -> Any:
    """Return a ``DiagnosticArray`` with one status.

    Args:
        name: Name of the node.
        level: 0 ok, 1 warning, 2 error.
        text: The state in words.
        values: JSON values by name.
        hardware: What the status is about, for example the embodiment.
        stamp: Time of the status.
    """
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    pairs = [KeyValue(key=key, value=json.dumps(value)) for key, value in values.items()]
    message = DiagnosticArray()
    message.header.stamp = stamp
    message.status = [
        DiagnosticStatus(name=name, level=bytes([level]), message=text, hardware_id=hardware, values=pairs)
    ]
    return message


def status_values(status: Any) -> dict[str, Any]:
    """Return the values of a ``DiagnosticStatus`` written by `status_message`."""
    return {pair.key: json.loads(pair.value) for pair in status.values}
