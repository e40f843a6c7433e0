import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs.collect import CollectConfig, collect, demonstrators, processes, record
from envs.driving import DrivingEnv
from envs.episodes import Episode, describe, read_episodes, write_episodes
from kinoflow.cli import call
from policies.maneuver import INTENTS, Maneuvers
from policies.spec import ActionSpec, ContractError, Feature, Spec

SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"),),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -1.0), (1.0, 1.0)),
    10.0,
    1,
    1,
)


def episode(seed: int, length: int) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    goal = rng.normal(size=(length, 2)).astype(np.float32)
    return Episode(
        seed, {"goal": goal}, actions, actions, np.zeros(length, np.float32), np.zeros((length, 3), np.float32)
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "episodes.hdf5"
    write_episodes(
        target, [episode(i, 5 + i % 4) for i in range(40)], "kinoflow/Nav-v0", {"embodiment": "wheeled"}, SPEC
    )
    return target


def test_round_trip(path: Path) -> None:
    file = read_episodes(path)
    assert file.spec == SPEC
    assert file.env_id == "kinoflow/Nav-v0"
    assert file.env_kwargs == {"embodiment": "wheeled"}
    np.testing.assert_array_equal(file.actions[:5], episode(0, 5).actions)
    assert len(file.actions) == sum(5 + i % 4 for i in range(40))
    assert len(np.unique(file.first[file.valid])) == 2


def test_windows_stay_inside_their_episode(path: Path) -> None:
    file = read_episodes(path)
    observations, actions = file.windows(np.array([0, 4, 5]), history=3, horizon=4)
    first, second = episode(0, 5), episode(1, 6)
    goal = first.observations["goal"]
    np.testing.assert_array_equal(observations["goal"][0], goal[[0, 0, 0]])
    np.testing.assert_array_equal(observations["goal"][1], goal[[2, 3, 4]])
    np.testing.assert_array_equal(actions[1], first.actions[[4, 4, 4, 4]])
    np.testing.assert_array_equal(observations["goal"][2], second.observations["goal"][[0, 0, 0]])


def test_units_frames_and_environment_are_in_the_file(path: Path) -> None:
    with h5py.File(path) as file:
        assert file["data/demo_0/obs/goal"].attrs["unit"] == "m"
        assert file["data/demo_0/actions"].attrs["unit"] == "m/s, rad/s"
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "kinoflow/Nav-v0"


def test_altered_data_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_3/actions"][0, 0] += 0.5
    with pytest.raises(ContractError, match="was altered"):
        read_episodes(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no episode file"):
        read_episodes(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(ContractError, match="not a kinoflow episode file"):
        read_episodes(tmp_path / "text.hdf5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": {}}, r"episode 1: observation has keys \[\], the policy needs \['goal'\]"),
        (
            {"observations": {"goal": np.full((6, 2), np.nan, np.float32)}},
            "episode 1: observation 'goal' is not finite",
        ),
        ({"observations": {"goal": np.zeros((5, 2), np.float32)}}, r"episode 1: observation 'goal' has shape \(5, 2\)"),
        ({"states": np.full((6, 3), np.inf, np.float32)}, "episode 1: 'states' is not finite"),
    ],
)
def test_what_does_not_fit_the_contract_is_not_written(tmp_path: Path, change: dict, message: str) -> None:
    episodes = [episode(0, 5), dataclasses.replace(episode(1, 6), **change)]
    with pytest.raises(ContractError, match=message):
        write_episodes(tmp_path / "bad.hdf5", episodes, "kinoflow/Nav-v0", {}, SPEC)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_finished_leaves_nothing(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_episodes(path, [episode(0, 5)], "kinoflow/Nav-v0", {}, dataclasses.replace(SPEC, rate_hz=np.float32(10)))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_other_groups_are_refused_by_name(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].create_group("foo_bar")
    with pytest.raises(ContractError, match=r"episodes.hdf5 is not a kinoflow episode file \(the group data/foo_bar"):
        read_episodes(path)


def test_episodes_are_chosen_for_a_file_to_write(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", [str(path), "--episodes", "0:1"]) == 1
    assert "--episodes and --sense are for a file to write; give --out FILE" in capsys.readouterr().err


def test_describing_counts_what_is_there(path: Path) -> None:
    facts = describe(path)
    assert (facts["episodes"], facts["validation_episodes"], facts["longest_s"]) == (40, 2, 0.8)


@pytest.mark.skipif(importlib.util.find_spec("robomimic") is None, reason="robomimic is not installed")
def test_robomimics_own_dataset_opens_the_file(path: Path) -> None:
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["goal"], "rgb": []}})
    dataset = SequenceDataset(
        str(path),
        obs_keys=["goal"],
        dataset_keys=["actions", "rewards", "dones"],
        frame_stack=2,
        seq_length=4,
        load_next_obs=False,
        hdf5_cache_mode=None,
        filter_by_attribute="train",
    )
    assert len(dataset) == sum(5 + i % 4 for i in range(40) if i % 20 != 19)
    np.testing.assert_allclose(dataset[0]["actions"][1:], episode(0, 5).actions[:4])


def config(tmp_path: Path, episodes: int = 4) -> CollectConfig:
    return CollectConfig(out=tmp_path / "nav.hdf5", episodes=episodes, seed=7, workers=2)


