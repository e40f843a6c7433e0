"""A small composed bundle whose graphs are written by hand: two parents that stall, fail or answer as they are told.

Each parent plans the mean of its own observation for every action, unless that mean says otherwise, see `Mode`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import Consensus, Latency, Manifest, Sampler, open_graphs, write_bundle
from policies.manifest import Parent, parent_graphs
from policies.network import graph_inputs
from policies.runtime.ensemble import Ensemble
from policies.spec import ActionSpec, Array, Feature, Spec

SPEC = Spec(
    observations=(Feature("pose", (3,), "m", "odom"), Feature("scan", (4,), "m", "base_link")),
    action=ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-9.0, -9.0), (9.0, 9.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)
SAMPLER = Sampler(3, (0.0, 0.25, 0.5, 1.0), 1.0)
OFFSET, SCALE = (0.5, 0.0), (2.0, 1.0)
FAIL, NAN, STALL = 10.0, 20.0, 30.0
"""What a parent that observes this does, instead of planning it."""
TURNS = 120_000  # of the loop in which a parent stalls: seconds on any machine

Members = dict[str, bytes]


def encode(feature: Feature, history: int) -> bytes:
    """The mean of an observation."""
    nodes = [helper.make_node("ReduceMean", [feature.name], ["mean"], keepdims=0)]
    nodes.append(helper.make_node("Reshape", ["mean", "shape"], ["c0"]))
    inputs = {feature.name: (1, history, *feature.shape)}
    return _model(nodes, inputs, {"c0": (1, 1, 1)}, {"shape": np.array([1, 1, 1])})


def estimate(spec: Spec = SPEC, turns: int = TURNS) -> bytes:
    """Plans c0; fails, says NaN or works for a long time where c0 says so."""
    node = helper.make_node
    body = helper.make_graph(
        [node("Sin", ["old"], ["new"]), node("Identity", ["go"], ["goes"])],
        "body",
        [_value("turn", (), TensorProto.INT64), _value("go", (), TensorProto.BOOL), _value("old", (4000,))],
        [_value("goes", (), TensorProto.BOOL), _value("new", (4000,))],
    )
    nodes = [
        node("Squeeze", ["c0"], ["mean"]),
        node("Equal", ["mean", "fail"], ["fails"]),
        node("Cast", ["fails"], ["index"], to=TensorProto.INT64),
        node("Gather", ["zero", "index"], ["nothing"]),  # there is no index 1
        node("Equal", ["mean", "nan"], ["nans"]),
        node("Where", ["nans", "not_a_number", "c0"], ["said"]),
        node("Equal", ["mean", "stall"], ["stalls"]),
        node("Where", ["stalls", "turns", "none"], ["count"]),
        node("Loop", ["count", "", "work"], ["worked"], body=body),
        node("ReduceMax", ["worked"], ["most"], keepdims=0),
        node("Mul", ["most", "nothing"], ["done"]),
        node("Mul", ["x", "done"], ["zeros"]),
        node("Add", ["zeros", "said"], ["data"]),
        node("Identity", ["x"], ["noise"]),
    ]
    chunk = (1, *spec.noise_shape)
    numbers = {"fail": FAIL, "nan": NAN, "stall": STALL, "not_a_number": np.nan}
    constants = {name: np.array(value, np.float32) for name, value in numbers.items()}
    constants |= {"zero": np.zeros(1, np.float32), "work": np.ones(4000, np.float32)}
    constants |= {"turns": np.array(turns), "none": np.array(0)}
    return _model(nodes, {"c0": (1, 1, 1), "x": chunk, "step": ()}, {"data": chunk, "noise": chunk}, constants)


def consensus(
    spec: Spec = SPEC, weights: tuple[float, float] = (0.75, 0.25), ends: tuple[int, int] = (8, 8)
) -> Consensus:
    """Two parents that plan the first ``ends`` actions of the chunk."""
    there = np.array([np.arange(spec.horizon) < end for end in ends]) * np.array(weights)[:, None]
    rows = np.repeat((there / there.sum(0))[..., None], spec.action.dim, -1)
    parents = tuple(
        Parent(f"parent_{k} (Tiny)", (feature.name,), 1 + k, 0, ends[k], tuple(map(tuple, rows[k].tolist())))
        for k, feature in enumerate(spec.observations[:2])
    )
    return Consensus(parents, OFFSET, SCALE)


def graphs(spec: Spec = SPEC, turns: int = TURNS) -> Members:
    """The four graphs of the two parents by name."""
    made: Members = {}
    for k, feature in enumerate(spec.observations[:2]):
        made |= zip(parent_graphs(k), (encode(feature, 1 + k), estimate(spec, turns)), strict=True)
    return made


def make(turns: int = TURNS, **changes: Any) -> Ensemble:
    """Both parents as a policy that has answered once; changes are those of `consensus`."""
    ensemble = open_graphs(graphs(turns=turns), SPEC, SAMPLER, consensus(**changes))
    assert isinstance(ensemble, Ensemble)
    ensemble.warm_up(1)
    return ensemble


def request(first: float, second: float) -> tuple[dict[str, Array], Array, Array, Array]:
    """Arguments of `act`: what the two parents are to plan, in normal units."""
    noise = np.random.default_rng(0).standard_normal(SPEC.noise_shape, np.float32)
    observation = {
        f.name: np.full((2, *f.shape), value, np.float32)
        for f, value in zip(SPEC.observations, (first, second), strict=True)
    }
    return observation, noise, np.zeros((8, 2), np.float32), np.zeros(8, np.float32)


def planned(value: float) -> Array:
    """Actions that are ``value`` in normal units."""
    return np.tile(np.array(SCALE, np.float32) * np.float32(value) + np.array(OFFSET, np.float32), (8, 1))


def golden() -> dict[str, Array]:
    """An input with what comes out, batch first."""
    observation, noise, committed, hold = request(1.0, 3.0)
    inputs = {**observation, "noise": noise, "committed": committed, "hold": hold, "actions": planned(1.5)}
    spread = np.full(1, np.sqrt(0.75 * 0.25) * 2, np.float32)
    batch = {name: value[None] for name, value in inputs.items()}
    return {**batch, "disagreement": spread, "arrival": np.zeros(1, np.float32)}


def write(path: Path, **changes: Any) -> Manifest:
    """Write the composed bundle, with changes to the arguments of `write_bundle`."""
    content: dict[str, Any] = {
        "graphs": graphs(),
        "weights": b"weights that only training reads",
        "settings": b"{}",
        "spec": SPEC,
        "golden": golden(),
        "name": "tiny:Composition",
        "sampler": SAMPLER,
        "normalisation": {},
        "latency": Latency(1.0, 2.0, 1, "cpu"),
        "max_error": 0.0,
        "provenance": {},
        "consensus": consensus(),
    }
    return write_bundle(path, **{**content, **changes})


def with_parent(index: int, **changes: Any) -> Consensus:
    """The consensus with another parent."""
    whole = consensus()
    parents = list(whole.parents)
    parents[index] = dataclasses.replace(parents[index], **changes)
    return dataclasses.replace(whole, parents=tuple(parents))


def _value(name: str, shape: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, Array]) -> bytes:
    taken = [_value(name, s, TensorProto.INT64 if name == "step" else TensorProto.FLOAT) for name, s in inputs.items()]
    given = [_value(name, shape) for name, shape in outputs.items()]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "parent", taken, given, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


assert set(golden()) == {*graph_inputs(SPEC), "actions", "disagreement", "arrival"}
