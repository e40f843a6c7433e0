"""``kinoflow imagine`` as its users meet it: real rooms, real files, and what a policy node reads of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from stub_endpoint import as_json, serving

from envs.pictures import unavailable
from envs.video_nav import VideoNavEnv
from kinoflow.cli import call
from planners.imagination import Trace
from policies.senses import FRAMES, SIDE, video_path
from policies.spec import Array
from ros_nodes.pictures import read_sentence, read_video

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no OpenGL library: {unavailable()}")

SEED = 600_000


@pytest.fixture(scope="module")
def room() -> Iterator[VideoNavEnv]:
    with closing(VideoNavEnv("wheeled")) as env:
        env.reset(seed=SEED)
        yield env


@pytest.fixture(scope="module")
def prompt(room: VideoNavEnv) -> str:
    return f"walk past the {room.walk.passed.name} and stop at the {room.walk.final.name}"


@pytest.fixture(scope="module")
def goal(prompt: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A goal video with its trace; nothing may change them."""
    path = tmp_path_factory.mktemp("imagine") / "new" / "goal.mp4"
    assert imagine(prompt, path) == 0
    return path


def imagine(prompt: str, out: Path, *more: str) -> int:
    return call("imagine", [prompt, "-o", str(out), "--seed", str(SEED), "--json", *more])


def photo(path: Path, picture: Array) -> Path:
    """Write ``(3, S, S)`` four times as large in the middle of a wide photo."""
    large = cv2.resize(picture.transpose(1, 2, 0)[..., ::-1], None, None, 4, 4, cv2.INTER_LINEAR)
    cv2.imwrite(str(path), np.pad(large, ((0, 0), (100, 100), (0, 0))))
    return path


def seen_from_first(poses: Array) -> Array:
    """Poses ``(N, 3)`` x, y, yaw in the frame of the first."""
    moved, (cos, sin) = poses - poses[0], (np.cos(poses[0, 2]), np.sin(poses[0, 2]))
    x, y, yaw = moved.T
    return np.column_stack([cos * x + sin * y, cos * y - sin * x, np.unwrap(yaw)])


def test_a_policy_sees_what_was_rendered_and_finds_the_way(room: VideoNavEnv, prompt: str, goal: Path) -> None:
    frames = read_video(str(goal), FRAMES, SIDE)
    np.testing.assert_array_equal(frames, room.goal_video)
    found, true = video_path(frames), seen_from_first(room.frame_poses)
    length = np.linalg.norm(np.diff(true[:, :2], axis=0), axis=1).sum()
    assert np.linalg.norm(found[:, :2] - true[:, :2], axis=1).max() < 0.03 * length
    assert np.abs(found[:, 2] - true[:, 2]).max() < 0.03
    assert read_sentence(str(goal)) == prompt


def test_a_folder_of_other_videos_is_refused(prompt: str, goal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = goal.read_bytes()
    assert imagine(prompt, goal) == 0, "the finished run itself goes on"
    for option, value in (("--embodiment", "drone"), ("--generator", "http://127.0.0.1:9/v?key=secret")):
        assert imagine(prompt, goal, option, value) == 1
        error = capsys.readouterr().err
        assert option[2:] in error and value.split("?")[0] in error and "write elsewhere or remove it" in error
        assert "secret" not in error
    assert goal.read_bytes() == before


def test_a_name_that_is_none_of_a_video_is_refused(prompt: str, goal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("goal.gif", "goal.png", "goal"):
        assert imagine(prompt, goal.with_name(name)) == 1
        assert "choose a name that ends in .mp4" in capsys.readouterr().err
        assert not goal.with_name(name).exists()


def test_a_video_must_end_where_the_photo_was_taken(
    room: VideoNavEnv, prompt: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, elsewhere = room.goal_video[-1], room.goal_video[0]
    for name, picture, status in (("right", there, 0), ("wrong", elsewhere, 1)):
        out, shot = tmp_path / f"{name}.mp4", photo(tmp_path / f"{name}.png", picture)
        assert imagine(prompt, out, "--photo", str(shot), "--attempts", "1") == status
        shown = capsys.readouterr()
        assert json.loads(shown.out)["accepted"] is (status == 0) and out.exists()
        assert ("no goal video: none of 1 attempts passed the check (goal: " in shown.err) is (status == 1)
    assert imagine(prompt, tmp_path / "right.mp4") == 1
    assert "photo" in capsys.readouterr().err
    (tmp_path / "text.png").write_text("no picture")
    for name in ("none.png", "text.png"):
        assert imagine(prompt, tmp_path / "x.mp4", "--photo", str(tmp_path / name)) == 1
        assert f"{name}' is no picture that can be read; give the path" in capsys.readouterr().err


def test_a_language_model_words_the_request(prompt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wording = {"prompt": f"{prompt}, filmed calmly", "negative_prompt": "cuts", "rules": []}
    reply = as_json({"choices": [{"message": {"content": json.dumps(wording)}}], "usage": {"total_tokens": 9}})
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(reply) as stub:
        assert imagine(prompt, tmp_path / "goal.mp4", "--chat", f"{stub.url}/v1", "--model", "tiny") == 0
    assert stub.requests[0]["model"] == "tiny" and stub.headers[0]["Authorization"] == "Bearer secret"
    assert Trace.load(tmp_path / "goal.trace").attempts[0].request.prompt == wording["prompt"]
    transcript = (tmp_path / "goal.trace" / "chat.jsonl").read_text()
    assert "filmed calmly" in transcript and "secret" not in transcript
    assert read_sentence(str(tmp_path / "goal.mp4")) == prompt, "what the user said"


def test_a_chat_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (("--chat", "http://127.0.0.1:9"), ("--model", "tiny")):
        assert imagine("stop at the red box", tmp_path / "goal.mp4", *options) == 1
        assert "--chat URL and --model NAME belong together" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_robot_without_a_camera_films_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imagine("go", tmp_path / "goal.mp4", "--env", "kinoflow/Nav-v0") == 1
    assert "has no camera; choose --env kinoflow/VideoNav-v0" in capsys.readouterr().err
