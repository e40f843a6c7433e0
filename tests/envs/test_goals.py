"""Goals without demonstrations."""

from pathlib import Path

import numpy as np
import pytest

from envs.collect import CollectConfig, collect
from envs.episodes import read_episodes
from envs.goals import OUT_OF_SIGHT
from envs.pictures import unavailable
from envs.video_nav import FRAMES, INSTRUCTIONS
from envs.world import make
from kinoflow.cli import call
from policies.senses import FOVY, video_path

SEED = 42


@pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
def test_goals_of_a_room_come_with_every_sentence_and_where_it_says_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "goals.hdf5"
    collect(CollectConfig(out, "kinoflow/VideoNav-v0", "wheeled", 2, SEED, workers=1, goals=True), lambda *_: None)
    episodes = read_episodes(out)
    env = make("kinoflow/VideoNav-v0", {"embodiment": "wheeled"})
    seen, _ = env.reset(seed=SEED)
    per_room = sum(map(len, INSTRUCTIONS.values()))
    steps = np.arange(per_room)
    assert (episodes.last[0], len(episodes.actions)) == (per_room - 1, 2 * per_room)
    observations, _ = episodes.windows(steps, 1, 1)
    np.testing.assert_array_equal(observations["goal_video"][0, 0], seen["goal_video"])
    way = observations["video_path"][0, 0]
    measured = video_path(seen["goal_video"])
    length = np.linalg.norm(np.diff(way[:, :2], axis=0), axis=1).sum()
    assert np.linalg.norm(measured[-1, :2] - way[-1, :2]) < 0.15 * length, "training sees what the robot measures"
    said = [bytes(row[0]).rstrip(b"\0").decode() for row in observations["instruction"]]
    assert env.instruction in said and len({*said}) == per_room
    frames = observations["stop_frame"][:, 0, 0]
    where = env.path[np.round(frames * (len(env.path) - 1) / (FRAMES - 1)).astype(int)]
    kinds = [name for name, phrases in INSTRUCTIONS.items() for _ in phrases]
    np.testing.assert_allclose(where, [env.stops[kind] for kind in kinds], atol=1e-6)
    for kind, row in zip(kinds, observations["stop_sight"][:, 0], strict=True):
        for pose, (bearing, distance) in zip(env.frame_poses, row, strict=True):
            target = env.targets[kind]
            assert (bearing != OUT_OF_SIGHT) == env.room.sees(pose, target, FOVY / 2)
            assert np.isclose(distance, np.hypot(target.x - pose[0], target.y - pose[1]), atol=1e-5)
            assert bearing == OUT_OF_SIGHT or np.isclose(bearing, target.bearing(pose), atol=1e-6)
    env.close()
    assert call("train", ["flowdit-video", "--data", str(out), "--out", str(tmp_path / "run")]) == 1
    assert "nobody drives in" in capsys.readouterr().err
