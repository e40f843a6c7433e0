from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.nav import NavEnv
from kinoflow.course import Course, draw_goals
from kinoflow.run import RunConfig, run
from policies.spec import ContractError

ROS_MISSING = "needs the ROS 2 wheels: pip install 'kinoflow[ros]'"
START = "import sys, pathlib; from kinoflow.run import *; run(RunConfig(pathlib.Path(sys.argv[1])), print)"


def descendants(pid: int) -> set[int]:
    """Processes below a process, itself excluded."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def env_goal(seed: int) -> list[float]:
    env = NavEnv("wheeled")
    env.reset(seed=seed)
    return [round(float(value), 3) for value in env.goal]


def assert_report(report: dict[str, Any]) -> None:
    for name in ("period_ms", "lateness_ms", "inference_ms", "chunk_age_ms", "delay_ms"):
        assert set(report[name]) == {"p50", "p99", "max"} and report[name]["p50"] <= report[name]["max"]
    assert report["rate_hz"] > 0 and report["received_hz"] > 0 and report["commands"] > 0
    assert report["deadline_misses"] >= 0 and report["scheduling"]
    assert sum(report["steps"].values()) == report["chunks"] >= report["chunk_misses"] >= 0 < report["chunks"]
    assert report["guard"]["fault"] is None and report["guard"]["interventions"]["non_finite"] == 0
    times, path = np.array(report["path"])[:, 0], np.array(report["path"])[:, 1:]
    assert (np.diff(times) > 0).all() and np.abs(path).max() < 5


def test_nodes_drive_to_the_goal_and_leave_nothing_behind(bundle: Path, seed: int) -> None:
    pytest.importorskip("rclpy", reason=ROS_MISSING)
    before, seen = descendants(os.getpid()), []
    report = run(RunConfig(bundle, seconds=40, seed=seed), lambda *state: seen.append(state))
    assert report["mode"] == "ros2" and report["ended"] == "all goals reached"
    assert report["success"] and report["goals_reached"] == 1 and report["falls"] == report["collisions"] == 0
    assert_report(report)
    assert len(report["trace"]) > 40 * report["seconds"] and report["goals"] == [env_goal(seed)]
    env = NavEnv("wheeled")
    env.reset(seed=seed)
    ends = np.array(report["path"])[[0, -1], 1:]
    assert np.linalg.norm(ends[0] - env.room.start[:2]) < 0.1 and np.linalg.norm(ends[1] - env.goal[:2]) < 0.3
    assert seen[-1][:2] == (int(report["seconds"]), 40) and descendants(os.getpid()) == before


@pytest.mark.parametrize("missing", [False, True])
def test_same_thing_in_this_process(bundle: Path, seed: int, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "rclpy", None)
    report = run(RunConfig(bundle, seconds=2.5, seed=seed, in_process=not missing), lambda *state: None)
    assert report["mode"] == "in-process" and ("pip install" in report["note"]) == missing
    assert report["ended"] == "the time is over" and not report["success"]
    assert_report(report)
    path = np.array(report["path"])[:, 1:]
    assert np.linalg.norm(path[-1] - path[0]) > 0.3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_survives_its_parent(bundle: Path, number: signal.Signals) -> None:
    pytest.importorskip("rclpy", reason=ROS_MISSING)
    parent = subprocess.Popen(
        [sys.executable, "-u", "-c", START, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for background jobs
    )
    assert parent.stdout is not None
    assert b"0 of 1 goals" in parent.stdout.readline()  # the robot drives
    children = descendants(parent.pid)
    assert len(children) >= 4  # three nodes and the inference
    parent.send_signal(number)
    parent.communicate()
    while any(alive(child) for child in children):  # the test's time limit ends a wait in vain
        time.sleep(0.02)
    assert parent.returncode != 0


def test_what_does_not_fit_is_refused_before_anything_starts(bundle: Path, tmp_path: Path) -> None:
    for config, message in (
        (RunConfig(bundle, embodiment="drone"), "observation 'goal'"),
        (RunConfig(bundle, env="kinoflow/Maze-v0"), "env is 'kinoflow/Maze-v0'"),
        (RunConfig(tmp_path / "none.kfb"), "no such file"),
    ):
        with pytest.raises(ContractError, match=message):
            run(config, lambda *state: None)


def test_goals_are_reproducible_reachable_and_apart(seed: int) -> None:
    env = NavEnv("wheeled")
    env.reset(seed=seed)
    goals = draw_goals(env, 5, seed)
    np.testing.assert_array_equal(goals[:3], draw_goals(env, 3, seed))
    np.testing.assert_array_equal(goals[0], env.goal)
    assert not np.array_equal(goals[1], draw_goals(env, 2, seed + 1)[1])
    for start, goal in itertools.pairwise(goals):
        assert 3 <= np.linalg.norm(goal - start) <= 6
        assert env.room.map.routes(goal[:2]).reachable(start[:2]) and env.room.clearance(goal[None, :2])[0] > 0.5


def test_course_holds_each_goal_before_the_next() -> None:
    goals = [np.array([float(k), 0.0, 0.0]) for k in range(2)]
    course = Course(goals, seconds=100)
    moved_on = []
    for now in np.arange(0, 8, 0.125):
        there = bool(1.0 <= now < 1.5 or now >= 2.0)  # the first visit is too short
        if not course.ended and course.update(now, np.array([now, 0.0, 0.0]), there):
            moved_on.append((float(now), float(course.goal[0])))
    assert moved_on == [(3.0, 1.0)]
    assert course.ended == "all goals reached" and course.report()["goals_reached"] == 2
    assert round(course.report()["seconds"], 1) == 4.1


def test_course_ends_by_time_fall_collision_or_fault() -> None:
    for event, reason, counts in (
        ((False, False, False, None), "the time is over", (0, 0)),
        ((True, True, True, None), "the robot fell", (1, 0)),
        ((False, True, True, "estop: x"), "the robot hit something", (0, 1)),
        ((False, False, True, None), "the robot gave up", (0, 0)),
        ((False, False, False, "stale: old"), "stale: old", (0, 0)),
    ):
        course = Course([np.zeros(3)], seconds=1.0)
        course.fail(*event)
        course.update(1.0, np.zeros(3), False)
        report = course.report()
        assert (course.ended, (report["falls"], report["collisions"])) == (reason, counts) and not report["success"]
