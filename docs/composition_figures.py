"""Draws the figures of docs/composition.md.

Run: python docs/composition_figures.py docs docs/results/compose_pusht.json docs/results/compose_cameras.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from kinoflow import figures
from policies.flow import Estimate, Field, blend, either, product, solve, straight, uniform

MEANS = ((-1.2, 0.35), (0.2, 1.2))  # of the two modes of each parent
SHARES = ((0.5, 0.5), (0.5, 0.5))
WIDTH = 0.25  # standard deviation of every mode
SAMPLES, STEPS = 4000, 100


class Mixture:
    """Analytic field of a mixture of Gaussians in one dimension."""

    def __init__(self, means: Sequence[float], shares: Sequence[float]) -> None:
        self.means, self.shares = torch.tensor(means), torch.tensor(shares)

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log density per mode of the noised mixture and its variance."""
        variance = (t * WIDTH) ** 2 + (1 - t) ** 2
        gap = x.flatten()[:, None] - t[:, None] * self.means
        return self.shares.log() - gap**2 / (2 * variance[:, None]) - variance[:, None].log() / 2, variance

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        return self.parts(x, t)[0].logsumexp(1) - math.log(2 * math.pi) / 2

    def __call__(self, x: Tensor, t: Tensor) -> Estimate:
        logits, variance = self.parts(x, t)
        gap = x.flatten()[:, None] - t[:, None] * self.means
        score = -(logits.softmax(1) * gap).sum(1) / variance
        noise = -(1 - t) * score
        data = torch.where(
            t > 0, (x.flatten() - (1 - t) * noise) / t.clamp(min=1e-6), (logits.softmax(1) * self.means).sum(1)
        )
        return Estimate(data.view_as(x), noise.view_as(x))


def trajectories(field: Field, start: Tensor) -> Tensor:
    """States ``(STEPS + 1, B)`` of the deterministic sampler."""
    grid = uniform(STEPS)
    states = [start]
    for s, t in pairwise(grid):
        states.append(solve(straight(field), states[-1], (s, t)))
    return torch.stack(states).flatten(1)


def fields(path: Path) -> None:
    """What becomes of the same noise under two parents, their blend, their mixture and their corrected product."""
    first, second = (Mixture(means, shares) for means, shares in zip(MEANS, SHARES, strict=True))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SAMPLES, 1, 1, generator=generator)
    panels: list[tuple[str, Any]] = [
        ("parent A", trajectories(first, start)),
        ("parent B", trajectories(second, start)),
        ("blend 0.5 / 0.5", trajectories(blend([first, second], [0.5, 0.5]), start)),
        (
            "logical OR",
            trajectories(either([first, second], [0.5, 0.5], [first.log_density, second.log_density]), start),
        ),
        (
            "product of experts",
            product([first, second], [0.5, 0.5], start, uniform(STEPS), generator, 16)[0][None, :, 0, 0],
        ),
    ]
    figure, axes = figures.canvas(14, 3.2, len(panels))
    for axis, (title, states) in zip(axes, panels, strict=True):
        if len(states) > 1:
            axis.plot(uniform(STEPS), states[:, :60].numpy(), color="#1b6ca8", lw=0.5, alpha=0.5)
        counts, edges = np.histogram(states[-1].numpy(), bins=60, range=(-2.5, 2.5), density=True)
        axis.barh(edges[:-1], 0.5 * counts, height=5 / 60, left=1.02, color="#d98324", align="edge")
        axis.set(title=title, xlim=(0, 2.1), ylim=(-2.5, 2.5), xticks=(0, 1), xticklabels=("noise", "data"))
    figures.save(figure, path)


def weights(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Per report validation score against the weight of the first parent, and what unseen episodes said."""
    figure, axes = figures.canvas(11, 3.6 * len(reports), 2, len(reports))
    for report, left, right in zip(reports, axes[::2], axes[1::2], strict=True):
        _row(report, left, right)
    figures.save(figure, path)


def _row(report: dict[str, Any], left: Any, right: Any) -> None:
    scores = [entry for entry in report["validation"]["scores"] if len(entry["weights"]) == 2]
    left.errorbar(
        [entry["weights"][0] for entry in scores],
        [entry["mean"] for entry in scores],
        [1.96 * entry["sem"] for entry in scores],
        fmt="o-",
        color="#1b6ca8",
        capsize=3,
    )
    left.axvline(report["weights"][0], color="#c0392b", lw=1, ls="--")
    left.set_title(report["env"], loc="left")
    left.set(xlabel="weight of parent 1", ylabel=f"{report['objective']}, validation episodes, 95 %")
    gaps = {arm: figures_of["difference"] for arm, figures_of in report["arms"].items() if "difference" in figures_of}
    for row, gap in enumerate(gaps.values()):
        right.plot([gap["low"], gap["high"]], [row, row], color="#1b6ca8", lw=2)
        right.plot(gap["mean"], row, "o", color="#1b6ca8")
    right.axvline(0, color="black", lw=1)
    right.set(yticks=range(len(gaps)), xlabel=f"composition minus this, {report['episodes']} unseen episodes, 95 %")
    right.set_yticklabels(list(gaps), fontsize=8)
    right.invert_yaxis()


def main(out: tyro.conf.Positional[Path], reports: tyro.conf.Positional[list[Path]]) -> None:
    """Draw both figures.

    Args:
        out: Folder for composition_fields.png and composition_weights.png.
        reports: Reports of ``kinoflow compose --search --report``.
    """
    fields(out / "composition_fields.png")
    weights([json.loads(report.read_text()) for report in reports], out / "composition_weights.png")


if __name__ == "__main__":
    tyro.cli(main)
