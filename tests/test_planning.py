"""``kinoflow plan``, and training and evaluating planners, with those that ship."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinoflow.cli import call
from kinoflow.planning import (
    METHODS,
    PlanDriver,
    PlanEvaluation,
    PlannerRecipe,
    check,
    evaluate,
    free_in,
    load,
    maze,
    planning_of,
    robot_state,
    shipped,
    tracker_for,
    train,
)
from planners.train_trajectory import TrajectoryRecipe
from planners.xdiffuser import Sampler, XDiffuser
from policies.spec import ContractError

pytest.importorskip("ogbench", reason="needs OGBench: pip install 'kinoflow[maze]'")
GIANT, PUCK, ROOM = "kinoflow/Maze-giant-v0", "kinoflow/PuckMaze-giant-v0", "kinoflow/MazeNav-v0"


def printed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    assert call(arguments[0], arguments[1:]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("env", [GIANT, PUCK, ROOM])
def test_a_plan_with_its_picture(env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.png"
    report = printed(capsys, ["plan", "--env", env, "--seed", "0", "--out", str(out), "--json"])
    world = PlanEvaluation(env).make()
    world.reset(seed=0)
    places = np.array(report["positions_m"])
    np.testing.assert_allclose(places[0], robot_state(world)[:2], atol=0.05)
    np.testing.assert_allclose(places[-1], world.goal[:2], atol=0.05)
    assert free_in(world)(places[:-1], places[1:]).all()
    assert len(report["times_s"]) == len(places) and report["duration_s"] == report["times_s"][-1]
    assert report["origin"] in ("denoised", "helped", "way") and report["pieces"] >= 1
    assert out.read_bytes().startswith(b"\x89PNG")
    world.close()


def test_the_puck_arrives_by_plans_and_every_driver_meets_the_same_episodes() -> None:
    config = PlanEvaluation(PUCK, episodes=1, seed=500_000, workers=1)
    report = evaluate(config, lambda done, total: None, ("xdiffuser", "unguided", "expert"))
    assert report["success"]["mean"] == 1.0 and report["baselines"]["unguided"]["success"]["mean"] <= 0.4
    seeds = [[row["seed"] for row in rows] for rows in report["rows"].values()]
    assert seeds == [[*range(500_000, 500_005)]] * 3
    planning = report["planning"]
    assert planning["first"]["plans"] == 5 and 0 < planning["first"]["p50_s"] <= planning["first"]["p95_s"]
    assert sum(planning["origins"].values()) >= 5


def test_the_command_writes_a_report_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "eval",
        "xdiffuser",
        "--env",
        GIANT,
        "--tasks",
        "5",
        "--episodes",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    report = printed(capsys, [*arguments, "--seed", "500000", "--workers", "1"])
    assert report["policy"] == "xdiffuser" and {*report["baselines"]} > {"graph", "unguided", "standing still"}
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "paths.png", "success.png"}
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]["graph"]) == 1


def test_one_task_alone_and_every_method_runs() -> None:
    config = PlanEvaluation(GIANT, tasks="5", episodes=2, seed=500_000, workers=1, sampler=Sampler(steps=2))
    report = evaluate(config, lambda done, total: None, METHODS)
    assert report["episodes"] == 2 and report["success"]["mean"] == 1.0
    assert report["baselines"]["graph"]["success"]["mean"] == 1.0


def test_a_planner_is_trained_and_belongs_to_its_environment(tmp_path: Path) -> None:
    training = TrajectoryRecipe(steps=3, batch=8, widths=(16, 16, 16), report_every=3)
    said: list[str] = []
    recipe = PlannerRecipe("kinoflow/Maze-medium-v0", tmp_path, episodes=150, nodes=200, training=training)
    file = train(recipe, False, lambda step, steps, text: said.append(f"{step}/{steps} {text}"))
    planner = XDiffuser.load(file)
    assert len(planner.graph.nodes) == 200 and planner.origin["data"] == "stitch" and said[0].startswith("3/3 loss")
    assert train(recipe, True, lambda step, steps, text: None).read_bytes() == file.read_bytes()
    with pytest.raises(ContractError, match="was made for kinoflow/Maze-medium-v0, not for"):
        load(file, GIANT)


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert not shipped("kinoflow/Maze-nowhere-v0").exists()
    for arguments, reason in (
        (["plan", "--env", "kinoflow/Nav-v0"], "is no maze, so nothing can be planned there; choose one of kinoflow/M"),
        (["plan", "--env", "kinoflow/Maze-large-v0"], "no planner ships for kinoflow/Maze-large-v0; give --planner"),
        (["plan", "--env", ROOM, "--task", "1"], "has no tasks; choose --seed"),
        (["plan", "--task", "9"], "choose 1 to 5"),
        (["plan", "--seed", "-1"], "seed is -1; choose one from 0 to"),
        (["plan", "--out", "."], "is a directory"),
        (["eval", "xdiffuser", "--tasks", "abc"], "choose one of all, 1, 2, 3, 4, 5"),
        (["eval", "xdiffuser", "--episodes", "0"], "episodes is 0, it has to be at least 1"),
        (["eval", "xdiffuser", "--workers", "0"], "workers is 0, it has to be at least 1"),
        (["eval", "xdiffuser", "--seed", str(10**20)], "choose one from 0 to"),
        (["eval", "xdiffuser", "--out", __file__], "a directory is needed"),
        (["run", str(shipped(ROOM)), "--env", ROOM, "--seed", "-1"], "choose one from 0 to"),
        (["plan", "--env", ROOM, "--seed", "3"], "train one with --room 3"),
        (["eval", "xdiffuser", "--env", ROOM], "another maze for every seed"),
        (["eval", "xdiffuser", "--planner", "missing.kfp"], "there is no planner missing.kfp"),
        (["train", "xdiffuser", "--env", "kinoflow/Nav-v0", "--out", "/nowhere"], "is no maze"),
        (["train", "flowdit", "--data", "x", "--out", "/nowhere", "--seed", "-1"], "choose one from 0 to"),
    ):
        assert call(arguments[0], arguments[1:]) == 1
        assert reason in capsys.readouterr().err


def test_trackers_belong_to_robots() -> None:
    kinds = [type(tracker_for(PlanEvaluation(env).make())).__name__ for env in (GIANT, PUCK, ROOM)]
    assert kinds == ["VelocityTracker", "AccelerationTracker", "TwistTracker"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, it has to be at least 1"),
        ({"batch": 0}, "batch is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"report_every": 0}, "report_every is 0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"widths": ()}, "give 1 to 3 positive multiples of 8"),
        ({"widths": (8, 12)}, "give 1 to 3 positive multiples of 8"),
        ({"widths": (8,) * 4}, "give 1 to 3 positive multiples of 8"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_first(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    recipe = PlannerRecipe("kinoflow/Maze-medium-v0", tmp_path / "run", training=TrajectoryRecipe(**changes))
    with pytest.raises(ContractError, match=message):
        train(recipe, False, lambda step, steps, text: None)
    assert not recipe.out.exists()


def test_a_run_that_cannot_be_kept_is_refused_first(tmp_path: Path) -> None:
    for changes, message in (({"nodes": 1}, "nodes is 1"), ({"episodes": 0}, "episodes is 0"), ({"room": -1}, "room")):
        with pytest.raises(ContractError, match=message):
            check(PlannerRecipe("kinoflow/Maze-medium-v0", tmp_path, **changes))
    with pytest.raises(ContractError, match=r"nodes is 100000, the data have [0-9]+ states"):
        train(PlannerRecipe("kinoflow/Maze-medium-v0", tmp_path, episodes=20, nodes=100_000), False, print)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="choose another one"):
        check(PlannerRecipe("kinoflow/Maze-medium-v0", tmp_path / "file"))


def test_a_planner_that_never_plans_says_why() -> None:
    planner, world = XDiffuser.load(shipped(PUCK)), maze(PUCK)
    world.reset(seed=0)
    shut = replace(planner, graph=planner.graph.close(nodes=np.ones(len(planner.graph.nodes), bool)))
    driver = PlanDriver(shut, "xdiffuser", world, 0, Sampler())
    assert driver.command({}, 0.0) is None and "open it" in driver.refusal
    driver = PlanDriver(planner, "xdiffuser", world, 0, Sampler())
    assert driver.command({}, 0.0) is not None and not driver.refusal
    told = planning_of([], ["closed", "goal"])
    assert told == {"origins": {}, "refused": {"episodes": 2, "first": "closed"}}


def test_the_parts_work_alone_as_the_documentation_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    text = (root / "docs" / "planning.md").read_text().partition("Each part works alone")[2]
    snippet, names = text.partition("`free` is")[0].partition("\n")[2], dict[str, Any]()
    exec(textwrap.dedent(snippet), names)
    assert names["shut"].closed_edges.any() and names["plan"].origin in ("denoised", "helped", "way")
