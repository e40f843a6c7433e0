"""``kinoflow plan``, and training and evaluating planners, with those that ship."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kinoflow.cli import call
from kinoflow.planning import (
    METHODS,
    PlanEvaluation,
    PlannerRecipe,
    evaluate,
    free_in,
    load,
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
        (["plan", "--env", "kinoflow/Nav-v0"], "train one"),
        (["plan", "--task", "9"], "choose 1 to 5"),
        (["plan", "--env", ROOM, "--seed", "3"], "train one with --room 3"),
        (["eval", "xdiffuser", "--env", ROOM], "another maze for every seed"),
        (["eval", "xdiffuser", "--planner", "missing.kfp"], "there is no planner missing.kfp"),
        (["train", "xdiffuser", "--env", "kinoflow/Nav-v0", "--out", "/nowhere"], "no recipe"),
    ):
        assert call(arguments[0], arguments[1:]) == 1
        assert reason in capsys.readouterr().err


def test_trackers_belong_to_robots() -> None:
    kinds = [type(tracker_for(PlanEvaluation(env).make())).__name__ for env in (GIANT, PUCK, ROOM)]
    assert kinds == ["VelocityTracker", "AccelerationTracker", "TwistTracker"]
