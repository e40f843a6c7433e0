"""The search for weights chooses on some seeds, reports on others and claims no gain where there is none."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'kinoflow[pusht]'")

from parents import policy

import envs.search
from envs.drive import Row
from envs.evaluate import VALIDATION_SEED, EvaluateConfig
from envs.pusht import ACTION, FEATURES, POLICY_HZ
from envs.search import METHODS, Objective, SearchConfig, as_text, candidates, expression, search, verdict
from kinoflow.cli import call
from policies.bundle import Bundle
from policies.flowdit import Config, FlowDiT
from policies.load import LOADER
from policies.spec import ContractError, Spec
from policies.unet import Config as UNetConfig
from policies.unet import UNet

SPEC = Spec(FEATURES[:2], ACTION, POLICY_HZ, history=1, horizon=8)
CONFIG = SearchConfig(validation=4, episodes=3, spacing=0.5, workers=1)


def quiet(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("parents")
    for name in ("a", "b"):  # the same twice: no weight is better than another
        policy(FlowDiT, Config(16, 1, 2, 1), SPEC, seed=0, scale=256.0, offset=256.0, steps=2).save(folder / name)
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
    for weights in candidates(2, 1 / 32)[1:-1]:
        found = re.findall(r"[\d.e-]+(?=\*)", expression(["a", "b"], weights, 4))
        assert tuple(map(float, found)) == weights


def test_seeds_of_the_choice_and_of_the_report_are_disjoint(report: dict[str, Any]) -> None:
    assert report["validation"]["seed"] == VALIDATION_SEED
    seeds = {row["seed"] for rows in report["rows"].values() for row in rows}
    assert seeds == {0, 1, 2} and max(seeds) < VALIDATION_SEED


class Known:
    """Stands in for `run_all`: the score of every driver is known, and what is asked for is noted.

    Args:
        mixed: Score on the seeds of the choice of a composition by its weights; on the seeds of the report it is 1
            minus that, so that who chooses on these chooses differently.
        alone: The same by the name of a parent, without its folder.
        failing: Whether the episodes of the report fail.
    """

    def __init__(self, mixed: Callable[..., float], alone: Mapping[str, float], failing: bool = False) -> None:
        self.asked: list[tuple[list[str], range, int | None]] = []
        self._mixed, self._alone, self._failing = mixed, alone, failing

    def __call__(
        self, names: Sequence[str], policies: int, loader: str, config: EvaluateConfig, progress: Any
    ) -> tuple[dict[str, list[Row]], dict[str, Any]]:
        assert policies == len(names) and loader == LOADER and not config.baselines
        short = [re.sub(r"[^ *(]*/", "", name) for name in names]
        seeds = range(config.seed, config.seed + config.episodes)
        self.asked.append((short, seeds, config.execute))
        if self._failing and config.seed < VALIDATION_SEED:
            raise RuntimeError("the simulator has ended")
        return {name: [self._row(what, seed) for seed in seeds] for name, what in zip(names, short, strict=True)}, {}

    def _row(self, name: str, seed: int) -> Row:
        weights = [float(weight) for weight in re.findall(r"[\d.]+(?=\*)", name)]
        score = self._mixed(*weights) if weights else self._alone[name.partition("@")[0]]
        score = score if seed >= VALIDATION_SEED else 1 - score
        return Row(seed, success=False, time_s=1.0, metrics={"score": score}, path=[])


def near(share: float) -> Callable[[float, float], float]:
    return lambda first, _: 0.9 - 0.2 * abs(first - share)


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A third parent, with another number of steps."""
    policy(FlowDiT, Config(16, 1, 2, 1), SPEC, seed=1, scale=256.0, offset=256.0, steps=3).save(tmp_path / "c")
    return str(tmp_path / "c")


