"""A policy in one file: ONNX graphs, contract and golden pair in a zip, verified on every load, read without torch.

A bundle (suffix ``.kfb``) has these parts:

* ``policy.onnx``: normalisation, the unrolled sampler and the hold guide in one graph. Inputs are the observations,
  each ``(1, T_obs, *shape)`` or, if constant, ``(1, 1, *shape)``, then ``noise`` ``(1, past + H, A)``, ``committed``
  ``(1, H, A)`` and ``hold`` ``(1, H)``; the outputs are ``actions`` ``(1, H, A)`` in SI units, the ``disagreement``
  ``(1,)`` between the parents of a composition and the probability of the ``arrival`` ``(1,)``. Everything but pictures
  and texts is float32.
* ``goal.onnx``, for a head that digests constant features: what `policies.head.Head.digest` makes of them. It runs once
  per goal; ``policy.onnx`` takes its outputs in their place, behind the other observations.
* Instead of these, for a composition of scores, ``encode.onnx`` and ``estimate.onnx`` of every parent. They run beside
  each other under the sampler of `policies.runtime.ensemble`, so that one that stalls does not stop the rest.
* ``policy@1.onnx``, ``policy@2.onnx`` and so on, where the bundle holds several numbers of steps: ``policy.onnx`` with
  fewer of them, see `policies.runtime.any_step`. It has the most itself.
* ``golden.npz``: one input and the output that was validated at export, replayed on every load; ``golden@1.npz`` and so
  on likewise for fewer steps.
* ``policy.safetensors`` and ``policy.json``: the policy itself, so that it can be composed or trained further. Driving
  a robot does not need them.
* ``manifest.json``: the `Manifest`, with the SHA-256 of the other parts and of itself.

The hashes reveal damage and edits by hand; they are no signature and do not authenticate the author.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from policies.archive import PLANNER, BundleError, holds, pack, unpack
from policies.backend import ONNX_RUNTIME, installed, version
from policies.files import replace_file
from policies.manifest import (
    FORMAT,
    GOLDEN,
    GRAPH,
    MANIFEST,
    SETTINGS,
    TOLERANCE,
    WEIGHTS,
    Consensus,
    CurvePoint,
    Latency,
    Manifest,
    Sampler,
    check_consensus,
    check_contract,
    check_curve,
    cpu_name,
    sha256,
    variant,
)
from policies.network import GOAL, Goal, Network, Runnable, graph_inputs, graph_outputs, graph_types, part
from policies.runtime.any_step import AnyStep, by_steps
from policies.runtime.ensemble import Ensemble
from policies.senses import outer, sense
from policies.spec import Array, ContractError, Observation, Spec

__all__ = [
    "FORMAT",
    "GOAL",
    "GOLDEN",
    "GRAPH",
    "MANIFEST",
    "SETTINGS",
    "TOLERANCE",
    "WEIGHTS",
    "Bundle",
    "Consensus",
    "CurvePoint",
    "Latency",
    "Manifest",
    "Sampler",
    "check_contract",
    "cpu_name",
    "deviation",
    "open_graphs",
    "read_graphs",
    "read_policy",
    "write_bundle",
]

VERIFYING_S = 60.0  # patience with parents while a bundle is verified: the machine may be busy


class Bundle:
    """A verified policy file; a `ChunkPolicy` that needs neither torch nor the training code.

    Args:
        manifest: What the bundle says about itself.
        graphs: Its graphs by name.
        threads: That compute, per parent of a composition.
    """

    def __init__(self, manifest: Manifest, graphs: Mapping[str, bytes], threads: int = 1) -> None:
        self.manifest, self.spec = manifest, outer(manifest.spec)
        self.path: Path | None = None
        """Where it was loaded from."""
        self.backend = manifest.backend if manifest.backend in installed() else ONNX_RUNTIME
        """What computes; ONNX Runtime where that of the manifest is not installed."""
        self._policy = open_graphs(graphs, manifest.spec, manifest.sampler, manifest.consensus, threads, self.backend)

    @property
    def disagreement(self) -> float:
        """Between the parents of a composition at the newest chunk, in normal units; 0 for other policies."""
        return self._policy.disagreement

    @property
    def arrival(self) -> float:
        """Probability at the newest chunk that the robot is where it shall stop; 0 for policies that do not say."""
        return self._policy.arrival

    @property
    def warning(self) -> str:
        """Which parents of a composition are left out, since when and why; empty when all is well."""
        return self._policy.warning

    @property
    def steps(self) -> int:
        """Denoising steps of the newest chunk."""
        return self._policy.steps if isinstance(self._policy, AnyStep) else self.manifest.sampler.steps

    @property
    def time_left_s(self) -> float:
        """Seconds until the next chunk is due, infinite until it is set, see `AnyStep`."""
        return self._policy.time_left_s

    @time_left_s.setter
    def time_left_s(self, seconds: float) -> None:
        self._policy.time_left_s = seconds

    @property
    def patience_s(self) -> float:
        """How long a chunk waits for the parents of a composition in seconds, see `Ensemble`."""
        return self._policy.patience_s

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self._policy.patience_s = seconds

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk, see `ChunkPolicy.act`.

        Raises:
            ContractError: An input does not fit, the actions are not finite, or no parent of a composition answers.
        """
        if self.spec != self._policy.spec:
            self.spec.check(observation)
            observation = sense(self._policy.spec, observation)
        return self._policy.act(observation, noise, committed, hold)

    def warm_up(self, n: int) -> None:
        """Run ``n`` times, so that the first real chunk does not pay for allocations."""
        self._policy.warm_up(n)

    def latency(self, n: int) -> Array:
        """Time ``n`` calls of `act` on the latest inputs, so with one goal; returns ``(n,)`` seconds."""
        return self._policy.latency(n)

    @classmethod
    def load(cls, path: str | Path, threads: int = 1) -> Bundle:
        """Read a bundle, verify every hash and replay the golden pair.

        Args:
            path: File written by `write_bundle` or `policies.export.export`.
            threads: That compute; one keeps the jitter low.

        Raises:
            BundleError: Anything about the file is not as it was exported; the message names it.
        """
        path = Path(path)
        _check_there(path)
        try:
            bundle = cls._read(path, threads)
        except ContractError as error:
            raise BundleError(f"{path}: {error}") from error
        bundle.path = path
        return bundle

    @classmethod
    def _read(cls, file: Path | BinaryIO, threads: int) -> Bundle:
        manifest, members = _verified_parts(file)
        bundle = cls(manifest, {name: members[name] for name in manifest.graphs}, threads)
        usual, bundle.patience_s = bundle.patience_s, VERIFYING_S
        networks = by_steps(bundle._policy, manifest.sampler.steps)
        for steps, name in manifest.golden.items():
            with part(name):
                bundle._replay(networks[steps], _read_golden(members[name], manifest.spec))
        bundle.patience_s = usual
        return bundle

    def _replay(self, policy: Runnable, golden: Mapping[str, Array]) -> None:
        observation = {feature.name: golden[feature.name][0] for feature in self.manifest.spec.observations}
        actions = policy.act(observation, *(golden[name][0] for name in ("noise", "committed", "hold")))
        if policy.warning:
            raise BundleError(f"golden pair: {policy.warning}; export again")
        outputs = (actions, np.array(policy.disagreement), np.array(policy.arrival))
        for name, found in zip(graph_outputs(self.spec), outputs, strict=True):
            error = deviation(found, golden[name][0])
            if not error <= self.manifest.tolerance:
                raise BundleError(
                    f"golden pair: {name} differ by {error:.3g} from those validated at export, allowed is "
                    f"{self.manifest.tolerance}; export again on this machine, which runs {version(self.backend)}"
                )

    @property
    def _instead(self) -> str:
        """What would compute faster and is not installed."""
        meant = self.manifest.backend or ONNX_RUNTIME
        return "" if meant == self.backend else f" ({meant}, in which it was faster, is not installed)"

    def describe(self) -> str:
        """Say in a few lines what the policy observes, commands and costs."""
        m, spec = self.manifest, self.spec
        action = spec.action
        seen = [f"  in   {f.name} {(spec.samples(f), *f.shape)} [{f.unit}] in {f.frame}" for f in spec.observations]
        rows = zip(action.names, action.low, action.high, action.units, strict=True)
        done = [f"  out  {name} {low:g} .. {high:g} [{unit}] in {action.frame}" for name, low, high, unit in rows]
        parents = [
            f"  with {p.name}, weight {np.mean(p.weights):.2g}, sees {', '.join(p.observations)}"
            for p in (m.consensus.parents if m.consensus else ())
        ]
        curve = [
            f"  {p.steps} steps: {p.p50_ms:.2f} ms p50, {p.p99_ms:.2f} ms p99, {p.deviation:.3f} from the most steps"
            for p in m.curve
        ]
        return "\n".join(
            [
                f"{m.name}, {spec.horizon} actions at {spec.rate_hz:g} Hz, {m.sampler.steps} sampler steps, "
                f"{m.numbers or 'float32'} in {self.backend}{self._instead}",
                *seen,
                *done,
                *parents,
                f"  {m.latency.p50_ms:.2f} ms p50, {m.latency.p99_ms:.2f} ms p99 at export "
                f"({m.latency.threads} thread, {m.latency.cpu})",
                *curve,
                f"  {m.max_error:.1e} largest deviation from torch at export",
                f"  kinoflow {m.kinoflow}, format {m.format}, graph {m.fingerprint}",
            ]
        )


