import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs.collect import record
from envs.episodes import write_episodes
from envs.experts.manipulation import Expert
from envs.manipulation import TASKS, TIME_LIMIT, ManipulationEnv

needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")
PROPRIOCEPTION_NAMES = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
every_task = pytest.mark.parametrize("task", TASKS)

RED_CUBE = """
import mujoco, numpy as np
from envs.manipulation import ManipulationEnv

env = ManipulationEnv("Lift", images=True)
other = ManipulationEnv("Can", images=True)
other.reset(seed=0)
env.reset(seed=1)
first = env.observe()["agentview_image"]
other.observe()
other.close()
del other
picture = env.step(env.rest)[0]["agentview_image"]
assert picture.shape == (3, 84, 84) and picture.dtype == np.float32 and 0 <= picture.min() < picture.max() <= 1
assert np.abs(picture - first).mean() < 0.01, "two successive pictures differ"
red = picture[0] - picture[1:].max(0) > 0.2
model, data = env.physics
camera = data.camera("agentview")
point = camera.xmat.reshape(3, 3).T @ (env.object_pose[:3] - camera.xpos)
scale = 42 / np.tan(np.radians(model.camera("agentview").fovy[0]) / 2) / -point[2]
print(*(np.argwhere(red).mean(0) - [41.5 - scale * point[1], 41.5 + scale * point[0]]))
env.close()
"""


def made(task: str, seed: int = 0) -> ManipulationEnv:
    env = ManipulationEnv(task)  # type: ignore[arg-type]
    env.reset(seed=seed)
    return env


@pytest.mark.parametrize("name", [f"kinoflow/{task}-v0" for task in TASKS])
def test_without_robosuite_the_remedy_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ImportError, match=r"pip install 'kinoflow\[robosuite\]'"):
        gymnasium.make(name)


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'Stack'"):
        ManipulationEnv("Stack")  # type: ignore[arg-type]


@needs_robosuite
def test_two_cameras_are_wrong_along_their_own_line_of_sight_only() -> None:
    env = ManipulationEnv("Can", depth_error=0.03)
    errors = []
    for seed in range(40):
        seen = env.reset(seed=seed)[0]
        assert {*seen} == {"front_camera_object", "side_camera_object", *PROPRIOCEPTION_NAMES}
        front, side = (seen[f"{camera}_camera_object"] for camera in ("front", "side"))
        truth = env.object_pose[:3]
        np.testing.assert_allclose(front[[1, 2]], truth[[1, 2]], atol=1e-6)
        np.testing.assert_allclose(side[[0, 2]], truth[[0, 2]], atol=1e-6)
        for sighting in (front, side):
            np.testing.assert_allclose(sighting[3:], sighting[:3] - env.pose[:3], atol=1e-6)
        errors.append((front[0] - truth[0], side[1] - truth[1]))
    later = env.step(env.rest)[0]
    np.testing.assert_allclose(later["front_camera_object"][0] - env.object_pose[0], errors[-1][0], atol=1e-6)
    np.testing.assert_allclose(np.std(errors, 0), 0.03, rtol=0.3)
    assert abs(np.corrcoef(np.transpose(errors))[0, 1]) < 0.4
    assert {feature.name for feature in env.contract.observations} == {*seen}


@needs_robosuite
@every_task
def test_the_seed_alone_decides(task: str) -> None:
    env = made(task, seed=4)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 7))

    def episode(env: ManipulationEnv, seed: int) -> np.ndarray:
        first, _ = env.reset(seed=seed)
        return np.concatenate([first["object"], *(env.step(action)[0]["object"] for action in actions), env.state])

    used, np_state = episode(env, 5), np.random.get_state()[1].copy()
    np.testing.assert_array_equal(episode(made(task), 5), used)
    assert not np.array_equal(episode(env, 6), used)
    np.testing.assert_array_equal(np.random.get_state()[1], np_state, "the global generator was disturbed")
    np.testing.assert_array_equal(episode(env, 5), used)


