"""Training of the optical flow network on exact flow. A run that is interrupted continues exactly where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from policies.files import replace_file
from policies.learned_flow import unit
from policies.nets.flow import FlowNet, flow_loss
from policies.spec import Array
from policies.training import Training, seeded

WEIGHTS = "flow_net.safetensors"
MIRROR = (-1.0, 1.0)  # what a mirrored picture does to flow right and down


@dataclass(frozen=True)
class FlowRecipe:
    """How to train.

    Args:
        steps: Optimiser steps.
        batch: Pairs per step, half of them mirrored on average.
        learning_rate: Peak rate of AdamW; linear warm-up, then cosine decay to 1 %.
        warmup: Steps of warm-up.
        seed: Of initial weights and batches.
        bf16: Compute in bfloat16.
        report_every: Steps between two reports, each of which also saves.
    """

    steps: int = 8000
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 100
    seed: int = 0
    bf16: bool = True
    report_every: int = 200


class FlowTrainer:
    """State of one training run.

    Args:
        out: Directory of the run; ``flow_net.safetensors`` there becomes the network.
        recipe: What to do.
        pairs: ``first``, ``second`` (N, 3, 96, 96) uint8, ``flow`` (N, 2, 24, 24) px and ``share`` (N, 24, 24) in
            [0, 1], how much of each cell has a flow.
        valid: The same of other rooms, to report on; nothing is chosen by it.
        resume: Continue the run in ``out`` instead of starting one.

    Raises:
        ContractError: There is a run already, or none, or one of another recipe or other pairs.
    """

    def __init__(
        self,
        out: Path,
        recipe: FlowRecipe,
        pairs: Mapping[str, Array],
        valid: Mapping[str, Array],
        resume: bool = False,
    ) -> None:
        self.out, self.recipe, self.pairs, self.valid = out, recipe, pairs, valid
        with seeded(recipe.seed):
            self.network = FlowNet()
        self._about = {"recipe": json.dumps(dataclasses.asdict(recipe)), "pairs": _sha256(pairs)}
        self._training = Training(out, recipe, {"network": self.network}, weight_decay=1e-4)
        self._training.enter(self._about, resume)

    def run(self, progress: Callable[[dict[str, float]], None]) -> None:
        """Train to the end.

        Args:
            progress: Called at every report with the step, the mean ``loss`` since the last one, the mean end-point
                error ``valid_px`` on the pairs to report on, and the ``cpu_s`` that the steps took.
        """
        training, recipe = self._training, self.recipe
        losses, since = [], time.process_time()
        while training.step < recipe.steps:
            losses.append(training.advance(self._loss()))
            if training.step % recipe.report_every == 0 or training.step == recipe.steps:
                spent, error = time.process_time() - since, self._error()
                training.save(self._about)
                about = {"step": str(training.step), **self._about}
                replace_file(self.out / WEIGHTS, save(self.network.state_dict(), about))
                progress({"step": training.step, "loss": float(np.mean(losses)), "valid_px": error, "cpu_s": spent})
                losses, since = [], time.process_time()

    def _loss(self) -> Tensor:
        first, second, flow, share = self._batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bf16):
            found, confidence = self.network(first, second)
            return flow_loss(found, confidence, flow, share)

    def _batch(self) -> list[Tensor]:
        generator = self._training.generator
        chosen = torch.randint(len(self.pairs["flow"]), (self.recipe.batch,), generator=generator).numpy()
        batch = _tensors({name: values[chosen] for name, values in self.pairs.items()})
        mirrored = torch.rand(self.recipe.batch, 1, 1, 1, generator=generator) < 0.5
        turned = [values.flip(-1) for values in batch]
        turned[2] = turned[2] * torch.tensor(MIRROR)[:, None, None]
        return [torch.where(mirrored, there, here) for there, here in zip(turned, batch, strict=True)]

    @torch.no_grad()
    def _error(self) -> float:
        """Mean end-point error in px on the pairs to report on."""
        first, second, flow, share = _tensors(self.valid)
        found = torch.cat([self.network(*pair)[0] for pair in zip(first.split(16), second.split(16), strict=True)])
        return float(((found - flow).norm(dim=1, keepdim=True) * share).sum() / share.sum())


def _tensors(pairs: Mapping[str, Array]) -> list[Tensor]:
    flow, share = torch.from_numpy(pairs["flow"]), torch.from_numpy(pairs["share"])[:, None]
    return [unit(pairs["first"]), unit(pairs["second"]), flow, share]


def _sha256(pairs: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(pairs):
        digest.update(pairs[name].tobytes())
    return digest.hexdigest()
