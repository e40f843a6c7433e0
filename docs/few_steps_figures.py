"""Figures of docs/few-steps.md: success, precision and recall against latency, from docs/results/few_steps_HEAD.json.

Run: python docs/few_steps_figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.entry import run
from kinoflow.figures import canvas, save

HERE = Path(__file__).parent
TITLES = {
    "success": "success",
    "precision": "chunks that are the teacher's",
    "recall": "the teacher's chunks that are found",
}


def main() -> None:
    """One figure per head: a curve per method, a point per number of steps."""
    for path in sorted((HERE / "results").glob("few_steps_*.json")):
        rows = json.loads(path.read_text())["rows"]
        figure, axes = canvas(12, 4, len(TITLES))
        for axis, (quantity, title) in zip(axes, TITLES.items(), strict=True):
            for method in dict.fromkeys(name.split("@")[0] for name in rows):
                _curve(axis, rows, method, quantity)
            axis.set(xscale="log", xlabel="chunk of the bundle on one core, p50 [ms]", title=title)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("{x:g}")
        axes[0].legend()
        save(figure, HERE / f"{path.stem}.png")


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