def read_policy(path: Path) -> tuple[bytes, bytes]:
    """Return the verified ``policy.safetensors`` and ``policy.json`` of a bundle.

    Raises:
        BundleError: As in `Bundle.load`.
    """
    _, members = _named_parts(path)
    return members[WEIGHTS], members[SETTINGS]


def read_graphs(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return what a bundle says about itself and its verified graphs by name.

    Raises:
        BundleError: As in `Bundle.load`.
    """
    manifest, members = _named_parts(path)
    return manifest, {name: members[name] for name in manifest.graphs}


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: no such file; give the path of a bundle written by 'kinoflow export'")


def _named_parts(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    _check_there(path)
    try:
        return _verified_parts(path)
    except ContractError as error:
        raise BundleError(f"{path}: {error}") from error


def write_bundle(
    path: str | Path,
    graphs: Mapping[str, bytes],
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
    consensus: Consensus | None = None,
    curve: tuple[CurvePoint, ...] = (),
    fewer: Mapping[int, Mapping[str, Array]] = MappingProxyType({}),
    numbers: str = "",
    backend: str = "",
) -> Manifest:
    """Write a bundle in one step: a reader sees the old file or the whole new one, and equal content gives equal bytes.

    The bundle is loaded from memory first, so what `Bundle.load` would refuse is never written.

    Args:
        path: Target file, suffix ``.kfb``.
        graphs: Serialised ONNX models by name: ``policy.onnx``, for a head that digests its goal ``goal.onnx`` before
            it, or what `Manifest.graphs` names for a consensus.
        weights: ``policy.safetensors``.
        settings: ``policy.json``.
        spec: Contract of the policy.
        golden: Every graph input and output, batch first.
        name: The head's, as `policies.head.find_head` takes it.
        sampler: Steps and time grid.
        normalisation: Statistics per feature that the graphs apply.
        latency: Measured on the exporting machine.
        max_error: Largest `deviation` of ONNX Runtime from torch.
        provenance: Recipe, dataset hash, seeds: plain JSON values.
        consensus: Of a composition whose parents run beside each other.
        curve: Of several numbers of steps, the fewest first.
        fewer: Golden pairs of all of these but the last.
        numbers: In which the graphs compute, if not in float32.
        backend: What computes them, if not ONNX Runtime.

    Raises:
        BundleError: The content would not load.
        OSError: The file cannot be written; an older file at ``path`` stays as it was.
    """
    check_contract(spec)
    check_consensus(consensus, spec)
    check_curve(curve, sampler)
    pairs = {GOLDEN: golden, **{variant(GOLDEN, steps): pair for steps, pair in fewer.items()}}
    packed = {name: pack({f"{key}.npy": _to_npy(value) for key, value in pair.items()}) for name, pair in pairs.items()}
    parts = {**graphs, **packed, WEIGHTS: weights, SETTINGS: settings}
    manifest = Manifest(
        format=FORMAT,
        kinoflow=importlib.metadata.version("kinoflow"),
        name=name,
        spec=spec,
        inputs=graph_inputs(spec),
        outputs=graph_outputs(spec),
        sampler=sampler,
        normalisation={"note": "applied inside the graphs, repeated for readers", "statistics": dict(normalisation)},
        latency=latency,
        max_error=max_error,
        provenance=dict(provenance),
        parts={part: sha256(content) for part, content in parts.items()},
        consensus=consensus,
        curve=curve,
        numbers=numbers,
        backend=backend,
    )
    content = pack({MANIFEST: manifest.to_bytes(), **parts})
    verified = Bundle._read(io.BytesIO(content), threads=1)
    replace_file(Path(path), content)
    return verified.manifest


def deviation(actual: Array, expected: Array) -> float:
    """Largest difference between two arrays: absolute where ``|expected| <= 1``, relative where it is larger."""
    return float(np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected))))


def open_graphs(
    graphs: Mapping[str, bytes],
    spec: Spec,
    sampler: Sampler,
    consensus: Consensus | None,
    threads: int = 1,
    backend: str = ONNX_RUNTIME,
) -> Network | AnyStep | Ensemble:
    """Load the graphs of a bundle; those of a composition and of a goal compute in ONNX Runtime.

    Raises:
        BundleError: A graph is damaged or does not fit the contract.
    """
    if consensus is not None:
        return Ensemble(graphs, spec, sampler, consensus, threads)
    goal = Goal(graphs[GOAL], spec, threads) if GOAL in graphs else None
    networks = {}
    for name in graphs.keys() - {GOAL}:
        _, _, steps = name.removesuffix(".onnx").partition("@")
        with part(name):
            networks[int(steps or sampler.steps)] = Network(graphs[name], spec, threads, goal, backend)
    return AnyStep(networks) if len(networks) > 1 else networks[sampler.steps]


def _verified_parts(file: Path | BinaryIO) -> tuple[Manifest, dict[str, bytes]]:
    if isinstance(file, Path) and holds(file, PLANNER):
        raise BundleError("this is a planner; use kinoflow eval xdiffuser --planner, kinoflow plan or kinoflow run")
    members = unpack(file, lambda read: (MANIFEST, *Manifest.from_bytes(read(MANIFEST)).members))
    manifest = Manifest.from_bytes(members[MANIFEST])
    for name in manifest.members:
        found, recorded = sha256(members[name]), manifest.parts.get(name)
        if found != recorded:
            raise BundleError(f"{name} has SHA-256 {found}, the manifest records {recorded}; copy the bundle again")
    return manifest, members


def _read_golden(content: bytes, spec: Spec) -> dict[str, Array]:
    expected = {**graph_inputs(spec), **graph_outputs(spec)}
    golden = {}
    for member, data in unpack(io.BytesIO(content), lambda _: [f"{name}.npy" for name in expected]).items():
        try:
            golden[member[:-4]] = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise BundleError(f"golden pair: {member} is not an array: {error}; export the policy again") from error
    types = graph_types(spec)
    for name, shape in expected.items():
        numbers = types.get(name, "float32")
        if golden[name].shape != shape or golden[name].dtype != numbers:
            raise BundleError(
                f"golden pair: '{name}' is {golden[name].dtype} {golden[name].shape}, "
                f"the contract needs {numbers} {shape}; export the policy again"
            )
    return golden


def _to_npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
