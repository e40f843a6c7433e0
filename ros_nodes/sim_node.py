"""A simulated robot in a room or a maze, in real time, behind the topics of a real one."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import Image, LaserScan
from std_msgs.msg import UInt8MultiArray

from envs.maze_nav import MazeNavEnv
from envs.nav import SCAN_RANGE
from envs.rooms import Room
from policies.runtime.loop import Loop
from policies.spec import Array
from ros_nodes import shared
from ros_nodes.convert import (
    ODOMETRY_FRAME,
    grid_message,
    odometry_message,
    point_values,
    pose_message,
    scan_message,
    twist_values,
)
from ros_nodes.pictures import image_message
from ros_nodes.pilot import mean_rate, timing
from ros_nodes.simulation import MAZE_NAV, NAV, VIDEO_NAV, Eyes, occupancy, outcome, simulated

STEP_HZ = 50.0
SCAN_EVERY = 5  # steps
COMMAND_TIMEOUT_S = 0.3
WORLD_FRAMES = (ODOMETRY_FRAME, "map")  # the odometry of this robot is perfect


@dataclass(frozen=True)
class SimSettings:
    """Parameters of the simulated robot, fixed once it has started."""

    env: str = shared.setting(
        NAV, f"Environment: {NAV}, {MAZE_NAV}, or {VIDEO_NAV} for a robot with a camera instead of a scanner"
    )
    embodiment: str = shared.setting("wheeled", "Robot: wheeled, drone or g1")
    seed: int = shared.setting(0, "Seed of the room, the start and the first goal", 0, 2**31)


class SimNode(Node):
    """Steps the simulation at 50 Hz and publishes what the robot's sensors would say.

    In Nav-v0 the room's own goal is published once and latched; any newer ``goal_pose`` replaces it. In VideoNav-v0 the
    goal stays in here. In MazeNav-v0 there is a latched ``map`` too, and ``doors`` shuts doors: one number per door of
    the maze, 0 for open; one that the robot stands in shuts when it has left. A robot that has touched something,
    fallen or given up no longer follows commands.
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
        self._mapped: Room | None = None
        self._wanted_shut: Array | None = None
        self._advertise()
        if settings.env == VIDEO_NAV:
            self._camera = self.create_publisher(Image, "camera/image_raw", shared.SENSOR)
            self._eyes = Eyes(settings.embodiment, settings.seed, self._show)
        else:
            self._announce()
        if settings.env == MAZE_NAV:
            self._chart()
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

    def _chart(self) -> None:
        """Offer a map, and listen for which doors shall be shut: latched messages and those of tools."""
        self._map = self.create_publisher(OccupancyGrid, "map", shared.LATCHED)
        for profile in (shared.LATCHED, shared.COMMAND):
            self.create_subscription(UInt8MultiArray, "doors", self._on_doors, profile)
        self._draw()

    def _draw(self) -> None:
        """Publish the map if it is not that of the room any more."""
        room = self._env.room
        if room is not self._mapped:
            self._map.publish(grid_message(*occupancy(room), "map", self._wall.now().to_msg()))
            self._mapped = room

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

    def _on_doors(self, message: UInt8MultiArray) -> None:
        """Take note of doors; the loop moves them, between two steps of the physics."""
        wanted, present = np.array(message.data, bool), self._env.maze.shut  # type: ignore[attr-defined]
        if wanted.shape == present.shape:
            self._wanted_shut = wanted
        else:
            self.get_logger().warning(f"ignored {len(wanted)} doors, there are {len(present)}")

    def _move_doors(self, env: MazeNavEnv, wanted: Array) -> None:
        for index in np.flatnonzero(wanted != env.maze.shut).tolist():
            with suppress(ValueError):  # the robot stands in it
                (env.shut_door if wanted[index] else env.open_door)(index)

    def _tick(self, now: float) -> None:
        env = self._env
        if self._wanted_shut is not None and isinstance(env, MazeNavEnv):
            self._move_doors(env, self._wanted_shut)
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
        if self._mapped is not None:
            self._draw()
        env = self._env
        fall = env.body.fallen(env.data)
        failure = "fallen, stopped" if fall else "collision, stopped" if env.collision else ""
        failure = failure or ("gave up, stopped" if env.failed else "")
        text = failure or ("at the goal" if env.success else "following commands")
        self._reporter.report(shared.ERROR if failure else shared.OK, text, self._values)

    def _values(self) -> dict[str, Any]:
        env, loop = self._env, timing(self._loop)
        doors = {"doors_shut": env.maze.shut.tolist()} if isinstance(env, MazeNavEnv) else {}
        goal = {} if self._eyes else {"goal": [round(float(value), 3) for value in env.goal]}
        return {
            **outcome(env),
            "distance": round(env.distance, 3),
            **goal,
            **doors,
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
