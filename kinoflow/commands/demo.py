"""kinoflow demo."""

from __future__ import annotations

from kinoflow.demo import DemoConfig, demo


def command(config: DemoConfig) -> None:
    """The main job in one go: collect, train, evaluate, export, drive a walking robot, write a report.

    Args:
        config: Where to write and which seed to use.
    """
    demo(config)
