"""The last node before the robot: passes on commands that are safe, stops the robot otherwise and says why."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from policies.runtime.guard import Guard, GuardLimits
from policies.runtime.loop import Loop
from policies.spec import ContractError
from ros_nodes import shared
from ros_nodes.convert import BASE_FRAME, ODOMETRY_FRAME, point_values, require_frame, twist_message, twist_values
from ros_nodes.pilot import timing

_GOODBYE = 5  # zero commands at the end


@dataclass(frozen=True)
class GuardSettings:
    """Parameters of the guard, all of them fixed once it has started."""

    names: tuple[str, ...] = shared.setting(("vx", "vy", "wz"), "Components of the command, in the order of the limits")
    low: tuple[float, ...] = shared.setting((-0.3, -0.2, -0.7), "Smallest command per component, m/s and rad/s")
    high: tuple[float, ...] = shared.setting((0.6, 0.2, 0.7), "Largest command per component, m/s and rad/s")
    acceleration: tuple[float, ...] = shared.setting((1.5, 1.5, 3.0), "Largest rate of change, m/s^2 and rad/s^2")
    jerk: tuple[float, ...] = shared.setting((15.0, 15.0, 30.0), "Largest change of that rate, m/s^3 and rad/s^3")
    geofence: tuple[float, ...] = shared.setting((-5.0, 5.0, -5.0, 5.0), "x_min, x_max, y_min, y_max in m, odom frame")
    timeout_s: float = shared.setting(0.2, "Age in s from which a command is stale", 0.05, 0.25)
    pose_timeout_s: float = shared.setting(0.3, "Age in s from which the position is unknown", 0.05, 0.3)
    rate_hz: float = shared.setting(50.0, "Rate of the commands in Hz", 10.0, 200.0)
    start_latched: bool = shared.setting(False, "Start stopped: a guard that was restarted must not release the robot")

    def limits(self) -> GuardLimits:
        """Return the limits.

        Raises:
            ValueError: They do not fit together.
        """
        if len(self.geofence) != 4 or len(self.names) != len(self.low):
            raise ValueError(f"geofence needs 4 values and low one per name: {self.geofence}, {self.low}, {self.names}")
        x_min, x_max, y_min, y_max = self.geofence
        fence = (x_min, x_max, y_min, y_max)
        return GuardLimits(self.low, self.high, self.acceleration, self.jerk, self.timeout_s, fence)


class GuardNode(Node):
    """Guards ``cmd_vel_policy`` into ``cmd_vel``.

    A fault latches until the service ``~/reset``: a command that is stale while the robot moves or not finite, a
    position outside the fence, an emergency stop by the topic ``estop``, by the service ``~/estop``, or by another
    node with a reason in the topic ``stop``.
    """

    def __init__(self) -> None:
        super().__init__("guard_node")
        shared.declare(self, GuardSettings, read_only=True)
        self._settings = shared.read(self, GuardSettings)
        self._guard = Guard(self._settings.limits())
        if self._settings.start_latched:
            self._guard.estop("the guard has started; release it with ~/reset")
        self._lock = threading.Lock()
        self._command: tuple[Any, float] = (None, 0.0)
        self._pose: tuple[Any, float] = (None, 0.0)
        self._pressed = False
        self._output = self.create_publisher(TwistStamped, "cmd_vel", shared.COMMAND)
        self._reporter = shared.Reporter(self, "guard")
        self._loop = Loop(1 / self._settings.rate_hz, self._tick, on_error=lambda error: self._rest())
        self._listen()
        self._loop.start()

    def _listen(self) -> None:
        self.create_subscription(TwistStamped, "cmd_vel_policy", self._on_command, shared.COMMAND)
        self.create_subscription(Odometry, "odom", self._on_odometry, shared.SENSOR)
        for profile in (shared.COMMAND, shared.LATCHED):  # a button that was pressed before this node started counts
            self.create_subscription(Bool, "estop", self._on_estop, profile)
        self.create_subscription(String, "stop", self._on_stop, shared.COMMAND)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/estop", self._on_estop_service)
        self.create_timer(0.1, self._supervise)

    def _on_command(self, message: TwistStamped) -> None:
        stamp = shared.measured_at(self, message.header.stamp)
        try:
            require_frame("command", message.header.frame_id, BASE_FRAME, "")
        except ContractError as error:
            self._stop(str(error))
        else:
            with self._lock:
                self._command = (twist_values(message.twist, self._settings.names), stamp)

    def _on_odometry(self, message: Odometry) -> None:
        try:
            require_frame("odom", message.header.frame_id, ODOMETRY_FRAME)
        except ContractError as error:
            self._stop(str(error))
        else:
            self._pose = (point_values(message.pose.pose.position), shared.measured_at(self, message.header.stamp))

    def _on_estop(self, message: Bool) -> None:
        self._pressed = message.data
        if message.data:
            self._stop("topic 'estop'")

    def _on_stop(self, message: String) -> None:
        self._stop(message.data)

    def _on_estop_service(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop("service 'estop'")
        response.success, response.message = True, "stopped and latched"
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pressed:
            response.success, response.message = False, "topic 'estop' is still true; release it before"
            return response
        with self._lock:
            response.success, response.message = True, f"released: {self._guard.fault or 'nothing'}"
            self._command = (None, 0.0)
            self._guard.reset()
        return response

    def _stop(self, reason: str) -> None:
        with self._lock:
            self._guard.estop(reason)
        self._report()

    def _tick(self, now: float) -> None:
        with self._lock:
            fault = self._guard.fault
            command, stamp = self._command
            pose, seen = self._pose
            known = pose is not None and abs(now - seen) <= self._settings.pose_timeout_s
            output = self._guard.filter(command, stamp, now, pose if known else None)
            if abs(now - stamp) > self._settings.timeout_s:
                self._command = (None, 0.0)  # the guard has taken note of its age
            changed = self._guard.fault != fault
        self._publish(output)
        if changed:
            self._report()

    def _publish(self, values: np.ndarray) -> None:
        self._output.publish(twist_message(values, self._settings.names, self.get_clock().now().to_msg()))

    def _rest(self) -> None:
        for _ in range(_GOODBYE):
            self._publish(np.zeros(len(self._settings.names)))

    def _supervise(self) -> None:
        if not self._loop.running:
            self._loop.join()  # raises what ended it
        self._report()

    def _report(self) -> None:
        guard = self._guard
        pose, seen = self._pose
        lost = pose is None or abs(time.monotonic() - seen) > self._settings.pose_timeout_s
        unknown = "position unknown, not moving; check odom" if lost and not guard.waiting else ""
        text = guard.fault or unknown or ("waiting for commands" if guard.waiting else "passing commands")
        self._reporter.report(shared.ERROR if guard.fault or unknown else shared.OK, text, self._values)

    def _values(self) -> dict[str, Any]:
        guard, now = self._guard, time.monotonic()
        pose, seen = self._pose
        return {
            "fault": guard.fault,
            "interventions": dict(guard.interventions),
            "waiting": guard.waiting,
            "estop_pressed": self._pressed,
            "pose_age_s": None if pose is None else round(now - seen, 3),
            **timing(self._loop),
        }

    def close(self) -> None:
        """Stop the loop and leave the robot at rest."""
        try:
            self._loop.stop()
        finally:
            self._rest()


def main() -> None:
    """Entry point of the console script."""
    shared.spin(GuardNode)


if __name__ == "__main__":
    main()
