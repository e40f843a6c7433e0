"""PushT follows the public simulation, and its observations are those of the human demonstrations."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="needs gym-pusht: pip install 'kinoflow[pusht]'")
pytest.importorskip("zarr", reason="needs zarr: pip install 'kinoflow[pusht]'")

import zarr

import envs  # noqa: F401 (registers the environments)
from envs.episodes import read_episodes
from envs.pusht import RECORDED, demonstration, keypoints
from envs.replay_buffer import read_replay_buffer
from kinoflow.cli import call
from policies.spec import ContractError


def make(name: str = "kinoflow/PushT-v0") -> Any:
    return gymnasium.make(name, disable_env_checker=True).unwrapped


@pytest.mark.parametrize("seed", range(4))
def test_observations_are_those_of_the_public_simulation(seed: int) -> None:
    env = make()
    observation, _ = env.reset(seed=seed)
    public = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    expected, _ = public.reset(seed=seed)
    np.testing.assert_allclose(observation["environment_state"], expected["environment_state"], atol=1e-3)
    np.testing.assert_allclose(observation["agent_pos"], expected["agent_pos"])
    for target in ((100.0, 300.0), (400.0, 200.0)):
        observation, reward, *_ = env.step(target)
        following, public_reward, *_ = public.step(np.array(target))
        np.testing.assert_allclose(observation["environment_state"], following["environment_state"], atol=1e-3)
        assert reward == public_reward
    assert env.coverage == pytest.approx(env.game._get_coverage())


def test_pixels_are_the_public_picture() -> None:
    env = make("kinoflow/PushTPixels-v0")
    observation, _ = env.reset(seed=3)
    public = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels")
    picture, _ = public.reset(seed=3)
    np.testing.assert_array_equal(np.round(255 * observation["pixels"]).astype(np.uint8), np.moveaxis(picture, -1, 0))


def test_a_state_can_be_restored() -> None:
    env, again = make(), make()
    env.reset(seed=5)
    for _ in range(12):
        env.step(env.game.block.position)  # into the block, so that it turns
    again.reset(seed=9, options={"state": env.state})
    np.testing.assert_allclose(again.state, env.state, atol=1e-9)
    np.testing.assert_allclose(again.observe()["environment_state"], env.observe()["environment_state"], atol=1e-3)
    assert again.coverage == pytest.approx(env.coverage)


def test_trackers_err_independently_and_reproducibly() -> None:
    env, again, exact = make("kinoflow/PushTTrackers-v0"), make("kinoflow/PushTTrackers-v0"), make()
    for world in (env, again, exact):
        world.reset(seed=4)
    pose, corners = [], []
    for _ in range(200):
        seen, twice, truth = (world.step((256.0, 256.0))[0] for world in (env, again, exact))
        np.testing.assert_array_equal(seen["block_pose"], twice["block_pose"])
        np.testing.assert_array_equal(seen["agent_pos"], truth["agent_pos"])
        pose.append(seen["block_pose"][:2] - truth["block_pose"][:2])
        corners.append((seen["environment_state"] - truth["environment_state"]).reshape(8, 2).mean(0))
    assert np.std(pose) == pytest.approx(10, rel=0.2)
    assert abs(np.corrcoef(np.ravel(pose), np.ravel(corners))[0, 1]) < 0.2


def test_on_the_outline_is_success_and_the_best_coverage_counts() -> None:
    env = make()
    env.reset(seed=0, options={"state": (50, 50, 0, 0, 256, 256, np.pi / 4)})
    assert env.coverage == pytest.approx(1.0)
    _, reward, terminated, truncated, info = env.step((50.0, 50.0))
    assert terminated and not truncated and reward == 1.0 and info["success"] and info["score"] == 1.0


def test_resting_moves_nothing() -> None:
    env = make()
    env.reset(seed=2)
    before = env.state
    env.step(env.rest)
    np.testing.assert_allclose(env.state, before, atol=1e-2)


def write_buffer(path: Path, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A replay buffer with random states, as diffusion_policy lays it out."""
    rng, total = np.random.default_rng(0), sum(lengths)
    state = np.concatenate([rng.uniform(50, 450, (total, 4)), rng.uniform(0, 6, (total, 1))], 1).astype(np.float32)
    arrays = {"state": state, "action": rng.uniform(0, 512, (total, 2)).astype(np.float32)}
    arrays["img"] = rng.integers(0, 256, (total, 96, 96, 3)).astype(np.float32)
    root = zarr.open(str(path), "w")
    for name, values in arrays.items():
        root[f"data/{name}"] = values
    root["meta/episode_ends"] = np.cumsum(lengths)
    return arrays


