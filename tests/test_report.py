import json
from pathlib import Path

import numpy as np
import pytest

from envs.evaluate import EvaluateConfig, evaluate
from kinoflow import __version__
from kinoflow.demo import DemoConfig, demo
from kinoflow.report import write_report

PERCENTILES = {"p50": 20.0, "p99": 20.5, "max": 31.25}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the demo leaves behind, made small."""
    report = evaluate([], "", EvaluateConfig(episodes=4), lambda done, total: None)
    time = np.arange(0, 2, 0.02)
    run = {
        **{"env": "kinoflow/Nav-v0", "embodiment": "wheeled", "seed": 0, "mode": "ros2", "goals": [[1.0, 2.0, 0.0]]},
        **{"goals_reached": 1, "falls": 0, "collisions": 0, "rate_hz": 49.97, "deadline_misses": 2, "commands": 100},
        **{"period_ms": PERCENTILES, "inference_ms": PERCENTILES, "guard": {"fault": None}},
        "path": [[t, t / 2, 0.0] for t in time],
        "trace": [[t, 0.5, 0.0, np.sin(t)] for t in time],
    }
    metrics = [{"step": 20, "loss": 0.5}, {"step": 40, "valid_loss": 0.4, "success": 0.9}]
    (tmp_path / "training").mkdir()
    (tmp_path / "training/metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    (tmp_path / "training/run.json").write_text(json.dumps({"parameters": 1_200_000, "recipe": {"steps": 40}}))
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


def test_the_report_is_one_self_contained_file(folder: Path) -> None:
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page, "nothing is loaded from elsewhere"
    for fact in ("1 of 1", "49.97 Hz", "2 of 100", "1.20 million", "straight line", "31.25"):
        assert fact in page


def test_a_demo_does_not_continue_another_one(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"seed": 0, "kinoflow": __version__}))
    with pytest.raises(ValueError, match="choose another --out"):
        demo(DemoConfig(out=tmp_path, seed=1))
