"""Chunks of the real LeRobot for `benchmarks.peers`, which runs this file in an environment in which LeRobot installs.

LeRobot 0.4.4 needs another torch than kinoflow; ``tests/parity/lerobot.sh`` shows how to make its environment. The
policy is LeRobot's default one on the state of PushT, with random weights. What it writes first is a JSON object with
``parameters`` and ``versions``; then it answers each line with a number of steps by a line with the wall and the
processor seconds of one such chunk.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

SAMPLERS = {100: "DDPM", 10: "DDIM"}  # by steps; the first is LeRobot's default


def main() -> None:
    """Answer until the input ends."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.set_num_threads(1)
    features: dict[str, Any] = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (16,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    }
    models: dict[int, Any] = {}
    for steps, sampler in SAMPLERS.items():
        config = DiffusionConfig(**features, noise_scheduler_type=sampler, num_inference_steps=steps, device="cpu")
        models[steps] = DiffusionPolicy(config).eval().diffusion
        models[steps].unet = next(iter(models.values())).unet  # the same weights once
    observation = {"observation.state": torch.zeros(1, 2, 2), "observation.environment_state": torch.zeros(1, 2, 16)}
    parameters = sum(weight.numel() for weight in models[steps].parameters())
    versions = {name: importlib.metadata.version(name) for name in ("lerobot", "torch", "diffusers")}
    print(json.dumps({"parameters": parameters, "versions": versions}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            models[int(line)].generate_actions(observation)
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


if __name__ == "__main__":
    main()
