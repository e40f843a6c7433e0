"""What real-time chunking is worth: success and jerk by how chunks follow one another and by the delay of inference.

    python docs/chunking_study.py models/nav_flowdit.kfb --rest-after 4 --json docs/results/chunking_nav.json
    python docs/chunking_study.py runs/pusht_flowdit.kfb --env kinoflow/PushT-v0 --json docs/results/chunking_pusht.json
    python docs/chunking_study.py runs/pusht_flowdit.kfb --env kinoflow/PushT-v0 --ways hold soft exact warm \
        --delays-ms 200 --episodes 100 --json docs/results/ties_pusht.json
    python docs/chunking_study.py runs/pusht_flowdit --env kinoflow/PushT-v0 --ways hold stream --delays-ms 0 200 \
        --episodes 100 --json docs/results/stream_pusht.json
    python docs/chunking_study.py --report docs/results/chunking_pusht.json

All arms drive the same episodes. ``hold``, ``naive`` and ``synchronous`` are those of ``kinoflow eval --chunking``. The
others are ``hold`` with samplers that no command has: ``soft`` draws a chunk to all that the present one still plans,
not only to what is executed until it arrives, ``exact`` does so through the network as in arXiv 2506.07339, ``warm``
begins with the present chunk, partly noised, instead of with noise. ``stream`` is for heads with a transformer: it has
as many chunks in flight as there are steps, and all go one step further in one evaluation per chunk. After how many
actions ``synchronous`` rests in Nav-v0 was chosen on seeds from 500,000.
"""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from torch import Tensor

from benchmarks.entry import check, run
from envs.drive import Row
from envs.evaluate import EvaluateConfig, compared, run_all, summary
from kinoflow.console import progress_bar
from policies.files import replace_file
from policies.flow import Step, hold, solve, straight
from policies.load import load_policy, load_trained
from policies.nets.dit import Context
from policies.norm import ACTION
from policies.policy import Candidates, Policy
from policies.runtime.runner import Chunking
from policies.spec import ChunkPolicy

Way = Literal["hold", "naive", "synchronous", "soft", "exact", "warm", "stream"]
BEGIN = 0.5  # time on the linear path at which warm chunks begin, or the last one of the grid before it
KEPT = ("success", "score", "jerk", "turn_jerk")


class Tied(Policy):
    """A policy whose chunks are tied to the present one in another way; for heads with one candidate."""

    way: Way = "hold"

    def candidates(self, encoded: Any, noise: Tensor, committed: Tensor, hold_weights: Tensor) -> Candidates:
        executing = committed.flatten(1).any(-1)[:, None]
        committed = self.normaliser.normalise(ACTION, committed)
        weights = hold_weights if self.way == "warm" else executing * faded(committed, hold_weights)

        def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            field = partial(self.head.estimate, context=self.head.until(encoded, t))
            tied = hold(lambda x, t: field(x, t), committed, weights, "exact" if self.way == "exact" else "identity")
            return straight(tied)(x, s, t)

        start = self.start(noise)
        chunks = solve(step, start, self.grid)
        if self.way == "warm":
            begin = max(time for time in self.grid if time <= BEGIN)
            warm = begin * committed + (1 - begin) * start
            warm = solve(step, warm, [time for time in self.grid if time >= begin])
            chunks = torch.where(executing[..., None], warm, chunks)
        return Candidates(chunks[:, None], chunks.new_zeros(len(chunks), 1))


