"""FlowDiT with pictures, a goal video, a sentence and a sense."""

from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import observed

from envs.episodes import Episode, EpisodeFile, read_episodes, write_episodes
from policies.bundle import GOAL, GRAPH, Bundle
from policies.export import export
from policies.flowdit import Config, FlowDiT
from policies.norm import Normaliser
from policies.policy import Policy
from policies.senses import CAMERA, GOAL_VIDEO, SENSES, Sensing
from policies.spec import ActionSpec, Array, Feature, Spec
from policies.train import SHARE, Recipe, Trainer

ACTION = ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", (-0.3, -0.2, -0.7), (0.6, 0.2, 0.7))
VIDEO = Feature("goal_video", (2, 3, 48, 48), "1", "head_camera", "uint8", constant=True)
PICTURE = Feature("camera", (3, 48, 48), "1", "head_camera", "uint8")
TEXT = Feature("instruction", (16,), "1", "text", "uint8", constant=True)
TWIST = Feature("twist", (3,), "m/s, rad/s", "base_link")
SPEC = Spec((PICTURE, VIDEO, TEXT, TWIST), ACTION, 10.0, 2, 8)
CONFIG = Config(width=32, depth=1, heads=2)


def policy(spec: Spec = SPEC) -> Policy:
    torch.manual_seed(0)
    head = FlowDiT(spec, CONFIG)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # away from the zero-initialised output
    return Policy(head, Normaliser.identity(spec), steps=2).eval()


@pytest.mark.parametrize("name", [feature.name for feature in SPEC.observations])
def test_every_feature_matters(name: str) -> None:
    head, x, t = policy().head, torch.zeros(1, 8, 3), torch.full((1,), 0.5)
    one, other = observed(SPEC, 1), observed(SPEC, 1, seed=1)
    first, second = (head.bind(seen)(x, t).data for seen in (one, {**one, name: other[name]}))
    assert (first - second).abs().max() > 1e-5


def test_what_is_constant_may_be_given_once_for_several_rows() -> None:
    head, rows = policy().head, observed(SPEC, 4)
    videos = {name: rows[name][::2] for name in ("goal_video", "instruction")}
    repeated = {name: values.repeat_interleave(2, 0) for name, values in videos.items()}
    x, t = torch.randn(4, 8, 3), torch.full((4,), 0.3)
    torch.testing.assert_close(head.bind({**rows, **videos})(x, t), head.bind({**rows, **repeated})(x, t))


def test_the_bundle_sees_the_same(tmp_path: Path) -> None:
    made = policy()
    export(made, tmp_path / "video.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "video.kfb")
    assert bundle.manifest.graphs == (GOAL, GRAPH)
    rest = np.random.default_rng(0).standard_normal((8, 3), np.float32), np.zeros((8, 3), np.float32), np.zeros(8)
    chunks = []
    for seed in (3, 4, 3):
        seen = {name: values[0].numpy() for name, values in observed(SPEC, 1, seed).items()}
        chunks.append(bundle.act(seen, *rest))
        np.testing.assert_allclose(chunks[-1], made.act(seen, *rest), atol=1e-5)
    np.testing.assert_array_equal(chunks[0], chunks[2])
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-4


def test_a_digest_is_made_of_what_is_constant_alone() -> None:
    head, seen = policy().head, observed(SPEC, 2)
    whole = head.digest(seen)
    assert whole["camera"] is seen["camera"] and whole["twist"] is seen["twist"]
    alone = head.digest({name: seen[name] for name in ("goal_video", "instruction")})
    assert {name: value.shape for name, value in alone.items()} == {"goal_video": (2, 2, 32), "instruction": (2, 4, 32)}
    for name, tokens in alone.items():
        assert torch.equal(tokens, whole[name])
    with torch.no_grad():
        others = head.digest({**seen, "goal_video": 255 - seen["goal_video"]})
    assert torch.equal(others["instruction"], whole["instruction"])
    assert (others["goal_video"] - whole["goal_video"]).abs().max() > 1e-4


def test_a_bundle_with_a_sense_takes_pictures(tmp_path: Path) -> None:
    inner = policy(Spec((SENSES["goal_path"].feature, TWIST), ACTION, 10.0, 2, 8))
    export(inner, tmp_path / "path.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "path.kfb")
    spec = Spec((CAMERA, GOAL_VIDEO, TWIST), ACTION, 10.0, 2, 8)
    assert bundle.spec == spec
    seen = {name: values[0].numpy() for name, values in observed(spec, 1).items()}
    rest = np.zeros((8, 3), np.float32), np.zeros((8, 3), np.float32), np.zeros(8, np.float32)
    np.testing.assert_allclose(bundle.act(seen, *rest), Sensing(inner).act(seen, *rest), atol=1e-5)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFile:
    """Episodes whose action is the brightness of their video."""
    spec, made = Spec((VIDEO, TWIST), ACTION, 10.0, 1, 1), []
    for seed in range(40):
        speed = np.float32(seed / 40)
        actions = np.tile(np.array([0.6 * speed, 0, 0], np.float32), (20, 1))
        film = np.full((1, *VIDEO.shape), int(255 * speed), np.uint8)
        rest: Array = np.zeros((20, 3), np.float32)
        made.append(Episode(seed, {"goal_video": film, "twist": rest}, actions, actions, rest[:, 0], rest))
    path = tmp_path_factory.mktemp("data") / "videos.hdf5"
    write_episodes(path, made, "kinoflow/VideoNav-v0", {}, spec)
    return read_episodes(path)


def test_windows_of_an_episode_share_its_video(videos: EpisodeFile, tmp_path: Path) -> None:
    recipe = Recipe(Path("videos.hdf5"), tmp_path, CONFIG, steps=1, batch=2 * SHARE, horizon=8, rollouts=0)
    trainer = Trainer("flowdit", recipe, videos)
    seen, actions = trainer._batch(trainer._train_steps)
    assert len(actions) == len(seen["twist"]) == 2 * SHARE and len(seen["goal_video"]) == 2
    bright = seen["goal_video"].flatten(1).float().mean(1) / 255
    speed = trainer.policy.normaliser.restore("action", actions)[:, 0, 0] / 0.6
    torch.testing.assert_close(speed, bright.repeat_interleave(SHARE), atol=0.01, rtol=0)
