"""What a policy node listens to: the topics and parameters that serve the contract of its policy, and nothing else."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import Image, LaserScan
from std_msgs.msg import String

from policies.spec import Array, ContractError, Feature, Spec
from ros_nodes import shared
from ros_nodes.convert import (
    BASE_FRAME,
    ODOMETRY_FRAME,
    point_values,
    pose_values,
    require_frame,
    scan_values,
    text_values,
    twist_values,
)
from ros_nodes.pictures import image_values, read_sentence, read_video
from ros_nodes.pilot import (
    CAMERA,
    EMBODIMENT,
    GOAL,
    GOAL_VIDEO,
    INSTRUCTION,
    ODOMETRY,
    SCAN,
    Motion,
    Pilot,
    one_hot,
)

if TYPE_CHECKING:
    from ros_nodes.commander import CommanderSettings
    from ros_nodes.policy_node import PolicySettings


class Inputs:
    """Subscriptions that feed a pilot, and what the parameters say of the goal.

    Args:
        node: The node.
        pilot: What is fed.
        spec: Contract of the policy.
        settings: Parameters of the node.

    Raises:
        ContractError: A parameter does not fit; the message names it.
    """

    def __init__(self, node: Node, pilot: Pilot, spec: Spec, settings: PolicySettings) -> None:
        self._node, self._pilot, self._settings = node, pilot, settings
        self._features = {feature.name: feature for feature in spec.observations}
        self._reader = ThreadPoolExecutor(1, "goal-video")
        self._shown: tuple[tuple[str, int], Array] | None = None  # path, time of change and pictures of the last video
        self._take_parameters()
        self._subscriptions = [node.create_subscription(Odometry, "odom", self._on_odometry, shared.SENSOR)]
        if SCAN in self._features:
            self._subscriptions.append(node.create_subscription(LaserScan, "scan", self._on_scan, shared.SENSOR))
        if CAMERA in self._features:
            self._subscriptions.append(
                node.create_subscription(Image, "camera/image_raw", self._on_image, shared.SENSOR)
            )
        if GOAL in self._features:
            self._subscriptions += shared.subscribe_goal(node, self._on_goal)
        for name, take in ((GOAL_VIDEO, self._on_video), (INSTRUCTION, self._on_instruction)):
            if name in self._features:  # latched ones and those of tools that do not latch
                profiles = (shared.LATCHED, shared.COMMAND)
                self._subscriptions += [node.create_subscription(String, name, take, profile) for profile in profiles]

    def close(self) -> None:
        """Listen no longer."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _take_parameters(self) -> None:
        settings = self._settings
        for name, value, parameter in (
            (GOAL_VIDEO, settings.goal, "goal"),
            (INSTRUCTION, settings.instruction, "instruction"),
        ):
            if value and name not in self._features:
                raise ContractError(f"{parameter} is '{value}', but this policy observes no {name}; leave it empty")
        if settings.goal:
            self._give(GOAL_VIDEO, self._video(settings.goal))
        sentence = settings.instruction or self._sentence_beside(settings.goal)
        if sentence:
            self._give(INSTRUCTION, self._sentence(sentence))
        if EMBODIMENT in self._features:
            self._give(EMBODIMENT, one_hot(settings.embodiment))

    def _give(self, name: str, value: Array) -> None:
        self._pilot.receive(name, time.monotonic(), lambda: value)

    def _feature(self, name: str) -> Feature:
        return self._features[name]

    def _sentence_beside(self, goal: str) -> str:
        if not goal or INSTRUCTION not in self._features:
            return ""
        sentence = read_sentence(goal)
        if sentence:
            self._node.get_logger().info(f"the instruction is '{sentence}', from the file beside the goal video")
        return sentence

    def _video(self, path: str) -> Array:
        """Read a goal video unless it is the one that was read last: a latched path comes on both subscriptions."""
        changed = 0
        with suppress(OSError, ValueError):  # reading says what is wrong
            changed = Path(path).stat().st_mtime_ns
        if self._shown is None or self._shown[0] != (path, changed):
            frames, _, _, size = self._feature(GOAL_VIDEO).shape
            self._shown = (path, changed), read_video(path, frames, size)
        return self._shown[1]

    def _sentence(self, text: str) -> Array:
        return text_values(text, self._feature(INSTRUCTION).shape[0])

    def _on_odometry(self, message: Odometry) -> None:
        stamp = shared.measured_at(self._node, message.header.stamp)
        self._pilot.receive(ODOMETRY, stamp, lambda: self._motion(message, stamp))

    def _motion(self, message: Odometry, stamp: float) -> Motion:
        require_frame("odom", message.header.frame_id, ODOMETRY_FRAME)
        require_frame("velocity of odom", message.child_frame_id, BASE_FRAME)
        twist = twist_values(message.twist.twist, self._settings.names)
        return self._pilot.motion(pose_values(message.pose.pose), twist, stamp)

    def _on_scan(self, message: LaserScan) -> None:
        stamp, beams = shared.measured_at(self._node, message.header.stamp), self._feature(SCAN).shape[0]
        self._pilot.receive(SCAN, stamp, lambda: scan_values(message, beams, self._settings.scan_range_m))

    def _on_image(self, message: Image) -> None:
        stamp, size = shared.measured_at(self._node, message.header.stamp), self._feature(CAMERA).shape[-1]
        self._pilot.receive(CAMERA, stamp, lambda: image_values(message, size))

    def _on_goal(self, message: PoseStamped) -> None:
        self._pilot.receive(GOAL, time.monotonic(), lambda: goal_values(message, self._settings))

    def _on_instruction(self, message: String) -> None:
        self._pilot.receive(INSTRUCTION, time.monotonic(), lambda: self._sentence(message.data))

    def _on_video(self, message: String) -> None:
        """Read beside the executor, which has newer messages to take; one after the other, so that the last counts."""
        self._reader.submit(self._pilot.receive, GOAL_VIDEO, time.monotonic(), lambda: self._video(message.data))


def goal_values(message: PoseStamped, settings: CommanderSettings) -> Array:
    """The goal ``(3,)`` in m.

    Raises:
        ContractError: It is in another frame, not finite or outside the fence.
    """
    require_frame("goal", message.header.frame_id, *settings.goal_frames)
    goal = point_values(message.pose.position)
    x_min, x_max, y_min, y_max = settings.geofence
    if not (np.isfinite(goal).all() and x_min <= goal[0] <= x_max and y_min <= goal[1] <= y_max):
        raise ContractError(f"goal {goal} is outside the fence {settings.geofence}; give a goal on the map")
    return goal
