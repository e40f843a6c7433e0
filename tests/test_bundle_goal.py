"""Bundles with a graph for the goal, written by hand: run once per goal, refused by name when damaged."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import Members, flipped, parts

from policies.archive import BundleError, pack
from policies.bundle import GOAL, GOLDEN, GRAPH, MANIFEST, SETTINGS, WEIGHTS, Bundle, Latency, Manifest, Sampler
from policies.bundle import write_bundle as write_parts
from policies.network import graph_inputs, graph_outputs
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

SPEC = Spec(
    (
        Feature("place", (3,), "m", "odom", constant=True),
        Feature("pose", (3,), "m", "odom"),
        Feature("words", (4,), "1", "text", "uint8", constant=True),
    ),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-99.0, -99.0), (99.0, 99.0)),
    rate_hz=10.0,
    history=2,
    horizon=8,
)
FAIL = 10.0
"""A place whose mean is this makes the graph of the goal fail."""
DIGEST = {"aim": (TensorProto.FLOAT, (1, 1, 1)), "code": (TensorProto.UINT8, (1, 1, 4))}
PARTS = (GOAL, GRAPH, GOLDEN, WEIGHTS, SETTINGS)
Damage = Callable[[Members], Members]


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> bytes:
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "part", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def _inputs(*names: str) -> list[Any]:
    kinds, shapes = {"words": TensorProto.UINT8}, graph_inputs(SPEC)
    return [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shapes[name]) for name in names]


def _digest() -> list[Any]:
    return [helper.make_tensor_value_info(name, *what) for name, what in DIGEST.items()]


def goal_graph(scale: float = 2.0) -> bytes:
    """The aim is ``scale`` times the mean of the place, the code the words."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["place"], ["mean"], keepdims=1),
        node("Equal", ["mean", "fail"], ["fails"]),
        node("Cast", ["fails"], ["index"], to=TensorProto.INT64),
        node("Gather", ["scale", "index"], ["scales"]),  # there is no index 1
        node("Mul", ["mean", "scales"], ["aim"]),
        node("Identity", ["words"], ["code"]),
    ]
    return _model(
        nodes, _inputs("place", "words"), _digest(), fail=np.float32(FAIL), scale=np.array([scale], np.float32)
    )


