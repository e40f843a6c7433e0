"""Export a torch policy as a bundle: one ONNX graph with normalisation, unrolled sampler and hold guide inside."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass
from torch import Tensor, nn

from policies.archive import BundleError
from policies.bundle import TOLERANCE, Latency, Sampler, check_contract, deviation, write_bundle
from policies.chunk import hold_weights
from policies.head import head_name
from policies.network import Network, graph_inputs, graph_outputs
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import Array

CASES = 8
TIMED_CALLS = 100


@dataclass(frozen=True)
class ExportReport:
    """What an export produced.

    Args:
        path: The bundle.
        size: Its bytes.
        nodes: Nodes of the graph after folding.
        max_error: Largest `deviation` of ONNX Runtime from torch over the compared inputs.
        latency: Of one chunk on this machine, one thread.
    """

    path: Path
    size: int
    nodes: int
    max_error: float
    latency: Latency


def export(policy: Policy, path: str | Path, *, provenance: Mapping[str, Any]) -> ExportReport:
    """Export a policy; the policy itself is left as it is.

    Args:
        policy: Trained policy; its guides need a closed form, gradients do not survive export.
        path: Target file, suffix ``.kfb``.
        provenance: Recipe, dataset hash, seeds: plain JSON values.

    Raises:
        BundleError: ONNX Runtime and torch disagree, or the contract is not fit for a bundle.
    """
    check_contract(policy.spec)
    path, plan = Path(path), _Plan(copy.deepcopy(policy).cpu())
    model = _graph(plan)
    graph = onnx_ir.to_proto(model).SerializeToString()
    network = Network(graph, policy.spec)
    golden, max_error = _compare(plan, network)
    network.warm_up(TIMED_CALLS // 10)
    latency = Latency.of(network.latency(TIMED_CALLS), threads=1)
    write_bundle(
        path,
        graph,
        *policy.to_bytes(),
        policy.spec,
        golden,
        name=head_name(policy.head),
        sampler=Sampler(policy.steps, policy.grid, policy.temperature),
        normalisation=policy.normaliser.statistics(),
        latency=latency,
        max_error=max_error,
        provenance=provenance,
    )
    return ExportReport(path, path.stat().st_size, len(model.graph), max_error, latency)


class _Plan(nn.Module):
    """The policy's plan with the positional inputs of a graph."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [feature.name for feature in self.policy.spec.observations]
        return tuple(self.policy.plan(dict(zip(names, inputs, strict=False)), *inputs[len(names) :]))


def _graph(plan: _Plan) -> onnx_ir.Model:
    """Trace the plan and fold everything that depends on the weights and the time grid only."""
    shapes = graph_inputs(plan.policy.spec)
    zeros = tuple(torch.zeros(shape) for shape in shapes.values())
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            plan.eval(),
            zeros,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(shapes),
            output_names=list(graph_outputs(plan.policy.spec)),
        )
        assert program is not None  # with dynamo=True there always is one
        # Merged first: folding would store a transposed weight once per step instead of once.
        CommonSubexpressionEliminationPass()(program.model)
        # By default constants beyond a few kilobytes stay unfolded, and with them the time embeddings.
        model = onnxscript.optimizer.optimize(program.model, input_size_limit=2**62, output_size_limit=2**62)
    ClearMetadataAndDocStringPass()(model)  # it names the source files of this machine
    return model


def _compare(plan: _Plan, network: Network) -> tuple[dict[str, Array], float]:
    """Run both on the same inputs; return the golden pair and the largest deviation."""
    plan.eval()  # exporting may leave it in train mode, which changes dropout and batch normalisation
    rng = np.random.default_rng(0)
    cases = [_case(plan, rng, hold) for hold in _holds(network.spec.horizon)]
    errors = [_error(network, case) for case in cases]
    worst = int(np.argmax(errors))
    if not errors[worst] <= TOLERANCE:
        raise BundleError(
            f"ONNX Runtime differs from torch by {errors[worst]:.3g}, allowed is {TOLERANCE}; "
            "look for operations that amplify rounding, such as a division by a small scale"
        )
    return cases[CASES // 2], errors[worst]


def _holds(horizon: int) -> list[Array]:
    """Hold weights from none to all of the chunk, with hard and soft ends."""
    return [hold_weights(horizon, case * horizon // (CASES - 1), case % 3) for case in range(CASES)]


def _case(plan: _Plan, rng: np.random.Generator, hold: Array) -> dict[str, Array]:
    """Draw inputs that cover the normalised range, with torch's output."""
    policy, shapes = plan.policy, graph_inputs(plan.policy.spec)

    def draw(feature: str, shape: tuple[int, ...]) -> Tensor:
        return policy.normaliser.restore(feature, torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)))

    tensors = {feature.name: draw(feature.name, shapes[feature.name]) for feature in policy.spec.observations}
    tensors["noise"] = torch.from_numpy(rng.standard_normal(shapes["noise"], np.float32))
    tensors["committed"] = draw(ACTION, shapes["committed"])
    tensors["hold"] = torch.from_numpy(hold)[None]
    with torch.inference_mode():
        tensors |= zip(graph_outputs(policy.spec), plan(*tensors.values()), strict=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _error(network: Network, case: Mapping[str, Array]) -> float:
    observation = {feature.name: case[feature.name][0] for feature in network.spec.observations}
    actions = network.act(observation, case["noise"][0], case["committed"][0], case["hold"][0])
    expected = (case[name][0] for name in graph_outputs(network.spec))
    return max(map(deviation, (actions, np.array(network.disagreement)), expected))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on optional packages and unfolded operations."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
