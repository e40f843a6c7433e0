"""How long one chunk takes on one core: a bundle, the same head in torch, and the field's usual diffusion policy.

The arms take turns in one loop, so a machine that slows down slows all of them. Every turn begins with a cold cache and
that call counts too. Wall time is what a robot waits for, but on a busy machine a long chunk is interrupted for certain
and a short one rarely, which flatters the ratio of the wall times; the ratio of the processor times is free of that.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.backend import MODULES, installed
from policies.bundle import Bundle, cpu_name
from policies.norm import Normaliser
from policies.policy import Policy
from policies.senses import sensing
from policies.spec import Array, ChunkPolicy, Observation, Spec
from policies.unet import Config, UNet

ROUNDS = 15
WIDTHS = (256, 512, 1024)
HORIZON, DDIM_STEPS = 16, 10


@dataclass(frozen=True)
class Arm:
    """What takes turns with others.

    Args:
        what: What it is, in words.
        call: Does it once and returns the wall and processor seconds of that.
        calls: Calls per turn.
        turns: In how many rounds it takes part; None in all and in the first, which is forgotten.
    """

    what: str
    call: Callable[[], tuple[float, float]]
    calls: int
    turns: int | None = None

    def takes_part(self, turn: int, rounds: int) -> bool:
        """Whether it is called in a round, counted from 0, which is the one that is forgotten."""
        return self.turns is None or turn in {1 + index * rounds // self.turns for index in range(self.turns)}


@dataclass(frozen=True, kw_only=True)
class PolicyArm(Arm):
    """An arm that makes a chunk per call.

    Args:
        parameters: Of its network.
        steps: Network evaluations per chunk.
    """

    parameters: int
    steps: int


def measure(
    bundle: Path, progress: Callable[[int, int, str], None], widths: tuple[int, ...] = WIDTHS, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Measure a bundle beside its peers, one thread each; takes 15 s on an idle machine.

    Args:
        bundle: Bundle written by ``kinoflow export``.
        progress: Called with (rounds done, rounds in all, a short text).
        widths: Channels per level of the diffusion U-Net.
        rounds: Turns of every arm.

    Returns:
        Plain JSON values: ``arms`` with latencies in ms, ``ratios`` of the median latencies, their smallest and largest
        value over the rounds in ``ranges``, the same ratios of processor time in ``cpu_ratios``, and the circumstances.

    Raises:
        BundleError: The bundle is damaged.
    """
    arms = make_arms(bundle, widths)
    with one_thread():
        wall, cpu = race(arms, rounds, progress)
    return report(bundle, arms, rounds, wall, cpu)


