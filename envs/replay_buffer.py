"""Reads replay buffers in the zarr layout of diffusion_policy: flat arrays and the ends of the episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policies.spec import Array, ContractError


def read_replay_buffer(path: Path, names: Sequence[str]) -> list[dict[str, Array]]:
    """Read the episodes of a replay buffer: ``data/<name>`` (N, ...) cut at ``meta/episode_ends``.

    Args:
        path: Folder of the zarr store.
        names: The arrays to read.

    Returns:
        One ``{name: (T, ...)}`` per episode.

    Raises:
        ImportError: The zarr package is not installed.
        ContractError: There is no such store, it lacks an array, or its arrays do not fit each other.
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"replay buffers need zarr ({error}); install it: pip install 'kinoflow[pusht]'") from error
    if not (path / ".zgroup").is_file():
        raise ContractError(f"{path} is no zarr store; give the folder that holds data/ and meta/")
    root = zarr.open(str(path), "r")
    try:
        arrays = {name: root["data"][name][:] for name in names}
        ends = np.asarray(root["meta/episode_ends"][:], int)
    except KeyError as error:
        raise ContractError(
            f"{path} is no replay buffer of this kind: {error} is missing; it needs data/{', data/'.join(names)}"
        ) from error
    lengths = {name: len(values) for name, values in arrays.items()}
    increasing = len(ends) > 0 and np.all(np.diff(np.concatenate([[0], ends])) > 0)
    if not increasing or {*lengths.values()} != {int(ends[-1])}:
        raise ContractError(f"{path} is damaged: episodes end at {ends[-3:]}, arrays have {lengths} steps")
    pieces = {name: np.split(values, ends[:-1]) for name, values in arrays.items()}
    return [{name: of_name[index] for name, of_name in pieces.items()} for index in range(len(ends))]
