"""Search for the weights of a composition, reported so that the claim survives.

Weights are chosen on validation seeds and reported on other ones. Beside the composition stand, on the same episodes
and the same sampler noise: each parent, the better parent with the sampler of the composition and with as many network
evaluations as the composition takes, and plain averaging of finished chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from envs.drive import Row
from envs.evaluate import VALIDATION_SEED, EvaluateConfig, compared, load, run_all, summary, world
from policies.load import describe_sum
from policies.spec import ContractError, Spec

Weights = tuple[float, ...]
Progress = Callable[[int, int], None]

GOLDEN = (5**0.5 - 1) / 2
GOLDEN_ROUNDS = 5
FIRST_ROUND = 10  # episodes per candidate in the first round of successive halving


@dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Args:
        env: Gymnasium id.
        embodiment: Robot, where the environment has several.
        method: ``grid`` tries every candidate on all validation episodes; ``halving`` drops the worse half of them
            after ever longer rounds; ``golden`` narrows the weight of two parents by golden section.
        spacing: Distance of neighbouring candidates in weight.
        validation: Validation episodes per candidate.
        episodes: Episodes of the report.
        execute: Actions of a chunk to execute before the next is planned; the environment's custom by default.
        workers: Processes.
    """

    env: str = "kinoflow/PushT-v0"
    embodiment: str | None = None
    method: Literal["grid", "halving", "golden"] = "halving"
    spacing: float = 0.1
    validation: int = 100
    episodes: int = 200
    execute: int | None = None
    workers: int = 2


def candidates(parents: int, spacing: float) -> list[Weights]:
    """All weights of a simplex that are multiples of ``spacing``, the parents alone included."""
    count = round(1 / spacing) if spacing > 0 else 0
    if count < 2 or abs(count * spacing - 1) > 1e-6:
        raise ValueError(f"spacing {spacing} does not divide 1 into two or more; choose 0.1, 0.2, 0.25 ...")
    shares = itertools.product(range(count + 1), repeat=parents)
    return [tuple(share / count for share in choice) for choice in shares if sum(choice) == count]


class Objective:
    """Mean score of weights on validation episodes; an episode is driven once, however often it is asked for."""

    def __init__(
        self, parents: Sequence[str], steps: int, loader: str, config: SearchConfig, progress: Progress
    ) -> None:
        self.scores: dict[Weights, list[float]] = {}
        self.episodes = 0
        self._parents, self._steps, self._loader, self._progress = parents, steps, loader, progress
        self._config = _evaluation(config)
        env = world(self._config)
        self.name, self.contract = env.objective, env.contract
        env.close()

    def __call__(self, weights: Sequence[Weights], episodes: int) -> list[float]:
        """Mean scores of several candidates over the first ``episodes`` validation episodes."""
        for known in sorted({len(self.scores.get(choice, [])) for choice in weights}):
            missing = [choice for choice in weights if len(self.scores.get(choice, [])) == known]
            if known < episodes:
                self._drive(missing, known, episodes)
        return [float(np.mean(self.scores[choice][:episodes])) for choice in weights]

    def _drive(self, weights: Sequence[Weights], begin: int, end: int) -> None:
        config = replace(self._config, seed=VALIDATION_SEED + begin, episodes=end - begin)
        names = {choice: expression(self._parents, choice, self._steps) for choice in weights}
        rows, _ = run_all(list(names.values()), len(names), self._loader, config, self._progress)
        for choice, name in names.items():
            self.scores.setdefault(choice, []).extend(row.value(self.name) for row in rows[name])
        self.episodes += len(weights) * (end - begin)


def expression(parents: Sequence[str], weights: Weights, steps: int, level: str = "score") -> str:
    """A composition as `policies.load.load_policy` reads it; one parent alone when the others have weight 0."""
    used = [(name, weight) for name, weight in zip(parents, weights, strict=True) if weight]
    if len(used) == 1:
        return f"{used[0][0]}@{steps}"
    if level == "action":
        return describe_sum([f"{name}@{steps}" for name, _ in used], [weight for _, weight in used], level)
    return f"{describe_sum([name for name, _ in used], [weight for _, weight in used])}@{steps}"


