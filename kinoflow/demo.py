"""The main job from data to a walking robot, with a report. Steps that are done are not repeated."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import kinoflow
from envs.collect import CollectConfig, collect
from envs.episodes import read_episodes
from envs.evaluate import EvaluateConfig, as_text, evaluate
from envs.g1.assets import available
from kinoflow.commands.train import rollout_on
from kinoflow.console import progress_bar
from kinoflow.doctor import bfloat16
from kinoflow.report import write_report
from kinoflow.run import RunConfig, run
from kinoflow.video_scene import missing, video_scene
from policies.export import export
from policies.files import replace_file
from policies.flowdit import Config
from policies.load import LOADER
from policies.policy import Policy
from policies.train import Recipe, Trainer

console = Console(stderr=True)


@dataclass(frozen=True)
class DemoConfig:
    """Where to write and which seed to use.

    Args:
        out: Directory for everything the demo writes.
        seed: Seed of the training and of the rooms the robot walks in.
    """

    out: Path = Path("runs/demo")
    seed: int = 0


def demo(config: DemoConfig) -> None:
    """Collect, train, export, evaluate, drive, follow a goal video and report."""
    begin = time.monotonic()
    _same_demo(config)
    out, bundle = config.out, config.out / "flowdit.kfb"
    data, training, scene = out / "nav.hdf5", out / "training", out / "follow.mp4"
    steps: list[tuple[str, Path, Callable[[], None]]] = [
        ("1/7 collect expert episodes", data, lambda: _collect(data)),
        ("2/7 train a FlowDiT head", training / "done.json", lambda: _train(data, training, config.seed)),
        ("3/7 export one bundle", bundle, lambda: _export(training, bundle)),
        ("4/7 evaluate on unseen seeds", out / "evaluation.json", lambda: _evaluate(bundle, out / "evaluation.json")),
        ("5/7 drive the robot over ROS 2", out / "run.json", lambda: _run(bundle, out / "run.json", config.seed)),
        ("6/7 follow a goal video and a sentence", scene, lambda: _follow(scene, config.seed)),
        ("7/7 write the report", out / "never", lambda: write_report(out, out / "report.html")),
    ]
    for title, result, step in steps:
        if result.exists():
            console.print(f"[bold]{title}[/]: already done, {result}")
            continue
        started = time.monotonic()
        console.print(f"[bold]{title}[/]")
        step()
        console.print(f"  {time.monotonic() - started:.0f} s")
    console.print(f"[bold]Done in {(time.monotonic() - begin) / 60:.1f} minutes.[/] Open {out / 'report.html'}")


def _same_demo(config: DemoConfig) -> None:
    """Refuse to mix two demos in one directory."""
    note, ours = config.out / "demo.json", {"seed": config.seed, "kinoflow": kinoflow.__version__}
    if not note.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        replace_file(note, json.dumps(ours).encode())
    elif json.loads(note.read_text()) != ours:
        raise ValueError(
            f"{config.out} holds a demo with {note.read_text()}, this one has {ours}; choose another --out"
        )


def _collect(data: Path) -> None:
    with progress_bar("episodes") as progress:
        collect(CollectConfig(out=data, episodes=1600), progress)


def _train(data: Path, out: Path, seed: int) -> None:
    config = Config(width=96, depth=3)
    recipe = Recipe(
        data,
        out,
        config,
        steps=2600,
        learning_rate=2.5e-3,
        evaluate_every=1300,
        rollouts=20,
        seed=seed,
        bf16=bfloat16().ok,
    )
    episodes = read_episodes(data)
    trainer = Trainer("flowdit", recipe, episodes, resume=(out / "state.safetensors").exists())
    with progress_bar("training") as progress:
        result = trainer.run(rollout_on(episodes, recipe), progress)
    replace_file(out / "done.json", (json.dumps(result)).encode())


def _export(training: Path, bundle: Path) -> None:
    report = export(Policy.load(training), bundle, provenance=json.loads((training / "run.json").read_text()))
    console.print(
        f"  {report.size / 2**20:.1f} MiB, {report.latency.p50_ms:.2f} ms per chunk, "
        f"differs from torch by at most {report.max_error:.1e}"
    )


def _evaluate(bundle: Path, out: Path) -> None:
    with progress_bar("episodes") as progress:
        report = evaluate([str(bundle)], LOADER, EvaluateConfig(episodes=100), progress)
    console.print(as_text(report))
    replace_file(out, (json.dumps(report)).encode())


def _run(bundle: Path, out: Path, seed: int) -> None:
    missing = available()
    if missing:
        console.print(f"  no walking G1 on this machine ({missing}); the wheeled base drives instead")
    if importlib.util.find_spec("rclpy") is None:
        console.print("  no ROS 2 on this machine; the same runtime runs in process")
    config = RunConfig(bundle, embodiment="wheeled" if missing else "g1", goals=3, seconds=150, seed=seed)
    with progress_bar("seconds") as progress:
        result = run(config, progress)
    console.print(
        f"  {result['goals_reached']} of 3 goals, {result['falls']} falls, {result['rate_hz']:.2f} Hz, "
        f"{result['deadline_misses']} of {result['commands']} deadlines missed"
    )
    replace_file(out, (json.dumps(result)).encode())


def _follow(path: Path, seed: int) -> None:
    """Film what needs pictures and the G1, where there are both; the rest of the demo needs neither."""
    reason = missing()
    said = f"left out: {reason}" if reason else f"{video_scene(path, seed=seed)}; film: {path}"
    console.print(f"  {said}", highlight=False, markup=False, soft_wrap=True)
