"""What a bundle is compared with: inputs all over the normal range, and torch's outputs for them.

One of the pairs, the golden one, is stored in the bundle, which repeats the comparison when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from policies.archive import BundleError
from policies.bundle import TOLERANCE, deviation
from policies.chunk import hold_weights
from policies.network import Runnable, graph_inputs, graph_outputs
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import Array, Feature

CASES, DRAWS = 8, 8
Pair = dict[str, Array]
"""A value of every input and output of a graph, batch first."""


def compare(policy: Policy, network: Runnable) -> tuple[Pair, float]:
    """Run torch and a network on the same inputs.

    Args:
        policy: As exported; it is put into evaluation mode.
        network: Made of it.

    Returns:
        The golden pair, by names of graph inputs and outputs, and the largest `deviation`.

    Raises:
        BundleError: They disagree.
    """
    policy.eval()  # tracing may leave it in train mode, which changes dropout and batch normalisation
    rng = np.random.default_rng(0)
    cases = [case(policy, rng, hold) for hold in holds(policy.spec.horizon)]
    errors = [_error(network, inputs) for inputs in cases]
    worst = int(np.argmax(errors))
    if not errors[worst] <= TOLERANCE:
        raise BundleError(
            f"ONNX Runtime differs from torch by {errors[worst]:.3g}, allowed is {TOLERANCE}; "
            "look for operations that amplify rounding, such as a division by a small scale"
        )
    return cases[CASES // 2], errors[worst]


def apart(policy: Policy, other: Policy) -> float:
    """RMS difference of the chunks of two policies of one head from the same inputs, in normal units; none is held."""
    rng, free = np.random.default_rng(0), np.zeros(policy.spec.horizon, np.float32)
    cases = [draw(policy, rng, free) for _ in range(CASES)]
    *seen, noise, committed, hold = (torch.cat([case[name] for case in cases]) for name in cases[0])
    with torch.inference_mode():
        plans = [each.plan(_named(policy, seen), noise, committed, hold).actions for each in (policy, other)]
    mine, theirs = (policy.normaliser.normalise(ACTION, actions) for actions in plans)
    return float((mine - theirs).square().mean().sqrt())


def holds(horizon: int) -> list[Array]:
    """Hold weights from none to all of the chunk, with hard and soft ends."""
    return [hold_weights(horizon, index * horizon // (CASES - 1), index % 3) for index in range(CASES)]


def case(policy: Policy, rng: np.random.Generator, hold: Array) -> dict[str, Array]:
    """Draw inputs that cover the normal range, with torch's outputs.

    Of a head that chooses among chunks the draw with the clearest choice is taken: near ties are decided by rounding.
    """
    draws = [draw(policy, rng, hold) for _ in range(DRAWS if policy.head.candidates > 1 else 1)]
    with torch.inference_mode():
        tensors = max(draws, key=lambda drawn: clearness(policy, drawn))
        *seen, noise, committed, held = tensors.values()
        plan = policy.plan(_named(policy, seen), noise, committed, held)
        tensors |= zip(graph_outputs(policy.spec), plan, strict=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def clearness(policy: Policy, drawn: Mapping[str, Tensor]) -> float:
    """By how much the best of the chunks of a plan is rated above the next one."""
    if policy.head.candidates == 1:
        return 0.0
    *seen, noise, committed, hold = drawn.values()
    encoded = policy.encode(policy.head.digest(policy.normaliser(_named(policy, seen))), committed)
    first, second = policy.candidates(encoded, noise, committed, hold).rating[0].topk(2).values
    return float(first - second)


def draw(policy: Policy, rng: np.random.Generator, hold: Array) -> dict[str, Tensor]:
    """Inputs of a graph, uniform in the normal range."""
    shapes = graph_inputs(policy.spec)

    def uniform(feature: str, shape: tuple[int, ...]) -> Tensor:
        return policy.normaliser.restore(feature, torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)))

    def sense(feature: Feature) -> Tensor:
        if feature.dtype == "uint8":
            return torch.from_numpy(rng.integers(0, 256, shapes[feature.name], np.uint8))
        return uniform(feature.name, shapes[feature.name])

    tensors = {feature.name: sense(feature) for feature in policy.spec.observations}
    tensors["noise"] = torch.from_numpy(rng.standard_normal(shapes["noise"], np.float32))
    tensors["committed"] = uniform(ACTION, shapes["committed"])
    return tensors | {"hold": torch.from_numpy(hold)[None]}


def _named(policy: Policy, seen: list[Tensor]) -> dict[str, Tensor]:
    return {feature.name: value for feature, value in zip(policy.spec.observations, seen, strict=True)}


def answered(network: Runnable, pair: Mapping[str, Array]) -> Pair:
    """The pair of the same inputs with what a network makes of them."""
    observation = {feature.name: pair[feature.name][0] for feature in network.spec.observations}
    actions = network.act(observation, pair["noise"][0], pair["committed"][0], pair["hold"][0])
    if network.warning:
        raise BundleError(f"{network.warning}; look at what that parent computes")
    remarks = (np.array([value], np.float32) for value in (network.disagreement, network.arrival))
    return {**pair, **dict(zip(graph_outputs(network.spec), (actions[None], *remarks), strict=True))}


def _error(network: Runnable, pair: Mapping[str, Array]) -> float:
    found = answered(network, pair)
    return max(deviation(found[name], pair[name]) for name in graph_outputs(network.spec))
