"""kinoflow data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from envs.episodes import Episode, describe, read_demos, read_episodes, select, write_episodes
from envs.pusht import RECORDED, demonstration
from envs.recon import EMBODIMENT, ENV, contract, read_recon, recon_files
from envs.replay_buffer import read_replay_buffer
from envs.sensing import add_senses
from envs.world import make
from kinoflow.console import progress_bar, show
from policies.spec import Spec

Source = tuple[list[Episode], str, dict[str, Any], Spec]


def command(
    path: tyro.conf.Positional[Path],
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    episodes: str = ":",
    pixels: bool = False,
    instruction: str = "",
    sense: tuple[str, ...] = (),
    workers: int = 2,
    json: bool = False,
) -> None:
    """Verify an episode file and describe it; with --out, write a selection of its episodes as a new file.

    Args:
        path: Episode file (HDF5), or what to convert: a PushT replay buffer of diffusion_policy (zarr folder) or a
            folder of RECON's drives (HDF5), see `envs.recon`.
        out: Episode file to write.
        episodes: Which episodes to write, like a slice: 0:100 is the first hundred, 1::2 every other one.
        pixels: Keep the pictures of a replay buffer.
        instruction: What the robot is told in RECON's drives.
        sense: Features to add that are computed from others, see `policies.senses`.
        workers: Processes to compute them with.
        json: Print JSON.
    """
    if path.is_dir() and out is None:
        raise ValueError("a replay buffer or folder of drives is converted, not described; give --out FILE")
    if out is None and (episodes != ":" or sense):
        raise ValueError("--episodes and --sense are for a file to write; give --out FILE")
    if out is not None:
        if (path / ".zgroup").is_file():
            chosen, env_id, kwargs, spec = _replay_buffer(path, episodes, pixels)
        else:
            chosen, env_id, kwargs, spec = (
                _drives(path, episodes, instruction) if path.is_dir() else _episode_file(path, episodes)
            )
        known = getattr(make(env_id, kwargs), "robomimic", None)
        if sense:
            with progress_bar("episodes") as report:
                chosen, spec = add_senses(chosen, spec, sense, workers, report)
        write_episodes(out, chosen, env_id, kwargs, spec, known)
    show(describe(out or path), json)


def _episode_file(path: Path, episodes: str) -> Source:
    file = read_episodes(path)
    return select(read_demos(path), episodes), file.env_id, file.env_kwargs, file.spec


def _replay_buffer(path: Path, episodes: str, pixels: bool) -> Source:
    buffer = read_replay_buffer(path, [*RECORDED, "img"] if pixels else RECORDED)
    env_id = f"kinoflow/PushT{'Pixels' if pixels else ''}-v0"
    demos = [demonstration(arrays, index) for index, arrays in enumerate(buffer)]
    return select(demos, episodes), env_id, {}, make(env_id, {}).contract


def _drives(path: Path, episodes: str, instruction: str) -> Source:
    """Only what is chosen is read: a drive is 5 MB, RECON has thousands."""
    numbered: list[Any] = list(enumerate(recon_files(path)))
    chosen: list[Any] = select(numbered, episodes)
    with progress_bar("drives") as report:
        demos = []
        for seed, file in chosen:
            demos.append(read_recon(file, seed, instruction))
            report(len(demos), len(chosen))
    return demos, ENV, {"embodiment": EMBODIMENT}, contract()
