"""A bundle beside small peers and the limits of the core."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from parents import flow

from benchmarks.latency import parameters
from benchmarks.peers import DiT1d, Package, Sizes, as_text, measure
from benchmarks.roofline import Alone, Limits, Product, bundle_products, floor, products, stored, summary
from benchmarks.sized_head import sized
from policies.bundle import read_graphs
from policies.export import export

SIZES, ROUNDS = Sizes(unet=(8, 16), lerobot=(16, 32), transformer=(16, 1, 2), side=32), 2
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "small.kfb"
    export(flow(0, steps=2), path, provenance={})
    return path


@pytest.fixture(scope="module")
def result(bundle: Path) -> dict[str, Any]:
    return measure(bundle, lambda *_: None, sizes=SIZES, rounds=ROUNDS)


def shape(product: Product) -> tuple[int, ...]:
    return product.copies, product.rows, product.inner, product.columns


@pytest.mark.parametrize(("kind", "ratios"), [("factors", "ratios"), ("cpu_factors", "cpu_ratios")])
def test_the_ratio_to_lerobot_is_the_product_of_its_factors(result: dict[str, Any], kind: str, ratios: str) -> None:
    assert set(result[kind]) == {"lerobot_ddpm", "lerobot_ddim"}
    for name, part in result[kind].items():
        factors = part["runtime"] * part["network"] * part["steps"]
        assert factors == pytest.approx(part["total"], rel=1e-12)
        assert part["total"] == pytest.approx(result[ratios][f"{name}_over_bundle"], rel=1e-12)
    assert [part["steps"] for part in result[kind].values()] == [50, 5]


def test_every_arm_makes_whole_chunks_and_says_how_many(result: dict[str, Any]) -> None:
    chunks = {name: arm["chunks"] for name, arm in result["arms"].items()}
    assert chunks["lerobot_ddpm"] == chunks["lerobot_ddim"] == chunks["lerobot_onnx"] == ROUNDS
    assert {name: arm["steps"] for name, arm in result["arms"].items() if name not in ("bundle", "torch", "unet")} == {
        "lerobot_ddpm": 100,
        "lerobot_ddim": 10,
        "lerobot_onnx": 10,
        "cleandiffuser": 5,
    }
    assert result["ratios"].keys() == {f"{name}_over_bundle" for name in chunks if name != "bundle"}


def test_shares_are_those_of_the_median_chunk(result: dict[str, Any]) -> None:
    roof, p50 = result["roofline"], result["arms"]["bundle"]["p50_ms"]
    assert set(roof["ms"]) == {"arithmetic", "memory", "floor", "alone"}
    for name, share in roof["shares"].items():
        assert share == pytest.approx(roof["ms"][name] / p50) and roof["cpu_shares"][name] > 0
    assert max(roof["ms"]["arithmetic"], roof["ms"]["memory"]) <= roof["ms"]["floor"] * (1 + 1e-9)


def test_the_result_is_json_and_the_text_names_everything(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    text = as_text(result)
    assert all(arm["what"] in text for arm in result["arms"].values())
    assert all(name in text for name in (*result["ratios"], *result["limits"]["operations_per_s"]))


def test_the_real_sizes_are_those_published() -> None:
    assert parameters(DiT1d(*Sizes().transformer)) / 1e6 == pytest.approx(4.1, abs=0.05)


def test_products_of_a_graph_are_counted() -> None:
    rng = np.random.default_rng(0)
    sizes = {"w": (24, 32), "turned": (5, 32), "kernel": (7, 4, 3)}
    weights = [from_array(rng.standard_normal(shape, np.float32), name) for name, shape in sizes.items()]
    inputs = {"x": (1, 16, 24), "q": (1, 4, 16, 6), "k": (1, 4, 6, 9), "v": (1, 32), "picture": (1, 4, 10)}
    nodes = [
        make_node("MatMul", ["x", "w"], ["y"]),
        make_node("MatMul", ["y_again", "w"], ["z"]),
        make_node("MatMul", ["q", "k"], ["scores"]),
        make_node("Gemm", ["v", "turned"], ["u"], transB=1),
        make_node("Conv", ["picture", "kernel"], ["features"]),
    ]
    nodes.insert(1, make_node("Slice", ["y", "zero", "end", "last"], ["y_again"]))
    weights += [from_array(np.array([value]), name) for name, value in (("zero", 0), ("end", 24), ("last", 2))]
    values = [make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()]
    outputs = [make_tensor_value_info(name, FLOAT, None) for name in ("z", "scores", "u", "features")]
    graph = make_graph(nodes, "products", values, outputs, weights)
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    found = products(model.SerializeToString())
    assert found == [
        Product(1, 16, 24, 32, weights="w", weight_bytes=4 * 24 * 32),
        Product(1, 16, 24, 32, weights="w", weight_bytes=4 * 24 * 32),
        Product(4, 16, 6, 9),
        Product(1, 1, 32, 5, weights="turned", weight_bytes=4 * 32 * 5),
        Product(1, 8, 12, 7, weights="kernel", weight_bytes=4 * 7 * 12),
    ]
    assert [p.operations for p in found] == [24576, 24576, 6912, 320, 1344]
    assert stored(found) == 4 * (24 * 32 + 32 * 5 + 7 * 12)
    assert [kind["count"] for kind in summary(found)] == [2, 1, 1, 1]
    Alone(found)()


def test_the_floor_is_the_longer_of_arithmetic_and_memory_product_by_product() -> None:
    heavy, light = Product(1, 10, 10, 10), Product(1, 1, 10, 10, "int8", "w", 100)
    found = floor([heavy, light], Limits({"float32": 1000.0, "int8": 4000.0}, read=100.0))
    assert found == pytest.approx({"arithmetic": 2.05, "memory": 1.0, "floor": 3.0})


class Draws(CalibrationDataReader):
    """Two random inputs of a graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
        rng = np.random.default_rng(0)
        self.draws = [{k: rng.standard_normal(shape, np.float32) for k, shape in shapes.items()} for _ in range(2)]

    def get_next(self) -> Any:
        return self.draws.pop() if self.draws else None


