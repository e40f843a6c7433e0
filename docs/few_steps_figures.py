"""Figures of docs/few-steps.md, from docs/results/few_steps_HEAD.json and chunking_ENV.json.

Run: python docs/few_steps_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.entry import run
from kinoflow.figures import canvas, save

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TICKS = (0.5, 1, 2, 5, 10, 20, 50)  # ms
TITLES = {
    "success": "success",
    "precision": "chunks that are the teacher's",
    "recall": "the teacher's chunks that are found",
}


def main() -> None:
    """Students against latency, a figure per head, and execution against delay, a figure per environment."""
    for path in sorted(RESULTS.glob("few_steps_*.json")):
        students(json.loads(path.read_text())["rows"], path.stem)
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


def students(rows: dict[str, Any], name: str) -> None:
    """Success, precision and recall against latency: a curve per method, a point per number of steps."""
    titles = {quantity: title for quantity, title in TITLES.items() if quantity in next(iter(rows.values()))}
    times = [row["p50_ms"] for row in rows.values()]
    figure, axes = canvas(4 * len(titles), 4, len(titles))
    for axis, (quantity, title) in zip(axes, titles.items(), strict=True):
        for method in dict.fromkeys(row.split("@")[0] for row in rows):
            _curve(axis, rows, method, quantity)
        axis.set(xscale="log", xlabel="chunk of the bundle on one core, p50 [ms]", title=title)
        axis.set_xticks(TICKS, map(str, TICKS))
        axis.minorticks_off()
        axis.set_xlim(0.8 * min(times), 1.25 * max(times))
        axis.set_ylim(0, None if quantity == "success" else 1.05)
    axes[0].legend()
    save(figure, HERE / f"{name}.png")


def _curve(axis: Any, rows: dict[str, Any], method: str, quantity: str) -> None:
    """A quantity over latency; success with its interval."""
    chosen = sorted((row["p50_ms"], name, row[quantity]) for name, row in rows.items() if name.startswith(f"{method}@"))
    ms, names, values = zip(*chosen, strict=True)
    style = {"color": "#444444", "linestyle": "--"} if method == "teacher" else {}
    if quantity == "success":
        means = [rate["mean"] for rate in values]
        around = [[abs(rate[end] - rate["mean"]) for rate in values] for end in ("low", "high")]
        axis.errorbar(ms, means, around, label=method, marker="o", capsize=3, **style)
    else:
        means = [*values]
        axis.plot(ms, means, marker="o", **style)
    for x, y, name in zip(ms, means, names, strict=True):
        axis.annotate(name.split("@")[1], (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)


if __name__ == "__main__":
    run(main)
