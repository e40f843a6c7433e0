"""Export a torch policy as a bundle: one ONNX graph with normalisation, unrolled sampler and hold guide inside.

For several numbers of steps there is a graph each; the weights are in all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from policies.archive import LIMIT, BundleError
from policies.backend import ONNX_RUNTIME
from policies.bundle import deviation, open_graphs, write_bundle
from policies.composition import Composition
from policies.golden import Pair, answered, apart, compare
from policies.graphs import plan_graphs, policy_graphs
from policies.head import head_name
from policies.manifest import GRAPH, CurvePoint, Latency, Sampler, check_contract, variant
from policies.network import Runnable
from policies.norm import ACTION
from policies.policy import Policy
from policies.quantise import FLOAT32, Choice, Way, fastest
from policies.runtime.any_step import by_steps
from policies.train import Windows

TIMED_CALLS = 100


@dataclass(frozen=True)
class ExportReport:
    """What an export produced.

    Args:
        path: The bundle.
        size: Its bytes.
        nodes: Nodes of all graphs after folding.
        max_error: Largest `deviation` from torch over the compared inputs.
        latency: Of one chunk on this machine, one thread.
        curve: Of several numbers of steps, the fewest first; empty if there is one.
        choice: What there was to choose from, if there was a choice of ways to compute.
    """

    path: Path
    size: int
    nodes: int
    max_error: float
    latency: Latency
    curve: tuple[CurvePoint, ...] = ()
    choice: Choice | None = None


def export(
    policy: Policy,
    path: str | Path,
    *,
    provenance: Mapping[str, Any],
    rounded: bool = False,
    steps: Sequence[int] = (),
    calibration: Windows | None = None,
) -> ExportReport:
    """Export a policy; the policy itself is left as it is.

    Args:
        policy: Trained policy; its guides need a closed form, gradients do not survive export.
        path: Target file, suffix ``.kfb``.
        provenance: Recipe, dataset hash, seeds: plain JSON values.
        rounded: Round the head's weights to bfloat16; they are still computed with as float32, but the file deflates
            to less than half.
        steps: Numbers of steps among which the bundle chooses at run time, see `policies.runtime.any_step`; those of
            the policy by default.
        calibration: Episodes by which the bundle may compute in 8 bits or in another back end, if that is faster on
            this machine and plans stay what they were, see `policies.quantise`.

    Raises:
        BundleError: ONNX Runtime and torch disagree, or contract or weights are not fit for a bundle.
        ContractError: The episodes do not fit the policy.
    """
    check_contract(policy.spec)
    *few, most = sorted({*steps}) or [policy.steps]
    if isinstance(policy.head, Composition):
        _check_usual(few, calibration)
    _check_weights(policy, 1 + len(few))
    policy = copy.deepcopy(policy).cpu().with_steps(most)
    if rounded:
        for weight in policy.head.parameters():
            weight.data = weight.data.bfloat16().to(weight.dtype)
    path = Path(path)
    graphs, consensus = policy_graphs(policy)
    fewer = {n: policy.with_steps(n) for n in few}
    graphs |= {variant(GRAPH, n): plan_graphs(fewer[n])[GRAPH] for n in few}
    sampler = Sampler(policy.steps, policy.grid, policy.temperature)
    content = {name: model.SerializeToString() for name, model in graphs.items()}
    load = partial(open_graphs, spec=policy.spec, sampler=sampler, consensus=consensus)
    network = load(content)
    pairs, max_error = _compared({**fewer, most: policy}, network)
    choice, way = None, Way(FLOAT32)
    if calibration:
        scale = np.array(policy.normaliser.statistics()[ACTION]["scale"])
        choice = fastest(content, policy.spec, scale, calibration, load)
        way, content = choice.way, dict(choice.graphs)
        network = load(content, backend=way.backend)
        pairs, max_error = _answered(pairs, network, max_error)
    latency = _latency(network)
    curve = _curve({**fewer, most: policy}, network, latency) if few else ()
    write_bundle(
        path,
        content,
        *policy.to_bytes(),
        policy.spec,
        pairs.pop(most),
        name=head_name(policy.head),
        sampler=sampler,
        normalisation=policy.normaliser.statistics(),
        latency=latency,
        max_error=max_error,
        provenance=provenance,
        consensus=consensus,
        curve=curve,
        fewer=pairs,
        numbers=way.numbers if way.numbers != FLOAT32 else "",
        backend=way.backend if way.backend != ONNX_RUNTIME else "",
    )
    nodes = sum(len(model.graph.node) for model in graphs.values())
    return ExportReport(path, path.stat().st_size, nodes, max_error, latency, curve, choice)


def _compared(policies: Mapping[int, Policy], network: Runnable) -> tuple[dict[int, Pair], float]:
    """The golden pair of every number of steps, and the largest `deviation`."""
    networks = by_steps(network, max(policies))
    found = {n: compare(policy, networks[n]) for n, policy in policies.items()}
    return {n: pair for n, (pair, _) in found.items()}, max(error for _, error in found.values())


def _answered(pairs: Mapping[int, Pair], network: Runnable, max_error: float) -> tuple[dict[int, Pair], float]:
    """The pairs as a network that computes in another way answers them, and the largest `deviation`."""
    networks = by_steps(network, max(pairs))
    answers = {n: answered(networks[n], pair) for n, pair in pairs.items()}
    errors = [deviation(answers[n][name], pair[name]) for n, pair in pairs.items() for name in pair]
    return answers, max(max_error, *errors)


def _latency(network: Runnable) -> Latency:
    network.warm_up(TIMED_CALLS // 10)
    return Latency.of(network.latency(TIMED_CALLS), threads=1)


def _curve(policies: Mapping[int, Policy], network: Runnable, most: Latency) -> tuple[CurvePoint, ...]:
    """What every number of steps costs and gives; the latency of the most is known."""
    networks, best = by_steps(network, max(policies)), policies[max(policies)]
    times = {n: most if policy is best else _latency(networks[n]) for n, policy in policies.items()}
    return tuple(CurvePoint(n, times[n].p50_ms, times[n].p99_ms, apart(best, policies[n])) for n in policies)


def _check_usual(few: Sequence[int], calibration: Windows | None) -> None:
    """Refuse what a composition cannot be exported with."""
    if few:
        raise BundleError("a composition has one number of steps, that its parents share; export it without others")
    if calibration:
        raise BundleError("a composition computes in the numbers of its parents' graphs; export it in float32")


def _check_weights(policy: Policy, graphs: int) -> None:
    weights = policy.state_dict()
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise BundleError(f"{broken[0]} is not finite; training diverged, export an earlier or another policy")
    size = sum(value.nbytes for value in weights.values())
    copies = graphs + 1
    if copies * size > LIMIT:
        raise BundleError(
            f"the policy has {size} bytes of weights, which a bundle holds {copies} times, in its graphs and to train "
            f"on; its limit is {LIMIT}, so train a network of at most {LIMIT // copies}"
        )
