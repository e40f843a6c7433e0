"""What the planner node does at every tick: check the inputs, ask for plans, follow them. No ROS 2, no torch.

The robot follows the old plan, as far as that is free, until the new one is there. Where nothing is wrong but there is
no way, it rests and takes the next goal or map; what must not be, as odometry that is too old, is a fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from planners.occupancy import OccupancyMap
from planners.process import Answer, PlannerProcess
from planners.search import Route
from planners.track import Curve, Follower, Reference, TwistTracker
from policies.runtime.loop import Percentiles
from policies.spec import Array, ContractError
from ros_nodes.pilot import Input, Waiting

ARRIVED = 0.3  # m
NEAR = 1.0  # m, before what blocks the way the robot stops; further away it drives on while the planner works
MOVED = 0.1  # m, after which a robot that was refused a plan asks again
GAIN, TURN = 1.5, 1.8  # 1/s, of the tracker
DENSE = 0.25  # s between the points of a plan that is followed
LONGEST = 0.1  # s that a tick counts for at most: after a pause of the machine the plan has not moved on
LEAD = 3.0  # s that a plan begins ahead of a robot that drives, at most
TWIST = ("vx", "vy", "wz")
_SAMPLES = 256  # that percentiles look back

Why = Literal["goal", "start", "blocked", "lost", "age"]


@dataclass(frozen=True)
class Limits:
    """What the robot can do and when it plans again.

    Args:
        names: Components of the velocity command.
        low: Its smallest values in m/s and rad/s.
        high: Its largest ones.
        max_age_odom_s: Age from which odometry is not used.
        max_age_plan_s: Age from which a plan is not followed; if it will not end in time, there is a new one at half.
        deviation_m: Deviation from which a plan is doubted.
        patience_s: Seconds of it after which there is a new one.
        pause_s: Least time between two plans to one goal.
    """

    names: Sequence[str]
    low: Sequence[float]
    high: Sequence[float]
    max_age_odom_s: float
    max_age_plan_s: float
    deviation_m: float
    patience_s: float
    pause_s: float


class Refused(Exception):
    """There is no way to the goal, and nothing is wrong with the robot."""


class Asked(NamedTuple):
    """A request that is not answered yet."""

    number: int
    goal: Array
    area: OccupancyMap
    time: float
    lead: float
    why: Why


@dataclass
class Leg:
    """A plan that is followed.

    Args:
        answer: As it came.
        goal: ``(3,)`` in m that it leads to.
        asked: When it was asked for, in s.
        taken: When it was taken over, in s.
        places: ``(M, 2)`` in m, every quarter of a second.
        times: When to be there ``(M,)``, in s.
        follower: Progress along it.
        blocked: Index of the first place that is no longer free, None if all are.
        hidden: Whether something is between the robot and where it should be.
    """

    answer: Answer
    goal: Array
    asked: float
    taken: float
    places: Array
    times: Array
    follower: Follower
    blocked: int | None = None
    hidden: bool = False

    @classmethod
    def of(cls, answer: Answer, asked: Asked, now: float, step_s: float, limits: Limits) -> Leg:
        """Take over a plan. Its waypoints may be far apart, and what was checked for walls is the straight way."""
        assert answer.route is not None
        seconds, waypoints = step_s * np.asarray(answer.route.times, float), np.asarray(answer.route.states[:, :2])
        lasts = np.diff(seconds)
        count = np.maximum(1, np.ceil(lasts / DENSE)).astype(int)
        piece, first = np.repeat(np.arange(len(count)), count), np.cumsum(count) - count
        share = (np.arange(len(piece)) - first[piece]) / count[piece]
        times = np.r_[seconds[piece] + share * lasts[piece], seconds[-1]]
        share = np.r_[share, 1.0][:, None]
        piece = np.r_[piece, len(count) - 1]
        places = (1 - share) * waypoints[piece] + share * waypoints[piece + 1]
        velocity = (places[1] - places[0]) / max(times[1] - times[0], 1e-6)  # who drives already drives on
        follower = Follower(Curve(Route(places, times), 1.0, velocity), limits.deviation_m, limits.patience_s)
        return cls(answer, asked.goal, asked.time, now, places, times, follower)

    def join(self, position: Array, within: float) -> Array:
        """Begin where the plan is nearest to a position ``(2,)``, not later than after so many seconds."""
        first = self.times <= within
        index = int(np.linalg.norm(self.places[first] - position, axis=-1).argmin())
        self.follower.elapsed = float(self.times[index])
        return self.places[index]

    @property
    def remaining(self) -> float:
        """Seconds to its end."""
        return max(0.0, self.follower.curve.duration - self.follower.elapsed)

    def leads_to(self, goal: Array) -> bool:
        """Whether it ends at a goal ``(3,)``."""
        return np.array_equal(self.goal, goal)

    def check(self, area: OccupancyMap, position: Array) -> None:
        """Find out where the rest of the plan is blocked."""
        rest = np.flatnonzero(self.times >= self.follower.elapsed)
        places = np.concatenate([[self.follower.curve.at(self.follower.elapsed).position], self.places[rest]])
        taken = ~area.leaving(position).free(places[:-1], places[1:])
        self.blocked = int(rest[taken.argmax()]) if taken.any() else None

    def advance(self, area: OccupancyMap, position: Array, seconds: float) -> Reference:
        """Let time pass and return where the robot shall be."""
        reference = self.follower.advance(position, seconds)
        self.hidden = not area.in_sight(position, reference.position)
        return reference

    def stops(self, position: Array) -> bool:
        """Whether what blocks the plan is near."""
        return self.blocked is not None and bool(np.linalg.norm(self.places[self.blocked] - position) < NEAR)


class Navigator:
    """Drives along plans from a planner process with inputs that must be fresh and finite.

    Inputs come from any thread, `tick` is called by the control loop. All times are on one monotonic clock.

    Args:
        planner: Plans; may be replaced by another one at any time.
        limits: Of the robot and the plans.
    """

    def __init__(self, planner: PlannerProcess, limits: Limits) -> None:
        self.waiting = "not started"
        """Why it does not drive yet; empty when it does or when something is wrong."""
        self.fault = ""
        """Why there must not be a command; empty when all is well."""
        self.warning = ""
        """Why there is no plan to the goal; empty when there is one."""
        self.commands = 0
        """Commands so far."""
        self.arrived = False
        """Whether the robot rests at the goal."""
        self.leg: Leg | None = None
        """The plan that is followed."""
        self.planner = planner
        self._limits = limits
        index = [limits.names.index(name) for name in TWIST]
        self._tracker = TwistTracker(GAIN, TURN, np.take(limits.low, index), np.take(limits.high, index))
        self._odometry: Input | None = None
        self._goal: Input | None = None
        self._area: Input | None = None
        self._seen: Input | None = None
        self._asked: Asked | None = None
        self._refused: tuple[Answer, OccupancyMap, Array] | None = None
        self._checked: OccupancyMap | None = None
        self._last = self._next = 0.0
        self._plans, self._replans, self._why = 0, 0, ""
        self._plan_s, self._delays = deque[float](maxlen=_SAMPLES), deque[float](maxlen=_SAMPLES)

    def take_odometry(self, stamp: float, read: Callable[[], Array]) -> None:
        """Take note of a pose ``(4,)``, x, y, z in m and yaw in rad; ``read`` may raise a `ContractError`."""
        self._odometry = _input(stamp, read)

    def take_goal(self, stamp: float, read: Callable[[], Array]) -> None:
        """Take note of a goal ``(3,)`` in m; ``read`` may raise a `ContractError`."""
        self._goal = _input(stamp, read)

    def take_map(self, stamp: float, read: Callable[[], OccupancyMap]) -> None:
        """Take note of where the robot can be; ``read`` may raise a `ContractError`."""
        new, old = _input(stamp, read), self._area
        if old is None or new.error or old.error or not np.array_equal(new.value.clearance, old.value.clearance):
            self._area = new

    @property
    def planning(self) -> bool:
        """Whether a plan is asked for and not there yet."""
        return self._asked is not None

    def restart(self) -> None:
        """Start anew towards the present goal: also a robot that had arrived drives again."""
        self._drop()
        self._seen, self.arrived = None, False

    def tick(self, now: float) -> Array | None:
        """Return the ``(A,)`` command to send now; None when there is none, then `waiting` or `fault` say why."""
        command, waiting, warning, fault = self._rest() if self._goal is not None else None, "", "", ""
        try:
            command = self._drive(now)
        except Waiting as reason:
            waiting = str(reason)
        except Refused as reason:
            warning = str(reason)
        except ContractError as error:
            command, fault = None, str(error)
            self._drop()
        self.commands += command is not None
        self.waiting, self.warning, self.fault = waiting, warning, fault
        self._last = now
        return command

    def report(self) -> dict[str, Any]:
        """Return what is followed, how well, and how long plans took, as JSON values."""
        leg, refused = self.leg, self._refused
        values: dict[str, Any] = {
            "arrived": self.arrived,
            "planning": self.planning,
            "plans": self._plans,
            "replans": self._replans,
            "planned_because": self._why,
            "refusal": refused[0].refusal if refused else "",
            "plan_origin": leg.answer.origin if leg else "",
            "plan_pieces": leg.answer.pieces if leg else 0,
            "deviation_m": round(leg.follower.deviation, 3) if leg else None,
            "ahead_s": round(leg.remaining, 2) if leg else None,
        }
        for name, seconds in (("plan_ms", self._plan_s), ("delay_ms", self._delays)):
            values[name] = Percentiles.of(1e3 * np.array(list(seconds)))._asdict()
        return values

    def ages(self, now: float) -> dict[str, float]:
        """Return the age per input in seconds."""
        given = {"odom": self._odometry, "goal": self._goal, "map": self._area}
        return {name: round(now - item.stamp, 4) for name, item in given.items() if item is not None}

    def _rest(self) -> Array:
        return np.zeros(len(self._limits.names), np.float32)

    def _drop(self) -> None:
        """Forget all plans and that they were asked for."""
        self.leg, self._asked, self._refused, self._next = None, None, None, 0.0

    def _drive(self, now: float) -> Array:
        pose = self._fresh("odom", self._odometry, now)
        if not (self.planner.alive and self.planner.ready):
            raise ContractError("the planner process has ended and is started again; plans follow when it is ready")
        goal = self._aim()
        if self._area is not None and self._area.error:
            raise ContractError(self._area.error)
        area: OccupancyMap = self._given("map", self._area).value
        self._take(pose[:2], area, now)
        if self.leg is not None and area is not self._checked:
            self._checked = area
            self.leg.check(area, pose[:2])
        why = self._why_plan(goal, pose[:2], area, now)
        if why:
            self._ask(why, goal, pose[:2], area, now)
        return self._follow(goal, pose, area, now)

    def _fresh(self, name: str, item: Input | None, now: float) -> Array:
        item, limit = self._given(name, item), self._limits.max_age_odom_s
        if abs(now - item.stamp) > limit:
            raise ContractError(f"{name} is older than the limit of {limit} s; check its source and the clocks")
        if item.error:
            raise ContractError(item.error)
        return item.value

    def _given(self, name: str, item: Input | None) -> Input:
        if item is None:
            raise Waiting(f"no {name} yet")
        return item

    def _aim(self) -> Array:
        """The goal; a new one is asked for at once, and one that was refused can be given again."""
        item = self._given("goal", self._goal)
        if item is not self._seen:
            old, self._seen = self._seen, item
            if old is None or old.error or item.error or self._refused or not np.array_equal(old.value, item.value):
                self._asked, self._refused, self._next, self.arrived = None, None, 0.0, False
        if item.error:
            self.leg = None
            raise Refused(f"goal refused: {item.error}")
        return item.value

    def _take(self, position: Array, area: OccupancyMap, now: float) -> None:
        """Follow the newest plan from now on, or none if there is no way."""
        answer, asked = self.planner.newest(), self._asked
        if answer is None or asked is None or answer.request != asked.number:
            return
        self._asked = None
        self._delays.append(now - asked.time)
        if answer.route is None:
            if asked.why != "age":  # a plan that can be followed still is better than none
                self.leg, self._refused = None, (answer, asked.area, position)
            return
        self._plan_s.append(answer.search_s + answer.denoise_s)
        leg = Leg.of(answer, asked, now, self.planner.step_s, self._limits)
        beginning = leg.join(position, now - asked.time + asked.lead + 1)
        self._refused, self._checked = None, None
        far = np.linalg.norm(beginning - position) > self._limits.deviation_m
        if far or not area.leaving(position).free(position, beginning):
            self.leg = None  # the robot has gone on too far meanwhile: rest, and ask again from here
            return
        self._plans, self._replans = self._plans + 1, self._replans + (asked.why != "goal")
        self.leg, self._why = leg, asked.why

    def _why_plan(self, goal: Array, position: Array, area: OccupancyMap, now: float) -> Why | None:
        """Why there should be another plan, None if there should not."""
        leg = self.leg
        if self._asked is not None or self.arrived or now < self._next:
            return None
        if self._refused is not None:
            _, then, there = self._refused
            return "blocked" if area is not then or np.linalg.norm(position - there) > MOVED else None
        if leg is None:
            return "start" if self._next else "goal"
        if not leg.leads_to(goal):
            return "goal"
        if leg.blocked is not None:
            return "blocked"
        if leg.follower.lost or leg.hidden:
            return "lost"
        age, limit = now - leg.asked, self._limits.max_age_plan_s
        return "age" if age > limit / 2 and age + leg.remaining > limit else None

    def _ask(self, why: Why, goal: Array, position: Array, area: OccupancyMap, now: float) -> None:
        """Ask for a plan from where the robot will be when it is there, as it drives on meanwhile."""
        start, lead, leg = position, 0.0, self.leg
        if leg is not None and why != "lost":
            lead = min(LEAD, self._delays[-1] if self._delays else 0.0)
            then = leg.follower.elapsed + lead
            if leg.blocked is None or then < leg.times[leg.blocked]:
                start = leg.follower.curve.at(then).position
        number = self.planner.request(start, goal[:2], area)
        self._asked, self._next = Asked(number, goal, area, now, lead, why), now + self._limits.pause_s

    def _follow(self, goal: Array, pose: Array, area: OccupancyMap, now: float) -> Array:
        leg, limits = self.leg, self._limits
        if self.arrived:
            return self._rest()
        if self._refused is not None:
            answer = self._refused[0]
            raise Refused(f"no plan ({answer.refusal}): {answer.message}")
        if leg is None:
            raise Waiting("no plan yet")
        if now - leg.asked > limits.max_age_plan_s:
            raise ContractError(f"the newest plan is older than the limit of {limits.max_age_plan_s} s; see plan_ms")
        if leg.stops(pose[:2]):
            raise Waiting("the way ahead is blocked, no other plan yet")
        reference = leg.advance(area, pose[:2], min(now - self._last, LONGEST))
        if leg.hidden:
            raise Waiting("something is between the robot and its plan, no other plan yet")
        values = dict(zip(TWIST, self._tracker.command(pose[[0, 1, 3]], reference).tolist(), strict=True))
        off = goal - pose[:3]
        if "vz" in limits.names:
            values["vz"] = GAIN * off[2]
        distance = float(np.linalg.norm(off if "vz" in values else off[:2]))
        if leg.leads_to(goal) and leg.follower.over and distance < ARRIVED:
            self.arrived = True
            return self._rest()
        return np.clip([values[name] for name in limits.names], limits.low, limits.high).astype(np.float32)


def _input(stamp: float, read: Callable[[], Any]) -> Input:
    try:
        return Input(stamp, read())
    except ContractError as error:
        return Input(stamp, error=str(error))
