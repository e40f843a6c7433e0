"""A policy in one file: ONNX graph, contract and golden pair in a zip, verified on every load, read without torch.

A bundle (suffix ``.kfb``) has five parts:

* ``policy.onnx``: normalisation, the unrolled sampler and the hold guide in one graph. Inputs are the observations,
  each ``(1, T_obs, *shape)``, then ``noise`` ``(1, past + H, A)``, ``committed`` ``(1, H, A)`` and ``hold`` ``(1, H)``;
  the outputs are ``actions`` ``(1, H, A)`` in SI units and the ``disagreement`` ``(1,)`` between the parents of a
  composition. Everything is float32.
* ``golden.npz``: one input and the output that was validated at export, replayed on every load.
* ``policy.safetensors`` and ``policy.json``: the policy itself, so that it can be composed or trained further. Driving
  a robot does not need them.
* ``manifest.json``: the `Manifest`, with the SHA-256 of the other parts and of itself.

The hashes reveal damage and edits by hand; they are no signature and do not authenticate the author.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime

from policies.archive import BundleError, pack, unpack
from policies.files import replace_file
from policies.network import Network, graph_inputs, graph_outputs
from policies.spec import Array, ContractError, Spec

FORMAT = 2
TOLERANCE = 1e-4
MANIFEST, GRAPH, GOLDEN = "manifest.json", "policy.onnx", "golden.npz"
WEIGHTS, SETTINGS = "policy.safetensors", "policy.json"
PARTS = (GRAPH, GOLDEN, WEIGHTS, SETTINGS)
SI_SYMBOL = "1|m|s|kg|A|K|mol|cd|rad|sr|Hz|N|Pa|J|W|C|V|F|Ohm|S|Wb|T|H|lm|lx"


@dataclass(frozen=True)
class Sampler:
    """The unrolled sampler: network evaluations, the ``steps + 1`` times between them and the scale of the noise."""

    steps: int
    grid: tuple[float, ...]
    temperature: float


@dataclass(frozen=True)
class Latency:
    """Time of one `Network.act` in milliseconds, with the thread count and the processor it was measured on."""

    p50_ms: float
    p99_ms: float
    threads: int
    cpu: str

    @classmethod
    def of(cls, seconds: Array, threads: int) -> Latency:
        """Summarise measured ``(n,)`` seconds of this machine."""
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        return cls(float(p50), float(p99), threads, cpu_name())


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    Args:
        format: Version of the file format.
        kinoflow: Version of kinoflow that wrote the file.
        name: The head's, as `policies.head.find_head` takes it.
        spec: Contract of the policy.
        inputs: Shape per graph input, in order; all float32.
        outputs: Shape per graph output; all float32.
        sampler: Steps and time grid that the graph unrolls.
        normalisation: Statistics per feature, for readers; the graph applies them itself.
        latency: Measured at export.
        max_error: Largest `deviation` of ONNX Runtime from torch at export.
        provenance: Recipe, dataset hash, seeds: plain JSON values.
        parts: SHA-256 per part.
    """

    format: int
    kinoflow: str
    name: str
    spec: Spec
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    sampler: Sampler
    normalisation: dict[str, Any]
    latency: Latency
    max_error: float
    provenance: dict[str, Any]
    parts: dict[str, str]

    def to_bytes(self) -> bytes:
        """Return ``manifest.json``, sealed with the digest of its content.

        Raises:
            BundleError: A value, for example in the provenance, is no plain JSON value.
        """
        try:
            data = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BundleError(f"the manifest takes finite numbers, strings, lists and dictionaries: {error}") from error
        return json.dumps({**data, "digest": _digest(data)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read and verify ``manifest.json``.

        Raises:
            BundleError: Invalid JSON, unknown format version, a missing or unknown field, or a wrong digest.
        """
        data = _verified_json(content, {field.name for field in dataclasses.fields(cls)})
        try:
            shapes = {key: {k: tuple(v) for k, v in data[key].items()} for key in ("inputs", "outputs")}
            sampler = Sampler(**{**data["sampler"], "grid": tuple(data["sampler"]["grid"])})
            nested = {"spec": Spec.from_json(data["spec"]), "sampler": sampler, "latency": Latency(**data["latency"])}
            manifest = cls(**{**data, **shapes, **nested})
            check_contract(manifest.spec)
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{MANIFEST} does not follow format {FORMAT}: {error}; export it again") from error
        if manifest.inputs != graph_inputs(manifest.spec) or manifest.outputs != graph_outputs(manifest.spec):
            raise BundleError(f"{MANIFEST}: inputs and outputs differ from the contract; export the policy again")
        return manifest


class Bundle(Network):
    """A verified policy file; a `ChunkPolicy` that needs neither torch nor the training code."""

    def __init__(self, manifest: Manifest, graph: bytes, threads: int = 1) -> None:
        super().__init__(graph, manifest.spec, threads)
        self.manifest = manifest
        self.path: Path | None = None
        """Where it was loaded from."""

    @classmethod
    def load(cls, path: str | Path, threads: int = 1) -> Bundle:
        """Read a bundle, verify every hash and replay the golden pair.

        Args:
            path: File written by `write_bundle` or `policies.export.export`.
            threads: Threads of ONNX Runtime; one keeps the jitter low.

        Raises:
            BundleError: Anything about the file is not as it was exported; the message names it.
        """
        path = Path(path)
        if not path.is_file():
            raise BundleError(f"{path}: no such file; give the path of a bundle written by 'kinoflow export'")
        try:
            bundle = cls._read(path, threads)
        except ContractError as error:
            raise BundleError(f"{path}: {error}") from error
        bundle.path = path
        return bundle

    @classmethod
    def _read(cls, file: Path | BinaryIO, threads: int) -> Bundle:
        manifest, members = _verified_parts(file)
        bundle = cls(manifest, members[GRAPH], threads)
        bundle._replay(_read_golden(members[GOLDEN], manifest.spec))
        return bundle

    def _replay(self, golden: Mapping[str, Array]) -> None:
        outputs = self._run({name: golden[name][0] for name in self._buffers})
        names = graph_outputs(self.spec)
        for name, found in zip(names, outputs, strict=True):
            error = deviation(found, golden[name][0])
            if not error <= TOLERANCE:
                raise BundleError(
                    f"golden pair: {name} differ by {error:.3g} from those validated at export, allowed is "
                    f"{TOLERANCE}; export again on this machine, which runs ONNX Runtime {onnxruntime.__version__}"
                )

    def describe(self) -> str:
        """Say in a few lines what the policy observes, commands and costs."""
        m, spec = self.manifest, self.spec
        action = spec.action
        seen = [f"  in   {f.name} {(spec.history, *f.shape)} [{f.unit}] in {f.frame}" for f in spec.observations]
        rows = zip(action.names, action.low, action.high, action.units, strict=True)
        done = [f"  out  {name} {low:g} .. {high:g} [{unit}] in {action.frame}" for name, low, high, unit in rows]
        return "\n".join(
            [
                f"{m.name}, {spec.horizon} actions at {spec.rate_hz:g} Hz, {m.sampler.steps} sampler steps",
                *seen,
                *done,
                f"  {m.latency.p50_ms:.2f} ms p50, {m.latency.p99_ms:.2f} ms p99 at export "
                f"({m.latency.threads} thread, {m.latency.cpu})",
                f"  {m.max_error:.1e} largest deviation from torch at export",
                f"  kinoflow {m.kinoflow}, format {m.format}, graph {m.parts[GRAPH][:12]}",
            ]
        )


def read_policy(path: Path) -> tuple[bytes, bytes]:
    """Return the verified ``policy.safetensors`` and ``policy.json`` of a bundle.

    Raises:
        BundleError: As in `Bundle.load`.
    """
    try:
        _, members = _verified_parts(path)
    except ContractError as error:
        raise BundleError(f"{path}: {error}") from error
    return members[WEIGHTS], members[SETTINGS]


def write_bundle(
    path: str | Path,
    graph: bytes,
    weights: bytes,
    settings: bytes,
    spec: Spec,
    golden: Mapping[str, Array],
    *,
    name: str,
    sampler: Sampler,
    normalisation: Mapping[str, Any],
    latency: Latency,
    max_error: float,
    provenance: Mapping[str, Any],
) -> Manifest:
    """Write a bundle in one step: a reader sees the old file or the whole new one, and equal content gives equal bytes.

    The bundle is loaded from memory first, so what `Bundle.load` would refuse is never written.

    Args:
        path: Target file, suffix ``.kfb``.
        graph: Serialised ONNX model.
        weights: ``policy.safetensors``.
        settings: ``policy.json``.
        spec: Contract of the policy.
        golden: Every graph input and output, batch first, float32.
        name: The head's, as `policies.head.find_head` takes it.
        sampler: Steps and time grid that the graph unrolls.
        normalisation: Statistics per feature that the graph applies.
        latency: Measured on the exporting machine.
        max_error: Largest `deviation` of ONNX Runtime from torch.
        provenance: Recipe, dataset hash, seeds: plain JSON values.

    Raises:
        BundleError: The content would not load.
        OSError: The file cannot be written; an older file at ``path`` stays as it was.
    """
    check_contract(spec)
    pair = pack({f"{key}.npy": _to_npy(value) for key, value in golden.items()})
    parts = {GRAPH: graph, GOLDEN: pair, WEIGHTS: weights, SETTINGS: settings}
    manifest = Manifest(
        format=FORMAT,
        kinoflow=importlib.metadata.version("kinoflow"),
        name=name,
        spec=spec,
        inputs=graph_inputs(spec),
        outputs=graph_outputs(spec),
        sampler=sampler,
        normalisation={"note": "applied inside the graph, repeated for readers", "statistics": dict(normalisation)},
        latency=latency,
        max_error=max_error,
        provenance=dict(provenance),
        parts={part: _sha256(content) for part, content in parts.items()},
    )
    content = pack({MANIFEST: manifest.to_bytes(), **parts})
    verified = Bundle._read(io.BytesIO(content), threads=1)
    replace_file(Path(path), content)
    return verified.manifest


def deviation(actual: Array, expected: Array) -> float:
    """Largest difference between two arrays: absolute where ``|expected| <= 1``, relative where it is larger."""
    return float(np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected))))


def check_contract(spec: Spec) -> None:
    """Check what a bundle demands of a contract beyond its shape: SI units, usable names, a positive rate.

    Raises:
        BundleError: Names the first violation.
    """
    names = [feature.name for feature in spec.observations]
    reserved = {*names} & {"noise", "committed", "hold", *graph_outputs(spec)}
    if reserved or len({*names}) != len(names):
        raise BundleError(
            f"observation names {names} must be unique and not noise, committed, hold or an output; rename"
        )
    units = [(f"observation '{f.name}'", f.unit) for f in spec.observations]
    units += [(f"action '{name}'", unit) for name, unit in zip(spec.action.names, spec.action.units, strict=False)]
    for owner, unit in units:
        if not is_si(unit):
            raise BundleError(
                f"{owner} has unit '{unit}'; convert it and write SI, like 'rad/s', 'm/s^2', 'N*m' or '1'"
            )
    action = spec.action
    if not len(action.names) == len(action.units) == len(action.low) == len(action.high):
        raise BundleError("action names, units, low and high differ in length; give one of each per component")
    if not (math.isfinite(spec.rate_hz) and spec.rate_hz > 0):
        raise BundleError(f"rate_hz is {spec.rate_hz}; give the positive rate of the actions in Hz")


def is_si(unit: str) -> bool:
    """Whether a unit is a product of SI symbols such as ``m/s^2``, or a comma-separated list of those."""
    factor = rf"({SI_SYMBOL})(\^-?[1-9])?"
    return re.fullmatch(rf"{factor}([*/]{factor})*(, ?{factor}([*/]{factor})*)*", unit) is not None


def cpu_name() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else platform.processor() or platform.machine()


def _verified_parts(file: Path | BinaryIO) -> tuple[Manifest, dict[str, bytes]]:
    members = unpack(file, (MANIFEST, *PARTS))
    manifest = Manifest.from_bytes(members[MANIFEST])
    for part in PARTS:
        found, recorded = _sha256(members[part]), manifest.parts.get(part)
        if found != recorded:
            raise BundleError(f"{part} has SHA-256 {found}, the manifest records {recorded}; copy the bundle again")
    return manifest, members


def _verified_json(content: bytes, fields: set[str]) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {error}; copy the bundle again") from error
    if not isinstance(data, dict):
        raise BundleError(f"{MANIFEST} holds a {type(data).__name__} instead of an object; export the policy again")
    if data.get("format", FORMAT) != FORMAT:
        raise BundleError(
            f"format version is {data['format']}, this kinoflow reads {FORMAT}; use the one that wrote it"
        )
    differing = {*fields, "digest"} ^ data.keys()
    if differing:
        raise BundleError(f"{MANIFEST} has missing or unknown fields {sorted(differing)}; export the policy again")
    recorded, found = data.pop("digest"), _digest(data)
    if recorded != found:
        raise BundleError(
            f"{MANIFEST} was edited after export: digest {recorded}, its content gives {found}; "
            "export the policy again instead of editing"
        )
    return data


def _read_golden(content: bytes, spec: Spec) -> dict[str, Array]:
    expected = {**graph_inputs(spec), **graph_outputs(spec)}
    golden = {}
    for member, data in unpack(io.BytesIO(content), [f"{name}.npy" for name in expected]).items():
        try:
            golden[member[:-4]] = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise BundleError(f"golden pair: {member} is not an array: {error}; export the policy again") from error
    for name, shape in expected.items():
        if golden[name].shape != shape or golden[name].dtype != np.float32:
            raise BundleError(
                f"golden pair: '{name}' is {golden[name].dtype} {golden[name].shape}, "
                f"the contract needs float32 {shape}; export the policy again"
            )
    return golden


def _to_npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(data: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
