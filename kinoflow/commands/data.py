"""kinoflow data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from envs.episodes import describe, read_demos, read_episodes, select, write_episodes
from envs.pusht import RECORDED, demonstration
from envs.replay_buffer import read_replay_buffer
from envs.sensing import add_senses
from envs.world import make
from kinoflow.console import progress_bar, show


def command(
    path: tyro.conf.Positional[Path],
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    episodes: str = ":",
    pixels: bool = False,
    sense: tuple[str, ...] = (),
    workers: int = 2,
    json: bool = False,
) -> None:
    """Verify an episode file and describe it; with --out, write a selection of its episodes as a new file.

    Args:
        path: Episode file (HDF5), or a PushT replay buffer of diffusion_policy (zarr folder) to convert.
        out: Episode file to write.
        episodes: Which episodes to write, like a slice: 0:100 is the first hundred, 1::2 every other one.
        pixels: Keep the pictures of a replay buffer.
        sense: Features to add that are computed from others, see `policies.senses`.
        workers: Processes to compute them with.
        json: Print JSON.
    """
    if path.is_dir() and out is None:
        raise ValueError("a replay buffer is converted, not described; give --out FILE")
    if out is None and (episodes != ":" or sense):
        raise ValueError("--episodes and --sense are for a file to write; give --out FILE")
    if path.is_dir():
        buffer = read_replay_buffer(path, [*RECORDED, "img"] if pixels else RECORDED)
        env_id, kwargs = f"kinoflow/PushT{'Pixels' if pixels else ''}-v0", {}
        demos, spec = [demonstration(arrays, i) for i, arrays in enumerate(buffer)], make(env_id, {}).contract
    elif out is not None:
        file = read_episodes(path)
        demos, env_id, kwargs, spec = read_demos(path), file.env_id, file.env_kwargs, file.spec
    if out is not None:
        known, chosen = getattr(make(env_id, kwargs), "robomimic", None), select(demos, episodes)
        if sense:
            with progress_bar("episodes") as report:
                chosen, spec = add_senses(chosen, spec, sense, workers, report)
        write_episodes(out, chosen, env_id, kwargs, spec, known)
    show(describe(out or path), json)