class Streamed(Policy):
    """A policy that evaluates its network once per chunk (arXiv 2312.12491), over a horizon that recedes.

    The chunks in flight move on with the robot; where they get longer they repeat their end, as noisy as they are.
    """

    flight: Tensor  # (steps - 1, H, A), the noisiest first
    latest: Tensor  # (1, H, A)

    def candidates(self, encoded: Any, noise: Tensor, committed: Tensor, hold_weights: Tensor) -> Candidates:
        executing, count = bool(committed.any()), self.steps
        committed = self.normaliser.normalise(ACTION, committed)
        begins, ends = (torch.tensor(times) for times in (self.grid[:-1], self.grid[1:]))
        start = self.start(noise)
        if executing:
            states = torch.cat([start, self._moved(committed, start, begins[1:])])
            states = self._step(encoded, committed, hold_weights)(states, begins, ends)
        else:
            rows, step = [start], self._step(encoded, committed, hold_weights)
            for s, t in zip(begins, ends, strict=True):
                rows.append(step(rows[-1], s[None], t[None]))
            states = torch.cat(rows[1:])
        self.flight, self.latest = states[: count - 1], states[count - 1 :]
        return Candidates(self.latest[:, None], self.latest.new_zeros(1, 1))

    def _step(self, encoded: Context, committed: Tensor, weights: Tensor) -> Step:
        def step(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            count = len(x)
            keys, values = (part.expand(-1, count, -1, -1, -1) for part in (encoded.keys, encoded.values))
            context = Context(keys, values, encoded.modulation.expand(count, -1, -1, -1))
            field = partial(self.head.estimate, context=self.head.until(context, t))
            tied = hold(lambda x, t: field(x, t), committed.expand_as(x), weights.expand(count, -1))
            return straight(tied)(x, s, t)

        return step

    def _moved(self, committed: Tensor, start: Tensor, times: Tensor) -> Tensor:
        horizon = committed.shape[1]
        off = [(committed[:, : horizon - n] - self.latest[:, n:]).abs().mean() for n in range(horizon)]
        gone = int(torch.stack(off).argmin())
        kept, end = self.flight[:, gone:], self.latest[:, -1:]
        fresh = torch.cat([start.roll(index + 1, 1) for index in range(len(times))])[:, :gone]
        times = times[:, None, None]
        return torch.cat([kept, times * end + (1 - times) * fresh], 1)


class Alone:
    """A policy for one episode at a time."""

    def __init__(self, policy: Policy) -> None:
        self.spec, self.act = policy.spec, policy.act


def faded(committed: Tensor, hold_weights: Tensor) -> Tensor:
    """Weights that fall from what is frozen ``(B, H)`` to the end of the present chunk ``(B, H, A)``, after the paper.

    Beyond its end a chunk repeats its last action.
    """
    repeats = (committed[:, 1:] == committed[:, :-1]).all(-1).flip(1).cumprod(1).sum(1, keepdim=True)
    horizon, frozen = committed.shape[1], (hold_weights >= 1).sum(1, keepdim=True)
    known = (horizon - repeats).clamp(min=frozen)
    linear = ((known - torch.arange(horizon)) / (known - frozen + 1)).clamp(0, 1)
    return torch.where(hold_weights >= 1, 1.0, linear * linear.expm1() / math.expm1(1))


def load(name: str) -> ChunkPolicy:
    """Load ``WAY:PATH``."""
    way, _, path = name.partition(":")
    if way in get_args(Chunking):
        return load_policy(path)
    policy = load_trained(path)
    if way == "stream":
        return Alone(Streamed(policy.head, policy.normaliser, policy.steps, policy.temperature).eval())
    tied = Tied(policy.head, policy.normaliser, policy.steps, policy.temperature).eval()
    tied.way = way  # type: ignore[assignment]
    return tied


def main(
    policies: tyro.conf.Positional[tuple[str, ...]] = (),
    env: str = "kinoflow/Nav-v0",
    ways: tuple[Way, ...] = get_args(Chunking),
    delays_ms: tuple[float, ...] = (100, 200, 300),
    execute: int | None = None,
    rest_after: int | None = None,
    episodes: int = 200,
    seed: int = 0,
    workers: int = 1,
    json: Path | None = None,
    report: Path | None = None,
) -> None:
    """Drive all arms, or show the table of what was driven before.

    Args:
        policies: Bundles or run directories.
        env: Gymnasium id.
        ways: How chunks follow one another; everything is compared with the first.
        delays_ms: From an observation to its chunk; everything is compared with the first way without any, too.
        execute: Actions of a chunk to execute before the next is planned; the environment's custom by default.
        rest_after: The same for ``synchronous``.
        episodes: Seeds per arm.
        seed: First seed.
        workers: Processes.
        json: Where to write the results.
        report: Results to show instead.
    """
    if report:
        print(as_text(json_format.loads(report.read_text())))
        return
    check(json, seed, episodes=episodes, workers=workers)
    config = EvaluateConfig(env, episodes=episodes, seed=seed, workers=workers, baselines=False)
    result: dict[str, Any] = {"env": env, "episodes": episodes, "seed": seed, "policies": {}}
    result |= {"execute": execute, "rest_after": rest_after}
    for policy in policies:
        ideal = _drive(f"{ways[0]}:{policy}", replace(config, execute=execute))
        arms: list[dict[str, Any]] = [{"way": ways[0], "delay_ms": 0.0, **summary(ideal)}]
        result["policies"][policy] = arms
        for delay in delays_ms:
            driven: list[list[Row]] = []
            for way in ways:
                known: Any = way if way in get_args(Chunking) else "hold"
                arm = replace(
                    config,
                    latency_ms=delay,
                    chunking=known,
                    execute=rest_after if way == "synchronous" and rest_after else execute,
                )
                driven.append(_drive(f"{way}:{policy}", arm))
                apart = {"less_no_delay": _kept(driven[-1], ideal), "less_first_way": _kept(driven[-1], driven[0])}
                arms.append({"way": way, "delay_ms": delay, **summary(driven[-1]), **apart})
                if json:
                    replace_file(json, f"{json_format.dumps(result, indent=1)}\n".encode())
    print(as_text(result))


def _drive(name: str, config: EvaluateConfig) -> list[Row]:
    with progress_bar(f"{name} {config.latency_ms:g} ms") as progress:
        return run_all([name], 1, "chunking_study:load", config, progress)[0][name]


def _kept(mine: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    return {name: value for name, value in compared(mine, theirs).items() if name in KEPT}


def as_text(result: Mapping[str, Any]) -> str:
    """A table for people: a line per policy, way and delay; differences of success are paired."""
    lines = [f"{result['episodes']} episodes from seed {result['seed']}, {result['env']}"]
    for policy, arms in result["policies"].items():
        names = [name for name in KEPT[1:] if name in arms[0]]
        lines.append(f"{policy}: {', '.join(names)}, success, less that without delay, less that of {arms[0]['way']}")
        for arm in arms:
            means = " ".join(f"{arm[name]:10.3f}" for name in names)
            spans = [_span(arm["success"])]
            spans += [
                _span(arm[other]["success"], "+") for other in ("less_no_delay", "less_first_way") if other in arm
            ]
            lines.append(f"{arm['way']:<12} {arm['delay_ms']:>4g} ms {means} {' '.join(spans)}")
    return "\n".join(lines)


def _span(rate: Mapping[str, float], sign: str = "") -> str:
    mean, low, high = (f"{rate[name]:{sign}.3f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    run(main)
