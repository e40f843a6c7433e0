"""Every damaged, edited or unsafe bundle is refused by name; every entry here is a really damaged file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import SPEC, WEIGHT, Members, draw, make_golden, parts, write

from policies.archive import INFLATED, LIMIT, BundleError, pack
from policies.bundle import GOLDEN, GRAPH, MANIFEST, SETTINGS, WEIGHTS, Bundle, Manifest
from policies.manifest import OPTIONAL
from policies.network import graph_inputs, graph_outputs
from policies.spec import Feature

PARTS = (GRAPH, GOLDEN, WEIGHTS, SETTINGS)
Damage = Callable[[Members], "bytes | Members"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny.kfb"
    write(path)
    return path


@pytest.fixture
def members(path: Path) -> Members:
    return parts(path)


def sealed(members: Members, **changes: Any) -> Members:
    """The same bundle with right hashes and digest, so that only its content can be wrong."""
    hashes = {part: hashlib.sha256(members[part]).hexdigest() for part in PARTS}
    manifest = dataclasses.replace(Manifest.from_bytes(members[MANIFEST]), parts=hashes)
    return members | {MANIFEST: dataclasses.replace(manifest, **changes).to_bytes()}


def spec(**changes: Any) -> Damage:
    new = dataclasses.replace(SPEC, **changes)
    return lambda members: sealed(members, spec=new, inputs=graph_inputs(new), outputs=graph_outputs(new))


def edit(*keys: str, value: Any) -> Damage:
    """Change one value of the manifest by hand; its digest is left alone."""

    def damage(members: Members) -> Members:
        data = json.loads(members[MANIFEST])
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return members | {MANIFEST: json.dumps(data).encode()}

    return damage


def drop(*names: str) -> Damage:
    """Remove fields of the manifest."""

    def damage(members: Members) -> Members:
        data = {key: value for key, value in json.loads(members[MANIFEST]).items() if key not in names}
        return members | {MANIFEST: json.dumps(data).encode()}

    return damage


def raw(name: str, content: bytes) -> Damage:
    return lambda members: members | {name: content}


def without(name: str) -> Damage:
    return lambda members: {key: value for key, value in members.items() if key != name}


def golden(**changes: Any) -> Damage:
    def damage(members: Members) -> Members:
        arrays = {key: value for key, value in {**make_golden(), **changes}.items() if value is not None}
        file = io.BytesIO()
        np.savez(file, allow_pickle=True, **arrays)
        return sealed(members | {GOLDEN: file.getvalue()})

    return damage


def graph(change: Callable[[onnx.ModelProto], object]) -> Damage:
    def damage(members: Members) -> Members:
        model = onnx.load_model_from_string(members[GRAPH])
        change(model)
        return sealed(members | {GRAPH: model.SerializeToString()})

    return damage


def externalise(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weight.bin")


def double_precision(model: onnx.ModelProto) -> None:
    """Take the pose in double precision."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node[0].output[0] = "mean"
    model.graph.node.insert(1, helper.make_node("Cast", ["mean"], ["a"], to=TensorProto.FLOAT))