def compare(bundles: Sequence[Path], progress: Callable[[int, int, str], None], rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure bundles beside each other, one thread each.

    Args:
        bundles: Written by ``kinoflow export``.
        progress: Called with (rounds done, rounds in all, a short text).
        rounds: Turns of every bundle.

    Returns:
        Plain JSON values: ``arms`` by path, with latencies in ms, and the circumstances.

    Raises:
        BundleError: A bundle is damaged.
    """
    arms = {str(path): _bundle_arm(Bundle.load(path), Policy.load(path), str(path)) for path in bundles}
    with one_thread():
        wall, _ = race(arms, rounds, progress)
    return _measured(arms, rounds, wall)


def report(
    bundle: Path, arms: Mapping[str, PolicyArm], rounds: int, wall: Mapping[str, Array], cpu: Mapping[str, Array]
) -> dict[str, Any]:
    """What `measure` returns, from the times of a `race`, one arm of which is called ``bundle``."""
    peers = [name for name in arms if name != "bundle"]

    def over_bundle(statistic: Callable[[Array, Array], Any], seconds: Mapping[str, Array]) -> dict[str, Any]:
        return {f"{peer}_over_bundle": statistic(seconds[peer], seconds["bundle"]) for peer in peers}

    return {
        "bundle": str(bundle),
        **_measured(arms, rounds, wall),
        "ratios": over_bundle(_ratio, wall),
        "ranges": over_bundle(_range, wall),
        "cpu_ratios": over_bundle(_ratio, cpu),
    }


def _measured(arms: Mapping[str, PolicyArm], rounds: int, wall: Mapping[str, Array]) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "threads": 1,
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in ("torch", *(MODULES[b] for b in installed()))},
        "rounds": rounds,
        "arms": {name: _summary(arm, wall[name]) for name, arm in arms.items()},
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` or of `compare` as a table."""
    longest = max(48, *(len(arm["what"]) for arm in result["arms"].values()))
    lines = [
        f"one chunk on one core of {result['cpu']}, {result['rounds']} rounds, load {result['load']:.1f}",
        f"  {'':<{longest}}{'p50 ms':>9}{'p99 ms':>9}{'chunks':>8}{'steps':>7}{'parameters':>12}",
    ]
    for arm in result["arms"].values():
        numbers = f"{arm['p50_ms']:9.2f}{arm['p99_ms']:9.2f}{arm['chunks']:8}{arm['steps']:7}"
        lines.append(f"  {arm['what']:<{longest}}{numbers}{arm['parameters'] / 1e6:10.2f} M")
    ratios = result.get("ratios", {})
    width = max(map(len, ratios), default=0)
    for name, ratio in ratios.items():
        low, high = result["ranges"][name]
        cpu = result["cpu_ratios"][name]
        spread = f"{low:.1f} .. {high:.1f} over rounds; {cpu:.1f} in processor time"
        lines.append(f"  {name:<{width}} {ratio:.1f} ({spread})")
    return "\n".join(lines)


def make_arms(bundle: Path, widths: tuple[int, ...]) -> dict[str, PolicyArm]:
    """Load the bundle and build its peers; the U-Net's weights are random, which timing does not see.

    The U-Net gets no pictures and no text: it has no encoder for them and would be as wide as they are long.
    """
    exported = Bundle.load(bundle, threads=1)
    policy = Policy.load(bundle)
    numbers = tuple(feature for feature in policy.spec.observations if feature.dtype != "uint8")
    spec = dataclasses.replace(policy.spec, observations=numbers, horizon=HORIZON, past=0)
    unet = Policy(UNet(spec, Config(widths)), Normaliser.identity(spec), DDIM_STEPS).eval()
    own = {"parameters": parameters(policy.head), "steps": policy.steps}
    theirs = {"parameters": parameters(unet.head), "steps": DDIM_STEPS}
    peer = f"diffusion UNet {'-'.join(map(str, widths))} in torch eager, DDIM"
    return {
        "bundle": _bundle_arm(exported, policy, "bundle"),
        "torch": PolicyArm("same head in torch eager", _chunk(sensing(policy)), calls=10, **own),
        "unet": PolicyArm(peer, _chunk(unet), calls=1, **theirs),
    }


def _bundle_arm(exported: Bundle, policy: Policy, name: str) -> PolicyArm:
    size = parameters(policy.head)
    return PolicyArm(f"{name} in {exported.backend}", _chunk(exported), calls=20, parameters=size, steps=policy.steps)


def race(
    arms: Mapping[str, Arm], rounds: int, progress: Callable[[int, int, str], None]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Let the arms take turns; returns wall and processor seconds, each ``{arm: (rounds, calls)}``.

    One round more is run and forgotten: it pays for the first allocations. Rounds without an arm are NaN for it.
    """
    times = {name: np.full((2, rounds + 1, arm.calls), np.nan) for name, arm in arms.items()}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            if arm.takes_part(turn, rounds):
                times[name][:, turn] = np.transpose([arm.call() for _ in range(arm.calls)])
        progress(turn, rounds, "")
    return {name: value[0, 1:] for name, value in times.items()}, {name: value[1, 1:] for name, value in times.items()}


def timed(work: Callable[[], Any]) -> Callable[[], tuple[float, float]]:
    """The `Arm.call` of work that is done in this process."""

    def call() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    return call


def _chunk(policy: ChunkPolicy) -> Callable[[], tuple[float, float]]:
    return timed(partial(policy.act, *_inputs(policy.spec)))


def _inputs(spec: Spec) -> tuple[Observation, Array, Array, Array]:
    rng = np.random.default_rng(0)
    observation = {f.name: _draw(rng, f.dtype, (spec.samples(f), *f.shape)) for f in spec.observations}
    chunk = (spec.horizon, spec.action.dim)
    return (
        observation,
        rng.standard_normal(spec.noise_shape, np.float32),
        np.zeros(chunk, np.float32),
        np.zeros(chunk[0], np.float32),
    )


def _draw(rng: np.random.Generator, numbers: str, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 256, shape, np.uint8) if numbers == "uint8" else rng.uniform(-1, 1, shape).astype(np.float32)


def _summary(arm: PolicyArm, seconds: Array) -> dict[str, Any]:
    p50, p99 = np.nanpercentile(seconds, [50, 99]) * 1e3
    return {
        "what": arm.what,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "chunks": int(np.isfinite(seconds).sum()),
        "steps": arm.steps,
        "parameters": arm.parameters,
    }


def _ratio(peer: Array, bundle: Array) -> float:
    return float(np.nanmedian(peer) / np.median(bundle))


def _range(peer: Array, bundle: Array) -> list[float]:
    ratios = np.median(peer, 1) / np.median(bundle, 1)
    return [float(np.nanmin(ratios)), float(np.nanmax(ratios))]


def medians(seconds: Mapping[str, Array]) -> dict[str, float]:
    """Of every arm of a race."""
    return {name: float(np.nanmedian(took)) for name, took in seconds.items()}


def parameters(network: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in network.parameters())


@contextmanager
def one_core() -> Iterator[None]:
    """`one_thread` on one core, where the system can be told so."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with one_thread(), pinned({min(cores)}) if cores else nullcontext():
        yield


@contextmanager
def pinned(cores: Set[int]) -> Iterator[None]:
    """Keep this thread, and those it starts, on some cores."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch on one thread."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
