"""Add senses to recorded episodes: computed once, because training would do it over and over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed

from envs.collect import processes
from envs.episodes import Episode
from policies.senses import SENSES, sensed
from policies.spec import ContractError, Spec


def add_senses(
    episodes: Sequence[Episode], spec: Spec, names: Sequence[str], workers: int, progress: Callable[[int, int], None]
) -> tuple[list[Episode], Spec]:
    """Add features to episodes and to their contract.

    Args:
        episodes: Recorded episodes.
        spec: Their contract.
        names: Senses, see `policies.senses.SENSES`.
        workers: Processes.
        progress: Called with (episodes done, episodes in all).

    Raises:
        ContractError: There is no such sense, or the episodes lack what it is computed from.
    """
    unknown = sorted({*names} - SENSES.keys())
    if unknown:
        raise ContractError(f"there is no sense '{unknown[0]}'; choose from {sorted(SENSES)}")
    for part in (part for name in names for part in SENSES[name].inputs):
        if part not in spec.observations:
            raise ContractError(f"the sense needs {part}, the episodes have {[f.name for f in spec.observations]}")
    done: dict[int, Episode] = {}
    with processes(workers) as pool:
        jobs = {pool.submit(_sensed, episode, list(names)): index for index, episode in enumerate(episodes)}
        for job in as_completed(jobs):
            done[jobs[job]] = job.result()
            progress(len(done), len(episodes))
    features = (*spec.observations, *(SENSES[name].feature for name in names))
    return [done[index] for index in range(len(episodes))], dataclasses.replace(spec, observations=features)


def _sensed(episode: Episode, names: list[str]) -> Episode:
    added = {name: sensed(SENSES[name], episode.observations) for name in names}
    return dataclasses.replace(episode, observations={**episode.observations, **added})
