"""A simulated robot in kinoflow/Nav-v0 or kinoflow/VideoNav-v0, in real time, behind the topics of a real one."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from nav_msgs.msg import Odometry
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, LaserScan

from envs.nav import SCAN_RANGE
from policies.runtime.loop import Loop
from policies.spec import Array
from ros_nodes import shared
from ros_nodes.convert import (
    ODOMETRY_FRAME,
    odometry_message,
    point_values,
    pose_message,
    scan_message,
    twist_values,
)
from ros_nodes.pictures import image_message
from ros_nodes.pilot import mean_rate, timing
from ros_nodes.simulation import NAV, VIDEO_NAV, Eyes, outcome, simulated

STEP_HZ = 50.0
SCAN_EVERY = 5  # steps
COMMAND_TIMEOUT_S = 0.3
WORLD_FRAMES = (ODOMETRY_FRAME, "map")  # the odometry of this robot is perfect


@dataclass(frozen=True)
class SimSettings:
    """Parameters of the simulated robot, fixed once it has started."""

    env: str = shared.setting(NAV, f"Environment: {NAV}, or {VIDEO_NAV} for a robot with a camera instead of a scanner")
    embodiment: str = shared.setting("wheeled", "Robot: wheeled, drone or g1")
    seed: int = shared.setting(0, "Seed of the room, the start and the first goal", 0, 2**31)


class SimNode(Node):
    """Steps the simulation at 50 Hz and publishes what the robot's sensors would say.

    In Nav-v0 the room's own goal is published once and latched; any newer ``goal_pose`` replaces it. In VideoNav-v0 the
    goal stays in here. A robot that has touched something, fallen or given up no longer follows commands.
    """

    def __init__(self) -> None:
        super().__init__("sim_node")
        shared.declare(self, SimSettings, read_only=True)
        settings = shared.read(self, SimSettings)
        self._env = simulated(settings.env, settings.embodiment, STEP_HZ)
        self._env.reset(seed=settings.seed)
        self._names = self._env.body.action.names
        self._wall = Clock(clock_type=ClockType.SYSTEM_TIME)  # never the simulated time that it publishes itself
        self._command: tuple[Any, float] = (None, 0.0)
        self._arrivals: deque[float] = deque(maxlen=3000)
        self._steps = 0
        self._eyes: Eyes | None = None
        self._advertise()
        if settings.env == VIDEO_NAV:
            self._camera = self.create_publisher(Image, "camera/image_raw", shared.SENSOR)
            self._eyes = Eyes(settings.embodiment, settings.seed, self._show)
        else:
            self._announce()
        self._reporter = shared.Reporter(self, settings.embodiment, period_s=0.2)
        self._loop = Loop(1 / STEP_HZ, self._tick)
        self.create_subscription(TwistStamped, "cmd_vel", self._on_command, shared.COMMAND)
        self.create_timer(0.05, self._supervise)
        self._loop.start()

    def _advertise(self) -> None:
        self._odometry = self.create_publisher(Odometry, "odom", shared.SENSOR)
        self._pose = self.create_publisher(PoseStamped, "pose", shared.SENSOR)
        self._time = self.create_publisher(ClockMessage, "/clock", shared.SENSOR)

    def _announce(self) -> None:
        """Offer a scan and the goal of the room, and listen for others."""
        self._scan = self.create_publisher(LaserScan, "scan", shared.SENSOR)
        self._goals = self.create_publisher(PoseStamped, "goal_pose", shared.LATCHED)
        shared.subscribe_goal(self, self._on_goal)
        self._goals.publish(pose_message(np.array([*self._env.goal, 0.0]), "map", self._wall.now().to_msg()))

    def _show(self, picture: Array, stamp: Any) -> None:
        self._camera.publish(image_message(picture, stamp))

    def _on_command(self, message: TwistStamped) -> None:
        self._arrivals.append(time.monotonic())
        self._command = (twist_values(message.twist, self._names), shared.measured_at(self, message.header.stamp))

    def _on_goal(self, message: PoseStamped) -> None:
        goal = point_values(message.pose.position)
        if message.header.frame_id in WORLD_FRAMES and np.isfinite(goal).all():
            self._env.goal = goal
        else:
            self.get_logger().warning(f"ignored the goal {goal} in frame '{message.header.frame_id}'")

    def _tick(self, now: float) -> None:
        env = self._env
        observation, *_ = env.step(self._wanted(now))
        stamp = self._wall.now().to_msg()
        self._time.publish(ClockMessage(clock=stamp))
        twist = env.body.twist(env.data)
        self._odometry.publish(odometry_message(env.pose, twist, self._names, stamp))
        self._pose.publish(pose_message(env.pose, "map", stamp))
        if self._eyes is not None:
            self._eyes.look(env.data.qpos.copy(), stamp)
        elif self._steps % SCAN_EVERY == 0:
            self._scan.publish(scan_message(observation["scan"], SCAN_RANGE, SCAN_EVERY / STEP_HZ, stamp))
        self._steps += 1

    def _wanted(self, now: float) -> Array:
        """The newest command; zeros when it is too old, not finite, or the robot has failed."""
        command, stamp = self._command
        fresh = command is not None and abs(now - stamp) <= COMMAND_TIMEOUT_S
        usable = fresh and not self._env.failed and np.isfinite(command).all()
        return command if usable else np.zeros(len(self._names), np.float32)

    def _supervise(self) -> None:
        if not self._loop.running:
            self._loop.join()  # raises what ended it
        if self._eyes is not None:
            self._eyes.check()
        env = self._env
        fall = env.body.fallen(env.data)
        failure = "fallen, stopped" if fall else "collision, stopped" if env.collision else ""
        failure = failure or ("gave up, stopped" if env.failed else "")
        text = failure or ("at the goal" if env.success else "following commands")
        self._reporter.report(shared.ERROR if failure else shared.OK, text, self._values)

    def _values(self) -> dict[str, Any]:
        env, loop = self._env, timing(self._loop)
        goal = {} if self._eyes else {"goal": [round(float(value), 3) for value in env.goal]}
        return {
            **outcome(env),
            "distance": round(env.distance, 3),
            **goal,
            "time_s": round(env.time, 2),
            "received_hz": mean_rate(self._arrivals.copy()),
            "real_time_factor": round(loop["rate_hz"] / STEP_HZ, 4),
            **loop,
        }

    def close(self) -> None:
        """Stop the simulation."""
        try:
            self._loop.stop()
        finally:
            if self._eyes is not None:
                self._eyes.close()


def main() -> None:
    """Entry point of the console script."""
    shared.spin(SimNode)


if __name__ == "__main__":
    main()
