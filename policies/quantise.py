"""The fastest way to compute graphs, in 8 bits where plans stay what they were; chosen by measurement.

Weights of matrix products are rounded once. What they are multiplied with is rounded to the range it has in that very
product ("int8 dynamic") or to the range it had over recorded episodes ("int8 static", arXiv 1712.05877). Products with
very few inputs or outputs stay as they are: they cost little and touch the actions themselves. Where there is another
back end than ONNX Runtime, see `policies.backend`, both take part.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from policies.backend import ONNX_RUNTIME, OPENVINO, installed
from policies.chunk import hold_weights
from policies.network import GOAL, Goal, Network, Runnable
from policies.spec import Array, ContractError, Observation, Spec
from policies.train import Windows

QUALITY = 0.02  # RMS difference of plans in normal units, which span 2, that is taken for none
CALIBRATED, CHECKED = 64, 64  # recorded situations that ranges are read from, and others on which plans are compared
ROUNDS, CALLS = 10, 5
FLOAT32, DYNAMIC, STATIC = "float32", "int8 dynamic", "int8 static"
NARROW = 16  # inputs or outputs of a product that is not worth rounding
PRODUCTS = ["MatMul", "Gemm"]


class Request(NamedTuple):
    """What a chunk is planned from, arguments of `ChunkPolicy.act`."""

    observation: Observation
    noise: Array
    committed: Array
    hold: Array


@dataclass(frozen=True)
class Trial:
    """What a way to compute costs and does to plans.

    Args:
        p50_ms: Of one chunk, one thread, beside the others in one run.
        deviation: RMS difference of plans from those in float32 over recorded situations, in normal units.
    """

    p50_ms: float
    deviation: float


class Way(NamedTuple):
    """In which numbers matrix products are computed, and by which of `policies.backend.BACKENDS`."""

    numbers: str
    backend: str = ONNX_RUNTIME

    def __str__(self) -> str:
        return f"{self.numbers} in {self.backend}"


class Choice(NamedTuple):
    """The fastest way to compute that keeps the plans.

    Args:
        way: A key of ``trials``.
        graphs: That compute so.
        trials: All that were tried.
    """

    way: Way
    graphs: Mapping[str, bytes]
    trials: dict[Way, Trial]


def recorded(spec: Spec, data: Windows, validation: bool, count: int) -> list[Request]:
    """Draw situations of episodes; in every other one the first quarter of the recorded chunk is being executed.

    Raises:
        ContractError: The episodes lack something that the policy observes, or there are none of the kind.
    """
    missing = {f.name for f in spec.observations} - data.observations.keys()
    pool = np.flatnonzero(data.valid == validation)
    if missing or not len(pool):
        raise ContractError(
            f"the episodes have no {sorted(missing) or 'validation episodes'}; give some that the policy could be "
            "trained on, with --calibrate FILE"
        )
    rng = np.random.default_rng(0)
    seen, actions = data.windows(rng.choice(pool, count), spec.history, spec.horizon)
    noise = rng.standard_normal((count, *spec.noise_shape), np.float32)
    holds = [hold_weights(spec.horizon, frozen, frozen) for frozen in (0, spec.horizon // 4)]
    return [
        Request({f.name: seen[f.name][i] for f in spec.observations}, noise[i], actions[i], holds[i % 2])
        for i in range(count)
    ]


def ways(graphs: Mapping[str, bytes], spec: Spec, data: Windows) -> dict[Way, dict[str, bytes]]:
    """The graphs of a bundle as they are and in 8 bits; that of a goal stays, it runs once per goal."""
    calibration = recorded(spec, data, False, CALIBRATED)
    goal = Goal(graphs[GOAL], spec, 1) if GOAL in graphs else None
    plans = {name: graph for name, graph in graphs.items() if name != GOAL}

    networks = {name: Network(graph, spec, 1, goal) for name, graph in plans.items()}

    def static(symmetric: bool) -> dict[str, bytes]:
        return {name: _static(graph, networks[name], calibration, symmetric) for name, graph in plans.items()}

    made = {
        Way(FLOAT32): plans,
        Way(DYNAMIC): {name: _dynamic(graph) for name, graph in plans.items()},
        Way(STATIC): static(symmetric=False),
    }
    if OPENVINO in installed():
        made |= {Way(FLOAT32, OPENVINO): plans, Way(STATIC, OPENVINO): static(symmetric=True)}
    return {way: {**graphs, **computed} for way, computed in made.items()}


def fastest(
    graphs: Mapping[str, bytes],
    spec: Spec,
    scale: Array,
    data: Windows,
    load: Callable[..., Runnable],
) -> Choice:
    """Try all ways to compute on this machine and choose one; float32 in ONNX Runtime if no other is better.

    Args:
        graphs: In float32, as a bundle has them.
        spec: Contract of the policy.
        scale: ``(A,)`` of a normal unit of each action, in SI units.
        data: Episodes, of which those for validation say how far plans move.
        load: Makes a policy of graphs, in the ``backend`` of that name.

    Raises:
        ContractError: The episodes do not fit the policy.
    """
    requests = recorded(spec, data, True, CHECKED)
    tried = ways(graphs, spec, data)
    networks = {way: load(made, backend=way.backend) for way, made in tried.items()}
    plans = {way: np.stack([network.act(*asked) for asked in requests]) for way, network in networks.items()}
    seconds: dict[Way, list[Array]] = {way: [] for way in networks}
    for _ in range(ROUNDS):
        for way, network in networks.items():
            seconds[way].append(network.latency(CALLS))
    trials = {
        way: Trial(1e3 * float(np.median(seconds[way])), _rms((plans[way] - plans[Way(FLOAT32)]) / scale))
        for way in tried
    }
    kept = [way for way in trials if trials[way].deviation <= QUALITY]
    best = min(kept, key=lambda way: trials[way].p50_ms)
    return Choice(best, tried[best], trials)


def _rms(difference: Array) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))


def _dynamic(graph: bytes) -> bytes:
    model, products = _products(graph)
    with _target() as file:
        quantize_dynamic(model, file, PRODUCTS, nodes_to_quantize=products)
        return file.read_bytes()


def _static(graph: bytes, network: Network, requests: list[Request], symmetric: bool) -> bytes:
    """Ranges around zero and one per column of the weights are what OpenVINO is fast with, others ONNX Runtime."""
    model, products = _products(graph)
    with _target() as file:
        quantize_static(
            model, file, _Reader(network, requests), QuantFormat.QDQ, PRODUCTS, per_channel=symmetric,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=products, extra_options={"ActivationSymmetric": symmetric},
        )  # fmt: skip
        return file.read_bytes()


class _Reader(CalibrationDataReader):
    """Hands recorded situations to the calibration, as inputs of a graph."""

    def __init__(self, network: Network, requests: list[Request]) -> None:
        self._inputs: Iterator[dict[str, Array]] = (network.feed(*asked) for asked in requests)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._inputs, None)


def _products(graph: bytes) -> tuple[onnx.ModelProto, list[str]]:
    """The graph as a model, and the names of its products with weights that are worth rounding."""
    model = onnx.load_model_from_string(graph)
    del model.graph.value_info[:]  # shapes of weights from before they were transposed
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in shapes]
    return model, [node.name for node in nodes if min(shapes[node.input[1]]) >= NARROW]


@contextmanager
def _target() -> Iterator[Path]:
    """A file to write to, while the advice that the library logs is kept quiet."""
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "quantised.onnx"
    finally:
        logging.disable(logging.NOTSET)
