"""How quick the matrix products of a graph could be: the limits of one core, and the products without the rest.

A product takes at least as long as its arithmetic at the peak rate of the core and at least as long as reading its
weights (Williams, Waterman and Patterson, Roofline, CACM 2009); the sum over the products is a floor for the graph.
Both limits are measured: the peak with a large product, reading with a buffer as large as the weights, so that caches
count as they do for the weights. How close a library comes to that with so few rows is another question, which the
same products in a graph of their own answer.

Counted are products, quantised or not, and convolutions, as the products that compute them; in that graph they are
such products. Everything else, and reading what is no weight, counts as free, which makes the floor lower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
    tensor_dtype_to_np_dtype,
)
from onnx.numpy_helper import from_array, to_array

from benchmarks.latency import Arm, medians, timed
from policies.bundle import read_graphs
from policies.network import GOAL, bind, open_session
from policies.spec import Array

SIDE = 1024  # of the square product that measures the peak
FLOAT, INTEGER = "float32", "int8"
LIBRARIES = ("torch", "onnxruntime")
TIMES = {
    "arithmetic": "their arithmetic at the peak rate",
    "memory": "reading their weights",
    "floor": "the longer of both, product by product",
    "alone": "the products alone in ONNX Runtime",
}
OPSET, IR_VERSION = 17, 8  # which every supported ONNX Runtime reads
# Index of the right operand of the operators that multiply; convolutions have their weights there.
RIGHT = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "Conv", "ConvInteger"), 1),
    **dict.fromkeys(("FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"), 1),  # ONNX Runtime's own
    **dict.fromkeys(("QLinearMatMul", "QLinearConv", "QGemm"), 3),
}
PASSING = ("DequantizeLinear", "Transpose", "Reshape", "Identity")  # what may stand between weights and a product


@dataclass(frozen=True)
class Product:
    """The product of ``(copies, rows, inner)`` and ``(copies, inner, columns)``.

    Args:
        copies: Such products side by side, for example one per attention head.
        rows: Of the left matrix.
        inner: Columns of the left and rows of the right matrix.
        columns: Of the right matrix.
        number: Number type of the arithmetic, ``"float32"`` or ``"int8"``.
        weights: Name of the right matrix if it is stored in the graph, otherwise empty.
        weight_bytes: What is stored.
    """

    copies: int
    rows: int
    inner: int
    columns: int
    number: str = FLOAT
    weights: str = ""
    weight_bytes: int = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.copies * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Limits:
    """What the core can do.

    Args:
        rates: Operations per second by number type.
        read: Bytes per second.
    """

    rates: Mapping[str, float]
    read: float


def bundle_products(bundle: Path) -> list[Product]:
    """Every product of one chunk towards a known goal, in the most steps; those of a composition's parents in turn.

    Raises:
        BundleError: The bundle is damaged.
    """
    manifest, graphs = read_graphs(bundle)
    found = []
    for name, graph in graphs.items():
        runs = 0 if name == GOAL or "@" in name else manifest.sampler.steps if name.endswith("estimate.onnx") else 1
        named = [replace(p, weights=p.weights and f"{name}/{p.weights}") for p in products(graph)] if runs else []
        found += runs * named
    return found


def products(graph: bytes) -> list[Product]:
    """Every product of a serialised graph whose shapes are fixed, in order.

    Shapes are those of a run: onnx infers none behind ONNX Runtime's own operators.
    """
    model = onnx.load_model_from_string(graph)
    kept = {tensor.name for tensor in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}

    def origin(name: str) -> str:
        return origin(made[name].input[0]) if name in made and made[name].op_type in PASSING else name

    nodes = [node for node in model.graph.node if node.op_type in RIGHT]
    operands = [(node.input[0], node.input[RIGHT[node.op_type]], node.output[0]) for node in nodes]
    values = _run(model, {name for names in operands for name in (*names, *map(origin, names))})
    found = []
    for node, (left, right, out) in zip(nodes, operands, strict=True):
        inner, columns = _sizes(node, values[left], values[right])
        copies = max(1, values[right].size // (inner * columns))
        narrow = values[origin(right)].itemsize == 1
        integer = narrow and (values[origin(left)].itemsize == 1 or node.op_type == "DynamicQuantizeMatMul")
        weights = origin(right) if origin(right) in kept else ""
        rows = values[out].size // (copies * columns)
        size = values[weights].nbytes if weights else 0
        found.append(Product(copies, rows, inner, columns, INTEGER if integer else FLOAT, weights, size))
    return found


def floor(found: Iterable[Product], limits: Limits) -> dict[str, float]:
    """Least seconds: of their ``arithmetic``, of reading their weights (``memory``) and (``floor``) of both."""
    times = [(p.operations / limits.rates[p.number], p.weight_bytes / limits.read) for p in found]
    arithmetic, memory = (sum(time[which] for time in times) for which in (0, 1))
    return {"arithmetic": arithmetic, "memory": memory, "floor": sum(map(max, times))}


def summary(found: Iterable[Product]) -> list[dict[str, Any]]:
    """Equal products together, as plain JSON values with their ``count``, the most arithmetic first."""
    kinds = Counter(replace(product, weights="") for product in found)
    fields = ("copies", "rows", "inner", "columns", "number", "weight_bytes")
    ordered = sorted(kinds.items(), key=lambda item: -item[0].operations * item[1])
    return [{"count": count, **{name: getattr(kind, name) for name in fields}} for kind, count in ordered]


def limit_arms(found: Sequence[Product], side: int = SIDE) -> dict[str, Arm]:
    """Arms that measure the core, and ``products``, which are the products without the rest.

    Args:
        found: Products of a graph.
        side: Of the square product that measures the peak, in two libraries of which the quicker counts.
    """
    buffer = torch.ones(stored(found) // 4)
    left, right, result = (torch.rand(side, side) for _ in range(3))
    whole = torch.randint(-127, 128, (2, side, side), dtype=torch.int8)
    square = Product(1, side, side, side, weights="square")
    return {
        f"{FLOAT} torch": Arm("torch", timed(lambda: torch.mm(left, right, out=result)), calls=3),
        f"{FLOAT} onnxruntime": Arm("ONNX Runtime", timed(Alone([square])), calls=3),
        f"{INTEGER} torch": Arm("torch", timed(lambda: torch._int_mm(*whole)), calls=3),
        f"{INTEGER} onnxruntime": Arm("ONNX Runtime", timed(Alone([replace(square, number=INTEGER)])), calls=3),
        "read": Arm("torch", timed(buffer.sum), calls=10),
        "products": Arm("ONNX Runtime", timed(Alone(found)), calls=20),
    }


def limits(seconds: Mapping[str, float], found: Sequence[Product], side: int = SIDE) -> Limits:
    """What the core can do, from the seconds that the arms of `limit_arms` take; other arguments as for these."""
    quickest = {number: min(seconds[f"{number} {library}"] for library in LIBRARIES) for number in (FLOAT, INTEGER)}
    return Limits({number: 2 * side**3 / took for number, took in quickest.items()}, stored(found) / seconds["read"])


def report(
    wall: Mapping[str, Array], cpu: Mapping[str, Array], found: Sequence[Product], side: int = SIDE
) -> dict[str, dict[str, Any]]:
    """How near a bundle is to what the core allows.

    Args:
        wall: Seconds of a race of ``bundle`` and the arms of `limit_arms`.
        cpu: Their processor seconds.
        found: Products of the bundle.
        side: As for `limit_arms`.

    Returns:
        ``limits``: operations per second by number type and library, and bytes per second of reading as many bytes as
        the weights have. ``roofline``: milliseconds of the `floor`, of its parts and of the products ``alone``, their
        ``shares`` of the time of a chunk, the same of processor time in ``cpu_shares``, and the products. All times
        are medians.
    """
    middle, worked = medians(wall), medians(cpu)
    arms = [f"{number} {library}" for number in (FLOAT, INTEGER) for library in LIBRARIES]
    times = _times(middle, found, side)
    return {
        "limits": {
            "operations_per_s": {name: 2 * side**3 / middle[name] for name in arms},
            "read_bytes": stored(found),
            "read_bytes_per_s": stored(found) / middle["read"],
        },
        "roofline": {
            "operations": sum(product.operations for product in found),
            "weight_bytes": sum(product.weight_bytes for product in found),
            "ms": {name: 1e3 * seconds for name, seconds in times.items()},
            "shares": {name: seconds / middle["bundle"] for name, seconds in times.items()},
            "cpu_shares": {name: took / worked["bundle"] for name, took in _times(worked, found, side).items()},
            "products": summary(found),
        },
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `report` as tables."""
    core, roof = result["limits"], result["roofline"]
    rates = [f"  {name:<46}{rate / 1e9:9.1f} G operations/s" for name, rate in core["operations_per_s"].items()]
    reading = f"reading {core['read_bytes'] / 1e6:.1f} MB, the size of the weights"
    work = f"{roof['operations'] / 1e6:.0f} M operations, {roof['weight_bytes'] / 1e6:.1f} MB of weights read"
    rows = [
        f"  {text:<46}{roof['ms'][name]:9.2f}{roof['shares'][name]:14.0%}{roof['cpu_shares'][name]:19.0%}"
        for name, text in TIMES.items()
    ]
    return "\n".join(
        [
            "limits of the core",
            *rates,
            f"  {reading:<46}{core['read_bytes_per_s'] / 1e9:9.1f} GB/s",
            f"products of a chunk: {work}",
            f"  {'':<46}{'ms':>9}{'share of p50':>14}{'of processor time':>19}",
            *rows,
        ]
    )


