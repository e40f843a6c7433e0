"""A torch policy as ONNX graphs, by name.

There is one for the whole plan. What a head makes of constant features before it encodes them becomes a graph of its
own in front of it, which runs once per goal; it hands over tensors named after what `Head.digest` returns.

A composition of scores becomes two graphs per parent instead, so that the parents can run beside each other and without
each other: ``encode`` takes the parent's own observations and returns its context as tensors c0, c1, ...; ``estimate``
takes these, the chunk ``x`` of the composition and the index of the ``step``, and returns ``data`` and ``noise``. Unit
conversion and alignment are inside.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import torch
import torch.utils._pytree as pytree
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass
from torch import Tensor, nn

from policies.composition import Composition
from policies.flow import Estimate
from policies.manifest import GRAPH, Consensus, Parent, parent_graphs
from policies.network import GOAL, STEP, graph_inputs, graph_outputs, graph_types, open_session
from policies.norm import ACTION
from policies.policy import Policy
from policies.spec import Array


def policy_graphs(policy: Policy) -> tuple[dict[str, onnx.ModelProto], Consensus | None]:
    """One graph for the whole plan, two with a goal, or two per parent of a composition that can run on their own."""
    head = policy.head
    if isinstance(head, Composition) and _divisible(head):
        graphs: dict[str, onnx.ModelProto] = {}
        for index in range(len(head.policies)):
            graphs |= zip(parent_graphs(index), _parent(head, index, policy.grid), strict=True)
        return graphs, consensus_of(policy, head)
    return plan_graphs(policy), None


def plan_graphs(policy: Policy) -> dict[str, onnx.ModelProto]:
    """The graph of the whole plan, behind the one of what is constant if the head digests that."""
    types, outputs = graph_types(policy.spec), list(graph_outputs(policy.spec))
    inputs = {name: _zeros(shape, types.get(name, "float32")) for name, shape in graph_inputs(policy.spec).items()}
    goal = _Goal(policy)
    constant = {name: inputs[name] for name in goal.features}
    with torch.no_grad():
        digest = goal.digest(*constant.values())
    if not digest:
        return {GRAPH: _trace(_Plan(policy), inputs, outputs)}
    plan = _PlanDigested(policy, list(digest))
    handed = {f"{name}_digest": tensor for name, tensor in digest.items()}
    seen = {name: inputs.pop(name) for name in plan.features}
    chunk = {name: tensor for name, tensor in inputs.items() if name not in constant}
    return {GOAL: _trace(goal, constant, list(handed)), GRAPH: _trace(plan, seen | handed | chunk, outputs)}


def _divisible(head: Composition) -> bool:
    """Whether there are fields to combine step by step and what they share is made of tensors."""
    parents = head.policies
    inner = any(isinstance(parent.head, Composition) for parent in parents)
    return head.config.level == "score" and len(parents) > 1 and not inner


def consensus_of(policy: Policy, head: Composition) -> Consensus:
    action = policy.normaliser.statistics()[ACTION]
    rows = zip(head.policies, head.windows, head.weights.tolist(), strict=True)
    parents = tuple(
        Parent(
            f"parent_{index} ({type(parent.head).__name__})",
            tuple(feature.name for feature in parent.spec.observations),
            parent.spec.history,
            *window,
            tuple(map(tuple, weights)),
        )
        for index, (parent, window, weights) in enumerate(rows)
    )
    return Consensus(parents, tuple(action["offset"]), tuple(action["scale"]))


def _parent(head: Composition, index: int, grid: Sequence[float]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The two graphs of one parent."""
    parent = head.policies[index]
    encode = _Encode(parent)
    seen = ((f, (1, parent.spec.samples(f), *f.shape)) for f in parent.spec.observations)
    observation = {feature.name: _zeros(shape, feature.dtype) for feature, shape in seen}
    with torch.no_grad():
        context = {f"c{k}": leaf for k, leaf in enumerate(encode(*observation.values()))}
    asked = {**context, "x": torch.zeros(1, *head.spec.noise_shape), "t": torch.zeros(1)}
    estimate = _trace(_Estimate(head, index, encode.tree), asked, ["data", "noise"])
    return _trace(encode, observation, list(context)), _fold_time(estimate, grid)


def _zeros(shape: tuple[int, ...], numbers: str) -> Tensor:
    return torch.zeros(shape, dtype=getattr(torch, numbers))


class _Encode(nn.Module):
    """What a parent makes of its observations, as a flat tuple of tensors."""

    def __init__(self, parent: Policy) -> None:
        super().__init__()
        self.parent, self.tree = parent, pytree.tree_structure(None)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [feature.name for feature in self.parent.spec.observations]
        head, observation = self.parent.head, self.parent.normaliser(dict(zip(names, inputs, strict=True)))
        context = head.encode(head.digest(observation))
        leaves, self.tree = pytree.tree_flatten(context)
        return tuple(leaves)


