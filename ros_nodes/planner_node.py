"""Drives a robot along XDiffuser plans as a lifecycle node: map, goal and odometry in, commands for the guard out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMessage

from planners.occupancy import OccupancyMap
from planners.process import PlannerProcess
from policies.spec import Array, ContractError
from ros_nodes import shared
from ros_nodes.commander import INACTIVE, UNCONFIGURED, Commander, CommanderSettings
from ros_nodes.convert import ODOMETRY_FRAME, grid_values, path_message, pose_values, require_frame
from ros_nodes.inputs import goal_values
from ros_nodes.navigator import TWIST, Leg, Limits, Navigator
from ros_nodes.pilot import timing

START_S = 120.0  # for the planner to load


@dataclass(frozen=True)
class PlannerSettings(CommanderSettings):
    """Parameters of the planner node, fixed while it is configured."""

    planner: str = shared.setting("", "Path of the planner, as `kinoflow train xdiffuser` writes it")
    low: tuple[float, ...] = shared.setting((-0.3, -0.2, -0.7), "Smallest command per component, m/s and rad/s")
    high: tuple[float, ...] = shared.setting((0.6, 0.2, 0.7), "Largest command per component, m/s and rad/s")
    radius_m: float = shared.setting(0.25, "Radius in m of the robot seen from above", 0.05, 2.0)
    max_age_plan_s: float = shared.setting(60.0, "Age in s from which a plan is not followed", 1.0, 600.0)
    deviation_m: float = shared.setting(0.5, "Deviation in m from a plan that is too far", 0.05, 5.0)
    patience_s: float = shared.setting(2.0, "Time in s too far from a plan after which there is a new one", 0.0, 60.0)
    pause_s: float = shared.setting(0.5, "Least time in s between two plans to one goal", 0.0, 60.0)


class PlannerNode(Commander[PlannerSettings]):
    """Plans in a process of its own on the newest ``map`` and follows the plan from a loop on absolute deadlines.

    It plans again when the goal changes, the map blocks the rest of the plan, or the robot has been off the plan for
    too long, and follows the old plan, as far as it is free, until the new one is there. A goal that no way leads to is
    refused: the robot rests, and drives on when there is a way or another goal.

    Odometry that is missing, too old or not finite, a plan that is too old and a planner that has died stop the robot
    and latch the guard. The planner is started again, so that a reset of the guard is all it takes to go on.
    """

    def __init__(self) -> None:
        self._process: PlannerProcess | None = None
        self._navigator: Navigator | None = None
        self._shown: Leg | None = None
        self._restarts = 0
        self._subscriptions: list[Any] = []
        super().__init__("planner", PlannerSettings)
        self._path = self.create_publisher(PathMessage, "plan", shared.LATCHED)

    def _prepare(self, settings: PlannerSettings) -> Navigator:
        names = settings.names
        if not {*TWIST} <= {*names} <= {*TWIST, "vz"} or not len(names) == len(settings.low) == len(settings.high):
            raise ContractError(f"names {names} need vx, vy, wz, for a drone vz too, and low and high one value each")
        limits = Limits(
            names,
            settings.low,
            settings.high,
            settings.max_age_odom_s,
            settings.max_age_plan_s,
            settings.deviation_m,
            settings.patience_s,
            settings.pause_s,
        )
        self._process = PlannerProcess(Path(settings.planner))
        self._process.wait_ready(START_S)
        self._navigator = Navigator(self._process, limits)
        self._subscriptions = [
            self.create_subscription(Odometry, "odom", self._on_odometry, shared.SENSOR),
            self.create_subscription(OccupancyGrid, "map", self._on_map, shared.LATCHED),
            *shared.subscribe_goal(self, self._on_goal),
        ]
        return self._navigator

    def _end(self) -> None:
        for subscription in self._subscriptions:
            self.destroy_subscription(subscription)
        self._subscriptions, self._navigator = [], None
        if self._process is not None:
            self._process.close()
            self._process = None

    def _on_odometry(self, message: Odometry) -> None:
        def read() -> Array:
            require_frame("odom", message.header.frame_id, ODOMETRY_FRAME)
            return pose_values(message.pose.pose)

        if self._navigator is not None:
            self._navigator.take_odometry(shared.measured_at(self, message.header.stamp), read)

    def _on_goal(self, message: PoseStamped) -> None:
        if self._navigator is not None:
            self._navigator.take_goal(time.monotonic(), lambda: goal_values(message, self._settings))

    def _on_map(self, message: OccupancyGrid) -> None:
        def read() -> OccupancyMap:
            require_frame("map", message.header.frame_id, *self._settings.goal_frames)
            return OccupancyMap.of(*grid_values(message), self._settings.radius_m)

        if self._navigator is not None:
            self._navigator.take_map(time.monotonic(), read)

    def _watch(self) -> None:
        navigator, process = self._navigator, self._process
        if self._state == UNCONFIGURED or navigator is None or process is None or self._failure:
            return
        if process.failure:
            self._failure = f"the planner cannot be started again: {process.failure}"
            if self._state == INACTIVE:
                self.trigger_cleanup()
        elif not process.alive:
            self._restarts += 1
            self._process = navigator.planner = PlannerProcess(Path(self._settings.planner))
            process.close()
        if navigator.leg is not self._shown:
            self._show(navigator.leg)

    def _show(self, leg: Leg | None) -> None:
        """Publish a plan, or an empty one if there is none."""
        places, times = (leg.places, leg.times) if leg else (np.empty((0, 2)), np.empty(0))
        elapsed = leg.follower.elapsed if leg else 0.0
        now = self.get_clock().now().nanoseconds
        self._path.publish(path_message(places, times, ODOMETRY_FRAME, now - int(1e9 * elapsed)))
        self._shown = leg

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "state": self._state,
            "reason": self._summary()[1],
            "embodiment": self._settings.embodiment,
            "planner": self._settings.planner,
            "planner_pid": self._process.pid if self._process else None,
            "planner_restarts": self._restarts,
            "stops": self._stops,
            "last_stop": self._last_stop,
        }
        if self._navigator is not None:
            values |= {"input_age_s": self._navigator.ages(time.monotonic()), **self._navigator.report()}
        if self._loop is not None:
            values |= timing(self._loop)
        if self._navigator is not None:
            values["commands"] = self._navigator.commands
        return values


def main() -> None:
    """Entry point of the console script."""
    shared.spin(PlannerNode)


if __name__ == "__main__":
    main()