def test_a_replay_buffer_becomes_an_episode_file(tmp_path: Path) -> None:
    arrays = write_buffer(tmp_path / "demo.zarr", (30, 25, 20))
    assert call("data", [str(tmp_path / "demo.zarr"), "-o", str(tmp_path / "demo.hdf5"), "--episodes", "1:"]) == 0
    file = read_episodes(tmp_path / "demo.hdf5")
    assert file.env_id == "kinoflow/PushT-v0" and len(file.actions) == 45
    np.testing.assert_array_equal(file.actions, arrays["action"][30:])
    np.testing.assert_allclose(file.observations["agent_pos"], arrays["state"][30:, :2])
    np.testing.assert_allclose(file.observations["block_pose"][:, 3], np.sin(arrays["state"][30:, 4]), atol=1e-6)
    np.testing.assert_allclose(
        file.observations["environment_state"], keypoints(file.observations["block_pose"]), atol=1e-3
    )


def test_pictures_of_a_replay_buffer_are_kept_on_request(tmp_path: Path) -> None:
    write_buffer(tmp_path / "demo.zarr", (5, 6))
    arguments = [str(tmp_path / "demo.zarr"), "-o", str(tmp_path / "demo.hdf5"), "--pixels"]
    assert call("data", arguments) == 0
    file = read_episodes(tmp_path / "demo.hdf5")
    assert file.env_id == "kinoflow/PushTPixels-v0" and file.observations["pixels"].shape == (11, 3, 96, 96)
    assert file.observations["pixels"].min() >= 0 and file.observations["pixels"].max() <= 1


def test_a_demonstration_starts_where_it_was_recorded() -> None:
    episode = demonstration({"state": np.array([[10, 20, 300, 310, 1.5]]), "action": np.zeros((1, 2))}, seed=0)
    env = make()
    env.reset(seed=0, options={"state": episode.states[0]})
    np.testing.assert_allclose(env.state, [10, 20, 0, 0, 300, 310, 1.5], atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "no zarr store"), ("ends", "is damaged"), ("arrays", "is no replay buffer")],
)
def test_damaged_replay_buffers_are_refused(tmp_path: Path, damage: str, message: str) -> None:
    path = tmp_path / "demo.zarr"
    if damage != "missing":
        write_buffer(path, (4, 4))
        root = zarr.open(str(path), "a")
        if damage == "ends":
            root["meta/episode_ends"] = np.array([4, 9])
        else:
            del root["meta"]
    with pytest.raises(ContractError, match=message):
        read_replay_buffer(path, RECORDED)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        ("img", ["--pixels"], "'img' is missing; it needs data/state, data/action, data/img"),
        ("state", [], "'state' is missing; it needs data/state, data/action"),
        ("nan", [], "episode 0: observation 'agent_pos' is not finite"),
    ],
)
def test_what_a_replay_buffer_lacks_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, options: list[str], message: str
) -> None:
    state = write_buffer(tmp_path / "demo.zarr", (4, 4))["state"]
    data = zarr.open(str(tmp_path / "demo.zarr"), "a")["data"]
    if damage == "nan":
        data["state"] = np.full_like(state, np.nan)
    else:
        del data[damage]
    assert call("data", [str(tmp_path / "demo.zarr"), "-o", str(tmp_path / "demo.hdf5"), *options]) == 1
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["demo.zarr"]
