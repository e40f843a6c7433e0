"""OGBench's point mazes by XDiffuser: 5 tasks x 50 episodes, stock limits, three training seeds per maze.

Run, after training each planner as `train` below says:

    python docs/planning_mazes.py --runs runs/mazes --json docs/results/planning_mazes.json
"""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

from benchmarks.entry import check, run
from kinoflow.console import progress_bar
from kinoflow.planning import PlanEvaluation, evaluate
from policies.files import replace_file

train = (
    "kinoflow train xdiffuser --env kinoflow/Maze-{0}-v0 --out {1}/{0}_{2} --steps 4000 --widths 32 64 64 --seed {2}"
)
LAYOUTS, SEEDS = ("medium", "large", "giant"), (0, 1, 2)
EXPLORE = "giant_explore_0"  # trained with --data explore
SIMPLE = ("graph", "unguided", "expert", "straight line", "standing still")  # beside the first seed


def drive(name: str, layout: str, folder: Path, episodes: int, beside: tuple[str, ...]) -> dict[str, Any] | None:
    """Evaluate one planner; None where it was not trained."""
    file = folder / name / "planner.kfp"
    if not file.exists():
        return None
    config = PlanEvaluation(f"kinoflow/Maze-{layout}-v0", file, episodes=episodes)
    with progress_bar(name) as progress:
        report = evaluate(config, progress, ("xdiffuser", *beside))
    kept: dict[str, Any] = {key: report[key] for key in ("success", "time_s", "planning", "episodes")}
    kept["beside"] = {one: row["success"] for one, row in report["baselines"].items()}
    return kept


def as_text(rows: Mapping[str, Any]) -> str:
    """One line per planner."""
    lines = []
    for name, row in rows.items():
        rates = {"xdiffuser": row["success"], **row["beside"]}
        cells = [f"{one} {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" for one, rate in rates.items()]
        lines.append(f"{name:<16} {row['episodes']} episodes: {', '.join(cells)}; {row['planning']}")
    return "\n".join(lines)


def main(runs: Path, json: Path | None = None, episodes: int = 50) -> None:
    """Evaluate every planner that there is.

    Args:
        runs: Directory with a run per maze and seed, for example giant_0.
        json: Where to write the results.
        episodes: Per task.

    Raises:
        FileNotFoundError: There is no planner at all.
    """
    check(json, episodes=episodes)
    if not any(runs.glob("*/planner.kfp")):
        raise FileNotFoundError(f"there is no planner in {runs}; train some first: {train}")
    rows: dict[str, Any] = {}
    names = [(f"{layout}_{seed}", layout) for layout in LAYOUTS for seed in SEEDS] + [(EXPLORE, "giant")]
    for name, layout in names:
        beside = ("graph",) if name == EXPLORE else SIMPLE if name.endswith("_0") else ()
        if (row := drive(name, layout, runs, episodes, beside)) is not None:
            rows[name] = row
            print(as_text({name: row}), flush=True)
            if json:
                replace_file(json, (dumps(rows) + "\n").encode())


if __name__ == "__main__":
    run(main)