class _Estimate(nn.Module):
    """What a parent says about a chunk of the composition."""

    def __init__(self, head: Composition, index: int, tree: pytree.TreeSpec) -> None:
        super().__init__()
        self.head, self.index, self.tree = head, index, tree

    def forward(self, *inputs: Tensor) -> Estimate:
        *leaves, x, t = inputs
        parent, context = self.head.policies[self.index].head, pytree.tree_unflatten(leaves, self.tree)
        return self.head.over(self.index, parent.field(context))(x, t)


class _Plan(nn.Module):
    """The policy's plan with the positional inputs of a graph."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [feature.name for feature in self.policy.spec.observations]
        return tuple(self.policy.plan(dict(zip(names, inputs, strict=False)), *inputs[len(names) :]))


class _Goal(nn.Module):
    """What a head makes of the constant features."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.features = [feature.name for feature in policy.spec.observations if feature.constant]

    def digest(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What takes their place, nothing where there are none or the head leaves them all as they are."""
        if not self.features:
            return {}
        normal = _normal(self.policy, self.features, inputs)
        digest = self.policy.head.digest(normal)
        same = digest.keys() == normal.keys() and all(digest[name] is normal[name] for name in digest)
        return {} if same else digest

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in self.digest(*inputs).values())  # an output has to differ from the input


class _PlanDigested(nn.Module):
    """The policy's plan from the features that are not constant, then the digest, then what a chunk starts from."""

    def __init__(self, policy: Policy, digest: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.digest = policy, digest
        self.features = [feature.name for feature in policy.spec.observations if not feature.constant]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        observation = _normal(self.policy, self.features, inputs)
        begin, end = len(self.features), len(self.features) + len(self.digest)
        observation |= zip(self.digest, inputs[begin:end], strict=True)
        return tuple(self.policy.plan_digested(observation, *inputs[end:]))


def _normal(policy: Policy, names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Part of an observation in normal units: the features that ``inputs`` begins with."""
    return {
        name: value if value.dtype == torch.uint8 else policy.normaliser.normalise(name, value)
        for name, value in zip(names, inputs, strict=False)
    }


def _trace(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> onnx.ModelProto:
    """Trace a module and fold everything that depends on the weights only."""
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
        )
        assert program is not None  # with dynamo=True there always is one
        # Merged first: folding would store a transposed weight once per step instead of once.
        CommonSubexpressionEliminationPass()(program.model)
        # By default constants beyond a few kilobytes stay unfolded, and with them the time embeddings.
        model = onnxscript.optimizer.optimize(program.model, input_size_limit=2**62, output_size_limit=2**62)
    ClearMetadataAndDocStringPass()(model)  # it names the source files of this machine
    return onnx_ir.to_proto(model)


def _fold_time(model: onnx.ModelProto, grid: Sequence[float]) -> onnx.ModelProto:
    """Turn what depends on the input ``t`` alone into tables over the times of the grid, and ``t`` into their index.

    A single graph has the time embeddings as constants; computing them at every step costs up to a third of it.
    """
    graph = model.graph
    fixed, timed = {tensor.name for tensor in graph.initializer}, {"t"}
    for node in graph.node:
        if all(name in fixed | timed for name in node.input if name):
            (timed if timed & {*node.input} else fixed).update(node.output)
    kept = [node for node in graph.node if not timed & {*node.output}]
    needed = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    tables = _tables(model, sorted(timed & needed), grid)
    lookups = [onnx.helper.make_node("Gather", [f"{name}_of", STEP], [name], axis=0) for name in tables]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    weights += [onnx.numpy_helper.from_array(table, f"{name}_of") for name, table in tables.items()]
    inputs = [value for value in graph.input if value.name != "t"]
    inputs.append(onnx.helper.make_tensor_value_info(STEP, onnx.TensorProto.INT64, []))
    folded = onnx.helper.make_graph([*lookups, *kept], graph.name, inputs, graph.output, weights)
    return onnx.helper.make_model(
        folded, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def _tables(model: onnx.ModelProto, names: Sequence[str], grid: Sequence[float]) -> dict[str, Array]:
    """Values of a graph at each time at which a step begins, ``(steps, *shape)``; they depend on nothing else."""
    probe = onnx.ModelProto.FromString(model.SerializeToString())
    probe.graph.node.extend(onnx.helper.make_node("Identity", [name], [f"{name}_out"]) for name in names)
    probe.graph.output.extend(onnx.ValueInfoProto(name=f"{name}_out") for name in names)
    session = open_session(probe.SerializeToString(), threads=1)
    inputs = {value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs()}
    rows = [
        session.run([f"{name}_out" for name in names], {**inputs, "t": np.array([t], np.float32)}) for t in grid[:-1]
    ]
    return {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's notes on optional packages and unfolded operations."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
