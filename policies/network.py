"""ONNX graphs as a policy: checked against its contract, driven without torch."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message

from policies.archive import BundleError
from policies.backend import BACKENDS, ONNX_RUNTIME, Session, onnx_runtime, version
from policies.spec import Array, ContractError, Observation, Spec

OUTPUT, DISAGREEMENT, ARRIVAL = "actions", "disagreement", "arrival"
STEP = "step"
SessionT = TypeVar("SessionT")
GOAL = "goal.onnx"


def graph_inputs(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything a policy takes, in order."""
    chunk = (1, spec.horizon, spec.action.dim)
    observations = {feature.name: (1, spec.samples(feature), *feature.shape) for feature in spec.observations}
    return {**observations, "noise": (1, *spec.noise_shape), "committed": chunk, "hold": chunk[:2]}


def graph_types(spec: Spec) -> dict[str, str]:
    """Number type of every input that is not float32."""
    return {feature.name: feature.dtype for feature in spec.observations if feature.dtype != "float32"}


def graph_outputs(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything a policy returns, in order."""
    return {OUTPUT: (1, spec.horizon, spec.action.dim), DISAGREEMENT: (1,), ARRIVAL: (1,)}


class Runnable(ABC):
    """A `ChunkPolicy` made of graphs; one caller at a time.

    Args:
        spec: Contract.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.disagreement = 0.0
        """Between the parents of a composition at the newest chunk, in normal units; 0 for other policies."""
        self.arrival = 0.0
        """Probability at the newest chunk that the robot is where it shall stop; 0 for policies that do not say."""
        self.warning = ""
        """What is amiss although there are chunks, empty when all is well."""
        self.patience_s = math.inf
        """How long a chunk may wait for the parents of a composition, in seconds; other policies wait for nobody."""
        self.time_left_s = math.inf
        """Seconds until the next chunk is due, set before `act`; only `AnyStep` takes fewer steps to keep it."""
        names, shapes = [feature.name for feature in spec.observations], graph_inputs(spec)
        self._chunk_shapes = {name: shape[1:] for name, shape in shapes.items() if name not in names}
        types = graph_types(spec)
        zeros = {name: np.zeros(shapes[name][1:], types.get(name, np.float32)) for name in names}
        self._latest: tuple[Any, ...] = (zeros,)
        self._latest += tuple(np.zeros(shape, np.float32) for shape in self._chunk_shapes.values())

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk, see `ChunkPolicy.act`.

        Raises:
            ContractError: The observation does not fit, another input has a wrong shape, or the actions are not finite.
        """
        self.spec.check(observation)
        for (name, shape), value in zip(self._chunk_shapes.items(), (noise, committed, hold), strict=True):
            if value.shape != shape:
                raise ContractError(f"'{name}' has shape {value.shape}, the policy needs {shape}")
        self._latest = observation, noise, committed, hold
        actions = self._plan(observation, noise, committed, hold)
        if not np.isfinite(actions).all():
            raise ContractError("the network's actions are not finite; check the scale of its inputs or retrain it")
        return actions

    def warm_up(self, n: int) -> None:
        """Run ``n`` times, so that the first real chunk does not pay for allocations."""
        self.latency(n)

    def latency(self, n: int) -> Array:
        """Time ``n`` calls of `act` on the latest inputs, so with one goal; returns ``(n,)`` seconds."""
        inputs, stamps = self._latest, [time.perf_counter()]
        for _ in range(n):
            self.act(*inputs)
            stamps.append(time.perf_counter())
        return np.diff(stamps)

    @abstractmethod
    def _plan(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk from inputs of the right shape and take note of disagreement and arrival."""


class Network(Runnable):
    """One ONNX graph that maps an observation to a chunk, with another for what is constant. Input buffers are reused.

    Args:
        graph: Serialised ONNX model with the inputs and outputs of a bundle.
        spec: Contract the graphs must fit.
        threads: That compute; one keeps the jitter low.
        goal: What hands over something else in place of the constant features.
        backend: What computes the graph, a name in `policies.backend.BACKENDS`.

    Raises:
        BundleError: A graph is damaged, refers to data outside the bundle, or differs from the contract.
    """

    def __init__(
        self, graph: bytes, spec: Spec, threads: int = 1, goal: Goal | None = None, backend: str = ONNX_RUNTIME
    ) -> None:
        super().__init__(spec)
        types = graph_types(spec)
        self._goal = goal
        self._session = _opened(graph, threads, BACKENDS[backend], backend)
        taken, digested = self._taken(), self._goal.types if self._goal else {}
        check_signature("input", self._session.get_inputs(), taken, types | digested)
        check_signature("output", self._session.get_outputs(), graph_outputs(spec))
        inputs = {*graph_inputs(spec)}
        self._buffers = {
            name: np.zeros(shape, types.get(name, np.float32)) for name, shape in taken.items() if name in inputs
        }

    def _taken(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every input of the graph, in order."""
        inputs = graph_inputs(self.spec)
        if self._goal is None:
            return inputs
        chunk = {name: inputs.pop(name) for name in self._chunk_shapes}
        seen = {feature.name: inputs[feature.name] for feature in self.spec.observations if not feature.constant}
        return {**seen, **self._goal.shapes, **chunk}

    def feed(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> dict[str, Array]:
        """What the graph is given for a chunk, by name; valid until the next call."""
        inputs = {**observation, "noise": noise, "committed": committed, "hold": hold}
        for name, buffer in self._buffers.items():
            buffer[0] = inputs[name]
        return self._buffers | (self._goal.digest(observation) if self._goal else {})

    def _plan(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        inputs = self.feed(observation, noise, committed, hold)
        actions, disagreement, arrival = self._session.run(list(graph_outputs(self.spec)), inputs)
        self.disagreement, self.arrival = float(disagreement[0]), float(arrival[0])
        return actions[0]


class Goal:
    """What a graph of its own makes of the constant features; it runs again when one of them has changed.

    Args:
        graph: Serialised ONNX model.
        spec: Contract of the policy.
        threads: Threads of ONNX Runtime.

    Raises:
        BundleError: The graph is damaged, or differs from the contract.
    """

    def __init__(self, graph: bytes, spec: Spec, threads: int) -> None:
        inputs, types = graph_inputs(spec), graph_types(spec)
        constant = {feature.name: inputs[feature.name] for feature in spec.observations if feature.constant}
        with part(GOAL):
            self._session = open_session(graph, threads)
            check_signature("input", self._session.get_inputs(), constant, types)
            self.shapes, self.types = digest_of(self._session)
        self._buffers = {name: np.zeros(shape, types.get(name, np.float32)) for name, shape in constant.items()}
        self._digest: dict[str, Array] = {}

    def digest(self, observation: Observation) -> dict[str, Array]:
        """What the other graph takes in place of the constant features."""
        given = {name: np.asarray(observation[name], buffer.dtype) for name, buffer in self._buffers.items()}
        changed = [name for name, buffer in self._buffers.items() if not np.array_equal(buffer[0], given[name])]
        if changed or not self._digest:
            self._digest = {}  # should the graph fail, what it made of the last goal is not that of this one
            for name in changed:
                self._buffers[name][0] = given[name]
            self._digest = dict(zip(self.shapes, self._session.run(None, self._buffers), strict=True))
        return self._digest


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """Name the part of the bundle in errors."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{name}: {error}") from error


def digest_of(session: Session) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shape and number type of what one graph hands to another.

    Raises:
        BundleError: A shape is left open.
    """
    found = session.get_outputs()
    shapes = {value.name: tuple(n if isinstance(n, int) else 1 for n in value.shape) for value in found}
    types = {value.name: value.type[len("tensor(") : -1].replace("float", "float32") for value in found}
    check_signature("output", found, shapes, types)
    return shapes, types


def open_session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Load a graph that needs nothing but itself in ONNX Runtime.

    Raises:
        BundleError: It is damaged or refers to other files.
    """
    return _opened(graph, threads, onnx_runtime, ONNX_RUNTIME)


def _opened(graph: bytes, threads: int, load: Callable[[bytes, int], SessionT], backend: str) -> SessionT:
    try:
        model = onnx.load_model_from_string(graph)
        # Checked here because ONNX Runtime would read such files relative to the working directory.
        outside = [t.name for t in _tensors(model) if t.external_data or t.data_location == t.EXTERNAL]
        if outside:
            raise BundleError(
                f"the graph keeps '{outside[0]}' in an external file; export with the weights inside the graph"
            )
        return load(graph, threads)
    except BundleError:
        raise
    except Exception as error:  # the errors of back ends and protobuf have no other common base
        raise BundleError(f"the graph does not load in {version(backend)}: {error}") from error


def bind(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
) -> Callable[[], None]:
    """Tie a graph to arrays, which the caller keeps: the function that comes back reads and writes them in place.

    Raises:
        BundleError: The graph takes or returns something else.
    """
    for kind, found, arrays in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        types = {name: str(array.dtype) for name, array in arrays.items()}
        check_signature(kind, found, {name: array.shape for name, array in arrays.items()}, types)
    binding = session.io_binding()
    for put, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, array in arrays.items():
            put(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return functools.partial(session.run_with_iobinding, binding)


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Walk every tensor of a model: initializers, constants, attributes, subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for item in (value,) if isinstance(value, (Message, str, bytes, int, float)) else value:
            if isinstance(item, Message):
                yield from _tensors(item)


def check_signature(
    kind: str,
    found: Sequence[Any],
    expected: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Check the inputs or the outputs of a session.

    Args:
        kind: What they are, for messages.
        found: As the session names them.
        expected: Their shapes, in order.
        types: Number types of those that are not float32.

    Raises:
        BundleError: They are not the expected tensors in the expected order.
    """
    names = [value.name for value in found]
    if names != list(expected):
        raise BundleError(f"graph {kind}s are {names}, the contract needs {list(expected)} in this order; export again")
    for value in found:
        numbers = f"tensor({types.get(value.name, 'float32').replace('float32', 'float')})"
        if value.type != numbers or tuple(value.shape) != expected[value.name]:
            raise BundleError(
                f"graph {kind} '{value.name}' is {value.type} {tuple(value.shape)}, "
                f"the contract needs {numbers} {expected[value.name]}; export the policy again"
            )
