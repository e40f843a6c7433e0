"""A FlowDiT of a given size with random weights, to measure how long one takes: timing does not see what it learned.

Run: python -m benchmarks.sized_head --parameters 43 --steps 2 --out FILE.kfb

It plans for Nav-v0: 16 actions of the wheeled base from the goal, the velocity and the range scan, 14 condition tokens.
A block and a head per 64 channels, so that sizes are those of usual transformers: 4 blocks of 256 channels are 10
million parameters, 7 of 448 are 44 million.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from benchmarks.entry import run
from benchmarks.latency import parameters as count
from envs.nav import NavEnv
from policies.export import export
from policies.flowdit import Config, FlowDiT
from policies.norm import Normaliser
from policies.policy import Policy
from policies.train import Recipe

CHANNELS = 64  # per block and attention head
DEEPEST = 16


def sized(parameters: float) -> FlowDiT:
    """The head whose size is nearest to so many million parameters; no layer of it is silent, as new ones are."""
    contract = NavEnv().contract
    spec = dataclasses.replace(contract, history=Recipe.history, horizon=Recipe.horizon)
    with torch.device("meta"):
        sizes = {depth: count(FlowDiT(spec, _config(depth))) for depth in range(1, DEEPEST + 1)}
    head = FlowDiT(spec, _config(min(sizes, key=lambda depth: abs(sizes[depth] - 1e6 * parameters))))
    for weight in head.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return head


def _config(depth: int) -> Config:
    return Config(width=CHANNELS * depth, depth=depth, heads=depth)


def main(parameters: float, steps: int, out: Path) -> None:
    """Write a bundle of about a given size.

    Args:
        parameters: In millions.
        steps: Denoising steps.
        out: Bundle to write (.kfb).
    """
    head = sized(parameters)
    report = export(Policy(head, Normaliser.identity(head.spec), steps), out, provenance={"weights": "random"})
    print(f"{out}: {count(head) / 1e6:.1f} M parameters, {report.size / 2**20:.0f} MiB, {report.latency.p50_ms:.2f} ms")


if __name__ == "__main__":
    run(main)