@pytest.mark.parametrize("dynamic", [True, False])
def test_quantised_products_are_the_same_ones_in_int8(bundle: Path, tmp_path: Path, dynamic: bool) -> None:
    before, path = bundle_products(bundle), tmp_path / "int8.onnx"
    model = onnx.load_model_from_string(read_graphs(bundle)[1]["policy.onnx"])
    del model.graph.value_info[:]  # shapes from before folding, which the quantisation would take for true
    if dynamic:
        quantize_dynamic(model, path)
    else:
        quantize_static(model, path, Draws(model), quant_format=QuantFormat.QDQ)
    after = products(path.read_bytes())
    assert Counter(map(shape, before)) == Counter(map(shape, after))
    assert {p.number for p in before} == {"float32"} and all(p.number == "int8" for p in after if p.weights)
    assert 4 * sum(p.weight_bytes for p in after) == sum(p.weight_bytes for p in before)
    Alone(after)()


def test_a_sized_head_has_about_that_size_and_no_silent_layer() -> None:
    head = sized(1.6)
    assert parameters(head) / 1e6 == pytest.approx(1.6, rel=0.1)
    assert all(weight.any() for weight in head.parameters())


def test_missing_diffusers_is_reported(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install 'diffusers"):
        measure(bundle, lambda *_: None, sizes=SIZES, rounds=1)


def interpreter(folder: Path, script: str) -> Path:
    """Something that is started like Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_real_lerobot_answers_with_its_seconds(tmp_path: Path) -> None:
    hello = json.dumps({"parameters": 7, "versions": {"lerobot": "0.4.4"}})
    python = interpreter(tmp_path, f"echo '{hello}'; while read steps; do echo $steps 0.5; done")
    with Package.started(python) as package:
        arms = package.arms()
        assert {name: arm.call() for name, arm in arms.items()} == {
            "lerobot_package_ddpm": (100, 0.5),
            "lerobot_package_ddim": (10, 0.5),
        }
        assert {arm.parameters for arm in arms.values()} == {7}


def test_a_lerobot_that_is_silent_is_reported(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "exit 1")
    with pytest.raises(RuntimeError, match="does not answer"), Package.started(python):
        pass
