"""What the lifecycle nodes that command a robot have in common: life cycle, loop, stop, goodbye and report."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String

from policies.runtime.loop import Loop
from policies.spec import Array, ContractError
from ros_nodes import shared
from ros_nodes.convert import twist_message

UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"
STOPPING_S = 1.0  # of zero commands at the end: longer than the guard needs to bring the robot to rest
_GOODBYE = 5  # zero commands when there is no loop to send them


@dataclass(frozen=True)
class CommanderSettings:
    """Parameters of every such node, fixed while it is configured."""

    embodiment: str = shared.setting("wheeled", "Robot that is driven, for diagnostics and policies that drive several")
    names: tuple[str, ...] = shared.setting(("vx", "vy", "wz"), "Components of the robot's velocity command")
    geofence: tuple[float, ...] = shared.setting((-5.0, 5.0, -5.0, 5.0), "x_min, x_max, y_min, y_max in m of goals")
    goal_frames: tuple[str, ...] = shared.setting(("odom", "map"), "Frames of goals that coincide with odometry's")
    max_age_odom_s: float = shared.setting(0.2, "Age in s from which odometry is not used", 0.02, 1.0)
    rate_hz: float = shared.setting(50.0, "Rate of the commands in Hz", 10.0, 200.0)
    autostart: bool = shared.setting(False, "Configure and activate at the start")


class Driver(Protocol):
    """What is asked for a command at every tick."""

    waiting: str
    """Why there is nothing to do yet; empty when there is or when something is wrong."""
    fault: str
    """Why there must not be a command; empty when all is well."""

    @property
    def warning(self) -> str:
        """What is not as it should be while it drives; empty when all is well."""
        ...

    @property
    def arrived(self) -> bool:
        """Whether the robot is where it shall be."""
        ...

    def restart(self) -> None:
        """Start anew towards the present goal."""
        ...

    def tick(self, now: float) -> Array | None:
        """The command ``(A,)`` to send now, None when there is none."""
        ...


Settings = TypeVar("Settings", bound=CommanderSettings)


class Commander(LifecycleNode, Generic[Settings]):
    """Commands ``cmd_vel_policy`` from a loop on absolute deadlines, as a driver says.

    configure prepares the driver, activate starts the commands. While the driver has a fault there are no commands, and
    if there were some before, ``stop`` makes the guard latch at once with the reason. What cannot be mended while the
    node is active leads through the error state back to unconfigured.

    Args:
        owner: What commands, in front of the reasons; the node is named after it.
        kind: Dataclass of its parameters.
    """

    def __init__(self, owner: str, kind: type[Settings]) -> None:
        super().__init__(f"{owner}_node")
        shared.declare(self, kind, read_only=False)
        self._owner, self._kind, self._settings = owner, kind, shared.read(self, kind)
        self._state, self._failure, self._last_stop = UNCONFIGURED, "", ""
        self._driver: Driver | None = None
        self._loop: Loop | None = None
        self._commanding = self._stopping = False
        self._stops = 0
        self._output = self.create_publisher(TwistStamped, "cmd_vel_policy", shared.COMMAND)
        self._stop_output = self.create_publisher(String, "stop", shared.COMMAND)
        self._reporter = shared.Reporter(self, self._settings.embodiment)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._begin = self.create_timer(0.0, self._autostart)
        self.create_timer(0.1, self._supervise)

    @abstractmethod
    def _prepare(self, settings: Settings) -> Driver:
        """Load and start everything; any exception is reported as why the node is not configured."""

    @abstractmethod
    def _end(self) -> None:
        """End what `_prepare` has started, as far as it came."""

    @abstractmethod
    def _watch(self) -> None:
        """Called ten times a second; sets ``_failure`` when the node cannot go on."""

    @abstractmethod
    def _values(self) -> dict[str, Any]:
        """What is reported beside the state."""

    def _autostart(self) -> None:
        self._begin.cancel()
        if self._settings.autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        own = {field.name for field in dataclasses.fields(self._kind)}
        changed = sorted(own & {parameter.name for parameter in parameters})
        if changed and self._state != UNCONFIGURED:
            reason = f"{changed} cannot change while the node is {self._state}; clean it up before"
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Prepare the driver."""
        self._failure, self._settings = "", shared.read(self, self._kind)
        self._reporter.hardware = self._settings.embodiment
        try:
            fence = self._settings.geofence
            if len(fence) != 4:
                raise ContractError(f"geofence has {len(fence)} values, x_min, x_max, y_min, y_max are needed")
            self._driver = self._prepare(self._settings)
        except Exception as error:  # whatever it is: rclpy would swallow it without a word
            self._failure = f"not configured: {error}"
            self._stop(self._failure)
            self._release()
            return TransitionCallbackReturn.FAILURE
        self._state = INACTIVE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the commands."""
        self._commanding = self._stopping = False
        if self._driver is not None:
            self._driver.restart()
        self._loop = Loop(1 / self._settings.rate_hz, self._tick, on_error=self._on_loop_error)
        self._loop.start()
        self._state = ACTIVE
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the robot to rest, then be silent."""
        self._halt()
        self._state = INACTIVE
        return TransitionCallbackReturn.ERROR if self._failure else TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End what configure has started."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the robot to rest and end what configure has started."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End what configure has started; the node can be configured again."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Bring the robot to rest and end what configure has started."""
        self._halt()
        self._release()

    def _release(self) -> None:
        self._end()
        self._driver, self._loop = None, None
        self._state = UNCONFIGURED

    # Commands

    def _tick(self, now: float) -> None:
        driver = self._driver
        assert driver is not None  # the loop runs only while there is one
        if self._stopping:
            self._rest()
            return
        command = driver.tick(now)
        if command is not None:
            self._publish(command)
            self._commanding = True
        elif driver.fault and self._commanding:
            self._stop(driver.fault)

    def _publish(self, values: Array) -> None:
        self._output.publish(twist_message(values, self._settings.names, self.get_clock().now().to_msg()))

    def _rest(self) -> None:
        self._publish(np.zeros(len(self._settings.names)))

    def _stop(self, reason: str) -> None:
        """Make the guard stop the robot at once and latch; silence alone would take its timeout."""
        self._commanding = False
        self._stops, self._last_stop = self._stops + 1, reason
        self._stop_output.publish(String(data=f"{self._owner}: {reason}"))
        self._rest()

    def _on_loop_error(self, error: Exception) -> None:
        self._failure = f"the control loop ended: {type(error).__name__}: {error}"
        self._stop(self._failure)

    def _halt(self) -> None:
        """End the commands: zeros from the loop while it is healthy, then silence."""
        loop = self._loop
        if loop is None or not loop.running:
            return
        if not self._failure:
            self._stopping = True
            time.sleep(STOPPING_S)
        try:
            loop.stop()
        finally:
            for _ in range(_GOODBYE):
                self._rest()

    # Supervision

    def _supervise(self) -> None:
        self._watch()
        if self._state == ACTIVE and self._failure:
            self.trigger_deactivate()
        self._reporter.report(*self._summary(), self._values)

    def _summary(self) -> tuple[int, str]:
        driver = self._driver
        if self._failure:
            return shared.ERROR, self._failure
        if self._state != ACTIVE or driver is None:
            return shared.OK, self._state
        if driver.fault:
            return shared.ERROR, driver.fault
        if driver.waiting:
            return shared.WARNING, f"waiting: {driver.waiting}"
        if driver.arrived:
            return shared.OK, "arrived"
        return (shared.WARNING, driver.warning) if driver.warning else (shared.OK, "commanding")
