"""Pictures, goal videos, sentences and robots, from what a robot has to what a policy sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from envs.nav import BODIES
from policies.sentence import sentence_bytes
from policies.spec import Array, ContractError
from ros_nodes.convert import text_values
from ros_nodes.pictures import image_message, image_values, read_photo, read_sentence, read_video, write_video
from ros_nodes.pilot import EMBODIMENTS, one_hot

SIZE = 24


def picture(seed: int = 0, size: int = SIZE) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (3, size, size), np.uint8)


def image(seen: Array, encoding: str = "rgb8", padding: int = 0, **changes: Any) -> SimpleNamespace:
    """An ``Image`` of ``(3, H, W)`` RGB with rows that are longer than they need to be."""
    _, height, width = seen.shape
    pixels = seen.transpose(1, 2, 0)[..., :: -1 if encoding == "bgr8" else 1].reshape(height, -1)
    rows = np.pad(pixels, ((0, 0), (0, padding)), constant_values=7)
    fields = {"height": height, "width": width, "step": rows.shape[1], "data": rows.tobytes(), "encoding": encoding}
    header = {"header": SimpleNamespace(frame_id="head_camera")}
    return SimpleNamespace(**{**header, **fields, **changes})


def film(path: Path, pictures: list[Array], codec: str = "mp4v") -> Path:
    """Write ``(3, H, W)`` pictures."""
    _, height, width = pictures[0].shape
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30.0, (width, height))
    for seen in pictures:
        writer.write(np.ascontiguousarray(seen.transpose(1, 2, 0)[..., ::-1]))
    writer.release()
    return path


def shades(count: int, height: int = SIZE, width: int = SIZE) -> list[Array]:
    """Plain pictures that become brighter, red more than blue."""
    levels = np.linspace(0, 200, count)
    return [np.tile(np.array([x + 50, x, x / 2], np.uint8)[:, None, None], (1, height, width)) for x in levels]


def test_module_needs_no_ros() -> None:
    code = "import sys; sys.modules['rclpy'] = None; import ros_nodes.pictures, ros_nodes.simulation; print('loaded')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "loaded"


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_picture_passes_unchanged(encoding: str, padding: int) -> None:
    seen = image_values(image(picture(), encoding, padding), SIZE)
    np.testing.assert_array_equal(seen, picture())
    assert seen.dtype == np.uint8 and seen.flags.c_contiguous


def test_larger_picture_is_averaged_over_areas() -> None:
    large = picture(size=4 * SIZE)
    means = large.reshape(3, SIZE, 4, SIZE, 4).mean((2, 4))
    assert np.abs(image_values(image(large), SIZE) - means).max() <= 0.51
    assert image_values(image(picture(size=SIZE // 2)), SIZE).shape == (3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "mono8"}, "encoding 'mono8', rgb8 or bgr8 is needed"),
        ({"header": SimpleNamespace(frame_id="camera_optical")}, "camera is in frame 'camera_optical', 'head_camera'"),
        ({"height": SIZE // 2, "data": bytes(3 * SIZE * SIZE // 2)}, "24 x 12 pixels, square ones are needed; crop"),
        ({"height": 0, "width": 0, "step": 0, "data": b""}, "0 x 0 pixels"),
        ({"step": 3 * SIZE - 1}, "rows of 71 for 24 x 24 pixels"),
        ({"data": bytes(100)}, "camera has 100 bytes"),
    ],
)
def test_picture_that_is_not_what_it_should_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        image_values(image(picture(), **changes), SIZE)


def test_message_of_the_simulator_is_read_back() -> None:
    pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")
    from builtin_interfaces.msg import Time

    message = image_message(picture(), Time(sec=3))
    assert (message.header.frame_id, message.header.stamp.sec, message.encoding) == ("head_camera", 3, "rgb8")
    np.testing.assert_array_equal(image_values(message, SIZE), picture())


def test_video_is_sampled_from_its_first_picture_to_its_last(tmp_path: Path) -> None:
    path = film(tmp_path / "goal.mp4", shades(31, 4 * SIZE, 4 * SIZE))
    seen = read_video(str(path), 16, SIZE)
    assert seen.shape == (16, 3, SIZE, SIZE) and seen.dtype == np.uint8
    wanted = np.stack(shades(31))[::2]
    assert np.abs(seen.astype(int) - wanted).max() < 8  # what the compression of an MP4 costs


def test_short_video_repeats_pictures(tmp_path: Path) -> None:
    path = film(tmp_path / "goal.mp4", shades(2))
    levels = read_video(str(path), 16, SIZE).mean((1, 2, 3))
    assert np.ptp(levels[:8]) == np.ptp(levels[8:]) == 0 and levels[8] > levels[7] + 50


def test_video_that_is_written_is_read_without_loss(tmp_path: Path) -> None:
    frames = np.stack([picture(seed, 96) for seed in range(16)])
    write_video(tmp_path / "goal.mp4", frames)
    np.testing.assert_array_equal(read_video(str(tmp_path / "goal.mp4"), 16, 96), frames)


def test_video_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    frames = np.stack([picture(seed, 96) for seed in range(2)])
    for name, message in (
        ("goal.gif", r"choose a name that ends in \.mp4, \.mkv, \.avi"),
        ("goal.png", "choose a name"),
        ("none/goal.mp4", "check that its folder exists"),
    ):
        with pytest.raises(ContractError, match=message):
            write_video(tmp_path / name, frames)


def test_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"cannot be read .*give the path of an \.mp4"):
        read_video(str(tmp_path / ("x" * 5000 + ".mp4")), 16, SIZE)


def test_failure_of_opencv_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film(tmp_path / "goal.mp4", shades(2))

    def failing(*arguments: Any) -> Any:
        raise cv2.error("out of memory")

    monkeypatch.setattr(cv2, "VideoCapture", failing)
    with pytest.raises(ContractError, match="out of memory"):
        read_video(str(path), 16, SIZE)


def test_sentence_lies_beside_its_video(tmp_path: Path) -> None:
    video = str(tmp_path / "goal.mp4")
    assert read_sentence(video) == ""
    (tmp_path / "goal.txt").write_text("Geh zur T\u00fcr.\n", encoding="utf-8")
    assert read_sentence(video) == "Geh zur T\u00fcr."


@pytest.mark.parametrize(("height", "width"), [(2 * SIZE, 5 * SIZE), (5 * SIZE, 2 * SIZE), (2 * SIZE, 2 * SIZE)])
def test_middle_of_a_photo_counts(tmp_path: Path, height: int, width: int) -> None:
    middle = picture(size=2 * SIZE).transpose(1, 2, 0)
    shot, (top, left) = np.zeros((height, width, 3), np.uint8), ((height - 2 * SIZE) // 2, (width - 2 * SIZE) // 2)
    shot[top : top + 2 * SIZE, left : left + 2 * SIZE] = middle[..., ::-1]
    cv2.imwrite(str(tmp_path / "photo.png"), shot)
    means = middle.transpose(2, 0, 1).reshape(3, SIZE, 2, SIZE, 2).mean((2, 4))
    assert np.abs(read_photo(tmp_path / "photo.png", SIZE) - means).max() <= 0.51


def test_photo_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name, message in (("none.png", "no picture"), ("text.png", "no picture"), ("x" * 5000, "cannot be read")):
        with pytest.raises(ContractError, match=message):
            read_photo(tmp_path / name, SIZE)


def test_video_that_shows_no_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    film(tmp_path / "one.mp4", shades(1))
    film(tmp_path / "wide.mp4", shades(4, 32, 48))
    for name, message in (
        ("none.mp4", "no such file on this machine"),
        (".", "no such file"),
        ("text.mp4", "has 0 pictures that can be read, at least 2 are needed"),
        ("empty.mp4", "has 0 pictures"),
        ("one.mp4", "has 1 pictures"),
        ("wide.mp4", "48 x 32 pixels, square ones are needed; crop"),
    ):
        with pytest.raises(ContractError, match=message):
            read_video(str(tmp_path / name), 16, SIZE)


def test_sentence_becomes_the_bytes_that_training_saw() -> None:
    for text in ("Stop at the red box.", "geh zur T\u00fcr"):
        np.testing.assert_array_equal(text_values(text, 32), sentence_bytes(text, 32))
    for text in ("T\u00fcr" * 9, "a\0b"):
        with pytest.raises(ContractError, match="at most 32 fit, none of them 0"):
            text_values(text, 32)
    for text in ("", "  "):
        with pytest.raises(ContractError, match="the instruction is empty; say where to stop"):
            text_values(text, 32)


def test_robots_are_told_apart_in_the_order_of_the_environments() -> None:
    assert tuple(BODIES) == EMBODIMENTS
    assert one_hot("drone").tolist() == [0, 1, 0]
    with pytest.raises(ContractError, match="embodiment is 'boat', policies know wheeled, drone, g1"):
        one_hot("boat")
