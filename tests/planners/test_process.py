"""A planner in a process of its own: what it answers, what it drops, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_planner
import torch

from envs.maze_nav import MazeNavEnv
from planners.occupancy import OccupancyMap
from planners.process import Answer, PlannerProcess
from planners.xdiffuser import XDiffuser
from policies.runtime.worker import WorkerError
from policies.spec import Array, ContractError
from ros_nodes.simulation import occupancy

RADIUS, PATIENCE_S = 0.25, 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"no {what} within {PATIENCE_S:g} s"
        time.sleep(0.002)


def answer(planner: PlannerProcess) -> Answer:
    """Wait for the next answer."""
    found: list[Answer] = []

    def arrived() -> bool:
        new = planner.newest()
        if new is not None:
            found.append(new)
        return bool(found)

    until(arrived, "answer")
    return found[0]


@pytest.fixture(scope="module")
def env() -> MazeNavEnv:
    env = MazeNavEnv()
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def area(env: MazeNavEnv) -> OccupancyMap:
    return OccupancyMap.of(*occupancy(env.room), RADIUS)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_planner.write(tmp_path_factory.mktemp("planner") / "maze.kfp", 0)


@pytest.fixture(scope="module")
def planner(file: Path) -> Iterator[PlannerProcess]:
    with PlannerProcess(file) as planner:
        planner.wait_ready(PATIENCE_S)
        yield planner


def ends(env: MazeNavEnv) -> tuple[Array, Array]:
    return env.pose[:2].astype(np.float32), env.goal[:2]


def test_answers_are_those_of_the_planner(
    planner: PlannerProcess, file: Path, env: MazeNavEnv, area: OccupancyMap
) -> None:
    own = XDiffuser.load(file)
    assert planner.step_s == own.step_s > 0 and planner.alive and planner.ready
    start, goal = ends(env)
    number = planner.request(start, goal, area)
    found = answer(planner)
    assert found.request == number and not found.refusal and found.search_s > 0 and found.denoise_s > 0
    own = replace(own, graph=area.closed_in(own.graph))
    planned = own.plan(start, goal, area.free, torch.Generator().manual_seed(number))
    assert (found.origin, found.pieces) == (planned.origin, planned.pieces)
    assert found.route is not None
    states = found.route.states
    np.testing.assert_allclose(states, planned.route.states, atol=1e-4)
    np.testing.assert_allclose(states[[0, -1]], [start, goal], atol=5e-3)
    assert area.free(states[:-1], states[1:]).all()
    assert planner.newest() is None


def test_the_newest_request_wins(planner: PlannerProcess, env: MazeNavEnv, area: OccupancyMap) -> None:
    start, goal = ends(env)
    goals = [goal + np.array([0.01 * index, 0]) for index in range(30)]
    for near in goals:
        number = planner.request(start, near, area)
        early = planner.newest()
        assert early is None or early.request == number
    found = answer(planner)
    assert found.request == number and found.route is not None
    np.testing.assert_allclose(found.route.states[-1], goals[-1], atol=4e-3)  # others are 10 mm away


def test_what_is_superseded_is_not_handed_out(planner: PlannerProcess, env: MazeNavEnv, area: OccupancyMap) -> None:
    start, goal = ends(env)
    for wait in (0.0, 0.01, 0.05, 0.3, 1.0):  # the first one not begun, under way, finished
        planner.request(start, goal, area)
        time.sleep(wait)
        number = planner.request(start, start, area)
        assert answer(planner).request == number


def test_refusals_have_their_reason(planner: PlannerProcess, env: MazeNavEnv, area: OccupancyMap) -> None:
    start, goal = ends(env)
    env.shut_door(0)
    shut = OccupancyMap.of(*occupancy(env.room), RADIUS)
    env.open_door(0)
    for where, within, reason in ((np.array([4.99, 0.0]), area, "goal"), (goal, shut, "closed"), (goal, area, "")):
        planner.request(start, where, within)
        found = answer(planner)
        assert found.refusal == reason and (found.route is None) == bool(reason)
    odd = replace(area, origin=np.zeros(3))
    for begin, end, within, message in (
        (np.zeros(1), goal, area, "the start has shape"),
        (start, np.full(2, np.nan), area, "the goal is"),
        (start, goal, odd, "ValueError"),
        (start, goal, odd, "ValueError"),  # and not planned on the map before
        (start, goal, area, ""),
    ):
        planner.request(begin, end, within)
        found = answer(planner)
        assert message in found.message and (found.refusal == "error") == bool(message) and planner.alive
    with pytest.raises(ContractError, match="not an OccupancyMap"):
        planner.request(start, goal, None)  # type: ignore[arg-type]


def test_asking_never_waits_for_a_planner_that_has_stalled(file: Path, env: MazeNavEnv) -> None:
    start, goal = ends(env)
    with PlannerProcess(file) as planner:
        planner.wait_ready(PATIENCE_S)
        assert planner.pid is not None
        os.kill(planner.pid, signal.SIGSTOP)
        for _ in range(20):  # each more than a pipe holds
            number = planner.request(start, goal, OccupancyMap.of(*occupancy(env.room), RADIUS))
            assert planner.newest() is None
        os.kill(planner.pid, signal.SIGCONT)
        assert answer(planner).request == number
        os.kill(planner.pid, signal.SIGSTOP)
        planner.request(start, goal, OccupancyMap.of(*occupancy(env.room), RADIUS))
    assert not planner.alive


def test_a_map_counts_also_when_its_request_is_dropped(
    planner: PlannerProcess, env: MazeNavEnv, area: OccupancyMap
) -> None:
    start, goal = ends(env)
    full = OccupancyMap.of(np.ones((10, 10)), 1.0, np.array([-5, -5]), RADIUS)
    planner.request(start, goal, area)
    assert not answer(planner).refusal
    assert planner.pid is not None
    os.kill(planner.pid, signal.SIGSTOP)
    for asked in (full, full, full):
        planner.request(start, goal, asked)
        time.sleep(0.1)  # for it to be written
    os.kill(planner.pid, signal.SIGCONT)
    assert answer(planner).refusal


def test_a_killed_planner_is_noticed(file: Path, env: MazeNavEnv, area: OccupancyMap) -> None:
    start, goal = ends(env)
    with PlannerProcess(file) as planner:
        planner.wait_ready(PATIENCE_S)
        assert planner.pid is not None
        os.kill(planner.pid, signal.SIGKILL)
        until(lambda: not planner.alive, "end")
        for _ in range(3):
            planner.request(start, goal, area)
            assert planner.newest() is None
        planner.close()


@pytest.mark.parametrize("content", [None, b"nothing"], ids=["missing", "damaged"])
def test_a_file_that_is_no_planner_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "planner.kfp"
    if content is not None:
        path.write_bytes(content)
    with PlannerProcess(path) as planner, pytest.raises(WorkerError, match=r"planner\.kfp"):
        planner.wait_ready(PATIENCE_S)
    assert "planner.kfp" in planner.failure and not planner.ready


def test_a_planner_that_dies_while_it_loads_is_refused(file: Path) -> None:
    with PlannerProcess(file) as planner:
        assert planner.pid is not None
        os.kill(planner.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="died while it loaded"):
            planner.wait_ready(PATIENCE_S)


def test_it_ends_with_its_parent(file: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from planners.process import PlannerProcess\n"
        "if __name__ == '__main__':\n"
        "    planner = PlannerProcess(Path(sys.argv[1]))\n"
        "    planner.wait_ready()\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(planner.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, script, file], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
        until(lambda: not Path(f"/proc/{pid}").exists(), "end of the planner")
