"""The search for weights chooses on some seeds, reports on others and claims no gain where there is none."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'kinoflow[pusht]'")

from parents import policy

from envs.evaluate import VALIDATION_SEED
from envs.pusht import ACTION, FEATURES, POLICY_HZ
from envs.search import METHODS, Objective, SearchConfig, as_text, candidates, expression, search, verdict
from kinoflow.cli import call
from policies.flowdit import Config, FlowDiT
from policies.load import LOADER
from policies.spec import Spec

CONFIG = SearchConfig(validation=4, episodes=3, spacing=0.5, workers=1)


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parents")
    spec = Spec(FEATURES[:2], ACTION, POLICY_HZ, history=1, horizon=8)
    for name in ("a", "b"):  # the same twice: no weight is better than another
        policy(FlowDiT, Config(16, 1, 2, 1), spec, seed=0, scale=256.0, offset=256.0, steps=2).save(folder / name)
    return [str(folder / name) for name in ("a", "b")]


@pytest.fixture(scope="module")
def report(parents: list[str]) -> dict[str, Any]:
    return search(parents, 2, LOADER, dataclasses.replace(CONFIG, method="grid"), quiet)


def test_candidates_are_the_simplex() -> None:
    assert candidates(2, 0.5) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    assert len(candidates(3, 0.25)) == 15 and all(sum(weights) == pytest.approx(1) for weights in candidates(3, 0.25))
    with pytest.raises(ValueError, match="does not divide 1"):
        candidates(2, 0.3)


def test_a_composition_is_written_as_it_is_read() -> None:
    assert expression(["a", "b"], (0.25, 0.75), 4) == "(0.25*a + 0.75*b)@4"
    assert expression(["a", "b"], (0.25, 0.75), 4, "action") == "mean(0.25*a@4 + 0.75*b@4)"
    assert expression(["a", "b"], (0.0, 1.0), 4) == "b@4"


def test_seeds_of_the_choice_and_of_the_report_are_disjoint(report: dict[str, Any]) -> None:
    assert report["validation"]["seed"] == VALIDATION_SEED
    seeds = {row["seed"] for rows in report["rows"].values() for row in rows}
    assert seeds == {0, 1, 2} and max(seeds) < VALIDATION_SEED


def test_every_control_stands_beside_the_composition(report: dict[str, Any]) -> None:
    controls = {"best parent, same sampler", "best parent, equal compute", "average of actions"}
    assert set(report["arms"]) == {"composition", "parent 1", "parent 2", *controls}
    for arm, figures in report["arms"].items():
        assert {"low", "high", "mean"} <= set(figures["success"]) and 0 <= figures["score"] <= 1
        assert arm == "composition" or set(figures["difference"]) == {"mean", "low", "high"}


def test_where_no_weight_is_better_no_gain_is_claimed(report: dict[str, Any]) -> None:
    assert report["arms"]["parent 1"]["difference"]["mean"] == pytest.approx(0, abs=1e-3)
    assert report["verdict"].startswith("no significant gain over: parent 1, parent 2")
    assert as_text(report).endswith(report["verdict"])


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.02, 0.1), (0.01, 0.2)], "significant gain over every control"),
        ([(0.02, 0.1), (-0.01, 0.2)], "no significant gain over: 1$"),
        ([(-0.2, -0.1), (-0.01, 0.2)], "no significant gain over: 0, 1; significantly worse than: 0"),
    ],
)
def test_the_verdict_follows_the_intervals(intervals: list[tuple[float, float]], expected: str) -> None:
    differences = {
        str(arm): {"low": low, "high": high, "mean": (low + high) / 2} for arm, (low, high) in enumerate(intervals)
    }
    assert re.search(expected, verdict(differences))


class Known(Objective):
    """An objective without episodes: best where the first weight is 0.7."""

    def __init__(self) -> None:
        self.scores, self.episodes = {}, 0

    def _drive(self, weights: Any, begin: int, end: int) -> None:
        for choice in weights:
            self.scores.setdefault(choice, []).extend([1 - abs(choice[0] - 0.7)] * (end - begin))
        self.episodes += len(weights) * (end - begin)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_finds_the_best_weight(method: str) -> None:
    objective, config = Known(), SearchConfig(validation=80)
    METHODS[method](objective, 2, config)
    complete = {choice: np.mean(scores) for choice, scores in objective.scores.items() if len(scores) == 80}
    assert max(complete, key=lambda choice: complete[choice])[0] == pytest.approx(0.7, abs=0.06)
    assert {(0.0, 1.0), (1.0, 0.0)} <= set(complete), "the parents are always known on all episodes"
    assert objective.episodes == sum(map(len, objective.scores.values()))


def test_halving_drives_fewer_episodes_than_the_grid() -> None:
    grid, halving, config = Known(), Known(), SearchConfig(validation=80)
    METHODS["grid"](grid, 2, config)
    METHODS["halving"](halving, 2, config)
    assert halving.episodes < 0.6 * grid.episodes


def test_golden_section_needs_two_parents() -> None:
    with pytest.raises(ValueError, match="needs 2 parents"):
        METHODS["golden"](Known(), 3, SearchConfig())


def test_the_command_composes_into_a_bundle_that_evaluates(parents: list[str], tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "both.kfb"
    assert call("compose", [*parents, "--weights", "0.5", "0.5", "-o", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == str(target)
    arguments = [str(target), "--env", "kinoflow/PushT-v0", "--episodes", "2", "--no-baselines", "--json"]
    assert call("eval", arguments) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2


def test_the_command_searches_and_writes_a_report(parents: list[str], tmp_path: Path, capsys: Any) -> None:
    options = ["--search", "--method", "grid", "--spacing", "0.5", "--validation", "2", "--episodes", "2"]
    assert call("compose", [*parents, *options, "--report", str(tmp_path / "search.json"), "--json"]) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads((tmp_path / "search.json").read_text())
    assert printed["verdict"] == written["verdict"] and len(written["rows"]["composition"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--weights, one per policy, or --search"),
        (["--search", "--weights", "0.5", "0.5"], "--weights, one per policy, or --search"),
        (["--weights", "0.5", "0.6"], "have to sum to 1"),
    ],
)
def test_wrong_options_are_explained(parents: list[str], arguments: list[str], message: str, capsys: Any) -> None:
    assert call("compose", [*parents, *arguments]) == 1
    assert message in capsys.readouterr().err
