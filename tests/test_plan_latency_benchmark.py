"""The benchmark of how long plans take."""

from __future__ import annotations

from json import loads
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ogbench", reason="needs OGBench: pip install 'kinoflow[maze]'")

from benchmarks.plan_latency import LIMITS_S, MODELS, OFF, PLACES, Place, as_text, departed, main, resting, summary
from envs.world import make
from kinoflow import planning
from planners.xdiffuser import XDiffuser


def test_it_asks_what_the_evaluation_asks() -> None:
    assert [MODELS / place.planner for place in PLACES] == [planning.shipped(place.env) for place in PLACES]
    assert [place.margin for place in PLACES] == [planning.KEEPS, planning.TOUCHES] and planning.LOST == OFF
    maze = make(PLACES[0].env, {}).maze
    assert len({*maze.parts[maze.free_cells]}) == 1


@pytest.mark.parametrize("place", PLACES)
def test_who_has_departed_is_as_fast_as_the_plan_and_off_it(place: Place) -> None:
    env, planner = make(place.env, {}), XDiffuser.load(MODELS / place.planner)
    env.reset(seed=0)
    free = planning.free_in(env)
    start = resting(env, env.pose)
    np.testing.assert_array_equal(start, env.state)
    planned = planner.plan(start, env.goal, free, torch.Generator().manual_seed(0))
    for seed in range(5):
        state = departed(env, planned, planner.step_s, env.goal, free, np.random.default_rng(seed))
        assert state.shape == env.state.shape and free(state[None, :2], state[None, :2]).all()
        off = np.linalg.norm(planned.route.states - state[:2], axis=-1).min()
        assert 0 < off < OFF * env.radius + 0.1
        assert len(state) == 2 or 0 < np.linalg.norm(state[2:]) < 5
    env.close()


def test_a_refusal_is_counted_and_not_timed() -> None:
    assert summary([{"refusal": "goal"}], 1.0)["refused"] == 1
    seconds = {"search": 0.1, "denoising": 0.2, "total": 0.3, "processor": 0.3}
    row = {**seconds, "origin": "way", "pieces": 3, "refusal": ""}
    found = summary([row, {"refusal": "start"}], 0.6)
    assert (found["plans"], found["refused"], found["origins"]["way"]) == (1, 1, 1)
    assert found["total_of_limit"] == pytest.approx(dict.fromkeys(("p50", "p95", "max"), 0.5))


def test_the_smallest_run_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(json := tmp_path / "result.json", pairs=2, seed=1000)
    result = loads(json.read_text())
    assert as_text(result) in capsys.readouterr().out
    assert (result["seed"], result["pairs"], [*result["places"]]) == (1000, 2, [place.env for place in PLACES])
    for place in result["places"].values():
        assert place["cold_s"] > 0
        for kind, limit in LIMITS_S.items():
            row = place[kind]
            assert (row["plans"], row["refused"], row["limit_s"], sum(row["origins"].values())) == (2, 0, limit, 2)
            for name in ("search", "denoising", "total", "processor"):
                assert 0 < row[f"{name}_s"]["p50"] <= row[f"{name}_s"]["p95"] <= row[f"{name}_s"]["max"]
            assert row["total_s"]["max"] >= row["denoising_s"]["max"]
            assert row["total_of_limit"]["p95"] == pytest.approx(row["total_s"]["p95"] / limit)
