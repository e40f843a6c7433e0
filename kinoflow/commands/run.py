"""kinoflow run."""

from __future__ import annotations

from kinoflow.console import progress_bar, show
from kinoflow.run import RunConfig, run


def command(config: RunConfig, json: bool = False) -> None:
    """Run a bundle on a simulated robot: simulator, policy and guard as three ROS 2 processes, in real time.

    Args:
        config: What to run.
        json: Print JSON.
    """
    with progress_bar("seconds") as progress:
        result = run(config, progress)
    show({key: value for key, value in result.items() if key not in ("path", "trace")}, json)
