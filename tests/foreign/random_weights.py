"""Random weights that are the same on every machine and version, so that references need not store them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def random_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Draw the tensors of a network, each from its own name, at the scale that keeps activations of order one.

    Args:
        shapes: ``{name: shape}``; normalisation layers are told apart by having one dimension.
    """
    return {name: _draw(name, tuple(shape)) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    # The legacy generator: numpy promises that its stream never changes.
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values * np.float32(math.sqrt(0.5 / math.prod(shape[1:])))
    if name.endswith(("running_var", "weight")):
        return 1 + np.float32(0.2) * np.abs(values)
    return np.float32(0.2) * values
