"""Figures of docs/few-steps.md, from docs/results/few_steps_HEAD_METHOD.json and chunking_ENV.json.

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
    """Success against latency, a figure per head, and against delay, a figure per environment."""
    students()
    for path in sorted(RESULTS.glob("chunking_*.json")):
        for policy in json.loads(path.read_text())["policies"].values():
            delays(policy, path.stem)


def delays(arms: list[dict[str, Any]], name: str) -> None:
    """Success, with its interval, and jerk against the delay of inference, a line per way to go on meanwhile."""
    figure, axes = canvas(9, 3.6, 2)
    without, *delayed = arms
    for index, way in enumerate(dict.fromkeys(arm["way"] for arm in delayed)):
        shown = [without, *(arm for arm in delayed if arm["way"] == way)]
        rates = [arm["success"] for arm in shown]
        means = [rate["mean"] for rate in rates]
        spread = [[abs(rate[end] - rate["mean"]) for rate in rates] for end in ("low", "high")]
        at = [arm["delay_ms"] + 4 * index for arm in shown]  # beside each other
        axes[0].errorbar(at, means, spread, label=way, marker="o", capsize=3)
        axes[1].plot(at, [arm["jerk"] for arm in shown], label=way, marker="o")
    axes[0].set(xlabel="delay of inference [ms]", ylabel="success")
    axes[1].set(xlabel="delay of inference [ms]", ylabel="jerk of commands, rms", ylim=(0, None))
    axes[1].legend()
    save(figure, HERE / f"{name}.png")


def students() -> None:
    """Success against latency, one figure per head."""
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
