"""Figures of docs/few-steps.md: success against latency, from docs/results/few_steps_HEAD_METHOD.json.

Run: python docs/few_steps_figures.py
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.entry import run
from kinoflow.figures import canvas, save

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> None:
    """One figure per head."""
    of_head: dict[str, dict[str, Any]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("few_steps_*_*.json")):
        _, _, head, method = path.stem.split("_")
        of_head[head][method] = json.loads(path.read_text())["rows"]
    for head, methods in of_head.items():
        figure, (axis,) = canvas(7, 4.2, 1)
        for method, rows in methods.items():
            _curve(axis, rows, "student", method)
        _curve(axis, next(iter(methods.values())), "teacher", "teacher", color="#444444", linestyle="--")
        axis.set(xscale="log", xlabel="chunk of the bundle on one core, p50 [ms]", ylabel="success")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.legend()
        save(figure, HERE / f"few_steps_{head}.png")


def _curve(axis: Any, rows: dict[str, Any], who: str, label: str, **style: Any) -> None:
    """Success with its interval over latency, by number of steps."""
    chosen = sorted((row["p50_ms"], name, row["success"]) for name, row in rows.items() if name.startswith(who))
    ms, names, rates = zip(*chosen, strict=True)
    means = [rate["mean"] for rate in rates]
    around = [[m - rate["low"] for m, rate in zip(means, rates, strict=True)]]
    around.append([rate["high"] - m for m, rate in zip(means, rates, strict=True)])
    axis.errorbar(ms, means, around, label=label, marker="o", capsize=3, **style)
    for x, y, name in zip(ms, means, names, strict=True):
        axis.annotate(name.split("@")[1], (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)


if __name__ == "__main__":
    run(main)
