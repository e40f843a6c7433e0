"""kinoflow eval."""

from __future__ import annotations

from pathlib import Path

import tyro

from envs.evaluate import EvaluateConfig, as_text, evaluate
from kinoflow.console import progress_bar, show
from policies.load import LOADER


def command(
    policies: tyro.conf.Positional[tuple[str, ...]],
    config: EvaluateConfig,
    out: Path | None = None,
    video: int = 0,
    json: bool = False,
) -> None:
    """Evaluate policies on paired seeds beside the baselines.

    Args:
        policies: Bundles or run directories; the first is reported on, the rest are compared with it. Without any,
            the baselines alone.
        config: What to evaluate.
        out: Directory for report.json with the per-episode rows, for plots and videos.
        video: Episodes to film, from the first seed on; needs --out and an OpenGL library.
        json: Print JSON.
    """
    if video and not (out and policies):
        raise ValueError("--video needs --out DIRECTORY and a policy")
    with progress_bar("episodes") as progress:
        report = evaluate(list(policies), LOADER, config, progress)
    if out:
        from kinoflow.figures import write_evaluation

        write_evaluation(report, out)
    if out and video:
        from kinoflow.film import film

        for seed in range(config.seed, config.seed + video):
            film(policies[0], config, seed, out / f"episode_{seed}.mp4")
    show({key: value for key, value in report.items() if key != "rows"}, json, as_text(report))
