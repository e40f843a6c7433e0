"""Nodes as child processes on a private ROS 2 domain, and a monitor that watches them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile

from policies.spec import Array
from ros_nodes import shared
from ros_nodes.convert import point_values, pose_message, status_values, twist_values

END_S = 5.0  # for one process to end
_DOMAINS = range(1, 102)  # those whose ports lie below the ephemeral ones on Linux
_PDEATHSIG = 1  # of prctl(2)
_TAIL = 1500  # characters of a node's output in an error
_LIBC = ctypes.CDLL(None)

MonitorT = TypeVar("MonitorT", bound="Monitor")


class NodeError(RuntimeError):
    """A node did not start or ended early; the message has the end of its output."""


@contextlib.contextmanager
def private_domain(logs: Path) -> Iterator[None]:
    """Environment of nodes that only meet each other: a free domain, this machine only, logs in a folder."""
    ours = {
        "ROS_DOMAIN_ID": str(_free_domain()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(logs),
    }
    saved = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _free_domain() -> int:
    for domain in random.sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
            probe.bind(("", 7410 + 250 * domain))  # the port of a domain's first participant
            return domain
    raise NodeError("no ROS 2 domain is free on this machine; end other nodes")


class Nodes:
    """Node processes that end with this object or with this process, however it ends.

    Args:
        folder: For parameters and output.
    """

    def __init__(self, folder: Path) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        """Running and ended processes by name, in the order of their start."""
        self._folder = folder

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, name: str, parameters: Mapping[str, Any], remappings: Mapping[str, str] | None = None) -> None:
        """Start a node.

        Args:
            name: Module in ``ros_nodes``.
            parameters: Its parameters.
            remappings: Other names for its topics.
        """
        file = self._folder / f"{name}.yaml"
        file.write_text(json.dumps({"/**": {"ros__parameters": dict(parameters)}}))  # JSON is YAML
        command = [sys.executable, "-m", f"ros_nodes.{name}", "--ros-args", "--params-file", str(file)]
        for topic, other in (remappings or {}).items():
            command += ["-r", f"{topic}:={other}"]
        with self._output(name).open("wb") as output:
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent
            )

    def check(self) -> None:
        """Raise if a process has ended.

        Raises:
            NodeError: With the end of its output.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise NodeError(f"{name} ended with status {process.returncode}:\n{self.output(name)[-_TAIL:]}")

    def output(self, name: str) -> str:
        """Return what a node has printed."""
        return self._output(name).read_text(errors="replace")

    def end(self, name: str) -> int:
        """End one node in order, by force if it takes too long; return its exit status."""
        process = self.processes[name]
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End all nodes, the last started first."""
        try:
            for name in reversed(self.processes):
                self.end(name)
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()

    def _output(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _end_with_parent() -> None:
    """Runs in the child: ask the kernel to end it with the thread that started it."""
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Status:
    """The newest state of a node; without one yet it is empty."""

    level: int = 0
    text: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class Monitor:
    """A node that listens to what the others report, publishes goals and calls services. Used by one thread.

    Args:
        check: Called while listening; raises when listening is in vain.
        names: Components of the robot's velocity command.
    """

    def __init__(self, check: Callable[[], None] = lambda: None, names: Sequence[str] = ("vx", "vy", "wz")) -> None:
        self.position: Array | None = None
        """``(3,)`` in m of the simulated robot, world frame."""
        self.commands: list[list[float]] = []
        """Arrival time in s and values in m/s and rad/s of every command that went to the robot."""
        self._check, self._names = check, names
        self._states: dict[str, Status] = {}
        self.context = Context()
        self.context.init()
        self.node = rclpy.create_node("kinoflow_run", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._goals = self.node.create_publisher(PoseStamped, "goal_pose", shared.LATCHED)
        self.node.create_subscription(DiagnosticArray, "diagnostics", self._on_status, QoSProfile(depth=50))
        self.node.create_subscription(PoseStamped, "pose", self._on_pose, shared.SENSOR)
        self.node.create_subscription(TwistStamped, "cmd_vel", self._on_command, QoSProfile(depth=50))

    def __enter__(self: MonitorT) -> MonitorT:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def spin(self, seconds: float) -> None:
        """Listen for a while."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=remaining)
        self._check()

    def until(self, condition: Callable[[], Any], timeout_s: float, what: str) -> None:
        """Listen until a condition holds.

        Raises:
            NodeError: It does not hold in time.
        """
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                states = {name: state.text for name, state in self._states.items()}
                raise NodeError(f"no {what} within {timeout_s:g} s; the nodes say {states}")
            self.spin(0.01)

    def status(self, name: str) -> Status:
        """Return the newest state of a node."""
        return self._states.get(name, Status())

    def send_goal(self, goal: Array) -> None:
        """Publish a ``(3,)`` goal in m, world frame."""
        stamp = self.node.get_clock().now().to_msg()
        self._goals.publish(pose_message(np.array([*goal, 0.0]), "map", stamp))

    def call(self, kind: Any, name: str, request: Any, timeout_s: float = 10.0) -> Any:
        """Call a service and return its response.

        Raises:
            NodeError: There is no answer in time.
        """
        client = self.node.create_client(kind, name)
        try:
            self.until(client.service_is_ready, timeout_s, f"service {name}")
            future = client.call_async(request)
            self.until(future.done, timeout_s, f"answer of {name}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def transition(self, label: str, timeout_s: float = 10.0, node: str = "policy_node") -> bool:
        """Ask a lifecycle node for a transition, for example "configure"; return whether it succeeded."""
        request = ChangeState.Request(transition=Transition(label=label))
        return bool(self.call(ChangeState, f"{node}/change_state", request, timeout_s).success)

    def _on_status(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._states[status.name] = Status(status.level[0], status.message, status_values(status))

    def _on_command(self, message: TwistStamped) -> None:
        self.commands.append([time.monotonic(), *twist_values(message.twist, self._names).tolist()])

    def _on_pose(self, message: PoseStamped) -> None:
        self.position = point_values(message.pose.position)
