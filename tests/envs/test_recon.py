from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from envs.bodies import WheeledBody
from envs.episodes import read_demos, read_episodes
from envs.recon import COMMANDS, MASK, MEASURED, PICTURES, POSITION, RATE_HZ, SIDE, YAW, contract, read_recon
from envs.video_nav import VideoNavEnv
from kinoflow.cli import call
from policies.senses import SENSES
from policies.spec import Array, ContractError

COUNT = 21  # samples, 5 s


def drawn(index: int) -> Array:
    """A picture (120, 160, 3) RGB: red rises with time; green left of the middle square, blue inside."""
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[..., 0] = 10 * index
    pixels[:, :20, 1], pixels[:, 20:140, 2] = 200, 100
    return pixels


def jpeg(index: int) -> Array:
    return cv2.imencode(".jpg", drawn(index)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()


def write(path: Path, count: int = COUNT, fixed: bool = False, **changes: Any) -> Path:
    """A drive in RECON's layout; ``changes`` replace arrays by the last part of their name, None leaves one out."""
    time = np.arange(count) / RATE_HZ
    arrays: dict[str, Any] = {
        COMMANDS[0]: 0.5 + 0.1 * time,
        COMMANDS[1]: -0.2 * np.ones(count),
        MEASURED[0]: np.where(time < 2, 0.0, 1.0),
        MEASURED[1]: -0.1 * np.ones((count, 1)),  # some writers keep the last axis
        POSITION: np.column_stack([time, 2 * time, np.zeros(count)]),
        YAW: 0.3 * np.ones(count),
        **changes,
    }
    frames = [jpeg(index) for index in range(count)]
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if values is not None:
                file[name] = values
        if PICTURES not in arrays:
            if fixed:  # as one long string each
                file[PICTURES] = np.array([np.void(frame.tobytes().ljust(9000, b"\0")) for frame in frames])
            else:
                file.create_dataset(PICTURES, (count,), h5py.vlen_dtype(np.uint8))
                for index, frame in enumerate(frames):
                    file[PICTURES][index] = frame
    return path


def test_the_contract_is_that_of_video_nav_with_a_mask_no_policy_sees() -> None:
    spec, known = contract(), VideoNavEnv("wheeled", images=False).contract
    assert spec.observations == (*known.observations, MASK) and MASK.label and MASK.constant
    assert (spec.action.names, spec.action.units, spec.rate_hz) == (
        WheeledBody.action.names,
        WheeledBody.action.units,
        10,
    )
    assert set(SENSES["goal_path"].inputs) <= set(spec.observations)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_drive_becomes_an_episode_at_10_hz(tmp_path: Path, fixed: bool) -> None:
    episode = read_recon(write(tmp_path / "drive.hdf5", fixed=fixed), seed=3)
    steps = int((COUNT - 1) / RATE_HZ * 10) + 1
    assert (len(episode), episode.seed) == (steps, 3)
    held = np.floor(np.arange(steps) / 10 * RATE_HZ + 1e-9).astype(int)
    np.testing.assert_allclose(episode.actions[:, 0], 0.5 + 0.1 * held / RATE_HZ, rtol=1e-6)
    assert not episode.actions[:, 1].any()
    np.testing.assert_allclose(episode.actions[:, 2], -0.2, rtol=1e-6)
    np.testing.assert_array_equal(episode.executed, episode.actions)
    np.testing.assert_allclose(episode.states[-1], [5, 10, 0.3], rtol=1e-6)
    seen = episode.observations
    np.testing.assert_array_equal(seen["action_mask"], [[1, 0, 1]])
    np.testing.assert_array_equal(seen["embodiment"], [[1, 0, 0]])
    assert not seen["instruction"].any()
    # velocity jumps from 0 to 1 m/s after 2 s; the mean over a second follows within the next one
    np.testing.assert_allclose(seen["twist"][[0, 19, 24, 29, 40], 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(seen["twist"][:, 2], -0.1, rtol=1e-6)


def test_pictures_are_the_middle_square_upright_and_rgb(tmp_path: Path) -> None:
    seen = read_recon(write(tmp_path / "drive.hdf5"), seed=0).observations
    assert seen["camera"].shape[1:] == (3, SIDE, SIDE) and seen["camera"].dtype == np.uint8
    np.testing.assert_allclose(seen["camera"][:, 0].mean((1, 2))[::5], 10 * np.arange(0, COUNT, 2), atol=4)
    assert seen["camera"][0, 1].mean() < 10 and abs(seen["camera"][0, 2].mean() - 100) < 5
    assert seen["goal_video"].shape == (1, 16, 3, SIDE, SIDE)
    shades = seen["goal_video"][0, :, 0].mean((1, 2))
    np.testing.assert_allclose(shades, 10 * np.linspace(0, COUNT - 1, 16).round(), atol=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({COMMANDS[1]: None}, r"has no 'commands/angular_velocity'; .* leave it out"),
        ({PICTURES: None}, r"has no 'images/rgb_left'"),
        ({COMMANDS[0]: np.ones(COUNT - 1)}, r"'commands/linear_velocity' has shape \(20,\) beside 21 pictures"),
        ({POSITION: np.ones(COUNT)}, r"'jackal/position' has shape"),
        ({COMMANDS[0]: np.where(np.arange(COUNT) == 4, np.nan, 1.0)}, r"'commands/linear_velocity' is not finite"),
        ({COMMANDS[1]: np.full(COUNT, 30.0)}, r"30 rad/s, a Jackal 2 and 4; give files in SI units"),
        ({PICTURES: np.zeros((COUNT, 50), np.uint8)}, r"picture 0 of 'images/rgb_left' is no JPEG; fetch it again"),
        ({PICTURES: 1.5}, r"cannot be read"),
    ],
)
def test_bad_files_are_named_with_a_remedy(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "bad.hdf5", **changes)
    with pytest.raises(ContractError, match=message) as error:
        read_recon(path, seed=0)
    assert str(path) in str(error.value)


def test_what_is_no_drive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.hdf5").write_text("no HDF5")
    with pytest.raises(ContractError, match=r"note\.hdf5 cannot be read .* fetch it again"):
        read_recon(tmp_path / "note.hdf5", seed=0)
    with pytest.raises(ContractError, match="has 1 pictures, a drive needs 2"):
        read_recon(write(tmp_path / "short.hdf5", count=1), seed=0)
    with pytest.raises(ContractError, match="at most 96 fit"):
        read_recon(write(tmp_path / "drive.hdf5"), seed=0, instruction="far " * 30)


def test_the_command_converts_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "drives", tmp_path / "recon.hdf5"
    folder.mkdir()
    assert call("data", [str(folder), "-o", str(out)]) == 1
    assert "holds no .hdf5 files" in capsys.readouterr().err
    for name in ("c", "a", "b"):
        write(folder / f"{name}.hdf5")
    (folder / "b.hdf5").unlink()
    assert call("data", [str(folder), "-o", str(out), "--instruction", "Follow the way.", "--episodes", "1:"]) == 0
    file, (demo,) = read_episodes(out), read_demos(out)
    assert (file.spec, file.env_id, file.env_kwargs) == (contract(), "kinoflow/VideoNav-v0", {"embodiment": "wheeled"})
    assert demo.seed == 1
    assert bytes(demo.observations["instruction"][0]).rstrip(b"\0").decode() == "Follow the way."
    write(folder / "b.hdf5", **{COMMANDS[0]: None})
    assert call("data", [str(folder), "-o", str(out)]) == 1
    assert "b.hdf5 has no 'commands/linear_velocity'" in capsys.readouterr().err.replace("\n", "")
    assert call("data", [str(folder)]) == 1