def grid_search(objective: Objective, parents: int, config: SearchConfig) -> None:
    """Every candidate on all validation episodes."""
    objective(candidates(parents, config.spacing), config.validation)


def halving_search(objective: Objective, parents: int, config: SearchConfig) -> None:
    """Successive halving (arXiv 1502.07943): the better half goes on, on twice the episodes. Parents always go on."""
    every = candidates(parents, config.spacing)
    alone = [choice for choice in every if max(choice) == 1]
    mixed, episodes = [choice for choice in every if max(choice) < 1], min(FIRST_ROUND, config.validation)
    while True:
        scores = objective(mixed + alone, episodes)[: len(mixed)]
        if episodes == config.validation:
            return
        order = np.argsort(scores)[::-1]
        mixed = [mixed[i] for i in order[: max(2, (len(mixed) + 1) // 2)]]
        episodes = min(2 * episodes, config.validation)


def golden_search(objective: Objective, parents: int, config: SearchConfig) -> None:
    """Golden section over the weight of the first of two parents; assumes one maximum."""
    if parents != 2:
        raise ValueError(f"golden section searches one weight, so it needs 2 parents, not {parents}; use halving")
    low, high = 0.0, 1.0
    objective([(1.0, 0.0), (0.0, 1.0)], config.validation)
    for _ in range(GOLDEN_ROUNDS):
        inner = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        choices = [(round(w, 3), round(1 - w, 3)) for w in inner]
        left, right = objective(choices, config.validation)
        low, high = (low, inner[1]) if left >= right else (inner[0], high)


METHODS = {"grid": grid_search, "halving": halving_search, "golden": golden_search}


def search(
    parents: Sequence[str],
    steps: int,
    loader: str,
    config: SearchConfig,
    progress: Progress,
    keep: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Choose weights on validation seeds and report the composition beside its controls on other seeds.

    Args:
        parents: Paths of at least two policies.
        steps: Denoising steps of every arm.
        loader: As in `envs.evaluate.evaluate`.
        config: How to search.
        progress: Called with (episodes done, episodes in all) of the present round.
        keep: Called with the weights and validation scores before the episodes of the report, in case these fail.

    Returns:
        A report for ``json.dump``: chosen weights, validation scores, arms, paired differences and the verdict.

    Raises:
        ContractError: The parents cannot be composed, averaged or sampled with the compute of the composition.
        ValueError: There is nothing to search or to report on.
    """
    if len(set(parents)) < max(2, len(parents)):
        raise ValueError(f"a composition needs at least 2 parents, each given once; got {list(parents)}")
    if min(config.validation, config.episodes) < 1:
        raise ValueError(
            f"{config.validation} validation episodes and {config.episodes} of the report; give at least one of each"
        )
    objective = Objective(parents, steps, loader, config, progress)
    _check_arms(parents, steps, loader, objective.contract)
    METHODS[config.method](objective, len(parents), config)
    complete = {w: float(np.mean(s)) for w, s in objective.scores.items() if len(s) >= config.validation}
    chosen = max((w for w in complete if max(w) < 1), key=lambda w: complete[w])
    alone = max((w for w in complete if max(w) == 1), key=lambda w: complete[w])
    report = {
        "env": config.env,
        "parents": list(parents),
        "steps": steps,
        "method": config.method,
        "objective": objective.name,
        "validation": {
            "seed": VALIDATION_SEED,
            "episodes_driven": objective.episodes,
            "scores": [
                {"weights": w, "episodes": len(s), "mean": float(np.mean(s)), "sem": _sem(s)}
                for w, s in sorted(objective.scores.items())
            ],
        },
        "weights": chosen,
        "best_parent": parents[alone.index(1)],
    }
    keep(report)
    arms = _arms(parents, chosen, parents[alone.index(1)], steps)
    names = list(dict.fromkeys(arms.values()))
    rows, _ = run_all(names, len(names), loader, _evaluation(config, seed=0, episodes=config.episodes), progress)
    return {**report, **_report({arm: rows[name] for arm, name in arms.items()}, objective.name, config)}


def _check_arms(parents: Sequence[str], steps: int, loader: str, contract: Spec) -> None:
    """Build what the report will need: a refusal should come before hours of search."""
    even, most = (1 / len(parents),) * len(parents), steps * len(parents)
    for level in ("score", "action"):
        load(expression(parents, even, steps, level), loader).spec.require(contract)
    for parent in parents:
        try:
            load(f"{parent}@{most}", loader)
        except ValueError as error:
            raise ContractError(
                f"the control with equal compute needs {parent} with {most} steps, {steps} per parent of the "
                f"composition: {error}; search with fewer --steps"
            ) from error


def _arms(parents: Sequence[str], weights: Weights, best: str, steps: int) -> dict[str, str]:
    return {
        "composition": expression(parents, weights, steps),
        **{f"parent {index}": name for index, name in enumerate(parents, 1)},
        "best parent, same sampler": f"{best}@{steps}",
        "best parent, equal compute": f"{best}@{steps * np.count_nonzero(weights)}",
        "average of actions": expression(parents, weights, steps, "action"),
    }


def _report(found: dict[str, list[Row]], name: str, config: SearchConfig) -> dict[str, Any]:
    ours = found["composition"]
    arms = {
        arm: {**summary(rows), "difference": compared(ours, rows)[name]} if arm != "composition" else summary(rows)
        for arm, rows in found.items()
    }
    return {
        "episodes": config.episodes,
        "seed": 0,
        "arms": arms,
        "verdict": verdict({arm: figures["difference"] for arm, figures in arms.items() if arm != "composition"}),
        "rows": {arm: [row.to_json() for row in rows] for arm, rows in _pathless(found).items()},
    }


def _pathless(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {arm: [replace(row, path=[]) for row in rows] for arm, rows in found.items()}


def verdict(differences: dict[str, dict[str, Any]]) -> str:
    """Say in words what the paired differences of the composition to its controls allow to claim."""
    open_to_doubt = [arm for arm, gap in differences.items() if gap["low"] is None or gap["low"] <= 0]
    if not open_to_doubt:
        least = min(differences.values(), key=lambda gap: gap["mean"])
        return f"significant gain over every control, at least {_interval(least)}"
    worse = [arm for arm, gap in differences.items() if gap["high"] is not None and gap["high"] < 0]
    lost = f"; significantly worse than: {', '.join(worse)}" if worse else ""
    return f"no significant gain over: {', '.join(open_to_doubt)}{lost}"


def _evaluation(config: SearchConfig, **changes: Any) -> EvaluateConfig:
    shared = {"env": config.env, "embodiment": config.embodiment, "execute": config.execute, "workers": config.workers}
    return EvaluateConfig(**{**shared, "baselines": False, **changes})


def _interval(gap: dict[str, Any]) -> str:
    ends = "" if gap["low"] is None else f" [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    return f"{gap['mean']:+.3f}{ends}"


def _sem(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def as_text(report: dict[str, Any]) -> str:
    """A table for people."""
    weights = ", ".join(f"{weight:.2f}" for weight in report["weights"])
    driven, name = report["validation"]["episodes_driven"], report["objective"]
    lines = [
        f"weights {weights}, chosen on {driven} validation episodes; {report['episodes']} others of {report['env']}:",
        f"{'':<28} {name:<8} success (95 %)        composition minus this",
    ]
    for arm, figures in report["arms"].items():
        rate = figures["success"]
        value = rate["mean"] if name == "success" else figures[name]
        line = f"{arm:<28} {value:<8.3f} {rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
        if gap := figures.get("difference"):
            line += f"   {_interval(gap)}"
        lines.append(line)
    return "\n".join([*lines, report["verdict"]])
