"""The three nodes as real processes, a probe that measures what reaches the robot, and ways to disturb them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import LaserScan
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from envs.nav import NavEnv
from policies.spec import Array
from ros_nodes import shared
from ros_nodes.convert import twist_values
from ros_nodes.session import Monitor, Nodes

NAMES = ("vx", "vy", "wz")
STOPPED_S = 0.3  # from any fault to the first zero command
PATIENCE_S = 20.0
START_S = 90.0  # for all processes to come up on a busy machine
RELAY = "scan_relay"


class Probe(Monitor):
    """Records the commands that reach the robot, with receive stamps, and passes the scan on to the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[tuple[float, Array]] = []
        self.disturb: Callable[[LaserScan], LaserScan | None] = lambda scan: scan
        self.disturbed: float | None = None
        self.node.create_subscription(TwistStamped, "cmd_vel", self._on_command, shared.COMMAND)
        self.node.create_subscription(LaserScan, "scan", self._on_scan, shared.SENSOR)
        self._relay = self.node.create_publisher(LaserScan, RELAY, shared.SENSOR)
        self._estop = self.node.create_publisher(Bool, "estop", shared.COMMAND)

    def _on_command(self, message: TwistStamped) -> None:
        self.commands.append((time.monotonic(), twist_values(message.twist, NAMES)))

    def _on_scan(self, message: LaserScan) -> None:
        passed = self.disturb(message)
        if passed is not message and self.disturbed is None:
            self.disturbed = time.monotonic()
        if passed is not None:
            self._relay.publish(passed)

    def press(self, pressed: bool) -> None:
        """Press or release the emergency stop."""
        self._estop.publish(Bool(data=pressed))

    def speed(self) -> float:
        """Commanded speed in m/s."""
        return float(np.hypot(*self.commands[-1][1][:2])) if self.commands else 0.0

    def trigger(self, name: str) -> Any:
        """Call a service of the guard."""
        return self.call(Trigger, f"guard_node/{name}", Trigger.Request())

    def set_parameter(self, name: str, values: list[str]) -> Any:
        """Set a parameter of the policy node that is a list of texts; return the result."""
        texts = ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=values)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=texts)])
        return self.call(SetParameters, "policy_node/set_parameters", request).results[0]


class Chain:
    """Simulator, guard and policy on a private domain; the policy's scan passes through the probe.

    Args:
        folder: For logs and for a copy of the bundle that tests may damage.
        bundle: Policy bundle.
        seed: Seed of the room.
    """

    def __init__(self, folder: Path, nodes: Nodes, probe: Probe, bundle: Path, seed: int) -> None:
        self.nodes, self.probe, self.original = nodes, probe, bundle
        self.bundle = folder / "policy.kfb"
        shutil.copy(bundle, self.bundle)
        env = NavEnv("wheeled")
        env.reset(seed=seed)
        self.ends = (np.array([*env.room.start[:2], 0.0]), np.array(env.room.goal))
        nodes.start("sim_node", {"seed": seed})
        nodes.start("guard_node", {})
        self.start_policy()

    def start_policy(self) -> None:
        """Start the policy node; it configures and activates itself."""
        parameters = {"bundle": str(self.bundle), "autostart": True}
        self.nodes.start("policy_node", parameters, {"scan": RELAY})

    def state(self) -> str:
        """Lifecycle state of the policy node, as it reports itself."""
        return str(self.probe.status("policy_node").values.get("state", ""))

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait for something that must happen."""
        self.probe.until(condition, timeout_s, what)

    def drive(self) -> None:
        """Undo every disturbance and wait until the robot moves towards the farther end of the free line."""
        probe = self.probe
        probe.disturb, probe.disturbed = lambda scan: scan, None
        self.until(lambda: self.state() in ("active", "unconfigured"), "policy node", START_S)
        if self.state() == "unconfigured":
            assert probe.transition("configure", PATIENCE_S) and probe.transition("activate")
        nodes = ("sim_node", "guard_node", "policy_node")
        self.until(lambda: all(probe.status(name).values for name in nodes), "reports", START_S)
        self.until(lambda: probe.position is not None, "position")
        here = probe.position
        probe.send_goal(max(self.ends, key=lambda end: np.linalg.norm(end - here)))
        self.until(lambda: probe.status("policy_node").text == "commanding", "commands")
        self.until(self._moves, "motion")

    def _moves(self) -> bool:
        """Whether the robot drives; resets the guard, also when a busy machine has made it stop again."""
        if self.probe.status("guard_node").values.get("fault"):
            assert self.probe.trigger("reset").success
            self.probe.spin(0.2)
        return self.probe.speed() > 0.25

    def assert_stopped(self, fault: float, reason: str) -> None:
        """Check that the robot gets zeros soon after a fault and ever after, and that the guard has latched why.

        Args:
            fault: Receive clock at the fault, in s.
            reason: Part of the latched reason.
        """
        probe = self.probe
        self.until(lambda: any(stamp > fault and not values.any() for stamp, values in probe.commands), "stop")
        stopped = next(stamp for stamp, values in probe.commands if stamp > fault and not values.any())
        assert stopped - fault <= STOPPED_S
        self.until(lambda: reason in str(probe.status("guard_node").values.get("fault")), f"fault '{reason}'")
        probe.spin(0.3)
        assert not any(values.any() for stamp, values in probe.commands if stamp >= stopped)
        assert len([stamp for stamp, _ in probe.commands if stamp >= stopped]) > 10
