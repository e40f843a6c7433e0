"""What computes a graph: ONNX Runtime, or OpenVINO, which is optional and on some processors faster.

A back end is a name in `BACKENDS` and a function that makes a `Session` of a graph.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import onnx
import onnxruntime

from policies.spec import Array

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
MODULES = {ONNX_RUNTIME: "onnxruntime", OPENVINO: "openvino"}


class Session(Protocol):
    """A graph that is ready to run, with the methods that ONNX Runtime has for it."""

    def get_inputs(self) -> Sequence[Any]:
        """In the order of the graph, each with the attributes of a `Value`."""

    def get_outputs(self) -> Sequence[Any]:
        """In the order of the graph, each with the attributes of a `Value`."""

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Compute outputs by their names, or all; the arrays are the caller's."""


class Value(NamedTuple):
    """An input or output of a graph, its type for example ``"tensor(float)"``."""

    name: str
    type: str
    shape: tuple[int, ...]


class OpenVino:
    """A graph in OpenVINO (``pip install 'kinoflow[openvino]'``).

    Args:
        graph: Serialised ONNX model.
        threads: That compute; one keeps the jitter low.
    """

    def __init__(self, graph: bytes, threads: int) -> None:
        core = _core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # of what is not rounded; else bfloat16 where the processor has it
            "ENABLE_CPU_PINNING": False,  # the scheduler knows what else runs here
        }
        compiled = core.compile_model(core.read_model(graph), "CPU", options)
        known = onnx.load_model_from_string(graph).graph
        self._inputs, self._outputs = ([_value(value) for value in values] for values in (known.input, known.output))
        self._ports = {value.name: compiled.output(value.name) for value in self._outputs}
        self._request = compiled.create_infer_request()

    def get_inputs(self) -> list[Value]:
        return self._inputs

    def get_outputs(self) -> list[Value]:
        return self._outputs

    def run(self, outputs: Sequence[str] | None, inputs: Mapping[str, Array]) -> list[Array]:
        self._request.infer(inputs, share_inputs=True)
        return [self._request.get_tensor(self._ports[name]).data.copy() for name in outputs or self._ports]


@functools.cache
def _core() -> Any:
    """The only one of the process: with each goes the stack that it made this thread handle signals on."""
    import openvino

    return openvino.Core()


def _value(value: onnx.ValueInfoProto) -> Value:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name.replace("float32", "float")
    return Value(value.name, f"tensor({kind})", tuple(size.dim_value for size in tensor.shape.dim))


def onnx_runtime(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A graph in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what matters is raised
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


BACKENDS: dict[str, Callable[[bytes, int], Session]] = {ONNX_RUNTIME: onnx_runtime, OPENVINO: OpenVino}


def installed() -> list[str]:
    """Names of the back ends that are there."""
    return [name for name in BACKENDS if importlib.util.find_spec(MODULES[name])]


def version(backend: str) -> str:
    """Name and version of a back end, for messages."""
    return f"{backend} {importlib.metadata.version(MODULES[backend])}"
