"""A bundle that drives straight at the goal, as a graph written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import GRAPH, Latency, Sampler, write_bundle
from policies.network import Network, graph_inputs, graph_outputs
from policies.spec import Array, Spec

HORIZON = 16


def graph(spec: Spec) -> bytes:
    """Command 0.8 times the goal within the limits, at most 0.5 m/s forward, and turn towards it."""
    size, dim = len(spec.action.names) - 1, spec.action.dim
    matrix = np.zeros((size, dim), np.float32)
    matrix[:, :size] = 0.8 * np.eye(size)
    matrix[1, -1] = 0.8
    bounds = {
        "low": np.array(spec.action.low, np.float32),
        "high": np.array(spec.action.high, np.float32).clip(None, 0.5),
    }
    constants = {
        **bounds,
        "matrix": matrix,
        "newest": np.array([-1]),
        "last": np.array([-1]),
        "alone": np.zeros(1, np.float32),
    }
    repeated = np.array([1, spec.horizon, 1])
    node = helper.make_node
    nodes = [
        node("Gather", ["goal", "newest"], ["now"], axis=1),
        node("MatMul", ["now", "matrix"], ["wanted"]),
        node("Min", ["wanted", "high"], ["below"]),
        node("Max", ["below", "low"], ["command"]),
        node("Tile", ["command", "repeated"], ["free"]),
        node("Unsqueeze", ["hold", "last"], ["held"]),
        node("Sub", ["committed", "free"], ["change"]),
        node("Mul", ["held", "change"], ["pull"]),
        node("Add", ["free", "pull"], ["actions"]),
        node("Identity", ["alone"], ["disagreement"]),
        node("Identity", ["alone"], ["arrival"]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in {**constants, "repeated": repeated}.items()]
    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in graph_inputs(spec).items()]
    outputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in graph_outputs(spec).items()]
    model = helper.make_graph(nodes, "straight", inputs, outputs, weights)
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def write(path: Path, contract: Spec, provenance: dict[str, Any]) -> Path:
    """Write the bundle for an environment's contract."""
    spec = dataclasses.replace(contract, history=2, horizon=HORIZON)
    content = graph(spec)
    golden: dict[str, Array] = {name: np.ones(shape, np.float32) for name, shape in graph_inputs(spec).items()}
    observation = {feature.name: golden[feature.name][0] for feature in spec.observations}
    rest = (golden[name][0] for name in ("noise", "committed", "hold"))
    golden["actions"] = Network(content, spec).act(observation, *rest)[None]
    golden |= {name: np.zeros(1, np.float32) for name in ("disagreement", "arrival")}
    write_bundle(
        path,
        {GRAPH: content},
        b"no weights: the graph is written by hand",
        b"{}",
        spec,
        golden,
        name="straight:Line",
        sampler=Sampler(1, (0.0, 1.0), 1.0),
        normalisation={},
        latency=Latency(1.0, 2.0, 1, "any"),
        max_error=0.0,
        provenance=provenance,
    )
    return path
