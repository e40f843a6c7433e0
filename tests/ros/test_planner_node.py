"""The planner drives: to goals and to others meanwhile, around or up to shut doors, and on after its process died.

Real nodes in real processes. A busy machine makes the guard stop the robot now and then; whoever waits for motion
resets it, as an operator would.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")

from nav_msgs.msg import OccupancyGrid
from nav_msgs.msg import Path as PathMessage
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import Trigger

from envs.maze_nav import MazeNavEnv
from policies.spec import Array
from ros_nodes import shared
from ros_nodes.convert import grid_values, nanoseconds, point_values
from ros_nodes.session import Monitor, Nodes, Status, private_domain
from ros_nodes.simulation import MAZE_NAV, occupancy

SEED, PATIENCE_S = 0, 90.0
SOUTH, NORTH = np.array([3.6, -1.9, 0.0]), np.array([3.6, -0.2, 0.0])  # of the first door, the only way between them
WALL = np.array([4.99, 0.0, 0.0])
NODES = ("sim_node", "guard_node", "planner_node")


class Rig:
    """Simulator, guard and planner, and who watches them."""

    def __init__(self, nodes: Nodes, monitor: Monitor, planner: Path) -> None:
        self.nodes, self.monitor = nodes, monitor
        self.path = PathMessage()
        self.maps: list[OccupancyGrid] = []
        node = monitor.node
        node.create_subscription(PathMessage, "plan", self._on_path, shared.LATCHED)
        node.create_subscription(OccupancyGrid, "map", self.maps.append, shared.LATCHED)
        self._doors = node.create_publisher(UInt8MultiArray, "doors", shared.LATCHED)
        nodes.start("sim_node", {"env": MAZE_NAV, "seed": SEED})
        nodes.start("guard_node", {})
        nodes.start("planner_node", {"planner": str(planner), "autostart": True, "max_age_odom_s": 1.0})

    def _on_path(self, message: PathMessage) -> None:
        self.path = message

    def end_planner(self) -> int:
        """End the planner node in order; return its exit status."""
        status = self.nodes.end("planner_node")
        del self.nodes.processes["planner_node"]
        return status

    def doors(self, *shut: int) -> None:
        """Shut doors and open all others."""
        self._doors.publish(UInt8MultiArray(data=[int(door in shut) for door in range(4)]))

    @property
    def planner(self) -> Status:
        return self.monitor.status("planner_node")

    @property
    def fault(self) -> str:
        return str(self.monitor.status("guard_node").values.get("fault") or "")

    @property
    def speed(self) -> float:
        """Commanded speed in m/s."""
        return float(np.hypot(*self.monitor.commands[-1][1:3])) if self.monitor.commands else 0.0

    def far(self, place: Array) -> float:
        position = self.monitor.position
        assert position is not None
        return float(np.linalg.norm((position - place)[:2]))

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something that happens without anybody's help."""
        self.monitor.until(condition, PATIENCE_S, what)

    def driving(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for something that happens while the robot drives."""

        def helped() -> bool:
            if self.fault:
                assert self.monitor.call(Trigger, "guard_node/reset", Trigger.Request()).success
                self.monitor.spin(0.3)
            return bool(condition())

        self.until(helped, what)

    def go(self, goal: Array) -> None:
        """Send a goal and wait until the robot drives there along a plan."""
        self.monitor.send_goal(goal)
        self.driving(lambda: self.leads_to(goal) and self.planner.text == "commanding" and self.speed > 0.1, "motion")

    def arrive(self, goal: Array) -> None:
        self.driving(lambda: self.planner.text == "arrived" and self.far(goal) < 0.35, "arrival")
        self.driving(lambda: self.speed == 0, "rest")
        self.assert_whole()

    def leads_to(self, goal: Array) -> bool:
        """Whether the plan that was published last ends there."""
        return bool(self.path.poses) and bool(
            np.linalg.norm((point_values(self.path.poses[-1].pose.position) - goal)[:2]) < 0.05
        )

    def assert_whole(self) -> None:
        values = self.monitor.status("sim_node").values
        assert not values["collision"] and not values["fall"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, planner_files: Callable[[int], Path]) -> Iterator[Rig]:
    folder, planner = tmp_path_factory.mktemp("rig"), planner_files(SEED)
    with private_domain(folder), Nodes(folder) as nodes, Monitor(nodes.check) as monitor:
        rig = Rig(nodes, monitor, planner)
        rig.until(lambda: all(monitor.status(name).values for name in NODES), "reports")
        rig.until(lambda: rig.planner.values["state"] == "active", "planner")
        yield rig


def test_the_side_that_commands_needs_no_torch() -> None:
    check = "import sys, ros_nodes.planner_node; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).resolve().parents[2])


def test_it_drives_to_a_goal_and_to_another_one_meanwhile(rig: Rig) -> None:
    env = MazeNavEnv()
    env.reset(seed=SEED)
    rig.until(lambda: rig.maps, "map")
    np.testing.assert_array_equal(grid_values(rig.maps[0])[0], occupancy(env.room)[0])
    rig.driving(lambda: rig.leads_to(env.goal) and rig.speed > 0.1, "motion towards the goal of the room")
    rig.go(SOUTH)
    rig.driving(lambda: rig.planner.values["plans"] >= 2, "report")
    values = rig.planner.values
    assert values["plan_origin"] in ("denoised", "helped", "way") and values["plan_pieces"] >= 1
    assert values["planner_pid"] and values["rate_hz"] > 0 and values["deadline_misses"] >= 0
    assert set(values["plan_ms"]) == {"p50", "p99", "max"} and values["plan_ms"]["max"] > 0
    stamps = np.array([nanoseconds(pose.header.stamp) for pose in rig.path.poses])
    assert rig.path.header.frame_id == "odom" and (np.diff(stamps) > 0).all()
    places = np.array([point_values(pose.pose.position)[:2] for pose in rig.path.poses])
    assert env.segment_free(places[:-1], places[1:], 0.15).all()
    speeds = np.linalg.norm(np.diff(places, axis=0), axis=-1) / (1e-9 * np.diff(stamps))
    assert speeds.max() < 0.8
    rig.arrive(SOUTH)
    rig.driving(lambda: rig.monitor.status("sim_node").values["success"], "success")


def test_a_goal_in_a_wall_is_refused_and_the_next_one_driven_to(rig: Rig) -> None:
    rig.monitor.send_goal(WALL)
    rig.until(lambda: "no plan (goal)" in rig.planner.text, "refusal")
    assert rig.planner.level == shared.WARNING and rig.planner.values["refusal"] == "goal"
    rig.driving(lambda: not rig.path.poses and rig.speed == 0, "rest")
    rig.monitor.send_goal(np.array([7.0, 0.0, 0.0]))
    rig.until(lambda: "goal refused" in rig.planner.text and "outside the fence" in rig.planner.text, "refusal")
    rig.go(NORTH)


def test_it_stops_before_a_door_that_shuts_and_drives_on_when_it_opens(rig: Rig) -> None:
    rig.go(SOUTH)
    rig.arrive(SOUTH)
    rig.go(NORTH)
    maps = len(rig.maps)
    rig.doors(0)
    rig.until(lambda: len(rig.maps) > maps and rig.monitor.status("sim_node").values["doors_shut"][0], "shut door")
    rig.until(lambda: "no plan (closed)" in rig.planner.text, "refusal")
    rig.driving(lambda: rig.speed == 0, "rest")
    rig.monitor.spin(1.0)
    assert rig.speed == 0 and rig.far(NORTH) > 0.8 and "closed" in rig.planner.text
    rig.assert_whole()
    rig.doors()
    rig.arrive(NORTH)


def test_a_killed_planner_process_stops_the_robot_and_is_started_again(rig: Rig) -> None:
    rig.go(SOUTH)
    pid, stops = rig.planner.values["planner_pid"], rig.planner.values["stops"]
    os.kill(pid, signal.SIGKILL)
    rig.until(lambda: "planner: the planner process has ended" in rig.fault, "latched fault")
    rig.until(lambda: rig.speed == 0, "rest")
    rig.until(lambda: rig.planner.values["stops"] > stops, "report of the stop")
    rig.until(lambda: rig.planner.text == "commanding", "plans")
    values = rig.planner.values
    assert values["planner_pid"] != pid and values["planner_restarts"] == 1 and values["state"] == "active"
    assert rig.speed == 0 and rig.fault  # until somebody resets the guard
    rig.arrive(SOUTH)
    assert "planner process has ended" in values["last_stop"]


def test_lost_odometry_stops_the_robot(rig: Rig) -> None:
    rig.go(NORTH)
    os.kill(rig.nodes.processes["sim_node"].pid, signal.SIGSTOP)
    try:
        rig.until(lambda: "odom is older than the limit" in rig.planner.text, "fault")
        rig.until(lambda: rig.fault and rig.speed == 0, "stop")
    finally:
        os.kill(rig.nodes.processes["sim_node"].pid, signal.SIGCONT)
    rig.driving(lambda: rig.planner.text in ("commanding", "arrived") and not rig.fault, "recovery")


def test_it_ends_in_order_and_its_process_with_it(rig: Rig) -> None:
    pid = rig.planner.values["planner_pid"]
    rig.go(max((SOUTH, NORTH), key=rig.far))
    assert rig.end_planner() == 0
    rig.until(lambda: rig.speed == 0, "rest")
    assert not Path(f"/proc/{pid}").exists()


def test_a_planner_that_is_missing_is_refused_and_the_node_stays_unconfigured(rig: Rig, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.kfp")
    rig.nodes.start("planner_node", {"planner": missing, "autostart": True})
    rig.until(lambda: missing in rig.planner.text, "refusal")
    assert rig.planner.values["state"] == "unconfigured" and "not configured" in rig.planner.text
    assert rig.end_planner() == 0
