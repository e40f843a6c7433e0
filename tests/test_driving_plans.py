"""Plans in driving scenes: what they score, which intents can be followed, what is done about a command."""

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.driving import DrivingEnv
from envs.evaluate import EvaluateConfig
from kinoflow import driving_plans
from kinoflow.commands.eval import as_lines, command
from kinoflow.driving_figures import write_sweep
from kinoflow.driving_plans import Case, Plans, case, score_plans, sweep, valid
from policies.intent import Config, StreamingIntent
from policies.load import load_trained
from policies.maneuver import INTENTS
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import Array, ContractError, Spec

SPEC = Spec(DrivingEnv.contract.observations, DrivingEnv.contract.action, DrivingEnv.contract.rate_hz, 1, 24)


class Told:
    """A policy that always plans the same chunk."""

    spec = SPEC

    def __init__(self, chunk: Array) -> None:
        self._chunk = chunk

    def act(self, observation: dict[str, Array], noise: Array, committed: Array, hold: Array) -> Array:
        self.spec.check(observation)
        return self._chunk


def straight(speed: float) -> Array:
    return np.tile(np.array([speed, 0.0], np.float32), (24, 1))


@pytest.fixture(scope="module")
def here() -> Case:
    return case(3, "straight")


def test_plans_of_a_scene_start_from_its_noise(here: Case) -> None:
    spec, other = Told.spec, here._replace(seed=4)
    np.testing.assert_array_equal(here.noise(spec), here.noise(spec))
    assert abs(here.noise(spec) - other.noise(spec)).min() > 0


def tiny() -> Policy:
    torch.manual_seed(0)
    head = StreamingIntent(SPEC, Config(width=32, depth=1, heads=2, encoder_depth=1))
    return Policy(head, Normaliser.identity(SPEC), steps=2).eval()


def test_the_expert_is_rated_best_and_braking_worst(here: Case) -> None:
    assert len(here.raters) == 3
    ends = [rater[-1, 0] for rater in here.raters]
    assert ends[0] >= ends[1] > ends[2]


def test_a_plan_along_the_road_is_valid_and_one_off_it_is_not(here: Case) -> None:
    plans = Plans(Told(straight(4.0)))  # type: ignore[arg-type]
    turning = straight(6.0)
    turning[:, 1] = 0.5
    assert valid(plans.score(here, np.stack([straight(2.0), turning]))).tolist() == [True, False]
    assert INTENTS.index("keep stop") in here.feasible
    assert not [index for index in here.feasible if INTENTS[index].startswith(("turn", "change"))]


def test_a_plan_like_the_experts_gets_its_label(here: Case) -> None:
    speeds = np.diff(np.r_[0.0, here.raters[0][:, 0]]) * 4
    moments = np.interp(np.arange(24) * 0.2 + 0.1, np.arange(20) / 4 + 0.125, speeds)
    chunk = np.stack([moments, 0 * moments], -1).astype(np.float32)
    rated = Plans(Told(chunk)).rated(here, np.stack([chunk, straight(0.0)]))  # type: ignore[arg-type]
    assert rated[0] > 9
    assert rated[1] < 7


def test_scores_are_means_over_scenes(monkeypatch: pytest.MonkeyPatch, here: Case) -> None:
    monkeypatch.setattr(driving_plans, "case", lambda seed: here)
    report = score_plans(Told(straight(3.0)), range(2), lambda done, total: None)  # type: ignore[arg-type]
    assert report["scenes"] == 2
    assert 0 <= report["pdm"] <= 1
    assert 0 <= report["rfs"] <= 10
    assert report["valid"]["mean"] in (0, 1)


def test_commands_count_as_followed_refused_or_missed(here: Case, tmp_path: Path) -> None:
    chunks = {"keep stop": straight(0.0), "keep hold": straight(0.0), "left": straight(2.0)}
    followers = {intent: Plans(Told(chunk)) for intent, chunk in chunks.items()}  # type: ignore[arg-type]
    report = sweep(followers, [here])
    assert report["faithful"]["pairs"] == 2  # nobody can turn left here
    assert report["faithful"]["mean"] == 0.5
    assert report["valid_where_infeasible"]["mean"] == 1
    assert report["confusion"]["keep hold"][INTENTS.index("keep stop")] == 1
    lines = as_lines(report).splitlines()
    assert lines[1].startswith("faithful: 0.50 [") and lines[1].endswith("] of 2")
    assert lines[-3:] == ["keep stop -> keep stop 1", "keep hold -> keep stop 1", "left -> nowhere possible"]
    poses = {intent: plans.poses(plans.act(here)[None])[0] for intent, plans in followers.items()}
    write_sweep(here.env, poses, report, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_an_intent_is_a_setting_of_a_saved_policy(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    changed = load_trained(f"{tmp_path}@guidance=1.5@intent=turn-left stop@temperature=0.5@3")
    assert (changed.steps, changed.temperature) == (3, 0.5)
    with pytest.raises(ContractError, match="it cannot be '-1': temperature=-1"):
        load_trained(f"{tmp_path}@temperature=-1")
    assert changed.head.config.guidance == 1.5
    assert changed.head.config.intent == "turn-left stop"
    with pytest.raises(ContractError, match="no setting 'speed'"):
        load_trained(f"{tmp_path}@speed=2")
    with pytest.raises(ContractError, match=r"guidance is [0-9.]+, it cannot be 'high'"):
        load_trained(f"{tmp_path}@guidance=high")
    with pytest.raises(ContractError, match="trained with width 32"):
        load_trained(f"{tmp_path}@width=64")


def test_scores_of_plans_need_a_driving_policy() -> None:
    with pytest.raises(ValueError, match="need --env kinoflow/Driving-v0"):
        command(("a.kfb",), EvaluateConfig(), metrics=("pdm",))
