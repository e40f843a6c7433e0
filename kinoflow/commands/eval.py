"""kinoflow eval."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import tyro

from envs.evaluate import EvaluateConfig, as_text, evaluate
from kinoflow.console import progress_bar, show
from policies.checks import at_least
from policies.files import prepare_folder, replace_file
from policies.load import LOADER, load_trained

PLANNER = "xdiffuser"
DRIVING = "kinoflow/Driving-v0"
PDM_TERMS = ("pdm", "no_collision", "drivable_area", "progress", "time_to_collision", "comfort", "valid")


def for_arguments(arguments: list[str]) -> Callable[..., None]:
    """The command for policies, or that for planners if one is named first."""
    if arguments[:1] != [PLANNER]:
        return command
    from kinoflow.commands import eval_plans  # imports torch, which bundles need not wait for

    return eval_plans.command


def command(
    policies: tyro.conf.Positional[tuple[str, ...]],
    config: EvaluateConfig,
    out: Path | None = None,
    video: int = 0,
    metrics: tuple[Literal["pdm", "rfs"], ...] = (),
    intent: tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Evaluate policies on paired seeds beside the baselines; for planners see kinoflow eval xdiffuser --help.

    Args:
        policies: Bundles or run directories; the first is reported on, the rest are compared with it. Without any,
            the baselines alone.
        config: What to evaluate.
        out: Directory for report.json with the per-episode rows, for plots and videos.
        video: Episodes to film, from the first seed on; needs --out and an OpenGL library.
        metrics: In kinoflow/Driving-v0, also score the first plan of each scene: pdm is NAVSIM's score, rfs the rater
            feedback score, whose raters are the expert, a slower one and one that brakes.
        intent: In kinoflow/Driving-v0, command these to the first policy instead, one after the other in the same
            scenes, and report whether it does them: for example left right keep stop, or "turn-left decelerate".
        json: Print JSON.
    """
    if out:
        prepare_folder(out)
    if metrics or intent:
        _require_plans(policies, config)
        if intent and (metrics or video or config.realtime or len(policies) > 1):
            raise ValueError(
                "--intent looks at single plans of one policy: leave out --metrics, --video and --realtime"
            )
    if intent:
        swept = _swept(policies[0], intent, config, out)
        show(swept, json, as_lines(swept))
        return
    if video and not (out and policies):
        raise ValueError("--video needs --out DIRECTORY and a policy")
    with progress_bar("episodes") as progress:
        report = evaluate(list(policies), LOADER, config, progress)
    if metrics:
        report["plans"] = {policy: _scored(policy, metrics, config) for policy in policies}
    write(report, out)
    if out and video:
        from kinoflow.film import film

        for seed in range(config.seed, config.seed + video):
            film(policies[0], config, seed, out / f"episode_{seed}.mp4")
    show_report(report, json)


def _require_plans(policies: tuple[str, ...], config: EvaluateConfig) -> None:
    if config.env != DRIVING or not policies:
        raise ValueError(f"--metrics and --intent need --env {DRIVING} and a policy, not {config.env} and {policies}")
    from kinoflow.driving_plans import Plans

    at_least(1, episodes=config.episodes)
    for policy in policies:
        Plans(load_trained(policy))  # refuses what makes no plans that can be scored


def _scored(policy: str, metrics: tuple[str, ...], config: EvaluateConfig) -> dict[str, Any]:
    """What the first plans of the scenes score."""
    from kinoflow.driving_plans import score_plans

    with progress_bar("plans") as progress:
        found = score_plans(load_trained(policy), range(config.seed, config.seed + config.episodes), progress)
    left_out = {"pdm": PDM_TERMS, "rfs": ("rfs",)}
    hidden = {name for metric, names in left_out.items() if metric not in metrics for name in names}
    return {name: value for name, value in found.items() if name not in hidden}


def _swept(policy: str, intents: tuple[str, ...], config: EvaluateConfig, out: Path | None) -> dict[str, Any]:
    """What is done when intents are commanded; with a directory also as a picture."""
    from kinoflow import driving_plans

    plans = {intent: driving_plans.Plans(load_trained(f"{policy}@intent={intent}")) for intent in intents}
    with progress_bar("scenes") as progress:
        scenes = driving_plans.cases(range(config.seed, config.seed + config.episodes), progress)
    report = driving_plans.sweep(plans, scenes)
    if out:
        from kinoflow.driving_figures import write_sweep

        here = scenes[0]
        write_sweep(
            here.env, {name: p.poses(p.act(here)[None])[0] for name, p in plans.items()}, report, out / "intents.png"
        )
        replace_file(out / "intents.json", json_format.dumps(report).encode())
    return report


def as_lines(swept: Mapping[str, Any]) -> str:
    """Rates of a sweep, and what was done of what was commanded and possible."""
    rates = {name: rate for name, rate in swept.items() if isinstance(rate, Mapping) and "pairs" in rate}
    lines = [f"{swept['scenes']} scenes"]
    for name, rate in rates.items():
        interval = f"[{rate['low']:.2f}, {rate['high']:.2f}]"
        lines.append(f"{name.replace('_', ' ')}: {rate['mean']:.2f} {interval} of {rate['pairs']}")
    for intent, counts in swept["confusion"].items():
        done = [f"{name} {count}" for name, count in zip(swept["intents"], counts, strict=True) if count]
        lines.append(f"{intent} -> {', '.join(done) or 'nowhere possible'}")
    return "\n".join(lines)


def write(report: Mapping[str, Any], out: Path | None) -> None:
    """Write a report with its pictures, if there is a directory for it."""
    if out:
        from kinoflow.figures import write_evaluation

        write_evaluation(report, out)


def show_report(report: Mapping[str, Any], json: bool) -> None:
    """Print a report without its rows."""
    text = as_text(report)
    for part in ("planning", "plans"):
        text += f"\n{part} {report[part]}" if part in report else ""
    show({key: value for key, value in report.items() if key != "rows"}, json, text)