def stored(found: Iterable[Product]) -> int:
    """Bytes of the weights of products, however often they are read."""
    return sum({product.weights: product.weight_bytes for product in found}.values())


class Alone:
    """Products in ONNX Runtime, each from an input of its own, and nothing else.

    Those of int8 take unsigned left and signed right matrices, as ONNX Runtime's own quantisation makes them.
    """

    def __init__(self, found: Sequence[Product]) -> None:
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}
        constants: dict[str, Array] = {}
        nodes = []
        for index, product in enumerate(found):
            integer = product.number == INTEGER
            copies = () if product.copies == 1 else (product.copies,)
            left, right, out = f"left{index}", product.weights or f"right{index}", f"out{index}"
            shapes = (*copies, product.rows, product.inner), (*copies, product.inner, product.columns)
            self._inputs[left] = np.ones(shapes[0], np.uint8 if integer else np.float32)
            kept = constants if product.weights else self._inputs
            kept.setdefault(right, np.ones(shapes[1], np.int8 if integer else np.float32))
            self._outputs[out] = np.zeros((*shapes[0][:-1], product.columns), np.int32 if integer else np.float32)
            nodes.append(make_node("MatMulInteger" if integer else "MatMul", [left, right], [out]))
        weights = [from_array(value, name) for name, value in constants.items()]
        graph = make_graph(nodes, "products", _signature(self._inputs), _signature(self._outputs), weights)
        model = make_model(graph, opset_imports=[make_opsetid("", OPSET)], ir_version=IR_VERSION)
        self._run = bind(open_session(model.SerializeToString(), threads=1), self._inputs, self._outputs)

    def __call__(self) -> None:
        self._run()


