"""Episode files in robomimic's HDF5 layout, with the contract, units and a content hash beside the data.

Layout: ``data/demo_<i>/{actions, executed, rewards, dones, states, obs/<name>}``, attribute ``num_samples`` per
episode, ``total`` and ``env_args`` on ``data``, and ``mask/{train, valid}`` with episode names. Where robomimic knows
the simulator, ``env_args`` and the ``model_file`` of each episode are what its playback needs. ``actions`` is what
the demonstrator commands, ``executed`` what the robot received: the same plus injected noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from policies.spec import Array, ContractError, Spec

VALID_EVERY = 20  # every 20th episode is kept for validation


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps; arrays are float32 and in SI units, pictures and texts uint8.

    Args:
        seed: Seed the environment was reset with.
        observations: ``{name: (T, *shape)}``, ``(1, *shape)`` of what is constant.
        actions: ``(T, A)`` commands of the demonstrator.
        executed: ``(T, A)`` commands the robot received.
        rewards: ``(T,)``.
        states: ``(T, S)`` simulator states before each step.
    """

    seed: int
    observations: dict[str, Array]
    actions: Array
    executed: Array
    rewards: Array
    states: Array

    def __len__(self) -> int:
        return len(self.actions)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Name every array by its path below ``data/demo_<i>``, in a fixed order."""
        for name in sorted(self.observations):
            yield f"obs/{name}", self.observations[name]
        dones = np.zeros(len(self), np.int64)
        dones[-1] = 1
        yield from {
            "actions": self.actions,
            "executed": self.executed,
            "rewards": self.rewards,
            "states": self.states,
            "dones": dones,
        }.items()


def content_hash(episodes: Iterable[Episode]) -> str:
    """SHA-256 over every array of every episode, names and shapes included."""
    digest = hashlib.sha256()
    for episode in episodes:
        for name, array in episode.arrays():
            digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_episodes(
    path: Path,
    episodes: list[Episode],
    env_id: str,
    env_kwargs: dict[str, Any],
    spec: Spec,
    robomimic: Mapping[str, str] | None = None,
) -> None:
    """Write an episode file atomically.

    Args:
        path: Destination; replaced only when the new file is complete.
        episodes: Episodes in order.
        env_id: Gymnasium id the episodes come from.
        env_kwargs: Arguments the environment was made with.
        spec: Contract of the environment.
        robomimic: ``env_args`` and ``model_file`` of a simulator that robomimic knows.

    Raises:
        ContractError: An episode does not fit the contract, or a value is not finite.
    """
    for index, episode in enumerate(episodes):
        _check(episode, spec, f"{path}: episode {index}")
    environment = {"env_name": env_id, "env_kwargs": env_kwargs}
    known = robomimic or {"env_args": json.dumps({**environment, "type": 2})}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with h5py.File(part, "w") as file:
            _write(file, episodes, environment, known, spec)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check(episode: Episode, spec: Spec, owner: str) -> None:
    """Check an episode as if it were one observation with as long a history."""
    try:
        dataclasses.replace(spec, history=len(episode)).check(episode.observations)
    except ContractError as error:
        raise ContractError(f"{owner}: {error}") from error
    for name in ("actions", "executed", "rewards", "states"):
        if not np.isfinite(getattr(episode, name)).all():
            raise ContractError(f"{owner}: '{name}' is not finite; leave the episode out")


def _write(
    file: h5py.File, episodes: list[Episode], environment: dict[str, Any], known: Mapping[str, str], spec: Spec
) -> None:
    data = file.create_group("data")
    data.attrs["total"] = sum(map(len, episodes))
    data.attrs["env_args"], data.attrs["environment"] = known["env_args"], json.dumps(environment)
    data.attrs["contract"] = json.dumps(spec.to_json())
    data.attrs["sha256"] = content_hash(episodes)
    for index, episode in enumerate(episodes):
        group = data.create_group(f"demo_{index}")
        _write_episode(group, episode, spec)
        if "model_file" in known:
            group.attrs["model_file"] = known["model_file"]
    for name, wanted in (("train", False), ("valid", True)):
        chosen = [i for i in range(len(episodes)) if (i % VALID_EVERY == VALID_EVERY - 1) == wanted]
        file[f"mask/{name}"] = np.array([f"demo_{i}" for i in chosen], dtype="S16")


def _write_episode(group: h5py.Group, episode: Episode, spec: Spec) -> None:
    group.attrs["num_samples"], group.attrs["seed"] = len(episode), episode.seed
    for name, array in episode.arrays():
        group.create_dataset(name, data=array, compression="lzf" if array.size > 4096 else None)
    for feature in spec.observations:
        group[f"obs/{feature.name}"].attrs.update(unit=feature.unit, frame=feature.frame)
    group["actions"].attrs.update(unit=", ".join(spec.action.units), frame=spec.action.frame)


@dataclass(frozen=True)
class EpisodeFile:
    """An episode file in memory, all steps of all episodes behind one another.

    Args:
        spec: Contract of the environment the data come from.
        env_id: Gymnasium id.
        env_kwargs: Arguments of the environment.
        sha256: Content hash, already verified.
        observations: ``{name: (N, *shape)}``, of what is constant one per episode.
        actions: ``(N, A)``.
        episode: ``(N,)`` number of each step's episode.
        first: ``(N,)`` index of the first step of each step's episode.
        last: ``(N,)`` index of the last step of each step's episode.
        valid: ``(N,)`` bool, whether the step belongs to a validation episode.
        pushed: ``(N,)`` bool, whether noise was injected, so that not the expert's command was executed.
    """

    spec: Spec
    env_id: str
    env_kwargs: dict[str, Any]
    sha256: str
    observations: dict[str, Array]
    actions: Array
    episode: Array
    first: Array
    last: Array
    valid: Array
    pushed: Array

    def windows(self, steps: Array, history: int, horizon: int, share: int = 1) -> tuple[dict[str, Array], Array]:
        """Cut training windows around ``steps`` (B,).

        Before the begin of an episode its first observation is repeated, after its end its last action.

        Args:
            steps: Index of the newest observation of each window.
            history: Observations per window.
            horizon: Actions per window.
            share: As many windows in a row are of one episode: what is constant is returned once for them.

        Returns:
            Observations ``{name: (B, history, *shape)}``, ``(B / share, 1, *shape)`` of what is constant, and actions
            ``(B, horizon, A)``.
        """
        past = np.maximum(steps[:, None] + np.arange(1 - history, 1), self.first[steps][:, None])
        ahead = np.minimum(steps[:, None] + np.arange(horizon), self.last[steps][:, None])
        constant = {feature.name for feature in self.spec.observations if feature.constant}
        rows = {name: self.episode[steps[::share], None] if name in constant else past for name in self.observations}
        return {name: values[rows[name]] for name, values in self.observations.items()}, self.actions[ahead]


def select(episodes: list[Episode], which: str) -> list[Episode]:
    """Choose episodes by their position, written like a slice: ``"0:100"`` or ``"1::2"``.

    Raises:
        ValueError: This is no slice, or it chooses nothing.
    """
    try:
        chosen = episodes[slice(*(int(part) if part else None for part in which.split(":")))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"'{which}' is no slice like 0:100 or 1::2 ({error})") from error
    if not chosen:
        raise ValueError(f"'{which}' chooses none of {len(episodes)} episodes")
    return chosen


def _demo_names(data: h5py.Group) -> list[str]:
    odd = [name for name in data if not re.fullmatch(r"demo_\d+", name)]
    if odd:
        raise ContractError(f"the group data/{odd[0]} is no episode, whose names are demo_0, demo_1, ...")
    return sorted(data, key=lambda name: int(name.removeprefix("demo_")))


def read_demos(path: Path) -> list[Episode]:
    """Read the episodes of a file without verifying its hash."""
    with h5py.File(path) as file:
        return [_read_episode(file["data"][name]) for name in _demo_names(file["data"])]


def _read_episode(group: h5py.Group) -> Episode:
    arrays = {name: group[name][()] for name in ("actions", "executed", "rewards", "states")}
    return Episode(int(group.attrs["seed"]), {name: group["obs"][name][()] for name in group["obs"]}, **arrays)


def read_episodes(path: Path) -> EpisodeFile:
    """Read and verify an episode file.

    Raises:
        ContractError: The file is missing or not an episode file, or its content does not match its hash.
    """
    if not path.is_file():
        raise ContractError(f"no episode file at {path}; write one with: kinoflow collect --out {path}")
    try:
        with h5py.File(path) as file:
            data = file["data"]
            names = _demo_names(data)
            episodes = [_read_episode(data[name]) for name in names]
            spec = Spec.from_json(json.loads(data.attrs["contract"]))
            environment = json.loads(data.attrs["environment"])
            valid_names = {name.decode() for name in file["mask/valid"]}
            expected = str(data.attrs["sha256"])
    except (OSError, KeyError, ValueError) as error:
        raise ContractError(f"{path} is not a kinoflow episode file ({error}); collect it again") from error
    found = content_hash(episodes)
    if found != expected:
        raise ContractError(f"{path} was altered: its content hashes to {found[:12]}, it says {expected[:12]}")
    lengths = np.array([len(episode) for episode in episodes])
    ends = np.cumsum(lengths)
    return EpisodeFile(
        spec=spec,
        env_id=environment["env_name"],
        env_kwargs=environment["env_kwargs"],
        sha256=expected,
        observations={
            name: np.concatenate([episode.observations[name] for episode in episodes])
            for name in episodes[0].observations
        },
        actions=np.concatenate([episode.actions for episode in episodes]),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        first=np.repeat(ends - lengths, lengths),
        last=np.repeat(ends - 1, lengths),
        valid=np.repeat([name in valid_names for name in names], lengths),
        pushed=np.concatenate([(e.executed != np.float32(spec.action.clip(e.actions))).any(-1) for e in episodes]),
    )


def describe(path: Path) -> dict[str, Any]:
    """Verify an episode file and summarise it; raises like `read_episodes`."""
    file = read_episodes(path)
    longest = int((file.last - file.first).max() + 1)
    return {
        "path": str(path),
        "env": file.env_id,
        "env_kwargs": file.env_kwargs,
        "episodes": len(np.unique(file.first)),
        "validation_episodes": len(np.unique(file.first[file.valid])),
        "steps": len(file.actions),
        "hours": round(len(file.actions) * file.spec.dt / 3600, 3),
        "longest_s": round(longest * file.spec.dt, 1),
        "observations": {f.name: f"{list(f.shape)} {f.unit} in {f.frame}" for f in file.spec.observations},
        "action": dict(zip(file.spec.action.names, file.spec.action.units, strict=True)),
        "sha256": file.sha256,
    }
