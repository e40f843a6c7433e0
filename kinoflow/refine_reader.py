"""Trains when to stop on bearings that a trained goal reader found: with its eyes frozen, many rooms fit into a step.

Run: python -m kinoflow.refine_reader RUN --data goals.hdf5 --out RUN
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import track
from torch import Tensor

from envs.episodes import EpisodeFile, read_episodes
from policies.files import replace_file
from policies.flowdit_video import chosen
from policies.nets.goal_reader import GoalReader, Sight, stop_loss
from policies.policy import Policy

SENTENCES = 4  # per room that are looked at
CHECK_EVERY = 100  # steps


def main(
    run: tyro.conf.Positional[Path], data: Path, out: Path, steps: int = 3000, batch: int = 256, seed: int = 0
) -> None:
    """Train `GoalReader.decide` and keep the weights that are best on the validation rooms.

    Args:
        run: Run of ``kinoflow train flowdit-video`` on goals.
        data: These goals, from ``kinoflow collect --goals``.
        out: Run directory to write.
        steps: Optimiser steps.
        batch: Goals per step.
        seed: Of batches and sentences.
    """
    policy, episodes = Policy.load(run), read_episodes(data)
    generator = torch.Generator().manual_seed(seed)
    reader: GoalReader = policy.head.reader  # type: ignore[assignment]
    sights, paths, frames, valid = _look(reader, episodes, generator)
    best, trained = float("inf"), [reader.line, reader.blocks, reader.outlet, reader.sentence]
    reader.position.requires_grad_()
    weights = [reader.position, *(weight for module in trained for weight in module.requires_grad_().parameters())]
    optimiser = torch.optim.AdamW(weights, 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps)
    training, kept = torch.nonzero(~valid)[:, 0], reader.state_dict()
    for step in track(range(1, steps + 1), "when to stop"):
        rows = training[torch.randint(len(training), (batch,), generator=generator)]
        some = Sight(*(part[rows] for part in sights))
        seen = _mirrored(some, paths[rows], torch.rand(batch, generator=generator) < 0.5)
        loss = stop_loss(reader.decide(*seen), frames[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                found = reader.decide(Sight(*(part[valid] for part in sights)), paths[valid])
            score = float(stop_loss(found, frames[valid]))
            if score < best:
                best, kept = score, {name: value.clone() for name, value in reader.state_dict().items()}
                off = (chosen(found) @ torch.arange(reader.frames, dtype=torch.float32) - frames[valid]).abs()
                print(f"step {step}: loss {score:.3f}, within one frame {float((off < 1).float().mean()):.3f}")
    reader.load_state_dict(kept)
    policy.save(out)
    eyes = json.loads((run / "run.json").read_text())
    recipe = {"data": str(data), "data_sha256": episodes.sha256, "steps": steps, "batch": batch, "seed": seed}
    replace_file(out / "run.json", json.dumps({**eyes, "refined": recipe}, indent=2).encode())


@torch.no_grad()
def _look(
    reader: GoalReader, episodes: EpisodeFile, generator: torch.Generator
) -> tuple[Sight, Tensor, Tensor, Tensor]:
    """What is seen and said, paths ``(N, F, 3)``, where to stop ``(N,)``, and which rows are of validation rooms."""
    sights: list[Sight] = []
    paths: list[Tensor] = []
    steps: list[int] = []
    for first in track(np.unique(episodes.first), "looking"):
        count = int(episodes.last[first]) + 1 - first
        rows = first + torch.randperm(count, generator=generator)[:SENTENCES].numpy()
        seen, _ = episodes.windows(rows, 1, 1, share=len(rows))
        sights += [reader.look(torch.from_numpy(seen["goal_video"][:, 0]), torch.from_numpy(seen["instruction"][:, 0]))]
        paths += [torch.from_numpy(seen["video_path"][:, 0]).repeat(len(rows), 1, 1)]
        steps += rows.tolist()
    frames = torch.from_numpy(episodes.observations["stop_frame"][steps, 0])
    together = Sight(*(torch.cat(part) for part in zip(*sights, strict=True)))
    return together, torch.cat(paths), frames, torch.from_numpy(episodes.valid[steps])


def _mirrored(sight: Sight, path: Tensor, which: Tensor) -> tuple[Sight, Tensor]:
    """Seen in a mirror, a room has its things on the other side and the same places to stop."""
    columns = sight.columns
    swapped = torch.cat([columns[..., :-1].flip(-1), columns[..., -1:]], -1)
    mirrored = sight._replace(
        columns=torch.where(which[:, None, None], swapped, columns),
        side=torch.where(which[:, None], -sight.side, sight.side),
    )
    return mirrored, torch.where(which[:, None, None], torch.tensor([1.0, -1.0, -1.0]) * path, path)


if __name__ == "__main__":
    tyro.cli(main)
