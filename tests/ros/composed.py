"""A composed bundle of two parents that drive straight at the goal; the second stalls when it sees nothing anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from straight import HORIZON

from policies.bundle import Consensus, Latency, Sampler, open_graphs, write_bundle
from policies.manifest import Parent, parent_graphs
from policies.network import graph_inputs
from policies.spec import Array, Spec

FAR_M = 5.9  # nearest range beyond which the second parent stalls
TURNS = 100_000.0  # of the loop in which it does: seconds
SAMPLER = Sampler(2, (0.0, 0.5, 1.0), 1.0)


def encode(spec: Spec, names: tuple[str, ...]) -> bytes:
    """The command towards the goal, and how long to dwell on it."""
    size, dim = len(spec.action.names) - 1, spec.action.dim
    matrix = np.zeros((size, dim), np.float32)
    matrix[:, :size] = 0.8 * np.eye(size)
    matrix[1, -1] = 0.8
    node = helper.make_node
    nodes = [
        node("Gather", ["goal", "newest"], ["now"], axis=1),
        node("MatMul", ["now", "matrix"], ["wanted"]),
        node("Min", ["wanted", "high"], ["below"]),
        node("Max", ["below", "low"], ["c0"]),
        node("ReduceMin", ["scan" if "scan" in names else "near"], ["nearest"], keepdims=0),
        node("Greater", ["nearest", "far"], ["lost"]),
        node("Where", ["lost", "turns", "near"], ["c1"]),
    ]
    numbers = {"near": np.zeros(1), "far": np.array(FAR_M), "turns": np.array([TURNS]), "matrix": matrix}
    numbers |= {"low": np.array(spec.action.low), "high": np.array(spec.action.high).clip(None, 0.5)}
    constants = {name: value.astype(np.float32) for name, value in numbers.items()} | {"newest": np.array([-1])}
    shapes = {feature.name: (1, spec.history, *feature.shape) for feature in spec.observations if feature.name in names}
    return _model(nodes, shapes, {"c0": (1, 1, dim), "c1": (1,)}, constants)


def estimate(spec: Spec) -> bytes:
    """The command for every action of the chunk, after as many turns as were asked for."""
    node, chunk = helper.make_node, (1, *spec.noise_shape)
    body = helper.make_graph(
        [node("Sin", ["old"], ["new"]), node("Identity", ["go"], ["goes"])],
        "body",
        [_value("turn", (), TensorProto.INT64), _value("go", (), TensorProto.BOOL), _value("old", (4000,))],
        [_value("goes", (), TensorProto.BOOL), _value("new", (4000,))],
    )
    nodes = [
        node("Cast", ["c1"], ["whole"], to=TensorProto.INT64),
        node("Squeeze", ["whole"], ["count"]),
        node("Loop", ["count", "", "work"], ["worked"], body=body),
        node("ReduceMax", ["worked"], ["done"], keepdims=0),
        node("Mul", ["x", "done"], ["zeros"]),
        node("Add", ["zeros", "c0"], ["data"]),
        node("Identity", ["x"], ["noise"]),
    ]
    inputs = {"c0": (1, 1, spec.action.dim), "c1": (1,), "x": chunk, "step": ()}
    return _model(nodes, inputs, {"data": chunk, "noise": chunk}, {"work": np.zeros(4000, np.float32)})


def write(path: Path, contract: Spec) -> Path:
    """Write the bundle for an environment's contract."""
    spec = dataclasses.replace(contract, history=2, horizon=HORIZON)
    seen = (("goal",), ("goal", "scan"))
    weights = tuple((0.5,) * spec.action.dim for _ in range(HORIZON))
    parents = tuple(Parent(f"parent_{k}", names, 2, 0, HORIZON, weights) for k, names in enumerate(seen))
    agreed = Consensus(parents, (0.0,) * spec.action.dim, (1.0,) * spec.action.dim)
    graphs: dict[str, bytes] = {}
    for index, names in enumerate(seen):
        graphs |= zip(parent_graphs(index), (encode(spec, names), estimate(spec)), strict=True)
    golden: dict[str, Array] = {name: np.ones(shape, np.float32) for name, shape in graph_inputs(spec).items()}
    observation = {feature.name: golden[feature.name][0] for feature in spec.observations}
    rest = (golden[name][0] for name in ("noise", "committed", "hold"))
    golden["actions"] = open_graphs(graphs, spec, SAMPLER, agreed).act(observation, *rest)[None]
    golden |= {name: np.zeros(1, np.float32) for name in ("disagreement", "arrival")}
    written = {"name": "composed:Line", "sampler": SAMPLER, "normalisation": {}, "max_error": 0.0, "provenance": {}}
    latency = Latency(1.0, 2.0, 1, "any")
    write_bundle(path, graphs, b"", b"{}", spec, golden, latency=latency, consensus=agreed, **written)  # type: ignore[arg-type]
    return path


def _value(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> helper.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[helper.NodeProto],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: dict[str, Array],
) -> bytes:
    taken = [_value(name, s, TensorProto.INT64 if name == "step" else TensorProto.FLOAT) for name, s in inputs.items()]
    given = [_value(name, shape) for name, shape in outputs.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "parent", taken, given, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
