import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.collect import CollectConfig
from envs.episodes import Episode, EpisodeFile, read_episodes, write_episodes
from kinoflow.commands import train as train_command
from policies.flowdit import Config
from policies.head import find_head
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec
from policies.train import Recipe, Trainer

SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"),),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -1.0), (1.0, 1.0)),
    10.0,
    1,
    1,
)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFile:
    """Episodes whose action is a function of the observation."""
    rng, made = np.random.default_rng(0), []
    for seed in range(40):
        goal = rng.uniform(-1, 1, (30, 2)).astype(np.float32)
        rest = np.zeros(30, np.float32)
        made.append(Episode(seed, {"goal": goal}, goal[:, ::-1].copy(), goal, rest, rest[:, None]))
    path = tmp_path_factory.mktemp("data") / "toy.hdf5"
    write_episodes(path, made, "kinoflow/Nav-v0", {}, SPEC)
    return read_episodes(path)


def recipe(out: Path, **changes: object) -> Recipe[Config]:
    base = Recipe(Path("toy.hdf5"), out, Config(width=32, depth=1, heads=2), steps=8, batch=16, warmup=2)
    base = replace(base, horizon=1, history=1, evaluate_every=4, rollouts=0, sample_steps=2)
    return replace(base, **changes)  # type: ignore[arg-type]


def train(out: Path, episodes: EpisodeFile, resume: bool = False, **changes: object) -> Trainer[Config]:
    trainer = Trainer("flowdit", recipe(out, **changes), episodes, resume)
    trainer.run(None, lambda done, total, text: None)
    return trainer


@pytest.mark.parametrize(
    ("head", "env", "who"),
    [
        ("intent", "kinoflow/Driving-v0", "varied"),
        ("intent", "kinoflow/Nav-v0", "expert"),
        ("goalflow", "kinoflow/Driving-v0", "expert"),
    ],
)
def test_a_head_is_trained_on_the_demonstrator_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, env: str, who: str
) -> None:
    asked: list[CollectConfig] = []
    monkeypatch.setattr(train_command, "collect", lambda config, progress: asked.append(config))
    kind = find_head(head)
    train_command.recorded(recipe(tmp_path / "run", config=kind.Config(), horizon=8), kind, env, None, 3)
    assert [(config.env, config.demonstrator, config.episodes) for config in asked] == [(env, who, 3)]


class Interrupted(Exception):
    pass


def test_an_interrupted_run_continues_exactly(tmp_path: Path, episodes: EpisodeFile) -> None:
    whole = train(tmp_path / "whole", episodes)
    interrupted = Trainer("flowdit", recipe(tmp_path / "parts"), episodes)
    losses = interrupted._losses()
    with pytest.raises(Interrupted):
        for _ in losses:
            if interrupted.step == 4:
                interrupted._checkpoint(None)
            if interrupted.step == 6:
                raise Interrupted
    resumed = train(tmp_path / "parts", episodes, resume=True)
    for mine, theirs in ((resumed.policy, whole.policy), (resumed.average, whole.average)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    entries = [json.loads(line)["step"] for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert entries == sorted(entries)


def test_the_policy_learns(tmp_path: Path, episodes: EpisodeFile) -> None:
    trainer = train(tmp_path, episodes, steps=300, batch=128, evaluate_every=300, learning_rate=3e-3, bf16=False)
    policy, rng = Policy.load(tmp_path), np.random.default_rng(1)
    errors = []
    for goal in rng.uniform(-0.9, 0.9, (50, 2)).astype(np.float32):
        plan = policy.act({"goal": goal[None]}, rng.normal(size=(1, 2)), np.zeros((1, 2)), np.zeros(1))
        errors.append(np.abs(plan[0] - goal[::-1]).mean())
    assert np.mean(errors) < 0.2
    assert trainer.best == 300


def test_the_best_checkpoint_by_rollout_is_kept(tmp_path: Path, episodes: EpisodeFile) -> None:
    scores, weights = iter([0.9, 0.2, 0.5]), []

    def rollout(policy: Policy) -> float:
        weights.append({name: value.clone() for name, value in policy.state_dict().items()})
        return next(scores)

    trainer = Trainer("flowdit", recipe(tmp_path, steps=12, rollouts=1), episodes)
    trainer.run(rollout, lambda done, total, text: None)
    kept = Policy.load(tmp_path).state_dict()
    assert all(torch.equal(kept[name], weights[0][name]) for name in kept)
    assert any(not torch.equal(kept[name], weights[2][name]) for name in kept)


def test_a_run_says_what_it_was(tmp_path: Path, episodes: EpisodeFile) -> None:
    train(tmp_path, episodes)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["data_sha256"] == episodes.sha256
    assert run["recipe"]["config"] == {
        "width": 32,
        "depth": 1,
        "heads": 2,
        "encoder_depth": 2,
        "patch": 6,
        "octaves": 4,
        "ends": False,
        "given": 0,
    }
    assert run["packages"]["torch"].startswith("2.")
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 8
    assert np.isfinite(last["valid_loss"])
    assert list(tmp_path.glob("events.*")), "TensorBoard gets the same numbers"


def test_a_second_run_does_not_overwrite_the_first(tmp_path: Path, episodes: EpisodeFile) -> None:
    train(tmp_path, episodes)
    with pytest.raises(ContractError, match="already holds a run"):
        train(tmp_path, episodes)


def test_resuming_refuses_what_differs(tmp_path: Path, episodes: EpisodeFile) -> None:
    with pytest.raises(ContractError, match="nothing to resume"):
        train(tmp_path / "none", episodes, resume=True)
    train(tmp_path / "run", episodes)
    with pytest.raises(ContractError, match="batch was 16, now it is 32"):
        train(tmp_path / "run", episodes, resume=True, batch=32)


def test_a_diverging_run_stops(tmp_path: Path, episodes: EpisodeFile) -> None:
    trainer = Trainer("flowdit", recipe(tmp_path), episodes)
    with torch.no_grad():
        next(trainer.policy.head.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        trainer.run(None, lambda done, total, text: None)


def test_undisturbed_windows_are_whole_and_without_noise(tmp_path: Path, episodes: EpisodeFile) -> None:
    rng, horizon = np.random.default_rng(0), 4
    pushed = rng.random(len(episodes.valid)) < 0.1
    trainer = Trainer(
        "flowdit", recipe(tmp_path / "run", horizon=horizon, undisturbed=True), replace(episodes, pushed=pushed)
    )
    used = {int(step) for step in (*trainer._train_steps, *trainer._valid_steps)}
    for step, last in enumerate(episodes.last):
        whole = step + horizon - 1 <= last
        assert (step in used) == (whole and not pushed[step : step + horizon].any())
    with pytest.raises(ContractError, match="no 40 actions in a row are undisturbed; collect with --noise 0"):
        Trainer("flowdit", recipe(tmp_path / "long", horizon=40, undisturbed=True), episodes)
