"""What the nodes have in common: quality of service, parameters, clocks, start and end of a process."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import rclpy
import rclpy.utilities
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

from ros_nodes.convert import nanoseconds, status_message

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OK, WARNING, ERROR = 0, 1, 2
SPIN_S = 0.05

Settings = TypeVar("Settings")


def setting(default: Any, description: str, low: float | None = None, high: float | None = None) -> Any:
    """A field of a settings dataclass that becomes a parameter with a description and, for numbers, a range."""
    return dataclasses.field(default=default, metadata={"description": description, "range": (low, high)})


def declare(node: Node, settings: type[Settings], read_only: bool) -> None:
    """Declare one parameter per field of a settings dataclass.

    Args:
        node: The node.
        settings: Frozen dataclass whose fields come from `setting`.
        read_only: Whether the parameters are fixed once the node has started.
    """
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        node.declare_parameter(field.name, default, _descriptor(field, read_only))


def _descriptor(field: dataclasses.Field[Any], read_only: bool) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=field.metadata["description"], read_only=read_only)
    low, high = field.metadata["range"]
    if low is not None and isinstance(field.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif low is not None:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


def read(node: Node, settings: type[Settings]) -> Settings:
    """Return the present values of the parameters that `declare` declared."""
    values = {}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = node.get_parameter(field.name).value
        values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
    return settings(**values)


def measured_at(node: Node, stamp: Any) -> float:
    """Return the monotonic time in seconds of a stamp that is on the node's clock; a zero stamp means now."""
    if nanoseconds(stamp) == 0:
        return time.monotonic()
    return time.monotonic() - 1e-9 * (node.get_clock().now().nanoseconds - nanoseconds(stamp))


def subscribe_goal(node: Node, take: Callable[[PoseStamped], None]) -> list[Subscription]:
    """Subscribe to ``goal_pose``: latched goals from before this node, and those of tools that do not latch, as RViz.

    A latching publisher reaches both subscriptions, and several may be latched, so only newer goals are passed on.
    """
    newest = 0

    def accept(message: PoseStamped) -> None:
        nonlocal newest
        stamp = nanoseconds(message.header.stamp)
        if stamp == 0 or stamp > newest:
            newest = max(newest, stamp)
            take(message)
        elif stamp < newest:
            node.get_logger().warning("ignored a goal that is older than the present one; check the sender's clock")

    return [node.create_subscription(PoseStamped, "goal_pose", accept, profile) for profile in (LATCHED, COMMAND)]


class Reporter:
    """Publishes the state of a node in ``diagnostics``: at once when it changes, otherwise at its rate.

    Args:
        node: The node.
        hardware: What the node drives.
        period_s: Seconds between two reports without a change.
    """

    def __init__(self, node: Node, hardware: str, period_s: float = 0.5) -> None:
        self.hardware = hardware
        self._node, self._period_s = node, period_s
        self._clock = Clock(clock_type=ClockType.SYSTEM_TIME)
        self._publisher = node.create_publisher(DiagnosticArray, "diagnostics", LATCHED)
        self._state: tuple[int, str] | None = None
        self._next = 0.0

    def report(self, level: int, text: str, values: Callable[[], Mapping[str, Any]]) -> None:
        """Publish if it is time to or if level or text differ from the last report."""
        now = time.monotonic()
        if (level, text) == self._state and now < self._next:
            return
        if (level, text) != self._state and level != OK:
            self._node.get_logger().warning(text)
        self._state, self._next = (level, text), now + self._period_s
        name, stamp = self._node.get_fully_qualified_name().lstrip("/"), self._clock.now().to_msg()
        self._publisher.publish(status_message(name, level, text, values(), self.hardware, stamp))


def spin(create: Callable[[], Any]) -> None:
    """Run a node until SIGINT, SIGTERM or an exception; its ``close`` leaves the robot at rest in every case.

    rclpy's own signal handlers would end the communication before the node can stop the robot.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    node, executor = None, SingleThreadedExecutor()
    try:
        node = create()
        executor.add_node(node)
        while True:
            executor.spin_once(timeout_sec=SPIN_S)
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if node is not None:
            node.close()
        rclpy.utilities.try_shutdown()