def free_batch(model: onnx.ModelProto) -> None:
    """Leave the batch size of the pose open."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def hide_in_subgraph(model: onnx.ModelProto) -> None:
    """Keep the weight of a constant inside a branch in an external file."""
    tensor = numpy_helper.from_array(WEIGHT, "hidden")
    externalise(tensor)
    output = helper.make_tensor_value_info("branch", TensorProto.FLOAT, [6000])
    branch = helper.make_graph([helper.make_node("Constant", [], ["branch"], value=tensor)], "branch", [], [output])
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


def zipped(change: Callable[[zipfile.ZipFile], object], keep: Callable[[str], bool] = lambda name: True) -> Damage:
    """Write the members as any zip tool would, and then more."""

    def damage(members: Members) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                if keep(name):
                    archive.writestr(name, content)
            change(archive)
        return file.getvalue()

    return damage


def zeros(name: str, size: int) -> Callable[[zipfile.ZipFile], None]:
    def change(archive: zipfile.ZipFile) -> None:
        with archive.open(name, "w", force_zip64=True) as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))

    return change


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo(GRAPH)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def flip(name: str) -> Damage:
    def damage(members: Members) -> bytes:
        content = bytearray(pack(members))
        content[content.index(members[name]) + len(members[name]) // 2] ^= 1
        return bytes(content)

    return damage


def lying_size(members: Members) -> bytes:
    """A compressed member that unpacks to far more than the directory says."""
    content = zipped(zeros(GRAPH, 8 << 20), lambda name: name != GRAPH)(members)
    assert isinstance(content, bytes)
    place = content.rindex(GRAPH.encode())  # its entry in the central directory, whose size field lies 22 bytes before
    return content[: place - 22] + (1000).to_bytes(4, "little") + content[place - 18 :]


def stored_sizes(members: Members) -> bytes:
    """Stored members that are far larger than the file, if its directory is to be believed."""
    content = bytearray(pack(members))
    for name in (GRAPH, WEIGHTS):
        place = content.rindex(name.encode())
        content[place - 26 : place - 18] = 2 * (0xFFFFFFFE).to_bytes(4, "little")
    return bytes(content)


FIELDS = [field.name for field in dataclasses.fields(Manifest) if field.name not in OPTIONAL]
MESSAGES: list[tuple[str, Damage, str]] = [
    ("not a zip", lambda members: b"weights", "not a readable zip: File is not a zip file"),
    ("empty file", lambda members: b"", "not a readable zip"),
    ("cut off", lambda members: pack(members)[:-200], "not a readable zip|is missing"),
    ("cut in the middle", lambda members: pack(members)[len(pack(members)) // 2 :], "not a readable zip"),
    *((f"no {part}", without(part), f"part '{part}' is missing") for part in (MANIFEST, *PARTS)),
    ("unknown member", raw("notes.txt", b""), "unknown member 'notes.txt'"),
    *((f"bit of {part}", flip(part), f"not a readable zip: Bad CRC-32 for file '{part}'") for part in PARTS),
    *((f"other {part}", raw(part, b"other"), f"{part} has SHA-256") for part in PARTS),
    ("parent folder", raw("../policy.onnx", b""), "member '../policy.onnx' points outside"),
    ("absolute", raw("/etc/passwd", b""), "member '/etc/passwd' points outside"),
    ("backslash", raw("..\\policy.onnx", b""), "points outside"),
    ("drive", raw("C:policy.onnx", b""), "points outside"),
    ("link", zipped(link, lambda name: name != GRAPH), f"member '{GRAPH}' is a symbolic link"),
    ("duplicate", zipped(lambda archive: archive.writestr(GRAPH, b"")), "duplicate members"),
    (
        "bzip2",
        zipped(lambda a: a.writestr(GRAPH, b"", zipfile.ZIP_BZIP2), lambda name: name != GRAPH),
        "compression 12",
    ),
    ("huge", zipped(zeros(GRAPH, INFLATED + (1 << 20)), lambda n: n != GRAPH), "the compressed members have 2694"),
    ("huge together", zipped(zeros(GRAPH, INFLATED), lambda n: n != GRAPH), "the compressed members have 2684"),
    ("huge as stored", stored_sizes, f"the members have .* bytes together, the limit is {LIMIT}"),
    ("lying size", lying_size, "not a readable zip"),
    ("no JSON", raw(MANIFEST, b"{"), "manifest.json is not valid JSON"),
    ("no text", raw(MANIFEST, bytes(range(128, 256))), "manifest.json is not valid JSON"),
    ("deep JSON", raw(MANIFEST, b"[" * 100_000), "manifest.json is not valid JSON"),
    ("JSON list", raw(MANIFEST, b"[]"), "holds a list"),
    ("old format", edit("format", value=2), "format version is 2, this kinoflow reads 3; export the policy again"),
    ("new format", edit("format", value=4), "format version is 4, this kinoflow reads 3"),
    ("no digest", drop("digest"), r"missing or unknown fields \['digest'\]"),
    *((f"no {name}", drop(name), f"'{name}'") for name in FIELDS),
    ("unknown field", edit("comment", value=""), r"missing or unknown fields \['comment'\]"),
    ("edited frame", edit("spec", "action", "frame", value="map"), "was edited after export"),
    ("edited unit", edit("spec", "action", "units", value=["deg/s", "deg/s"]), "was edited after export"),
    ("edited limit", edit("spec", "action", "high", value=[9.0, 9.0]), "was edited after export"),
    ("edited hash", edit("parts", GRAPH, value="0"), "was edited after export"),
    ("degrees", spec(observations=(Feature("pose", (3,), "deg", "odom"), SPEC.observations[1])), "unit 'deg'"),
    (
        "action unit",
        spec(action=dataclasses.replace(SPEC.action, units=("mm/s", "rad/s"))),
        "action 'vx' has unit 'mm/s'",
    ),
    ("two limits", spec(action=dataclasses.replace(SPEC.action, low=(0.0,))), "differ in length"),
    ("rate", spec(rate_hz=-1.0), "rate_hz is -1.0"),
    ("text rate", spec(rate_hz="10"), "does not follow format 3"),
    ("spec", lambda members: sealed(members, spec=dataclasses.replace(SPEC, horizon=9)), "differ from the contract"),
    ("latency", lambda members: sealed(members, latency={"p50": 1}), "does not follow format 3"),
    ("horizon", spec(horizon=9), r"graph input 'noise' is tensor\(float\) \(1, 8, 2\)"),
    ("name", spec(observations=(Feature("place", (3,), "m", "odom"), SPEC.observations[1])), "graph inputs are"),
    ("order", spec(observations=SPEC.observations[::-1]), "graph inputs are"),
    (
        "dtype",
        graph(double_precision),
        r"graph input 'pose' is tensor\(double\) \(1, 2, 3\), the contract needs tensor\(float\)",
    ),
    ("free batch", graph(free_batch), r"graph input 'pose' is tensor\(float\) \('batch', 2, 3\)"),
    ("broken graph", graph(lambda m: m.graph.node.pop()), "the graph does not load"),
    ("no graph", lambda members: sealed(members | {GRAPH: b"onnx"}), "the graph does not load"),
    ("external", graph(lambda m: externalise(m.graph.initializer[0])), "keeps 'weight' in an external file"),
    ("hidden external", graph(hide_in_subgraph), "keeps 'hidden' in an external file"),
    ("golden value", golden(noise=np.zeros((1, 8, 2), np.float32)), "golden pair: actions differ by"),
    ("golden nan", golden(actions=np.full((1, 8, 2), np.nan, np.float32)), "golden pair: actions differ by nan"),
    ("golden shape", golden(hold=np.zeros(8, np.float32)), r"'hold' is float32 \(8,\)"),
    ("golden dtype", golden(hold=np.zeros((1, 8))), "'hold' is float64"),
    ("golden pickle", golden(hold=np.array([{}])), "hold.npy is not an array"),
    ("golden part", golden(hold=None), "part 'hold.npy' is missing"),
    ("golden bytes", lambda members: sealed(members | {GOLDEN: b""}), "not a readable zip"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("damage", "message"), [pytest.param(d, m, id=name) for name, d, m in MESSAGES])
def test_a_damaged_bundle_is_refused_by_name(
    members: Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weight.bin").write_bytes(WEIGHT.tobytes())  # ONNX Runtime would find and read it here
    path, content = tmp_path / "damaged.kfb", damage(members)
    path.write_bytes(content if isinstance(content, bytes) else pack(content))
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.kfb: no such file"):
        Bundle.load(tmp_path / "none.kfb")


def test_a_bundle_that_was_repacked_unchanged_still_loads(members: Members, tmp_path: Path) -> None:
    content = zipped(lambda archive: None)(members)
    assert isinstance(content, bytes)
    (tmp_path / "repacked.kfb").write_bytes(content)
    np.testing.assert_array_equal(Bundle.load(tmp_path / "repacked.kfb").act(*draw(1)).shape, (8, 2))


def test_a_bundle_may_be_large_if_the_file_is(members: Members, tmp_path: Path) -> None:
    """Weights of some 63 million parameters, which is usual for images, lie in a bundle twice."""
    large = sealed(members | {WEIGHTS: bytes(INFLATED + (1 << 20))})
    (tmp_path / "large.kfb").write_bytes(pack(large))
    assert Bundle.load(tmp_path / "large.kfb").act(*draw(1)).shape == (8, 2)


def test_any_flipped_bit_is_refused_or_harmless(path: Path, tmp_path: Path) -> None:
    rng, original = np.random.default_rng(0), path.read_bytes()
    actions, refused = Bundle.load(path).act(*draw(1)), 0
    tail = rng.integers(len(original) - 300, len(original), 200)  # the zip directory, where most fields matter
    for position in [*tail, *rng.integers(0, len(original), 100)]:
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "flipped.kfb").write_bytes(damaged)
        try:
            np.testing.assert_array_equal(Bundle.load(tmp_path / "flipped.kfb").act(*draw(1)), actions)
        except BundleError:
            refused += 1
    assert refused > 150
