"""Runs a policy bundle as a lifecycle node: observations in, velocity commands for the guard out."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String

from policies.bundle import Bundle
from policies.load import LOADER
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.loop import Loop
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker
from policies.spec import Array, ContractError
from ros_nodes import shared
from ros_nodes.convert import twist_message
from ros_nodes.inputs import Inputs
from ros_nodes.pilot import CAMERA, ODOMETRY, REPLAN, SCAN, Pilot, offered, timing

UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"
STOPPING_S = 1.0  # of zero commands at the end: longer than the guard needs to bring the robot to rest
_GOODBYE = 5  # zero commands when there is no loop to send them


@dataclass(frozen=True)
class PolicySettings:
    """Parameters of the policy node, fixed while it is configured."""

    bundle: str = shared.setting("", "Path of the policy bundle (.kfb)")
    goal: str = shared.setting("", "Path of the goal video (.mp4), for policies that follow one")
    instruction: str = shared.setting("", "Sentence that says where to stop; else that beside the goal video (.txt)")
    embodiment: str = shared.setting("wheeled", "Robot that is driven, for diagnostics and policies that drive several")
    names: tuple[str, ...] = shared.setting(("vx", "vy", "wz"), "Components of the robot's velocity command")
    geofence: tuple[float, ...] = shared.setting((-5.0, 5.0, -5.0, 5.0), "x_min, x_max, y_min, y_max in m of goals")
    goal_frames: tuple[str, ...] = shared.setting(("odom", "map"), "Frames of goals that coincide with odometry's")
    scan_range_m: float = shared.setting(6.0, "Range in m of the scanner the policy was trained with", 0.5, 100.0)
    max_age_odom_s: float = shared.setting(0.2, "Age in s from which odometry is not used", 0.02, 1.0)
    max_age_scan_s: float = shared.setting(0.25, "Age in s from which a scan is not used", 0.02, 1.0)
    max_age_camera_s: float = shared.setting(0.3, "Age in s from which a picture is not used", 0.02, 1.0)
    max_age_chunk_s: float = shared.setting(0.5, "Age in s from which a plan is not executed", 0.1, 2.0)
    plan_rate_hz: float = shared.setting(0.0, "Most plans per second, 0 for 1.5 per action of the policy", 0.0, 100.0)
    rate_hz: float = shared.setting(50.0, "Rate of the commands in Hz", 10.0, 200.0)
    warm_up: int = shared.setting(10, "Inferences before the node counts as configured", 1, 1000)
    seed: int = shared.setting(0, "Seed of the sampling noise", 0, 2**31)
    autostart: bool = shared.setting(False, "Configure and activate at the start")


class PolicyNode(LifecycleNode):
    """Observes, plans in a process of its own and commands ``cmd_vel_policy`` from a loop on absolute deadlines.

    configure loads and verifies the bundle, starts the inference process and warms it up; activate starts the
    commands. While an input is missing, too old, not finite or outside the fence there are no commands, and if there
    were some before, ``stop`` makes the guard latch at once with the reason. A dead inference process leads through
    the error state back to unconfigured.

    What the goal is depends on the policy: a point on ``goal_pose``, or a video and a sentence, which the parameters
    ``goal`` and ``instruction`` give and the topics ``goal_video`` (path of a file here) and ``instruction`` replace.
    Without the parameter ``instruction`` the sentence beside that video counts, ``goal.txt`` of ``goal.mp4``.
    """

    def __init__(self) -> None:
        super().__init__("policy_node")
        shared.declare(self, PolicySettings, read_only=False)
        self._settings = shared.read(self, PolicySettings)
        self._state, self._failure, self._last_stop, self._hash = UNCONFIGURED, "", "", ""
        self._worker: InferenceWorker | None = None
        self._pilot: Pilot | None = None
        self._loop: Loop | None = None
        self._commanding = self._stopping = False
        self._stops = 0
        self._inputs: Inputs | None = None
        self._output = self.create_publisher(TwistStamped, "cmd_vel_policy", shared.COMMAND)
        self._stop_output = self.create_publisher(String, "stop", shared.COMMAND)
        self._reporter = shared.Reporter(self, self._settings.embodiment)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._begin = self.create_timer(0.0, self._autostart)
        self.create_timer(0.1, self._supervise)

    def _autostart(self) -> None:
        self._begin.cancel()
        if self._settings.autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        own = {field.name for field in dataclasses.fields(PolicySettings)}
        changed = sorted(own & {parameter.name for parameter in parameters})
        if changed and self._state != UNCONFIGURED:
            reason = f"{changed} cannot change while the node is {self._state}; clean it up before"
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and verify the bundle, start inference and warm it up."""
        self._failure, self._settings = "", shared.read(self, PolicySettings)
        self._reporter.hardware = self._settings.embodiment
        try:
            self._prepare(self._settings)
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
        if self._pilot is not None:
            self._pilot.restart()
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
        """End inference."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring the robot to rest and end inference."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End inference; the node can be configured again."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Bring the robot to rest and end inference."""
        self._halt()
        self._release()

    def _prepare(self, settings: PolicySettings) -> None:
        bundle = Bundle.load(settings.bundle)
        spec, self._hash = bundle.spec, bundle.manifest.fingerprint
        self._require(bundle, settings)
        self._worker = InferenceWorker(settings.bundle, LOADER, spec, settings.warm_up)
        self._worker.wait_ready()
        buffer = ChunkBuffer(spec, settings.max_age_chunk_s)
        rate_hz = settings.plan_rate_hz or REPLAN * spec.rate_hz
        runner = Runner(self._worker, buffer, np.random.default_rng(settings.seed), rate_hz)
        ages = {name: getattr(settings, f"max_age_{name}_s") for name in (ODOMETRY, SCAN, CAMERA)}
        self._pilot = Pilot(spec, runner, ages)
        self._inputs = Inputs(self, self._pilot, spec, settings)

    def _require(self, bundle: Bundle, settings: PolicySettings) -> None:
        if len(settings.geofence) != 4:
            raise ContractError(f"geofence has {len(settings.geofence)} values, x_min, x_max, y_min, y_max are needed")
        bundle.spec.require(offered(settings.names, bundle.spec))

    def _release(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        self._inputs, self._pilot, self._loop = None, None, None
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._state = UNCONFIGURED

    # Commands

    def _tick(self, now: float) -> None:
        pilot = self._pilot
        assert pilot is not None  # the loop runs only while there is one
        if self._stopping:
            self._rest()
            return
        command = pilot.tick(now)
        if command is not None:
            self._publish(command)
            self._commanding = True
        elif pilot.fault and self._commanding:
            self._stop(pilot.fault)

    def _publish(self, values: Array) -> None:
        self._output.publish(twist_message(values, self._settings.names, self.get_clock().now().to_msg()))

    def _rest(self) -> None:
        self._publish(np.zeros(len(self._settings.names)))

    def _stop(self, reason: str) -> None:
        """Make the guard stop the robot at once and latch; silence alone would take its timeout."""
        self._commanding = False
        self._stops, self._last_stop = self._stops + 1, reason
        self._stop_output.publish(String(data=f"policy: {reason}"))
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
        if self._state == ACTIVE and self._worker is not None and not self._worker.alive:
            self._failure = "the inference process has ended; configure the node again"
            if self._commanding:
                self._stop(self._failure)
        if self._state == ACTIVE and self._failure:
            self.trigger_deactivate()
        self._reporter.report(*self._summary(), self._values)

    def _summary(self) -> tuple[int, str]:
        pilot = self._pilot
        if self._failure:
            return shared.ERROR, self._failure
        if self._state != ACTIVE or pilot is None:
            return shared.OK, self._state
        if pilot.fault:
            return shared.ERROR, pilot.fault
        if pilot.waiting:
            return shared.WARNING, f"waiting: {pilot.waiting}"
        if pilot.arrived:
            return shared.OK, "arrived"
        return (shared.WARNING, pilot.warning) if pilot.warning else (shared.OK, "commanding")

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "state": self._state,
            "reason": self._summary()[1],
            "embodiment": self._settings.embodiment,
            "bundle": self._settings.bundle,
            "bundle_hash": self._hash,
            "warm_up_ms": round(1e3 * self._worker.warm_up_s, 3) if self._worker else None,
            "inference_pid": self._worker.pid if self._worker else None,
            "stops": self._stops,
            "last_stop": self._last_stop,
        }
        if self._pilot is not None:
            values |= {"input_age_s": self._pilot.ages(time.monotonic()), **self._pilot.report()}
        if self._loop is not None:
            values |= timing(self._loop)
        if self._pilot is not None:
            values["commands"] = self._pilot.commands
        return values


def main() -> None:
    """Entry point of the console script."""
    shared.spin(PolicyNode)


if __name__ == "__main__":
    main()
