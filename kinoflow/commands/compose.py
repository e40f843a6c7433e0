"""kinoflow compose."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from envs.search import SearchConfig, as_text, search
from kinoflow.console import progress_bar, show
from policies.composition import compose
from policies.export import export
from policies.files import replace_file
from policies.load import LOADER, load_trained


def command(
    policies: tyro.conf.Positional[tuple[str, ...]],
    config: SearchConfig,
    weights: tuple[float, ...] = (),
    seek: Annotated[bool, tyro.conf.arg(name="search")] = False,
    level: Literal["score", "action"] = "score",
    steps: int | None = None,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    report: Path | None = None,
    json: bool = False,
) -> None:
    """Compose policies: give --weights, or let --search choose them on validation seeds and report on others.

    Args:
        policies: Bundles, run directories or lerobot:DIRECTORY, at least two.
        config: How to search.
        weights: One per policy, summing to 1.
        seek: Search for the weights.
        level: Combine the policies at every denoising step (score) or average their finished chunks (action).
        steps: Denoising steps; those of the policy with the largest weight by default.
        out: Bundle of the composition to write (.kfb).
        report: File for the report of the search with its per-episode rows (JSON).
        json: Print JSON.
    """
    if seek == bool(weights):
        raise ValueError("give either --weights, one per policy, or --search")
    if seek and level == "action":
        raise ValueError("--search chooses weights of scores; leave --level action out, or give it with --weights")
    for file in filter(None, (out, report)):
        file.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before hours of search
    result = {}
    if seek:
        result = _search(policies, steps, config, report)
        weights, steps = tuple(result["weights"]), result["steps"]
    composed = compose([load_trained(path) for path in policies], weights, level=level, steps=steps)
    written = {}
    if out:
        made = export(composed, out, provenance={"parents": list(policies), "weights": list(weights), "level": level})
        written = {"bundle": str(out), "bytes": made.size, "max_error": made.max_error, "p50_ms": made.latency.p50_ms}
    what = {"policies": list(policies), "weights": list(weights), "level": level, **written}
    if not result:
        show(what, json)
        return
    show(
        {**result, **what},
        json,
        "\n".join([as_text(result), *(f"{key:<16} {value}" for key, value in written.items())]),
    )


def _search(policies: Sequence[str], steps: int | None, config: SearchConfig, report: Path | None) -> dict[str, Any]:
    def keep(result: dict[str, Any]) -> None:
        if report:
            replace_file(report, json_format.dumps(result).encode())

    steps = load_trained(policies[0]).steps if steps is None else steps
    with progress_bar("episodes") as progress:
        result = search(policies, steps, LOADER, config, progress, keep)
    keep(result)
    return {key: value for key, value in result.items() if key != "rows"}
