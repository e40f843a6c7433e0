"""An ONNX graph as a policy: checked against its contract, driven without torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message

from policies.archive import BundleError
from policies.spec import Array, ContractError, Observation, Spec

OUTPUT, DISAGREEMENT = "actions", "disagreement"


def graph_inputs(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every graph input, in order."""
    chunk = (1, spec.horizon, spec.action.dim)
    observations = {feature.name: (1, spec.history, *feature.shape) for feature in spec.observations}
    return {**observations, "noise": (1, *spec.noise_shape), "committed": chunk, "hold": chunk[:2]}


def graph_outputs(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every graph output, in order."""
    return {OUTPUT: (1, spec.horizon, spec.action.dim), DISAGREEMENT: (1,)}


class Network:
    """An ONNX graph driven as a `ChunkPolicy`. Its input buffers are reused: one caller at a time.

    Args:
        graph: Serialised ONNX model with the inputs and outputs of a bundle.
        spec: Contract the graph must fit.
        threads: Threads of ONNX Runtime; one keeps the jitter low.

    Raises:
        BundleError: The graph is damaged, refers to data outside the bundle, or differs from the contract.
    """

    def __init__(self, graph: bytes, spec: Spec, threads: int = 1) -> None:
        self.spec = spec
        self.disagreement = 0.0
        """Between the parents of a composition at the newest chunk, in normal units; 0 for other policies."""
        self._session = _session(graph, threads)
        _check_signature("input", self._session.get_inputs(), graph_inputs(spec))
        _check_signature("output", self._session.get_outputs(), graph_outputs(spec))
        self._buffers = {name: np.zeros(shape, np.float32) for name, shape in graph_inputs(spec).items()}
        self._chunk_inputs = list(self._buffers.items())[len(spec.observations) :]

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk, see `ChunkPolicy.act`.

        Raises:
            ContractError: The observation does not fit, another input has a wrong shape, or the actions are not finite.
        """
        self.spec.check(observation)
        inputs = {**observation, "noise": noise, "committed": committed, "hold": hold}
        for name, buffer in self._chunk_inputs:
            if inputs[name].shape != buffer.shape[1:]:
                raise ContractError(f"'{name}' has shape {inputs[name].shape}, the policy needs {buffer.shape[1:]}")
        actions, disagreement = self._run(inputs)
        self.disagreement = float(disagreement)
        if not np.isfinite(actions).all():
            raise ContractError("the network's actions are not finite; check the scale of its inputs or retrain it")
        return actions

    def warm_up(self, n: int) -> None:
        """Run ``n`` times, so that the first real chunk does not pay for allocations."""
        self.latency(n)

    def latency(self, n: int) -> Array:
        """Time ``n`` calls of `act` on the latest inputs; returns ``(n,)`` seconds."""
        latest = {name: buffer[0].copy() for name, buffer in self._buffers.items()}
        rest = [latest.pop(name) for name, _ in self._chunk_inputs]
        stamps = [time.perf_counter()]
        for _ in range(n):
            self.act(latest, *rest)
            stamps.append(time.perf_counter())
        return np.diff(stamps)

    def _run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run the graph; returns its outputs without the batch."""
        for name, buffer in self._buffers.items():
            buffer[0] = inputs[name]
        return [output[0] for output in self._session.run([OUTPUT, DISAGREEMENT], self._buffers)]


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    try:
        model = onnx.load_model_from_string(graph)
        # Checked here because ONNX Runtime would read such files relative to the working directory.
        outside = [t.name for t in _tensors(model) if t.external_data or t.data_location == t.EXTERNAL]
        if outside:
            raise BundleError(
                f"the graph keeps '{outside[0]}' in an external file; export with the weights inside the graph"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what matters is raised
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except BundleError:
        raise
    except Exception as error:  # the errors of ONNX Runtime and protobuf have no other common base
        raise BundleError(f"the graph does not load in ONNX Runtime {onnxruntime.__version__}: {error}") from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Walk every tensor of a model: initializers, constants, attributes, subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for item in (value,) if isinstance(value, (Message, str, bytes, int, float)) else value:
            if isinstance(item, Message):
                yield from _tensors(item)


def _check_signature(kind: str, found: Sequence[Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    names = [value.name for value in found]
    if names != list(expected):
        raise BundleError(f"graph {kind}s are {names}, the contract needs {list(expected)} in this order; export again")
    for value in found:
        if value.type != "tensor(float)" or tuple(value.shape) != expected[value.name]:
            raise BundleError(
                f"graph {kind} '{value.name}' is {value.type} {tuple(value.shape)}, "
                f"the contract needs tensor(float) {expected[value.name]}; export the policy again"
            )
