"""The benchmark on deadlines: what it counts, what it leaves behind, and one episode with the shipped head."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import deadlines
from benchmarks.deadlines import Row, as_text, busy, main, summary

BUNDLE = Path(__file__).parents[1] / "models/nav_flowdit.kfb"


def row(success: bool, chunks: int, misses: int, **steps: int) -> Row:
    numbers = {"seed": 0, "time_s": 9.0, "rate_hz": 50.0, "commands": 450, "command_misses": 0}
    counts = {"chunks": chunks, "chunk_misses": misses, "steps": {name[1:]: count for name, count in steps.items()}}
    return {**numbers, **counts, "success": success, "chunk_age_ms": {"p50": 20.0, "p99": 40.0, "max": 50.0}}


def test_chunks_of_all_episodes_count_alike() -> None:
    found = summary([row(True, 400, 4, n10=400), row(False, 100, 1, n1=60, n10=40)])
    assert (found["success"]["mean"], found["chunk_miss_rate"]["mean"]) == (0.5, 0.01)
    assert found["steps"] == {"10": 440, "1": 60}
    assert (found["command_hz"], found["chunk_hz"]) == (50.0, pytest.approx(500 / 18))
    heads = {name: {"bundle": "x.kfb", **found} for name in ("fixed", "any-step")}
    result = {"episodes": 2, "burners_per_core": 3, "plan_hz": 25.0, "heads": heads}
    lines = as_text({**result, "difference": {"mean": 0.0, "low": -0.1, "high": 0.1}}).splitlines()
    assert len(lines) == 5 and "1.00%" in lines[2] and "10: 88.0%, 1: 12.0%" in lines[3]
    assert lines[4].endswith("paired: +0.000 [-0.100, +0.100]")


def test_busy_processes_are_pinned_and_end() -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    with busy(1):
        burners = [process.pid for process in multiprocessing.active_children() if process.pid not in before]
        assert len(burners) == len(os.sched_getaffinity(0))
    assert not {*burners} & {process.pid for process in multiprocessing.active_children()}


def test_an_episode_of_both_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_realtime = deadlines.run_realtime

    def short(env: Any, driver: Any, seed: int) -> Any:
        env.time = 59.0  # of 60 s
        return run_realtime(env, driver, seed)

    monkeypatch.setattr(deadlines, "run_realtime", short)
    main(BUNDLE, BUNDLE, tmp_path / "deadlines.json", episodes=1, burners=0)
    result = json.loads((tmp_path / "deadlines.json").read_text())
    assert result["difference"]["mean"] == 0
    for head in result["heads"].values():
        assert 40 <= head["commands"] <= 50 and 0 < head["chunks"] == sum(head["steps"].values()) <= head["commands"]
