"""The demo's report: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.world import make, robot
from kinoflow import figures
from policies.files import replace_file

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2933}
h1{margin-bottom:0}h2{margin-top:2.5rem;border-bottom:1px solid #d5dbe1}img{max-width:100%}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;font-variant-numeric:tabular-nums}
.lead{color:#52606d;margin-top:.2rem}
"""


def write_report(folder: Path, path: Path) -> None:
    """Write the report of a finished demo.

    Args:
        folder: What the demo has written: training/, evaluation.json and run.json.
        path: HTML file to write.
    """
    evaluation = json.loads((folder / "evaluation.json").read_text())
    run = json.loads((folder / "run.json").read_text())
    training = json.loads((folder / "training" / "run.json").read_text())
    sections = [
        _run_section(run),
        _evaluation_section(evaluation),
        _section(
            "Training",
            f"{training['parameters'] / 1e6:.2f} million parameters, {training['recipe']['steps']} steps on "
            "expert episodes; the checkpoint with the best rollouts on validation seeds became the policy.",
            figures.loss(folder / "training" / "metrics.jsonl"),
        ),
    ]
    title = "kinoflow: from expert episodes to a robot that drives itself"
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    )
    replace_file(path, (page + "".join(sections) + "</html>\n").encode())


def _run_section(run: Mapping[str, Any]) -> str:
    subject = {"g1": "A walking Unitree G1"}.get(run["embodiment"], f"The {run['embodiment']} robot")
    how = "three ROS 2 processes" if run["mode"] == "ros2" else "one process, without ROS 2"
    lead = f"{subject}, full physics in real time, driven by the bundle in {how}."
    facts = {
        "goals reached": f"{run['goals_reached']} of {len(run['goals'])}",
        "falls / collisions": f"{run['falls']} / {run['collisions']}",
        "command rate": f"{run['rate_hz']:.2f} Hz",
        "period p50 / p99 / max": " / ".join(f"{run['period_ms'][key]:.2f}" for key in ("p50", "p99", "max")) + " ms",
        "deadlines missed by more than 10 ms": f"{run['deadline_misses']} of {run['commands']}",
        "inference p50 / p99": f"{run['inference_ms']['p50']:.2f} / {run['inference_ms']['p99']:.2f} ms",
        "guard": run["guard"]["fault"] or "no fault",
    }
    trace = np.array(run["trace"])
    columns = [
        (f"commanded {name}", trace[:, 1 + i]) for i, name in enumerate(("vx in m/s", "vy in m/s", "wz in rad/s"))
    ]
    columns.append(("time between commands in ms", 1e3 * np.diff(trace[:, 0])))
    world: Any = make(run["env"], robot(run["embodiment"]))
    world.reset(seed=run["seed"])
    pictures = _image(figures.walk(world.room, run["path"], run["goals"])) + _image(figures.histograms(columns))
    return f"<h2>The run</h2><p class=lead>{lead}</p>{_table(facts)}{pictures}"


def _evaluation_section(report: Mapping[str, Any]) -> str:
    text = (
        f"{report['episodes']} rooms the policy has never seen, the same for every driver, simulated physics of the "
        f"{report.get('embodiment', 'wheeled')} base. Black dot: start; star: goal; cross: collision."
    )
    names = {report["policy"]: report, **report["baselines"]}
    rows = "".join(
        f"<tr><td>{html.escape(Path(name).name)}<td>{row['success']['mean']:.3f}"
        f"<td>[{row['success']['low']:.3f}, {row['success']['high']:.3f}]"
        f"<td>{row['collision']:.3f}<td>{row['timeout']:.3f}<td>{row['spl']:.3f}"
        for name, row in names.items()
    )
    table = f"<table><tr><th>driver<th>success<th>95 %<th>collision<th>timeout<th>SPL{rows}</table>"
    return _section("Evaluation", text, figures.success(report), figures.paths(report)) + table


def _section(title: str, text: str, *pictures: Any) -> str:
    return f"<h2>{title}</h2><p class=lead>{text}</p>" + "".join(map(_image, pictures))


def _table(facts: Mapping[str, str]) -> str:
    return "<table>" + "".join(f"<tr><th>{key}<td>{html.escape(value)}" for key, value in facts.items()) + "</table>"


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figures.save(figure, buffer)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
