"""kinoflow data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from envs.episodes import describe, read_demos, read_episodes, select, write_episodes
from envs.pusht import demonstration
from envs.replay_buffer import read_replay_buffer
from envs.world import make
from kinoflow.console import show


def command(
    path: tyro.conf.Positional[Path],
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    episodes: str = ":",
    pixels: bool = False,
    json: bool = False,
) -> None:
    """Verify an episode file and describe it; with --out, write a selection of its episodes as a new file.

    Args:
        path: Episode file (HDF5), or a PushT replay buffer of diffusion_policy (zarr folder) to convert.
        out: Episode file to write.
        episodes: Which episodes to write, like a slice: 0:100 is the first hundred, 1::2 every other one.
        pixels: Keep the pictures of a replay buffer.
        json: Print JSON.
    """
    if path.is_dir() and out is None:
        raise ValueError("a replay buffer is converted, not described; give --out FILE")
    if path.is_dir():
        buffer = read_replay_buffer(path)
        if not pixels:
            buffer = [{name: values for name, values in arrays.items() if name != "img"} for arrays in buffer]
        env_id, kwargs = f"kinoflow/PushT{'Pixels' if pixels else ''}-v0", {}
        demos, spec = [demonstration(arrays, i) for i, arrays in enumerate(buffer)], make(env_id, {}).contract
    elif out is not None:
        file = read_episodes(path)
        demos, env_id, kwargs, spec = read_demos(path), file.env_id, file.env_kwargs, file.spec
    if out is not None:
        known = getattr(make(env_id, kwargs), "robomimic", None)
        write_episodes(out, select(demos, episodes), env_id, kwargs, spec, known)
    show(describe(out or path), json)
