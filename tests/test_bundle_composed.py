"""Bundles whose parents run beside each other: written, verified and refused by name like any other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_bundle import flipped, parts
from tiny_ensemble import NAN, SPEC, Members, consensus, golden, graphs, planned, request, with_parent, write

from policies.archive import BundleError, pack
from policies.bundle import GOLDEN, MANIFEST, SETTINGS, WEIGHTS, Bundle, Consensus, Manifest
from policies.load import load_policy

ENCODE, ESTIMATE = "parent_1/encode.onnx", "parent_1/estimate.onnx"
PARTS = (*graphs(), GOLDEN, WEIGHTS, SETTINGS)
Damage = Callable[[Members], Members]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.kfb"
    write(path)
    return path


def sealed(members: Members, **changes: Any) -> Members:
    """The same bundle with right hashes and digest, so that only its content can be wrong."""
    hashes = {part: hashlib.sha256(content).hexdigest() for part, content in members.items() if part != MANIFEST}
    manifest = dataclasses.replace(Manifest.from_bytes(members[MANIFEST]), parts=hashes)
    return members | {MANIFEST: dataclasses.replace(manifest, **changes).to_bytes()}


def agreed(changed: Consensus) -> Damage:
    return lambda members: sealed(members, consensus=changed)


def graph(name: str, change: Callable[[onnx.ModelProto], object]) -> Damage:
    def damage(members: Members) -> Members:
        model = onnx.load_model_from_string(members[name])
        change(model)
        return sealed(members | {name: model.SerializeToString()})

    return damage


def externalise(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weight.bin")


def stretch(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 9


def plain(members: Members) -> Members:
    """The manifest without the consensus."""
    return sealed(members, consensus=None)


def edited(members: Members) -> Members:
    data = json.loads(members[MANIFEST])
    data["consensus"]["parents"][0]["weights"][0] = [1.0, 1.0]
    return members | {MANIFEST: json.dumps(data).encode()}


MESSAGES: list[tuple[str, Damage, str]] = [
    *(
        (f"no {part}", lambda m, p=part: {k: v for k, v in m.items() if k != p}, f"'{part}' is missing")
        for part in PARTS
    ),
    *((f"other {part}", lambda m, p=part: m | {p: b"other"}, f"{part} has SHA-256") for part in PARTS),
    ("third parent", lambda m: m | {"parent_2/encode.onnx": b""}, "unknown member 'parent_2/encode.onnx'"),
    ("plain graph", lambda m: m | {"policy.onnx": b""}, "unknown member 'policy.onnx'"),
    ("plain manifest", plain, "unknown member 'parent_0/encode.onnx'"),
    ("edited weight", edited, "was edited after export"),
    ("weights", agreed(with_parent(0, weights=((0.5, 0.5),) * 8)), "weights of the parents do not sum to 1"),
    ("weights per action", agreed(with_parent(0, weights=((0.75, 0.75),))), "needs a weight for each of 8 x 2 actions"),
    (
        "observation",
        agreed(with_parent(1, observations=("depth",))),
        r"observes \('depth',\), known are \['pose', 'scan'\]",
    ),
    ("other observation", agreed(with_parent(1, observations=("pose",))), f"{ENCODE}: graph inputs are"),
    ("history", agreed(with_parent(1, history=3)), "observes"),
    (
        "less history",
        agreed(with_parent(1, history=1)),
        rf"{ENCODE}: graph input 'scan' is tensor\(float\) \(1, 2, 4\)",
    ),
    ("extent", agreed(with_parent(1, length=9)), "plans actions beyond the 8 of the chunk"),
    ("scale", agreed(dataclasses.replace(consensus(), scale=(1.0,))), "2 numbers as offset and as scale"),
    ("no parents", agreed(dataclasses.replace(consensus(), parents=())), "consensus needs parents"),
    ("no number", agreed(with_parent(1, history="2")), "does not follow format 3"),
    ("broken graph", lambda m: sealed(m | {ESTIMATE: b"onnx"}), f"{ESTIMATE}: the graph does not load"),
    ("external", graph(ESTIMATE, externalise), f"{ESTIMATE}: the graph keeps 'fail' in an external file"),
    ("chunk", graph(ESTIMATE, stretch), rf"{ESTIMATE}: graph input 'x' is tensor\(float\) \(1, 9, 2\)"),
    ("swapped", lambda m: sealed(m | {ESTIMATE: m[ENCODE]}), f"{ESTIMATE}: graph inputs are"),
]


@pytest.mark.parametrize(("damage", "message"), [pytest.param(d, m, id=name) for name, d, m in MESSAGES])
def test_a_damaged_bundle_is_refused_by_name(path: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    (tmp_path / "damaged.kfb").write_bytes(pack(damage(parts(path))))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(tmp_path / "damaged.kfb")
    assert str(caught.value).startswith(f"{tmp_path / 'damaged.kfb'}: ")


def test_any_flipped_bit_of_a_part_is_refused(path: Path, tmp_path: Path) -> None:
    for damaged in flipped(path):
        (tmp_path / "flipped.kfb").write_bytes(damaged)
        with pytest.raises(BundleError, match="not a readable zip"):
            Bundle.load(tmp_path / "flipped.kfb")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actions", planned(1.0), "golden pair: actions differ"),
        ("disagreement", np.zeros(1, np.float32), "golden pair: disagreement differ"),
        ("scan", np.full((2, 4), NAN, np.float32), r"golden pair: parent_1 \(Tiny\) is left out since .* not finite"),
    ],
)
def test_a_golden_pair_that_is_not_met_is_never_written(tmp_path: Path, name: str, value: Any, message: str) -> None:
    pair = golden()
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "tiny.kfb", golden=pair | {name: value.reshape(pair[name].shape)})
    assert not list(tmp_path.iterdir())


def test_a_loaded_bundle_is_the_ensemble(path: Path) -> None:
    bundle = load_policy(str(path))
    assert isinstance(bundle, Bundle) and bundle.spec == SPEC and bundle.path == path
    np.testing.assert_allclose(bundle.act(*request(1.0, 3.0)), planned(1.5), atol=1e-6)
    assert bundle.disagreement == pytest.approx(np.sqrt(0.75 * 0.25) * 2) and bundle.warning == ""
    np.testing.assert_array_equal(bundle.act(*request(1.0, NAN)), planned(1.0))
    assert "parent_1 (Tiny) is left out since" in bundle.warning
    assert bundle.patience_s == np.inf and len(bundle.latency(3)) == 3
    text = bundle.describe()
    assert "parent_0 (Tiny), weight 0.75, sees pose" in text and bundle.manifest.fingerprint in text


def test_equal_content_gives_equal_bytes(path: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "again.kfb")
    assert (tmp_path / "again.kfb").read_bytes() == path.read_bytes()
    assert manifest == Bundle.load(path).manifest
