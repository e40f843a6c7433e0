import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_ensemble import FAIL, make, request
from toy_drivers import BLIND, CAUTIOUS, TOGETHER, UNSTATED

from envs.drive import PolicyDriver
from envs.evaluate import EvaluateConfig, as_text, driver_for, evaluate, paired_difference, wilson, world
from kinoflow.figures import write_evaluation
from policies.runtime.worker import InlineWorker
from policies.spec import ContractError

CONFIG = EvaluateConfig(episodes=6, workers=2)
LOADER = "toy_drivers:load"


def quiet(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (85, 100, 0.7672, 0.9069), (5, 10, 0.2366, 0.7634)],
)
def test_wilson_intervals(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson(successes, trials)
    assert interval == pytest.approx({"mean": successes / trials, "low": low, "high": high}, abs=1e-4)


def test_paired_differences() -> None:
    difference = paired_difference([1, 1, 0, 1], [0, 1, 0, 0])
    half = 1.96 * np.std([1, 0, 0, 1], ddof=1) / 2
    assert difference == pytest.approx({"mean": 0.5, "low": 0.5 - half, "high": 0.5 + half})
    assert paired_difference([1], [0]) == {"mean": 1, "low": None, "high": None}


@pytest.fixture(scope="module")
def report() -> dict:
    return evaluate([BLIND, CAUTIOUS], LOADER, CONFIG, quiet)


def test_every_driver_meets_the_same_seeds(report: dict) -> None:
    assert set(report["rows"]) == {BLIND, CAUTIOUS, "standing still", "expert", "straight line"}
    for rows in report["rows"].values():
        assert [row["seed"] for row in rows] == list(range(6))
    starts = {tuple(rows[0]["path"][0]) for rows in report["rows"].values()}
    assert len(starts) == 1


def test_the_expert_arrives_and_standing_still_does_not(report: dict) -> None:
    assert report["baselines"]["expert"]["success"]["mean"] == 1.0
    assert report["baselines"]["expert"]["spl"] > 0.9
    assert report["baselines"]["standing still"]["success"]["mean"] == 0.0
    assert report["baselines"]["standing still"]["timeout"] == 1.0


def test_a_blind_policy_does_what_the_straight_line_does(report: dict) -> None:
    line = report["baselines"]["straight line"]
    assert report["success"]["mean"] == line["success"]["mean"]
    assert report["collision"] == line["collision"] > 0
    assert line["difference"]["success"]["mean"] == 0


def test_a_second_evaluation_is_identical(report: dict) -> None:
    again = evaluate([BLIND], LOADER, replace(CONFIG, baselines=False, workers=1), quiet)
    assert again["rows"][BLIND] == report["rows"][BLIND]


def test_episodes_driven_together_are_those_driven_alone(report: dict) -> None:
    together = evaluate([TOGETHER], LOADER, replace(CONFIG, baselines=False), quiet)
    assert together["rows"][TOGETHER] == report["rows"][BLIND]
    late = replace(CONFIG, baselines=False, episodes=3, latency_ms=150.0)
    rows = evaluate([TOGETHER, BLIND], LOADER, late, quiet)["rows"]
    assert rows[TOGETHER] == rows[BLIND]


def test_latency_changes_what_happens() -> None:
    slow = replace(CONFIG, baselines=False, episodes=2, latency_ms=300.0)
    fast = evaluate([BLIND], LOADER, replace(slow, latency_ms=0.0), quiet)["rows"][BLIND]
    assert evaluate([BLIND], LOADER, slow, quiet)["rows"][BLIND] != fast


def test_real_time_uses_the_loop_and_a_process() -> None:
    live = replace(CONFIG, baselines=False, episodes=1, realtime=True)
    result = evaluate([CAUTIOUS], LOADER, live, quiet)
    assert result["realtime"][CAUTIOUS]["commands"] > 50
    assert len(result["rows"][CAUTIOUS]) == 1


def test_the_report_is_json_and_becomes_figures(report: dict, tmp_path: Path) -> None:
    assert as_text(report).count("\n") == 6
    write_evaluation(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["success"] == report["success"]
    for name in ("paths", "success"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_for_another_robot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"goal|action names"):
        evaluate([BLIND], LOADER, replace(CONFIG, embodiment="drone", baselines=False), quiet)


def test_a_rate_that_is_not_stated_is_that_of_the_environment(report: dict) -> None:
    few = replace(CONFIG, baselines=False, episodes=1, workers=1)
    assert evaluate([UNSTATED], LOADER, few, quiet)["rows"][UNSTATED] == report["rows"][BLIND][:1]


@pytest.mark.parametrize(("policies", "name"), [([BLIND, CAUTIOUS, BLIND], BLIND), (["expert"], "expert")])
def test_drivers_with_one_name_are_refused(policies: list[str], name: str) -> None:
    with pytest.raises(ContractError, match=f"more than one is called {name}; give every policy once"):
        evaluate(policies, LOADER, CONFIG, quiet)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate: give a policy"):
        evaluate([], LOADER, replace(CONFIG, baselines=False), quiet)


def test_no_action_to_execute_is_refused() -> None:
    env = world(CONFIG)
    with pytest.raises(ValueError, match="cannot execute 0 actions"):
        driver_for(BLIND, make(), env, 0, replace(CONFIG, execute=0))


def test_an_unknown_environment_is_refused_with_those_there_are() -> None:
    with pytest.raises(ContractError, match=r"no environment 'kinoflow/Naw-v0'; choose one of .*kinoflow/Nav-v0"):
        evaluate([BLIND], LOADER, replace(CONFIG, env="kinoflow/Naw-v0"), quiet)


def test_one_episode_is_reported_as_json() -> None:
    single = evaluate([BLIND, CAUTIOUS], LOADER, replace(CONFIG, baselines=False, episodes=1), quiet)
    assert (
        json.loads(json.dumps(single, allow_nan=False))["baselines"][CAUTIOUS]["difference"]["success"]["low"] is None
    )


def test_an_episode_of_a_part_of_a_composition_is_none() -> None:
    policy, (seen, *_) = make(), request(1.0, FAIL)
    observation = {name: values[-1] for name, values in seen.items()}
    with pytest.raises(RuntimeError, match=r"parent_1 .* is left out"):
        PolicyDriver(InlineWorker(policy), seed=0).command(observation, 0.0)
    part = PolicyDriver(InlineWorker(policy), seed=0, whole=False)
    assert part.command(observation, 0.0) is not None and "parent_1" in part.runner.warning
