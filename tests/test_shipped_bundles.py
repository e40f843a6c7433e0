"""The bundles that ship plan as their own weights do with the code as it is."""

from pathlib import Path

import numpy as np
import pytest

from policies.bundle import Bundle
from policies.policy import Policy
from policies.spec import Array

MODELS = sorted((Path(__file__).parent.parent / "models").glob("driving_*.kfb"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_graph_and_weights_agree(path: Path) -> None:
    bundle, policy = Bundle.load(path), Policy.load(path)
    spec, rng = bundle.spec, np.random.default_rng(0)

    def draw(name: str) -> Array:
        feature = next(f for f in spec.observations if f.name == name)
        shape = (spec.samples(feature), *feature.shape)
        if feature.dtype == "uint8":
            return rng.integers(0, 256, shape, dtype=np.uint8)
        return rng.normal(0, 2, shape).astype(np.float32)

    for _ in range(5):
        observation = {feature.name: draw(feature.name) for feature in spec.observations}
        noise = rng.standard_normal(spec.noise_shape).astype(np.float32)
        inputs = noise, np.zeros_like(noise), np.zeros(spec.horizon, np.float32)
        np.testing.assert_allclose(bundle.act(observation, *inputs), policy.act(observation, *inputs), atol=2e-3)