def test_collecting_is_reproducible_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.collect.SHARD", 2)
    calls: list[tuple[int, int]] = []
    whole = collect(config(tmp_path / "a"), lambda done, total: calls.append((done, total)))
    assert (whole["tried"], whole["kept"]) == (4, 4)
    assert calls[-1] == (4, 4)
    collect(config(tmp_path / "b", episodes=2), lambda done, total: None)
    assert read_episodes(tmp_path / "a/nav.hdf5").sha256 != read_episodes(tmp_path / "b/nav.hdf5").sha256
    with pytest.raises(KeyboardInterrupt):
        collect(config(tmp_path / "c"), interrupt_after(2))
    assert not (tmp_path / "c/nav.hdf5").exists()
    resumed: list[int] = []
    collect(config(tmp_path / "c"), lambda done, total: resumed.append(done))
    assert resumed[0] >= 2
    assert read_episodes(tmp_path / "c/nav.hdf5").sha256 == read_episodes(tmp_path / "a/nav.hdf5").sha256


def interrupt_after(count: int):  # noqa: ANN201 (a progress callback)
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def test_noise_is_executed_but_not_taught() -> None:
    import gymnasium

    env = gymnasium.make("kinoflow/Nav-v0", disable_env_checker=True).unwrapped
    noisy = record(env, seed=1, noise=0.35)
    assert noisy is not None
    assert np.abs(noisy.executed - noisy.actions).max() > 0.02
    calm = record(env, seed=1, noise=0.0)
    assert calm is not None
    np.testing.assert_allclose(calm.executed, calm.actions, atol=1e-6)
    assert np.abs(calm.actions[-3:]).max() < 0.15, "an episode ends at rest"


def test_driving_is_pushed_before_it_is_recorded_only(tmp_path: Path) -> None:
    import gymnasium

    env = gymnasium.make("kinoflow/Driving-v0", disable_env_checker=True).unwrapped
    recorded = [episode for seed in range(8) if (episode := record(env, seed))]
    path = tmp_path / "drives.hdf5"
    write_episodes(path, recorded, "kinoflow/Driving-v0", {}, env.contract)
    file = read_episodes(path)
    assert not file.pushed.any()
    lengths = {len(episode) for episode in recorded}
    assert env.settle <= min(lengths) and max(lengths) == env.longest
    beside = []
    for episode in recorded:
        env.reset(seed=episode.seed)
        beside.append(np.linalg.norm(env.scene.routes[env.scene.chosen] - episode.states[0, :2], axis=-1).min())
    assert max(beside) > 0.4, "the lead-in pushes the car off its route"


def test_a_varied_expert_does_what_the_expert_does_not() -> None:
    import gymnasium

    env = gymnasium.make("kinoflow/Driving-v0", kind="fork", disable_env_checker=True).unwrapped
    maneuvers = Maneuvers(env.contract.action, env.contract.dt)
    slower = {"expert": 0, "varied": 0}
    for name in slower:
        for seed in range(12):
            if episode := record(env, seed, 0.0, name):
                assert len(episode) <= (48 if name == "expert" else 32)
                intent = INTENTS[int(maneuvers.labels(torch.from_numpy(episode.actions[:24])))]
                slower[name] += intent.endswith(("stop", "decelerate"))
    assert slower["varied"] > slower["expert"]
    with pytest.raises(ContractError, match="nobody here is called nobody; choose from"):
        record(env, 0, None, "nobody")


def test_a_varied_expert_takes_ways_it_is_not_told_to_take() -> None:
    env = DrivingEnv("four-way")
    env.reset(seed=0)
    env.reset(seed=0, options={"scene": dataclasses.replace(env.scene, others=())})
    expert = demonstrators(env)["varied"](env)
    while expert._route == env.scene.chosen or expert._limit < 5:
        expert.choose()
    for _ in range(60):
        env.step(expert.command())
    beside = [np.linalg.norm(route - env.pose[:2], axis=-1).min() for route in env.scene.routes]
    assert int(np.argmin(beside)) == expert._route != env.scene.chosen


def test_what_is_constant_is_stored_once(tmp_path: Path) -> None:
    video = Feature("video", (4, 3, 2, 2), "1", "head_camera", "uint8", constant=True)
    spec = Spec((*SPEC.observations, video), SPEC.action, 10.0, 1, 1)
    episodes = []
    for index in range(3):
        plain = episode(index, 5 + index)
        film = np.full((1, 4, 3, 2, 2), index, np.uint8)
        episodes.append(Episode(index, {**plain.observations, "video": film}, *list(vars(plain).values())[2:]))
    write_episodes(tmp_path / "videos.hdf5", episodes, "kinoflow/Nav-v0", {}, spec)
    file = read_episodes(tmp_path / "videos.hdf5")
    assert file.observations["video"].shape == (3, 4, 3, 2, 2) and file.observations["video"].dtype == np.uint8
    seen, _ = file.windows(np.array([0, 4, 5, 17]), history=2, horizon=4)
    spec_of_policy = Spec(spec.observations, spec.action, 10.0, 2, 4)
    for row, owner in enumerate((0, 0, 1, 2)):
        spec_of_policy.check({name: values[row] for name, values in seen.items()})
        assert (seen["video"][row] == owner).all()


def test_a_pool_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from envs.collect import processes\n"
        "if __name__ == '__main__':\n"
        "    with processes(1) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 600)\n"
        "        time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.05)


def test_a_pool_of_nobody_is_refused() -> None:
    with pytest.raises(ContractError, match="workers is 0, it has to be at least 1"), processes(0):
        pass
