"""The benchmark of a composition beside its parents, with small ones."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from parents import flow

from benchmarks.composition import as_text, measure
from policies.export import export

ROUNDS = 3
pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="chooses cores with sched_setaffinity")


@pytest.fixture(scope="module")
def done() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, done: list[tuple[int, int]]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    for name, steps in (("a", 2), ("b", 3)):
        export(flow(steps, steps=steps), folder / f"{name}.kfb", provenance={})
    return measure(folder / "a.kfb", folder / "b.kfb", lambda *now: done.append(now), ROUNDS)


def test_every_arm_takes_its_turns_and_the_cores_come_back(result: dict[str, Any], done: list[tuple[int, int]]) -> None:
    assert list(result["arms"]) == ["first", "second", "one core", "all cores"] and result["steps"] == 2
    assert all(0 < arm["p10_ms"] <= arm["p50_ms"] and arm["cpu_ms"] > 0 for arm in result["arms"].values())
    assert done == [(turn, ROUNDS) for turn in range(ROUNDS + 1)]
    assert len(os.sched_getaffinity(0)) == result["cores"]


def test_ratios_are_over_the_sum_of_the_parents(result: dict[str, Any]) -> None:
    for ratios, figure in (("ratios", "p50_ms"), ("quiet_ratios", "p10_ms"), ("cpu_ratios", "cpu_ms")):
        parents = result["arms"]["first"][figure] + result["arms"]["second"][figure]
        for name in ("one core", "all cores"):
            assert result[ratios][name] == pytest.approx(result["arms"][name][figure] / parents)


def test_the_result_is_json_and_the_text_names_every_arm(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert all(name in as_text(result) for name in result["arms"])
