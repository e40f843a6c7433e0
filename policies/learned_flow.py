"""Dense optical flow by a trained network, `policies.nets.flow.FlowNet`; `policies.dis` needs no training."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from policies.nets.flow import SIDE, FlowNet
from policies.spec import Array

WEIGHTS = Path(__file__).parent.parent / "models" / "flow_net.safetensors"


def learned_flow(first: Array, second: Array, weights: Path = WEIGHTS) -> Array:
    """Flow between two pictures.

    Args:
        first: ``(3, 96, 96)`` uint8 RGB.
        second: Like ``first``, taken later.
        weights: Of the network, read once; the ones that ship with the project by default.

    Returns:
        ``(2, 96, 96)`` float32 px: how far right and down each pixel of ``first`` has moved in ``second``, interpolated
        from cells of 4 x 4.

    Raises:
        ValueError: A picture has another shape or type.
        FileNotFoundError: There are no such weights.
    """
    for picture in (first, second):
        if picture.shape != (3, SIDE, SIDE) or picture.dtype != np.uint8:
            raise ValueError(
                f"flow between {first.dtype} {first.shape} and {second.dtype} {second.shape}; "
                f"the network needs two uint8 pictures (3, {SIDE}, {SIDE})"
            )
    with torch.inference_mode():
        flow, _ = load_flow_net(weights)(unit(first[None]), unit(second[None]))
        return functional.interpolate(flow, (SIDE, SIDE), mode="bilinear")[0].numpy()


def unit(pictures: Array) -> Tensor:
    """Pictures of bytes as the network takes them, float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float() / 255


@lru_cache(2)
def load_flow_net(weights: Path) -> FlowNet:
    """Read a trained network.

    Raises:
        FileNotFoundError: There are no such weights.
    """
    if not weights.is_file():
        raise FileNotFoundError(
            f"flow network {weights} is missing; take models/flow_net.safetensors of the project, or train one with "
            "python -m benchmarks.flow train"
        )
    network = FlowNet()
    network.load_state_dict(load_file(weights))
    return network.eval()
