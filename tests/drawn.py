"""Random observations that fit a contract."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from policies.spec import Spec


def observed(spec: Spec, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Observations ``(rows, samples, *shape)``: normal numbers, or any bytes."""
    rng, made = np.random.default_rng(seed), {}
    for feature in spec.observations:
        shape = (rows, spec.samples(feature), *feature.shape)
        values = rng.integers(0, 256, shape, np.uint8) if feature.dtype == "uint8" else rng.normal(size=shape)
        made[feature.name] = torch.from_numpy(values if feature.dtype == "uint8" else np.float32(values))
    return made