def policy_graph() -> bytes:
    """Adds up the noise, the aim and the means of pose and code; ignores what is committed."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["pose"], ["a"], keepdims=0),
        node("Cast", ["code"], ["numbers"], to=TensorProto.FLOAT),
        node("ReduceMean", ["numbers"], ["b"], keepdims=0),
        node("Sum", ["noise", "aim", "a", "b"], ["actions"]),
        node("Identity", ["none"], ["disagreement"]),
        node("Identity", ["sure"], ["arrival"]),
    ]
    outputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in graph_outputs(SPEC).items()]
    inputs = [*_inputs("pose"), *_digest(), *_inputs("noise", "committed", "hold")]
    return _model(nodes, inputs, outputs, none=np.zeros(1, np.float32), sure=np.full(1, 0.75, np.float32))


def request(place: float, word: int = 3) -> tuple[dict[str, Array], Array, Array, Array]:
    """Arguments of `act`."""
    seen: dict[str, Array] = {"place": np.full((1, 3), place, np.float32), "words": np.full((1, 4), word, np.uint8)}
    seen["pose"] = np.full((2, 3), 0.5, np.float32)
    return seen, np.ones((8, 2), np.float32), np.zeros((8, 2), np.float32), np.zeros(8, np.float32)


def planned(place: float, word: int = 3) -> Array:
    """What comes of it."""
    return np.full((8, 2), 1 + 2 * place + 0.5 + word, np.float32)


def write(path: Path, **changes: Any) -> Manifest:
    """Write the bundle, with changes to the arguments of `write_bundle`."""
    seen, noise, committed, hold = request(1.0)
    pair = {**seen, "noise": noise, "committed": committed, "hold": hold, "actions": planned(1.0)}
    golden = {name: value[None] for name, value in pair.items()}
    golden |= {"disagreement": np.zeros(1, np.float32), "arrival": np.full(1, 0.75, np.float32)}
    content: dict[str, Any] = {
        "graphs": {GOAL: goal_graph(), GRAPH: policy_graph()},
        "weights": b"weights that only training reads",
        "settings": b"{}",
        "spec": SPEC,
        "golden": golden,
        "name": "policies.tiny:Goalward",
        "sampler": Sampler(1, (0.0, 1.0), 1.0),
        "normalisation": {},
        "latency": Latency(1.0, 2.0, 1, "cpu"),
        "max_error": 0.0,
        "provenance": {},
    }
    return write_parts(path, **{**content, **changes})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "goal.kfb"
    write(path)
    return path


def test_the_two_graphs_are_one_policy(path: Path) -> None:
    bundle = Bundle.load(path)
    for place, word in ((1.0, 3), (4.0, 3), (4.0, 7), (1.0, 3), (0.0, 0)):
        np.testing.assert_array_equal(bundle.act(*request(place, word)), planned(place, word))
    assert bundle.arrival == 0.75 and bundle.spec == SPEC
    bundle.warm_up(2)
    assert len(bundle.latency(3)) == 3


def test_the_first_goal_may_be_all_zero(path: Path) -> None:
    graphs = {GOAL: goal_graph(), GRAPH: policy_graph()}
    bundle = Bundle(Manifest.from_bytes(parts(path)[MANIFEST]), graphs)
    np.testing.assert_array_equal(bundle.act(*request(0.0, 0)), planned(0.0, 0))


def test_a_goal_that_fails_is_not_replaced_by_the_last_one(path: Path) -> None:
    bundle = Bundle.load(path)
    np.testing.assert_array_equal(bundle.act(*request(1.0)), planned(1.0))
    for _ in range(2):
        with pytest.raises(Exception, match="out of"):
            bundle.act(*request(FAIL))
    np.testing.assert_array_equal(bundle.act(*request(1.0)), planned(1.0))


def test_a_goal_that_is_not_finite_is_refused_and_forgotten(path: Path) -> None:
    bundle = Bundle.load(path)
    with pytest.raises(ContractError, match="'place' is not finite"):
        bundle.act(*request(np.nan))
    np.testing.assert_array_equal(bundle.act(*request(1.0)), planned(1.0))


def test_both_graphs_are_in_the_fingerprint(path: Path, tmp_path: Path) -> None:
    other = onnx.load_model_from_string(goal_graph())
    other.doc_string = "another"
    written = write(tmp_path / "other.kfb", graphs={GOAL: other.SerializeToString(), GRAPH: policy_graph()})
    assert written.fingerprint != Bundle.load(path).manifest.fingerprint
    assert written.graphs == (GOAL, GRAPH) and {*written.parts} == {*PARTS}


def sealed(members: Members, keep: tuple[str, ...] = PARTS) -> Members:
    """The same bundle with right hashes and digest, so that only its content can be wrong."""
    hashes = {name: hashlib.sha256(members[name]).hexdigest() for name in keep}
    manifest = dataclasses.replace(Manifest.from_bytes(members[MANIFEST]), parts=hashes)
    return members | {MANIFEST: manifest.to_bytes()}


def other_goal(content: bytes) -> Damage:
    return lambda members: sealed(members | {GOAL: content})


def edited(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_model_from_string(goal_graph())
    change(model)
    return model.SerializeToString()


def free_shape(model: onnx.ModelProto) -> None:
    """Make the aim as long as there are places that are not zero."""
    model.graph.node[4].CopyFrom(helper.make_node("NonZero", ["mean"], ["found"]))
    model.graph.node.append(helper.make_node("Cast", ["found"], ["aim"], to=TensorProto.FLOAT))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("aim", TensorProto.FLOAT, (3, "found")))


def externalise(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weight.bin")


def as_float(model: onnx.ModelProto) -> None:
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node[5].CopyFrom(helper.make_node("Cast", ["words"], ["code"], to=TensorProto.FLOAT))


def without_goal(members: Members) -> Members:
    rest = {name: content for name, content in members.items() if name != GOAL}
    return sealed(rest, PARTS[1:])


MESSAGES: list[tuple[str, Damage, str]] = [
    *(
        (f"no {name}", lambda m, p=name: {k: v for k, v in m.items() if k != p}, f"part '{name}' is missing")
        for name in PARTS
    ),
    *((f"other {name}", lambda m, p=name: m | {p: b"other"}, f"{name} has SHA-256") for name in PARTS),
    ("tampered", lambda m: m | {GOAL: goal_graph(3.0)}, f"{GOAL} has SHA-256"),
    ("other weight", other_goal(goal_graph(3.0)), "golden pair: actions differ by"),
    ("broken", other_goal(b"onnx"), f"{GOAL}: the graph does not load"),
    ("swapped", other_goal(policy_graph()), rf"{GOAL}: graph inputs are \['pose', "),
    ("shape", other_goal(edited(free_shape)), rf"{GOAL}: graph output 'aim' is tensor\(float\) \(3, 'found'\)"),
    ("external", other_goal(edited(externalise)), f"{GOAL}: the graph keeps 'fail' in an external file"),
    ("type", other_goal(edited(as_float)), r"graph input 'code' is tensor\(uint8\) .* needs tensor\(float\)"),
    ("none", without_goal, r"graph inputs are \['pose', 'aim', .* the contract needs \['place', 'pose', 'words'"),
    ("not listed", lambda m: sealed(m, PARTS[1:]), f"unknown member '{GOAL}'"),
]


@pytest.mark.parametrize(("damage", "message"), [pytest.param(d, m, id=name) for name, d, m in MESSAGES])
def test_a_damaged_bundle_is_refused_by_name(path: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    (tmp_path / "damaged.kfb").write_bytes(pack(damage(parts(path))))
    with pytest.raises(BundleError, match=message):
        Bundle.load(tmp_path / "damaged.kfb")


def test_any_flipped_bit_of_a_part_is_refused(path: Path, tmp_path: Path) -> None:
    for damaged in flipped(path):
        (tmp_path / "flipped.kfb").write_bytes(damaged)
        with pytest.raises(BundleError, match="not a readable zip"):
            Bundle.load(tmp_path / "flipped.kfb")