def _times(seconds: Mapping[str, float], found: Sequence[Product], side: int) -> dict[str, float]:
    return {**floor(found, limits(seconds, found, side)), "alone": seconds["products"]}


def _signature(arrays: Mapping[str, Array]) -> list[onnx.ValueInfoProto]:
    return [make_tensor_value_info(name, np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in arrays.items()]


def _run(model: onnx.ModelProto, names: set[str]) -> dict[str, Array]:
    """Values of tensors of a graph whose inputs are zeros; what it computes with stays as it is."""
    kept = {tensor.name: to_array(tensor) for tensor in model.graph.initializer if tensor.name in names}
    inputs = {
        value.name: np.zeros(
            [size.dim_value for size in value.type.tensor_type.shape.dim],
            tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in model.graph.input
    }
    wanted = sorted(names - kept.keys() - inputs.keys())
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = open_session(probe.SerializeToString(), threads=1)
    return kept | inputs | dict(zip(wanted, session.run(wanted, inputs), strict=True))


def _sizes(node: onnx.NodeProto, left: Array, right: Array) -> tuple[int, int]:
    """Rows and columns of the right matrix."""
    if "Conv" in node.op_type:
        return right[0].size, len(right)
    turned = {attribute.name: attribute.i for attribute in node.attribute if attribute.name in ("transA", "transB")}
    return left.shape[-2 if turned.get("transA") else -1], right.shape[-2 if turned.get("transB") else -1]
