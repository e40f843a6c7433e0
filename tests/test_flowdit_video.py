"""FlowDiT that follows a goal video: what it reads, what it learns from, what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import observed
from torch import Tensor

from envs.episodes import Episode, EpisodeFile, read_episodes, write_episodes
from kinoflow.refine_reader import main as refine
from policies.bundle import Bundle
from policies.export import export
from policies.flowdit_video import Config, FlowDiTVideo, chosen
from policies.norm import Normaliser
from policies.policy import Policy
from policies.senses import CAMERA, GOAL_PATH, GOAL_VIDEO, VIDEO_PATH
from policies.spec import ActionSpec, ContractError, Feature, Spec
from policies.train import Recipe, Trainer

LIMITS = ((-0.3, -0.2, -0.7), (0.6, 0.2, 0.7), (1.0, 1.0, 2.0))
ACTION = ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", *LIMITS)
TEXT = Feature("instruction", (16,), "1", "text", "uint8", constant=True)
TWIST = Feature("twist", (3,), "m/s, rad/s", "base_link")
STOP = Feature("stop_frame", (1,), "1", "goal_video", label=True)
WORDS = Feature("stop_words", (2,), "1", "text", label=True)
SIGHT = Feature("stop_sight", (16, 2), "rad, m", "head_camera", label=True)
MASK = Feature("action_mask", (3,), "1", "base_link", constant=True, label=True)
SPEC = Spec((GOAL_PATH, TWIST, GOAL_VIDEO, TEXT, VIDEO_PATH), ACTION, 10.0, 2, 8)
CONFIG = Config(width=32, depth=1, heads=2, encoder_depth=1)


def head(spec: Spec = SPEC) -> FlowDiTVideo:
    torch.manual_seed(0)
    made = FlowDiTVideo(spec, CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # away from the zero-initialised output
    return made


def loss(made: FlowDiTVideo, labels: dict[str, Tensor], rows: int = 4) -> Tensor:
    made.prepare(Normaliser.identity(SPEC), torch.zeros(1, SPEC.horizon, SPEC.action.dim))
    observation = {**observed(SPEC, rows), "remaining": torch.linspace(0, 3, rows), **labels}
    actions = torch.randn(rows, 8, 3, generator=torch.Generator().manual_seed(3))
    return made.loss(observation, actions, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [feature.name for feature in SPEC.observations])
def test_every_feature_matters(name: str) -> None:
    made, x, t = head(), torch.zeros(1, 8, 3), torch.full((1,), 0.5)
    one, other = observed(SPEC, 1), observed(SPEC, 1, seed=1)
    first, second = (made.bind(seen)(x, t).data for seen in (one, {**one, name: other[name]}))
    if name in ("goal_video", "instruction", "video_path"):  # an untrained reader hardly moves the place to stop
        first, second = (made._read(seen).stop for seen in (one, {**one, name: other[name]}))
    assert (first - second).abs().max() > 1e-6


def test_demonstrations_do_not_teach_the_reader() -> None:
    for labels in ({}, {"stop_frame": torch.full((4, 1), 3.0)}):
        made = head()
        loss(made, labels).backward()
        assert all(parameter.grad is None for parameter in made.reader.parameters())
        assert made.dit.outlet.weight.grad is not None


def test_the_label_says_where_to_stop_or_else_the_reader() -> None:
    made, seen = head(), observed(SPEC, 2)
    told = made.digest({**seen, "stop_frame": torch.tensor([[3.25], [15.0]])})["stop"]
    expected = torch.zeros(2, 16)
    expected[0, 3:5], expected[1, 15] = torch.tensor([0.75, 0.25]), 1.0
    torch.testing.assert_close(told, expected)
    read = made.digest(seen)["stop"]
    assert ((read > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(read.sum(-1), torch.ones(2))


def test_of_two_places_to_stop_one_is_chosen() -> None:
    logits = torch.full((1, 16), -9.0)
    logits[0, 4], logits[0, 5], logits[0, 12] = 3.0, 2.0, 2.9
    place = (chosen(logits) @ torch.arange(16.0)).item()
    assert place == pytest.approx(4 + 1 / (1 + np.e), abs=1e-3)


def test_masked_components_do_not_teach() -> None:
    made = head()
    made.config = replace(CONFIG, constraint=0.0)
    loss(made, {"action_mask": torch.tensor([[1.0, 0.0, 1.0]])}).backward()
    gradient = made.dit.outlet.weight.grad
    assert gradient is not None
    assert gradient[1].abs().max() == 0 < gradient[[0, 2]].abs().max()


def test_the_flow_constraint_pulls_chunks_onto_the_way_of_the_video() -> None:
    """Gradient steps on the constraint alone bring chunks that lead aside back to a way straight ahead."""
    made = head()
    made.prepare(Normaliser.identity(SPEC), torch.zeros(1, SPEC.horizon, SPEC.action.dim))
    path = torch.zeros(1, 2, *GOAL_PATH.shape)
    path[..., 0], path[..., 0, 3] = torch.linspace(0, 3, 16), 0.5
    chunk = torch.tensor([0.5, 0.2, 0.3]).repeat(1, 8, 1).requires_grad_()
    before = made._misalignment({"goal_path": path}, chunk).detach()
    optimiser = torch.optim.Adam([chunk], 0.01)
    for _ in range(200):
        optimiser.zero_grad()
        made._misalignment({"goal_path": path}, chunk).backward()
        optimiser.step()
    after = made._misalignment({"goal_path": path}, chunk)
    assert after < 0.02 * before
    assert made._misalignment({"goal_path": torch.zeros_like(path)}, chunk) == 0  # no way was found


def test_what_it_needs_is_named() -> None:
    for missing, remedy in (("goal_video", "goal_video"), ("goal_path", "--sense goal_path")):
        rest = tuple(feature for feature in SPEC.observations if feature.name != missing)
        with pytest.raises(ContractError, match=remedy):
            FlowDiTVideo(replace(SPEC, observations=rest), CONFIG)


# Training


def written(path: Path, spec: Spec, made: list[Episode]) -> EpisodeFile:
    write_episodes(path, made, "kinoflow/VideoNav-v0", {}, spec)
    return read_episodes(path)


def goals(folder: Path) -> EpisodeFile:
    """Rooms with two sentences: where to stop follows from the sentence."""
    spec = replace(SPEC, observations=(GOAL_VIDEO, VIDEO_PATH, replace(TEXT, constant=False), STOP, SIGHT, WORDS))
    rng, made = np.random.default_rng(0), []
    for seed in range(21):
        text = np.repeat([[7], [200]], 16, 1).astype(np.uint8)
        seen: dict[str, Any] = {"goal_video": rng.integers(0, 256, (1, *GOAL_VIDEO.shape), np.uint8)}
        seen["video_path"] = np.zeros((1, *VIDEO_PATH.shape), np.float32)
        seen |= {"instruction": text, "stop_frame": np.array([[3.0], [12.5]], np.float32)}
        seen |= {"stop_sight": np.ones((2, 16, 2), np.float32), "stop_words": np.eye(2, dtype=np.float32)}
        rest = np.zeros((2, 3), np.float32)
        made.append(Episode(seed, seen, rest, rest, rest[:, 0], rest[:, :1]))
    return written(folder / "goals.hdf5", spec, made)


def drives(folder: Path) -> EpisodeFile:
    rng, made = np.random.default_rng(0), []
    features = (*SPEC.observations, MASK)
    for seed in range(21):
        seen = {f.name: rng.integers(0, 256, (1 if f.constant else 12, *f.shape)).astype(f.dtype) for f in features}
        rest = np.zeros((12, 3), np.float32)
        made.append(Episode(seed, seen, rest, rest, rest[:, 0], rest[:, :1]))
    return written(folder / "drives.hdf5", replace(SPEC, observations=features), made)


def trainer(data: EpisodeFile, out: Path, **changes: Any) -> Trainer[Config]:
    recipe = Recipe(Path("toy"), out, CONFIG, batch=16, warmup=2, learning_rate=3e-3, rollouts=0, bf16=False)
    recipe = replace(recipe, horizon=8, evaluate_every=1000, **changes)
    return Trainer("flowdit-video", recipe, data)


def test_a_reader_trained_on_goals_is_taken_over_by_a_policy(tmp_path: Path) -> None:
    reading = trainer(goals(tmp_path), tmp_path / "reader", history=1, steps=120)
    reading.run(None, lambda *_: None)
    observation, _ = reading._batch(reading._train_steps)
    found = reading.average.head.digest(observation)["stop"] @ torch.arange(16.0)
    assert (found - observation["stop_frame"][:, 0]).abs().max() < 1.0
    driving = trainer(drives(tmp_path), tmp_path / "policy", history=2, steps=2, initial=tmp_path / "reader")
    reader = reading.average.head.reader.state_dict()
    driving.run(None, lambda *_: None)
    for name, weight in driving.average.head.reader.state_dict().items():
        torch.testing.assert_close(weight, reader[name])
    assert "action_mask" not in {feature.name for feature in driving.policy.spec.observations}


def test_when_to_stop_is_refined_on_what_the_eyes_found(tmp_path: Path) -> None:
    data, run = goals(tmp_path), tmp_path / "eyes"
    trainer(data, run, history=1, steps=40).run(None, lambda *_: None)
    refine(run, tmp_path / "goals.hdf5", tmp_path / "reader", steps=100, batch=16)
    before, after = (Policy.load(path).state_dict() for path in (run, tmp_path / "reader"))
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"line", "blocks", "outlet", "sentence", "position"}, "the eyes stay as they are"
    assert json.loads((tmp_path / "reader" / "run.json").read_text())["refined"]["data_sha256"] == data.sha256


def test_a_run_of_another_head_is_no_beginning(tmp_path: Path) -> None:
    other = replace(SPEC, observations=(TWIST,))
    torch.manual_seed(0)
    from policies.unet import UNet

    Policy(UNet(other, UNet.Config()), Normaliser.identity(other)).save(tmp_path / "other")
    with pytest.raises(ContractError, match="give a run of the same head"):
        trainer(goals(tmp_path), tmp_path / "run", history=1, steps=1, initial=tmp_path / "other")


# A bundle


def test_a_bundle_keeps_the_limits_says_whether_it_arrived_and_sees_pictures(tmp_path: Path) -> None:
    whole = Policy(head(), Normaliser.identity(SPEC), steps=2).eval()
    export(whole, tmp_path / "video.kfb", provenance={}, rounded=True)
    bundle, policy = Bundle.load(tmp_path / "video.kfb"), Policy.load(tmp_path / "video.kfb")
    for weight, exact in zip(policy.head.parameters(), whole.head.parameters(), strict=True):
        assert torch.equal(weight, exact.bfloat16().float())
    assert {*bundle.spec.observations} == {CAMERA, TWIST, GOAL_VIDEO, TEXT}
    seen = {name: value[0].numpy() for name, value in observed(SPEC, 1).items()}
    noise = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    rest = np.zeros((8, 3), np.float32)
    expected = policy.act(seen, noise, rest, rest[:, 0])
    found = bundle._policy.act(seen, noise, rest, rest[:, 0])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert bundle.arrival == pytest.approx(policy.arrival, abs=1e-4)
    assert 0 < bundle.arrival < 1
    change = np.abs(np.diff(found, axis=0))
    assert (change <= np.array(ACTION.acceleration) / SPEC.rate_hz + 1e-5).all()
    camera = {"camera": np.zeros((2, *CAMERA.shape), np.uint8)}
    outside = {**{name: seen[name] for name in ("twist", "goal_video", "instruction")}, **camera}
    assert np.isfinite(bundle.act(outside, noise, rest, rest[:, 0])).all()
