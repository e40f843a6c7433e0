"""The scene of the demo that needs pictures: what it films, and what it says where it cannot."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from envs.drive import Row
from envs.pictures import unavailable
from envs.video_nav import VideoNavEnv
from kinoflow.video_scene import CAPTION, RATE_HZ, apart, labelled, missing, outcome, panel, stage, video_scene
from policies.flowdit_video import Config, FlowDiTVideo
from policies.norm import Normaliser
from policies.policy import Policy
from policies.senses import GOAL_PATH, VIDEO_PATH
from policies.spec import ContractError

needs_opengl = pytest.mark.skipif(unavailable() != "", reason=unavailable())


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has learned nothing, and moves."""
    seen = VideoNavEnv("wheeled").contract
    features = [GOAL_PATH, VIDEO_PATH, *(feature for feature in seen.observations if feature.name != "camera")]
    spec = replace(seen, observations=tuple(features), history=2, horizon=8)
    torch.manual_seed(0)
    head = FlowDiTVideo(spec, Config(width=32, depth=1, heads=2, encoder_depth=1))
    path = tmp_path_factory.mktemp("untrained")
    Policy(head, Normaliser.identity(spec), steps=2).save(path)  # to export it takes longer than all tests of this file
    return path


@needs_opengl
def test_an_episode_becomes_a_film_and_a_line(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.nav.TIME_LIMIT", 1.6)
    said = video_scene(tmp_path / "scene.mp4", untrained, "wheeled", seed=0)
    env = VideoNavEnv("wheeled", images=False)
    env.reset(seed=0)
    assert said.startswith(f"'{env.instruction}': ran out of time, ")
    assert said.endswith("m from where to stop after 1.6 s")
    video, pictures = cv2.VideoCapture(str(tmp_path / "scene.mp4")), []
    assert video.isOpened() and video.get(cv2.CAP_PROP_FPS) == RATE_HZ
    while (picture := video.read())[0]:
        pictures.append(picture[1].astype(int))
    assert len(pictures) == 1.6 * RATE_HZ
    assert pictures[0].shape == (480 + CAPTION, 640 + 240, 3)
    assert np.abs(pictures[-1] - pictures[0])[CAPTION:, :640].mean() > 1, "the robot moved"
    assert pictures[0][:CAPTION].min() < 80 < pictures[0][:CAPTION].mean(), "there is a text"


@needs_opengl
def test_a_panel_shows_the_frame_that_was_taken_here() -> None:
    env = stage("wheeled")
    env.reset(seed=0)
    for frame in (0, 9):
        env.body.reset(env.model, env.data, *env.frame_poses[frame])
        shown = panel(env)
        expected = labelled(env.goal_video[frame], 240, f"goal video, frame {frame + 1} of 16")
        np.testing.assert_array_equal(shown[CAPTION + 240 :, 640:], expected)
    env.close()


def test_facing_elsewhere_is_being_elsewhere() -> None:
    here = np.array([1.0, 2.0, 3.0])
    others = here + np.array([[0, 0, 0], [0, 0, 2 * np.pi], [0.3, 0.4, 0], [0, 0, 0.5], [0, 0, np.pi]])
    np.testing.assert_allclose(apart(others, here), [0, 0, 0.5, 0.4948, 2.0], atol=1e-4)


@pytest.mark.parametrize(
    ("success", "came", "words"),
    [
        (True, (), "arrived"),
        (False, ("collision",), "touched something"),
        (False, ("fall",), "fell"),
        (False, ("stopped_at_other", "gave_up"), "stopped at the other place"),
        (False, ("gave_up",), "stopped elsewhere"),
        (False, ("timeout",), "ran out of time"),
    ],
)
def test_what_came_of_it_is_said(success: bool, came: tuple[str, ...], words: str) -> None:
    env = VideoNavEnv("wheeled", images=False)
    env.reset(seed=0)
    metrics = dict(env.metrics, timeout=0.0) | dict.fromkeys(came, 1.0) | {"final_distance_m": 0.25}
    said = outcome(env, Row(0, success, 12.34, metrics, []))
    assert said == f"'{env.instruction}': {words}, 0.25 m from where to stop after 12.3 s"


@needs_opengl
def test_a_policy_of_something_else_is_refused(untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="twist"):
        video_scene(tmp_path / "scene.mp4", untrained, "drone")
    assert not [*tmp_path.iterdir()]


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = tmp_path / "none.kfb"
    monkeypatch.setenv("G1_MODEL_PATH", str(tmp_path))
    said = missing(none, "g1")
    assert f"there is no {none}" in said
    assert "no walking G1 on this machine (G1 asset 'g1.xml' is not at" in said
    assert "requirements-g1.txt" in said
    assert missing(Path(__file__), "wheeled") == "" or unavailable()


def test_without_opengl_the_demo_says_so_and_goes_on(tmp_path: Path) -> None:
    code = "from pathlib import Path; from kinoflow.demo import _follow; _follow(Path('follow.mp4'), 0); print('on')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MUJOCO_GL": "disable", "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "on\n"
    assert "left out: " in run.stderr and "libegl1 libgl1" in run.stderr
    assert not [*tmp_path.iterdir()]