@needs_robosuite
@pytest.mark.parametrize("task", ["Can", "Square"])
def test_relative_and_absolute_poses_are_of_the_same_instant(task: str) -> None:
    env = made(task)
    for action in ([0, 0, 0, 0, 0, 0, 0], [1, 0.5, 0, 0.5, 0, 0, 1]):
        seen, *_ = env.step(np.array(action, np.float32))
        hand = Rotation.from_quat(seen["robot0_eef_quat"])
        way = hand.inv().apply(seen["object"][7:10] - seen["robot0_eef_pos"])
        np.testing.assert_allclose(seen["object"][:3], way, atol=1e-6)


@needs_robosuite
def test_actions_move_along_the_axes_of_the_world_and_the_sign_moves_the_fingers() -> None:
    env = made("Lift")
    for axis in range(3):
        before = env.pose[:3]
        for _ in range(5):
            env.step(np.eye(7, dtype=np.float32)[axis])
        moved = env.pose[:3] - before
        assert np.argmax(np.abs(moved)) == axis
        assert moved[axis] > 0.02
    for sign, opening in ((-1, 0.04), (1, 0.0)):
        for _ in range(20):
            env.step(np.array([0, 0, 0, 0, 0, 0, 0.01 * sign], np.float32))
        assert env.opening == pytest.approx(opening, abs=2e-3)


@needs_robosuite
def test_time_runs_out() -> None:
    env = made("Lift")
    env.time = TIME_LIMIT - 1.5 * env.step_dt
    assert [env.step(env.rest)[3] for _ in range(2)] == [False, True]
    assert not env.success
    assert env.metrics["lifted_m"] < 0.001


@needs_robosuite
@every_task
def test_the_expert_recovers_from_noise_and_remembers_nothing(task: str) -> None:
    env = made(task)
    episode = record(env, seed=1, noise=0.1)
    assert episode is not None
    assert env.success
    assert env.metrics["lifted_m"] > 0.03
    env.reset(seed=1)
    for k, executed in enumerate(episode.executed[:40]):
        np.testing.assert_array_equal(Expert(env).command(), episode.actions[k])
        env.step(executed)


@needs_robosuite
@pytest.mark.skipif(importlib.util.find_spec("robomimic") is None, reason="robomimic is not installed")
def test_robomimics_own_dataset_opens_recorded_episodes(tmp_path: Path) -> None:
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    env = made("Lift")
    episode = record(env, seed=3, noise=0.05)
    assert episode is not None
    names = list(episode.observations)
    write_episodes(tmp_path / "lift.hdf5", [episode], "kinoflow/Lift-v0", {}, env.contract)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": names, "rgb": []}})
    dataset = SequenceDataset(
        str(tmp_path / "lift.hdf5"),
        obs_keys=names,
        dataset_keys=["actions", "rewards", "dones"],
        frame_stack=1,
        seq_length=4,
        load_next_obs=False,
        hdf5_cache_mode=None,
        filter_by_attribute="train",
    )
    assert len(dataset) == len(episode)
    np.testing.assert_allclose(dataset[0]["obs"]["object"], episode.observations["object"][:4])
    assert dataset[0]["actions"].shape == (4, 7)


@needs_robosuite
def test_robosuite_rebuilds_the_task_from_what_is_stored_for_robomimic() -> None:
    import robosuite

    env = made("Can")
    stored = json.loads(env.robomimic["env_args"])
    rebuilt = robosuite.make(stored["env_name"], **stored["env_kwargs"])
    rebuilt.reset()
    rebuilt.reset_from_xml_string(rebuilt.edit_model_xml(env.robomimic["model_file"]))
    rebuilt.sim.set_state_from_flattened(env.state)
    rebuilt.sim.forward()
    rebuilt._update_observables(force=True)
    seen = rebuilt._get_observations(force_update=True)
    np.testing.assert_allclose(seen["object-state"], env.observe()["object"], atol=1e-6)


@needs_robosuite
def test_pictures_are_upright_and_survive_another_environment() -> None:
    variables = {**os.environ, "MUJOCO_GL": "egl"}
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", RED_CUBE], cwd=root, env=variables, capture_output=True, text=True)
    if "no picture can be rendered" in run.stderr:
        pytest.skip("no OpenGL library")
    assert run.returncode == 0, run.stderr
    assert np.abs(np.array(run.stdout.split(), float)).max() < 2, "rows and columns from the projected cube"
