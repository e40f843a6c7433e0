"""What a bundle says about itself: ``manifest.json``, sealed with the digest of its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.archive import BundleError
from policies.network import GOAL, graph_inputs, graph_outputs
from policies.spec import Array, Spec

FORMAT = 3
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 0.05
MANIFEST, GRAPH, GOLDEN = "manifest.json", "policy.onnx", "golden.npz"
WEIGHTS, SETTINGS = "policy.safetensors", "policy.json"
OPTIONAL = {"consensus", "curve", "numbers", "backend"}  # fields that are not in the file where there is nothing to say
SI_SYMBOL = "1|m|s|kg|A|K|mol|cd|rad|sr|Hz|N|Pa|J|W|C|V|F|Ohm|S|Wb|T|H|lm|lx"


@dataclass(frozen=True)
class Sampler:
    """The sampler: network evaluations, the ``steps + 1`` times between them and the scale of the noise."""

    steps: int
    grid: tuple[float, ...]
    temperature: float


@dataclass(frozen=True)
class Latency:
    """Time of one chunk towards a known goal in milliseconds, with the thread count and the processor."""

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
class CurvePoint:
    """What one of several numbers of steps costs and gives.

    Args:
        steps: Network evaluations.
        p50_ms: Time of one chunk at export.
        p99_ms: Likewise.
        deviation: RMS difference of its chunks from those of the most steps from the same noise, in normal units.
    """

    steps: int
    p50_ms: float
    p99_ms: float
    deviation: float


@dataclass(frozen=True)
class Parent:
    """One parent of a composition that runs beside the others.

    Args:
        name: What messages call it.
        observations: Names of the observations its graph takes, in order.
        history: Number of past observations it sees.
        begin: Index of its first action in the chunk of the composition, past actions included.
        length: Number of actions it plans.
        weights: ``(past + H, A)`` share of what it says, summing to 1 over the parents.
    """

    name: str
    observations: tuple[str, ...]
    history: int
    begin: int
    length: int
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Consensus:
    """How the graphs of several parents make one policy, see `policies.runtime.ensemble`.

    Args:
        parents: One per pair of graphs.
        offset: Per component of the action; ``value = offset + scale * normal``.
        scale: Likewise.
    """

    parents: tuple[Parent, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Consensus:
        """Rebuild what ``dataclasses.asdict`` and JSON made of it."""
        fixed = {"observations": tuple, "weights": lambda rows: tuple(map(tuple, rows))}
        parents = tuple(
            Parent(**{**item, **{key: make(item[key]) for key, make in fixed.items()}}) for item in data["parents"]
        )
        return cls(**{**data, "parents": parents, "offset": tuple(data["offset"]), "scale": tuple(data["scale"])})


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    Args:
        format: Version of the file format.
        kinoflow: Version of kinoflow that wrote the file.
        name: The head's, as `policies.head.find_head` takes it.
        spec: Contract of the policy.
        inputs: Shape per input, in order; all float32.
        outputs: Shape per output; all float32.
        sampler: Steps and time grid.
        normalisation: Statistics per feature, for readers; the graphs apply them themselves.
        latency: Measured at export.
        max_error: Largest `deviation` of ONNX Runtime from torch at export.
        provenance: Recipe, dataset hash, seeds: plain JSON values.
        parts: SHA-256 per part.
        consensus: Of a composition whose parents run beside each other; otherwise not in the file.
        curve: Of a bundle with several numbers of steps, the fewest first; otherwise not in the file.
        numbers: In which matrix products are computed, where it is not float32, see `policies.quantise`.
        backend: What computed fastest at export, where it is not ONNX Runtime, see `policies.backend`.
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
    consensus: Consensus | None = None
    curve: tuple[CurvePoint, ...] = ()
    numbers: str = ""
    backend: str = ""

    @property
    def tolerance(self) -> float:
        """Largest `deviation` from the golden pair: rounding to 8 bits may fall out otherwise on another processor."""
        return ROUNDED_TOLERANCE if self.numbers else TOLERANCE

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the parts that are graphs."""
        if self.consensus:
            return tuple(name for index in range(len(self.consensus.parents)) for name in parent_graphs(index))
        fewer = tuple(variant(GRAPH, point.steps) for point in self.curve[:-1])
        return ((GOAL, GRAPH) if GOAL in self.parts else (GRAPH,)) + fewer

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all parts but the manifest."""
        return (*self.graphs, *self.golden.values(), WEIGHTS, SETTINGS)

    @property
    def golden(self) -> dict[int, str]:
        """Names of the parts that are golden pairs, by the steps they are about."""
        fewer = {point.steps: variant(GOLDEN, point.steps) for point in self.curve[:-1]}
        return {self.sampler.steps: GOLDEN, **fewer}

    @property
    def fingerprint(self) -> str:
        """Twelve digits that tell the graphs from others."""
        hashes = [self.parts[name] for name in self.graphs]
        return (hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()))[:12]

    def to_bytes(self) -> bytes:
        """Return ``manifest.json``, sealed with the digest of its content.

        Raises:
            BundleError: A value, for example in the provenance, is no plain JSON value.
        """
        try:
            data = json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BundleError(f"the manifest takes finite numbers, strings, lists and dictionaries: {error}") from error
        for optional in OPTIONAL:
            if not data[optional]:
                del data[optional]
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
            if "consensus" in data:
                nested["consensus"] = Consensus.from_json(data["consensus"])
            if "curve" in data:
                nested["curve"] = tuple(CurvePoint(**point) for point in data["curve"])
            manifest = cls(**{**data, **shapes, **nested})
            check_contract(manifest.spec)
            check_consensus(manifest.consensus, manifest.spec)
            check_curve(manifest.curve, manifest.sampler)
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{MANIFEST} does not follow format {FORMAT}: {error}; export it again") from error
        if manifest.inputs != graph_inputs(manifest.spec) or manifest.outputs != graph_outputs(manifest.spec):
            raise BundleError(f"{MANIFEST}: inputs and outputs differ from the contract; export the policy again")
        return manifest


def variant(part: str, steps: int) -> str:
    """Name of what takes the place of a part for fewer steps, for example ``policy@2.onnx``."""
    stem, _, suffix = part.partition(".")
    return f"{stem}@{steps}.{suffix}"


def parent_graphs(index: int) -> tuple[str, str]:
    """Names of the two graphs of a parent."""
    return f"parent_{index}/encode.onnx", f"parent_{index}/estimate.onnx"


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


def check_consensus(consensus: Consensus | None, spec: Spec) -> None:
    """Check that parents fit the contract of their composition.

    Raises:
        BundleError: Names the first violation.
    """
    if consensus is None:
        return
    total, dim = spec.noise_shape
    known = {feature.name for feature in spec.observations}
    if not consensus.parents or len(consensus.offset) != dim or len(consensus.scale) != dim:
        raise BundleError(f"the consensus needs parents and {dim} numbers as offset and as scale; export it again")
    for parent in consensus.parents:
        if not (0 < parent.history <= spec.history and {*parent.observations} <= known):
            raise BundleError(
                f"{parent.name} observes {parent.observations}, known are {sorted(known)}; export it again"
            )
        if not 0 <= parent.begin < parent.begin + parent.length <= total:
            raise BundleError(f"{parent.name} plans actions beyond the {total} of the chunk; export it again")
        if [len(row) for row in parent.weights] != [dim] * total:
            raise BundleError(f"{parent.name} needs a weight for each of {total} x {dim} actions; export it again")
    if not np.allclose(np.sum([parent.weights for parent in consensus.parents], 0), 1, atol=1e-4):
        raise BundleError("the weights of the parents do not sum to 1; export it again")


def check_curve(curve: Sequence[CurvePoint], sampler: Sampler) -> None:
    """Check that a curve leads from the fewest steps to those of the sampler.

    Raises:
        BundleError: It does not.
    """
    steps = [point.steps for point in curve]
    if curve and not (steps == sorted({*steps}) and steps[0] >= 1 and steps[-1] == sampler.steps):
        raise BundleError(f"the curve has {steps} steps, they must rise to the sampler's {sampler.steps}; export again")


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


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def _verified_json(content: bytes, fields: set[str]) -> dict[str, Any]:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {error}; copy the bundle again") from error
    if not isinstance(data, dict):
        raise BundleError(f"{MANIFEST} holds a {type(data).__name__} instead of an object; export the policy again")
    if data.get("format", FORMAT) != FORMAT:
        raise BundleError(
            f"format version is {data['format']}, this kinoflow reads {FORMAT}; export the policy again, from its run "
            f"directory or from one into which you unzip {WEIGHTS} and {SETTINGS} of this bundle"
        )
    differing = ({*fields, "digest"} ^ data.keys()) - OPTIONAL
    if differing:
        raise BundleError(f"{MANIFEST} has missing or unknown fields {sorted(differing)}; export the policy again")
    recorded, found = data.pop("digest"), _digest(data)
    if recorded != found:
        raise BundleError(
            f"{MANIFEST} was edited after export: digest {recorded}, its content gives {found}; "
            "export the policy again instead of editing"
        )
    return data


def _digest(data: Mapping[str, Any]) -> str:
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
