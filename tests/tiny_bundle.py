"""A small bundle whose graph is written by hand, so that its tests need no torch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from policies.bundle import GRAPH, Latency, Manifest, Sampler, write_bundle
from policies.network import graph_inputs, graph_outputs
from policies.spec import ActionSpec, Array, Feature, Spec

SPEC = Spec(
    observations=(Feature("pose", (3,), "m, rad", "odom"), Feature("grid", (2, 4), "1", "base_link")),
    action=ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -2.0), (1.0, 2.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)
WEIGHT = np.linspace(-1, 1, 6000, dtype=np.float32)

Members = dict[str, bytes]


def make_graph(spec: Spec = SPEC) -> bytes:
    """A graph that holds the committed actions; elsewhere it shifts the noise by two means and the largest weight."""
    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in graph_inputs(spec).items()]
    outputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in graph_outputs(spec).items()]
    nodes = [
        helper.make_node("ReduceMean", ["pose"], ["a"], keepdims=0),
        helper.make_node("ReduceMean", ["grid"], ["b"], keepdims=0),
        helper.make_node("ReduceMax", ["weight"], ["c"], keepdims=0),
        helper.make_node("Sum", ["noise", "a", "b", "c"], ["free"]),
        helper.make_node("Unsqueeze", ["hold", "last"], ["held"]),
        helper.make_node("Sub", ["committed", "free"], ["change"]),
        helper.make_node("Mul", ["held", "change"], ["pull"]),
        helper.make_node("Add", ["free", "pull"], ["actions"]),
        helper.make_node("ReduceMax", ["weight"], ["disagreement"], keepdims=1),
        helper.make_node("ReduceMean", ["hold", "last"], ["arrival"], keepdims=0),
    ]
    weights = [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(np.array([-1]), "last")]
    graph = helper.make_graph(nodes, "plan", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def expected(observation: dict[str, Array], noise: Array, committed: Array, hold: Array) -> Array:
    """What the graph computes."""
    free = noise + observation["pose"].mean() + observation["grid"].mean() + 1
    return free + hold[:, None] * (committed - free)


def draw(seed: int) -> tuple[dict[str, Array], Array, Array, Array]:
    """Inputs of `act`."""
    rng = np.random.default_rng(seed)
    observation = {f.name: rng.standard_normal((2, *f.shape), np.float32) for f in SPEC.observations}
    noise, committed = (rng.standard_normal((8, 2), np.float32) for _ in range(2))
    return observation, noise, committed, rng.random(8, np.float32)


def make_golden() -> dict[str, Array]:
    """Inputs and output of the graph, batch first."""
    observation, noise, committed, hold = draw(0)
    arrays = {**observation, "noise": noise, "committed": committed, "hold": hold}
    arrays["actions"] = expected(observation, noise, committed, hold)
    batch = {name: array[None] for name, array in arrays.items()}
    return {**batch, "disagreement": np.ones(1, np.float32), "arrival": hold.mean(keepdims=True)}


def write(path: Path, **changes: Any) -> Manifest:
    """Write a bundle, with changes to the arguments of `write_bundle`."""
    content: dict[str, Any] = {
        "graphs": {GRAPH: make_graph()},
        "weights": b"weights that only training reads",
        "settings": b'{"head": "policies.tiny:Tiny", "steps": 2}',
        "spec": SPEC,
        "golden": make_golden(),
        "name": "policies.tiny:Tiny",
        "sampler": Sampler(2, (0.0, 0.5, 1.0), 1.0),
        "normalisation": {"pose": {"offset": [0.0, 0.0, 0.0], "scale": [1.0, 1.0, 1.0]}},
        "latency": Latency(1.0, 2.0, 1, "cpu"),
        "max_error": 1e-7,
        "provenance": {"recipe": "tiny", "seeds": [0]},
    }
    return write_bundle(path, **{**content, **changes})


def parts(path: Path) -> Members:
    """The members of a bundle."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def flipped(path: Path) -> Iterator[bytes]:
    """A bundle with a random bit of each of its members flipped."""
    rng, content = np.random.default_rng(0), path.read_bytes()
    for member in parts(path).values():
        damaged, begin = bytearray(content), content.index(member)
        damaged[begin + int(rng.integers(len(member)))] ^= 1 << int(rng.integers(8))
        yield bytes(damaged)
