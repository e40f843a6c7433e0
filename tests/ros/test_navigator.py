"""The planner node's logic on a fake clock, with a real planner process and a robot that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.maze_nav import MazeNavEnv, to_world
from planners.occupancy import OccupancyMap
from planners.process import Answer, PlannerProcess
from policies.spec import Array, ContractError
from ros_nodes.navigator import ARRIVED, NEAR, Limits, Navigator
from ros_nodes.simulation import occupancy

SEED = 8  # two of its doors are on loops
RADIUS, TICK_S, PATIENCE = 0.25, 0.02, 6000  # ticks
LIMITS = Limits(
    names=("vx", "vy", "wz"),
    low=(-0.3, -0.2, -0.7),
    high=(0.6, 0.2, 0.7),
    max_age_odom_s=0.2,
    max_age_plan_s=600.0,
    deviation_m=0.5,
    patience_s=1.0,
    pause_s=0.5,
)


def refuse() -> Array:
    raise ContractError("it is in the sea")


class Drive:
    """A robot without inertia in a maze; time passes quickly unless there is a plan to wait for."""

    def __init__(self, planner: PlannerProcess, limits: Limits = LIMITS) -> None:
        self.env = MazeNavEnv()
        self.env.reset(seed=SEED)
        self.pose, self.now = self.env.pose.copy(), 100.0
        self.navigator = Navigator(planner, limits)
        self.command: Array | None = None
        self.odometry: Callable[[], Array] = lambda: self.pose
        self.blind, self.held = False, False
        self.least = np.inf
        self.map()

    def map(self, *shut: int) -> None:
        """Show a map with doors shut."""
        self.env.maze = self.env.maze.with_doors(np.isin(np.arange(4), shut))
        for door in range(4):
            (self.env.shut_door if door in shut else self.env.open_door)(door)
        area = OccupancyMap.of(*occupancy(self.env.room), RADIUS)
        self.navigator.take_map(self.now, lambda: area)

    def goal(self, x: float, y: float) -> None:
        self.navigator.take_goal(self.now, lambda: np.array([x, y, 0.0]))

    def step(self) -> None:
        navigator = self.navigator
        if not self.blind:
            navigator.take_odometry(self.now, self.odometry)
        self.command = navigator.tick(self.now)
        if self.command is not None and not self.held:
            assert (np.array(LIMITS.low) - 1e-6 <= self.command).all()
            assert (self.command <= np.array(LIMITS.high) + 1e-6).all()
            vx, vy, wz = self.command
            cos, sin = np.cos(self.pose[3]), np.sin(self.pose[3])
            self.pose = self.pose + TICK_S * np.array([cos * vx - sin * vy, sin * vx + cos * vy, 0, wz])
        self.least = min(self.least, float(self.env.room.clearance(self.pose[:2])))
        self.now += TICK_S
        time.sleep(0.01 if navigator.planning else 0)

    def until(self, condition: Callable[[], object], what: str) -> None:
        for _ in range(PATIENCE):
            if condition():
                return
            self.step()
        state = (self.navigator.waiting, self.navigator.warning, self.navigator.fault)
        raise AssertionError(f"no {what}; {state}, {self.navigator.report()}")

    @property
    def speed(self) -> float:
        return 0.0 if self.command is None else float(np.linalg.norm(self.command[:2]))

    def far(self, x: float, y: float) -> float:
        return float(np.linalg.norm(self.pose[:2] - [x, y]))


@pytest.fixture(scope="module")
def planner(planner_files: Callable[[int], Path]) -> Iterator[PlannerProcess]:
    with PlannerProcess(planner_files(SEED)) as planner:
        planner.wait_ready()
        yield planner


@pytest.fixture
def drive(planner: PlannerProcess) -> Drive:
    return Drive(planner)


def door_ends(env: MazeNavEnv, door: int) -> tuple[Array, Array]:
    """The middles of the cells on either side of a door."""
    first, second = env.maze.passages[env.maze.doors[door]]
    return to_world(env.maze.middle(first)), to_world(env.maze.middle(second))


def way_round(env: MazeNavEnv) -> int:
    """A door that there is a way around."""
    for door in range(4):
        pair = env.maze.passages[env.maze.doors[door]]
        if np.isfinite(env.maze.with_doors(np.arange(4) == door).routes[0][tuple(pair)]):
            return door
    raise AssertionError("every door is a bridge")


def test_it_waits_for_what_is_missing_and_arrives(planner: PlannerProcess) -> None:
    drive = Drive(planner)
    drive.blind = True
    drive.step()
    assert drive.navigator.waiting == "no odom yet" and drive.command is None
    drive.blind = False
    drive.step()
    assert drive.navigator.waiting == "no goal yet" and drive.command is None
    goal = drive.env.goal[:2]
    drive.goal(*goal)
    drive.until(lambda: drive.speed > 0.2, "motion")
    drive.until(lambda: drive.navigator.arrived, "arrival")
    assert drive.far(*goal) < ARRIVED and drive.least > RADIUS - 0.06
    report = drive.navigator.report()
    assert (report["plans"], report["replans"], report["planned_because"]) == (1, 0, "goal")
    assert (
        report["plan_origin"] in ("denoised", "helped", "way")
        and report["plan_ms"]["max"] > 0
        and report["ahead_s"] == 0
    )
    for _ in range(100):
        drive.step()
        assert drive.command is not None and not drive.command.any()
    drive.goal(*goal)  # the same again is no news
    drive.step()
    assert drive.navigator.arrived


class Late:
    """A planner whose answers take so many ticks, however busy the machine is."""

    alive = ready = True

    def __init__(self, planner: PlannerProcess, ticks: int) -> None:
        self.step_s, self._planner, self._ticks, self._left = planner.step_s, planner, ticks, 0

    def request(self, start: Array, goal: Array, area: OccupancyMap) -> int:
        self._left = self._ticks
        return self._planner.request(start, goal, area)

    def newest(self) -> Answer | None:
        self._left -= 1
        if self._left != 0:
            return None
        while (answer := self._planner.newest()) is None:
            time.sleep(0.01)
        return answer


@pytest.mark.parametrize("ticks", [5, 100], ids=["quick", "late"])
def test_a_new_goal_is_taken_over_without_a_stop(planner: PlannerProcess, ticks: int) -> None:
    drive = Drive(Late(planner, ticks))  # type: ignore[arg-type]
    goal, home = drive.env.goal[:2], drive.pose[:2].copy()
    drive.goal(*goal)
    drive.until(lambda: drive.far(*home) > 1, "way")
    old = drive.navigator.leg
    drive.goal(*home)
    drive.step()
    assert drive.navigator.leg is old and drive.speed > 0.15  # the old plan until the new one is there
    while drive.navigator.leg is old:
        assert drive.speed > 0.05
        drive.step()
    leg = drive.navigator.leg
    assert leg is not None and leg.leads_to(np.array([*home, 0.0])) and drive.speed > 0
    assert np.linalg.norm(leg.follower.curve.at(leg.follower.elapsed).position - drive.pose[:2]) < 0.4
    drive.until(lambda: drive.navigator.arrived, "arrival")
    assert drive.far(*home) < ARRIVED and drive.least > RADIUS - 0.06


def test_a_goal_in_a_wall_is_refused_and_the_next_one_driven_to(drive: Drive) -> None:
    home = drive.pose[:2].copy()
    drive.goal(*drive.env.goal[:2])
    drive.until(lambda: drive.speed > 0.2, "motion")
    drive.goal(4.99, 0.0)
    drive.until(lambda: "no plan (goal)" in drive.navigator.warning, "refusal")
    assert drive.command is not None and not drive.command.any() and not drive.navigator.fault
    assert drive.navigator.report()["refusal"] == "goal" and drive.navigator.leg is None
    drive.navigator.take_goal(drive.now, refuse)
    drive.step()
    assert drive.navigator.warning == "goal refused: it is in the sea" and drive.speed == 0
    drive.goal(*home)
    drive.until(lambda: drive.navigator.arrived, "arrival")


def test_a_door_that_shuts_far_ahead_is_driven_around(drive: Drive) -> None:
    door = way_round(drive.env)
    here, there = door_ends(drive.env, door)
    drive.pose[:2] = here
    drive.goal(*there)
    drive.until(lambda: drive.speed > 0.1 and drive.navigator.leg is not None, "motion")
    drive.map(door)
    drive.step()
    leg = drive.navigator.leg
    assert leg is not None and leg.blocked is not None
    drive.until(lambda: drive.navigator.leg not in (leg, None) and not drive.navigator.waiting, "other plan")
    assert drive.navigator.report()["planned_because"] == "blocked" and drive.navigator.report()["replans"] == 1
    drive.until(lambda: drive.navigator.arrived, "arrival")
    assert drive.far(*there) < ARRIVED and drive.least > RADIUS - 0.06


def test_it_stops_before_a_shut_door_and_drives_on_when_it_opens(drive: Drive) -> None:
    here, there = door_ends(drive.env, 0)
    drive.pose[:2] = here
    drive.goal(*there)
    drive.until(lambda: drive.far(*here) > 0.4, "way to the door")
    drive.map(0)
    place = drive.pose[:2].copy()
    drive.step()
    assert drive.command is not None and not drive.command.any()  # at once, before anything is planned
    assert "blocked" in drive.navigator.waiting and not drive.navigator.fault
    drive.until(lambda: "no plan (closed)" in drive.navigator.warning, "refusal")
    assert drive.far(*place) < NEAR / 4 and drive.speed == 0
    for _ in range(50):
        drive.step()
        assert drive.speed == 0 and "closed" in drive.navigator.warning
    drive.map()
    drive.until(lambda: drive.navigator.arrived, "arrival")


def test_a_map_that_blocks_nothing_changes_nothing(drive: Drive) -> None:
    door = way_round(drive.env)
    here, there = door_ends(drive.env, 0)
    drive.pose[:2] = here
    drive.goal(*there)
    drive.until(lambda: drive.speed > 0.1, "motion")
    leg = drive.navigator.leg
    drive.map(door)
    drive.step()
    assert leg is not None and drive.navigator.leg is leg and leg.blocked is None
    drive.until(lambda: drive.navigator.arrived, "arrival")
    assert drive.navigator.report()["plans"] == 1


def test_who_is_lost_plans_again(drive: Drive) -> None:
    drive.goal(*drive.env.goal[:2])
    drive.until(lambda: drive.speed > 0.2, "motion")
    leg = drive.navigator.leg
    assert leg is not None
    drive.until(lambda: leg.follower.elapsed > 6, "way")
    drive.pose[:2] = leg.places[0]  # carried back
    drive.until(lambda: drive.navigator.leg is not leg, "other plan")
    assert drive.navigator.report()["planned_because"] == "lost"
    drive.until(lambda: drive.navigator.arrived, "arrival")


def test_who_is_carried_behind_a_wall_does_not_drive_into_it(drive: Drive) -> None:
    here, there = door_ends(drive.env, 0)
    drive.map(0)
    aside = 0.55 * (there - here) / np.linalg.norm(there - here)
    middle = (here + there) / 2
    drive.pose[:2] = here
    drive.goal(*(middle - aside))
    drive.until(lambda: drive.speed > 0.1 and drive.far(*(middle - aside)) < 0.6, "motion")
    leg = drive.navigator.leg
    drive.pose[:2] = middle + aside
    for _ in range(500):
        drive.step()
        assert drive.speed == 0
        if drive.navigator.warning:
            break
    assert "no plan (closed)" in drive.navigator.warning and drive.navigator.leg is None
    drive.pose[:2] = here
    drive.until(lambda: drive.navigator.arrived, "arrival")
    assert drive.navigator.leg is not leg


def test_who_is_held_back_again_and_again_cuts_no_corner(drive: Drive) -> None:
    goal = drive.env.goal[:2]
    drive.goal(*goal)
    drive.until(lambda: drive.speed > 0.2, "motion")
    while not drive.navigator.arrived:
        drive.held = int(drive.now) % 4 < 2  # as if the guard held it every other two seconds
        drive.until(lambda: drive.navigator.arrived or drive.held != (int(drive.now) % 4 < 2), "change")
    assert drive.far(*goal) < ARRIVED and drive.least > RADIUS - 0.06


def test_inputs_that_are_old_or_wrong_are_faults(drive: Drive) -> None:
    home = drive.pose[:2].copy()
    for disturb, reason in (
        (lambda: setattr(drive, "blind", True), "odom is older than the limit of 0.2 s"),
        (lambda: setattr(drive, "odometry", refuse), "it is in the sea"),
    ):
        drive.blind, drive.odometry = False, lambda: drive.pose
        goal = max((home, drive.env.goal[:2]), key=lambda place: drive.far(*place))
        drive.goal(*goal)
        drive.until(lambda: drive.speed > 0.2, "motion")
        disturb()
        drive.until(lambda: drive.navigator.fault, "fault")
        assert reason in drive.navigator.fault and drive.command is None and drive.navigator.leg is None
    drive.odometry = lambda: drive.pose
    drive.until(lambda: drive.speed > 0.2, "motion")


def test_plans_are_renewed_and_none_is_followed_that_is_too_old(planner: PlannerProcess) -> None:
    limits = Limits(**{**LIMITS.__dict__, "max_age_plan_s": 8.0})
    drive = Drive(planner, limits)
    goal = drive.env.goal[:2]
    drive.goal(*goal)
    drive.until(lambda: drive.navigator.report()["planned_because"] == "age", "renewal")
    assert drive.speed > 0.1
    drive.navigator.planner = Deaf(planner)  # type: ignore[assignment]
    drive.until(lambda: drive.navigator.fault, "fault")
    assert "older than the limit of 8.0 s" in drive.navigator.fault and drive.command is None
    drive.navigator.planner = planner
    drive.navigator.restart()
    drive.until(lambda: drive.navigator.arrived, "arrival")


class Deaf:
    """A planner that is there and never answers."""

    alive = ready = True

    def __init__(self, planner: PlannerProcess) -> None:
        self.step_s = planner.step_s

    def request(self, *asked: object) -> int:
        return 0

    def newest(self) -> None:
        return None


def test_a_dead_planner_is_a_fault_until_there_is_another(planner_files: Callable[[int], Path]) -> None:
    with PlannerProcess(planner_files(SEED)) as first, PlannerProcess(planner_files(SEED)) as second:
        first.wait_ready()
        drive = Drive(first)
        drive.goal(*drive.env.goal[:2])
        drive.until(lambda: drive.speed > 0.2, "motion")
        first.close()
        drive.step()
        assert "planner process has ended" in drive.navigator.fault and drive.command is None
        drive.navigator.planner = second
        second.wait_ready()
        drive.until(lambda: drive.speed > 0.2, "motion")
        assert not drive.navigator.fault
        drive.until(lambda: drive.navigator.arrived, "arrival")


def test_a_drone_rises_to_the_goal(planner: PlannerProcess) -> None:
    limits = Limits(**{**LIMITS.__dict__, "names": ("vx", "vy", "vz", "wz")})
    limits = Limits(**{**limits.__dict__, "low": (-0.3, -0.2, -0.3, -0.7), "high": (0.6, 0.2, 0.3, 0.7)})
    drive = Drive(planner, limits)
    drive.held, navigator = True, drive.navigator
    navigator.take_goal(drive.now, lambda: np.array([*drive.env.goal[:2], 1.0]))
    drive.until(lambda: drive.speed > 0.1, "motion")
    assert drive.command is not None and drive.command.shape == (4,) and drive.command[2] == np.float32(0.3)
    drive.pose[2] = 1.5
    drive.step()
    assert drive.command is not None and drive.command[2] == np.float32(-0.3)