def test_weights_are_chosen_on_some_seeds_and_reported_on_others(
    parents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(near(0.75), {"a": 0.3, "b": 0.4})
    monkeypatch.setattr(envs.search, "run_all", known)
    config = SearchConfig(spacing=0.25, validation=15, episodes=7, execute=3)
    kept: list[dict[str, Any]] = []
    report = search(parents, 2, LOADER, config, quiet, kept.append)
    mixed = {first: f"({first}*a + {1 - first}*b)@2" for first in (0.25, 0.5, 0.75)}
    begin = VALIDATION_SEED
    arms = ["(0.75*a + 0.25*b)@2", "a", "b", "b@2", "b@4", "mean(0.75*a@2 + 0.25*b@2)"]
    assert [(sorted(names), seeds, execute) for names, seeds, execute in known.asked] == [
        (sorted([*mixed.values(), "a@2", "b@2"]), range(begin, begin + 10), 3),
        (sorted([mixed[0.5], mixed[0.75], "a@2", "b@2"]), range(begin + 10, begin + 15), 3),
        (sorted(arms), range(7), 3),
    ]
    assert known.asked[-1][0] == arms
    assert report["weights"] == (0.75, 0.25) and report["best_parent"] == parents[1]
    assert report["validation"]["episodes_driven"] == 5 * 10 + 4 * 5
    assert {entry["weights"]: entry["episodes"] for entry in report["validation"]["scores"]}[0.25, 0.75] == 10
    assert report["arms"]["parent 2"]["difference"]["mean"] == pytest.approx(0.4 - 0.9)
    assert kept == [{key: report[key] for key in kept[0]}] and "arms" not in kept[0], "known before the report"


def test_equal_compute_counts_the_parents_that_are_used(
    parents: list[str], other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(lambda *weights: 0.5 + 0.1 * len(weights), {"a": 0.3, "b": 0.4, "c": 0.2})
    monkeypatch.setattr(envs.search, "run_all", known)
    search([*parents, other], 2, LOADER, dataclasses.replace(CONFIG, method="grid"), quiet)
    assert known.asked[-1][0][0].count("*") == 2, "a grid of halves has no composition of three"
    assert "b@4" in known.asked[-1][0]


def test_what_the_report_could_not_drive_is_refused_before_the_search(
    parents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(near(0.5), {})
    monkeypatch.setattr(envs.search, "run_all", known)
    levels = policy(UNet, UNetConfig((8, 16)), SPEC, seed=0, scale=256.0, offset=256.0, steps=60)
    levels.save(tmp_path / "levels")
    pair = [str(tmp_path / "levels"), parents[0]]
    with pytest.raises(ContractError, match=r"equal compute needs .*levels with 120 steps.*100 noise levels.*--steps"):
        search(pair, 60, LOADER, CONFIG, quiet)
    assert known.asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 0}, "at least one"),
        ({"episodes": 0}, "at least one"),
        ({"spacing": 1.0}, "does not divide 1 into two or more"),
        ({"spacing": 0.0}, "does not divide 1 into two or more"),
        ({"spacing": -0.5}, "does not divide 1 into two or more"),
    ],
)
def test_settings_without_an_answer_are_refused_before_the_search(
    parents: list[str], changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(near(0.5), {"a": 0.3, "b": 0.4})
    monkeypatch.setattr(envs.search, "run_all", known)
    with pytest.raises(ValueError, match=message):
        search(parents, 2, LOADER, dataclasses.replace(CONFIG, **changes), quiet)
    assert known.asked == []


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_a_search_needs_different_parents(names: list[str]) -> None:
    with pytest.raises(ValueError, match="at least 2 parents, each given once"):
        search(names, 2, LOADER, CONFIG, quiet)


def test_one_episode_has_no_interval_and_claims_nothing(parents: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.search, "run_all", Known(near(0.5), {"a": 0.9, "b": 0.95}))
    report = search(parents, 2, LOADER, dataclasses.replace(CONFIG, validation=1, episodes=1), quiet)
    written = json.loads(json.dumps(report, allow_nan=False))
    assert written["arms"]["parent 2"]["difference"] == {"mean": pytest.approx(0.05), "low": None, "high": None}
    assert [entry["sem"] for entry in written["validation"]["scores"]] == [None] * 3
    assert written["verdict"].startswith("no significant gain over: parent 1") and "worse" not in written["verdict"]
    assert "+0.050" in as_text(report)


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


class Sharp(Objective):
    """An objective without episodes: best where the first weight is 0.7."""

    def __init__(self) -> None:
        self.scores, self.episodes = {}, 0

    def _drive(self, weights: Any, begin: int, end: int) -> None:
        for choice in weights:
            self.scores.setdefault(choice, []).extend([1 - abs(choice[0] - 0.7)] * (end - begin))
        self.episodes += len(weights) * (end - begin)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_finds_the_best_weight(method: str) -> None:
    objective, config = Sharp(), SearchConfig(validation=80)
    METHODS[method](objective, 2, config)
    complete = {choice: np.mean(scores) for choice, scores in objective.scores.items() if len(scores) == 80}
    assert max(complete, key=lambda choice: complete[choice])[0] == pytest.approx(0.7, abs=0.06)
    assert {(0.0, 1.0), (1.0, 0.0)} <= set(complete), "the parents are always known on all episodes"
    assert objective.episodes == sum(map(len, objective.scores.values()))


def test_halving_drives_fewer_episodes_than_the_grid() -> None:
    grid, halving, config = Sharp(), Sharp(), SearchConfig(validation=80)
    METHODS["grid"](grid, 2, config)
    METHODS["halving"](halving, 2, config)
    assert halving.episodes < 0.6 * grid.episodes


def test_golden_section_needs_two_parents() -> None:
    with pytest.raises(ValueError, match="needs 2 parents"):
        METHODS["golden"](Sharp(), 3, SearchConfig())


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
        (["--search", "--level", "action"], "leave --level action out"),
        (["--search", "--steps", "0"], "at least one step"),
    ],
)
def test_wrong_options_are_explained(parents: list[str], arguments: list[str], message: str, capsys: Any) -> None:
    assert call("compose", [*parents, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_bundle_is_the_composition_that_was_searched(
    parents: list[str], other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The heavier parent takes three steps, the search and its report took the two of the first."""
    monkeypatch.setattr(envs.search, "run_all", Known(near(0.25), {"a": 0.3, "c": 0.4}))
    target, report = tmp_path / "new" / "both.kfb", tmp_path / "newer" / "search.json"
    options = ["--spacing", "0.25", "--validation", "4", "--episodes", "2", "--json"]
    assert call("compose", [parents[0], other, "--search", *options, "-o", str(target), "--report", str(report)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["weights"] == [0.25, 0.75] and printed["steps"] == 2
    assert Bundle.load(target).manifest.sampler.steps == 2
    assert json.loads(report.read_text())["rows"]["composition"]


def test_what_was_chosen_is_kept_when_the_report_fails(
    parents: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(envs.search, "run_all", Known(near(0.5), {"a": 0.3, "b": 0.4}, failing=True))
    assert call("compose", [*parents, "--search", "--report", str(tmp_path / "search.json")]) == 1
    assert "the simulator has ended" in capsys.readouterr().err
    assert json.loads((tmp_path / "search.json").read_text())["weights"] == [0.5, 0.5]
