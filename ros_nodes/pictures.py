"""Pictures and goal videos as a policy sees them, from messages and files. Loads without ROS 2."""

from __future__ import annotations

import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from policies.spec import Array, ContractError
from ros_nodes.convert import CAMERA_FRAME, require_frame

ENCODINGS = ("rgb8", "bgr8")
FEWEST = 2  # pictures of a goal video: one shows no way
VIDEO_HZ = 10.0  # of a video that is written; nothing depends on it
SUFFIXES = (".mp4", ".mkv", ".avi")  # whose format can hold pictures without loss
SENTENCE = ".txt"  # suffix of the sentence that belongs to a goal video


def image_values(image: Any, size: int) -> Array:
    """Return the picture a policy sees, from an ``Image`` of any square size.

    Args:
        image: ``Image`` in rgb8 or bgr8 of the head camera.
        size: Height and width of a picture in pixels.

    Returns:
        ``(3, size, size)`` uint8, RGB.

    Raises:
        ContractError: Frame, encoding, shape or length of the data are not as needed.
    """
    require_frame("camera", image.header.frame_id, CAMERA_FRAME)
    if image.encoding not in ENCODINGS:
        raise ContractError(
            f"camera has the encoding '{image.encoding}', {' or '.join(ENCODINGS)} is needed; set it in its driver"
        )
    height, width, step = image.height, image.width, image.step
    _require_square("camera", height, width)
    if step < 3 * width or len(image.data) != step * height:
        raise ContractError(
            f"camera has {len(image.data)} bytes in rows of {step} for {width} x {height} pixels of 3 bytes; check its "
            "driver"
        )
    rows = np.frombuffer(image.data, np.uint8).reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return _resized(rows if image.encoding == "rgb8" else rows[..., ::-1], size)


def image_message(picture: Array, stamp: Any) -> Any:
    """Return an ``Image`` of the head camera from ``(3, H, W)`` uint8, RGB."""
    from sensor_msgs.msg import Image

    message = Image(encoding="rgb8")
    message.header.frame_id, message.header.stamp = CAMERA_FRAME, stamp
    _, message.height, message.width = picture.shape
    message.step = 3 * message.width
    message.data = array.array("B", picture.transpose(1, 2, 0).tobytes())
    return message


def read_video(path: str, frames: int, size: int) -> Array:
    """Read a goal video, for example an MP4 that ``kinoflow imagine`` or a phone has made.

    Args:
        path: File on this machine.
        frames: Pictures the policy sees, uniformly distributed over those of the file.
        size: Their height and width in pixels.

    Returns:
        ``(frames, 3, size, size)`` uint8, RGB.

    Raises:
        ContractError: There is no such file, it has too few pictures that can be read, or they are not square.
    """
    try:
        if not Path(path).is_file():
            raise ContractError(f"goal video '{path}': no such file on this machine; give the path of an .mp4")
        return _sampled(path, frames, size)
    except (OSError, cv2.error) as error:
        raise ContractError(f"goal video '{path}' cannot be read ({error}); give the path of an .mp4") from error


def _sampled(path: str, frames: int, size: int) -> Array:
    count = sum(1 for _ in _grabbed(path))
    if count < FEWEST:
        raise ContractError(
            f"goal video '{path}' has {count} pictures that can be read, at least {FEWEST} are needed; give an .mp4"
        )
    wanted = np.linspace(0, count - 1, frames).round().astype(int).tolist()
    seen = {index: film.retrieve() for index, film in enumerate(_grabbed(path)) if index in wanted}
    if not all(index in seen and seen[index][0] for index in wanted):
        raise ContractError(f"goal video '{path}' cannot be read to its end; copy it again")
    _require_square("goal video", *seen[0][1].shape[:2])
    return np.stack([_resized(seen[index][1][..., ::-1], size) for index in wanted])


def read_sentence(video: str) -> str:
    """Read what belongs to a goal video: the text in the file of the same name with the suffix ``.txt``.

    Returns:
        The sentence, empty where there is no such file.

    Raises:
        ContractError: The file cannot be read or is no UTF-8.
    """
    path = Path(video).with_suffix(SENTENCE)
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(
            f"'{path}' lies beside the goal video and cannot be read as its instruction ({error}); mend or remove it, "
            "or state the instruction"
        ) from error


def read_photo(path: Path, size: int) -> Array:
    """Read a photo of any size; what lies outside the square in the middle is cut off.

    Returns:
        ``(3, size, size)`` uint8, RGB.

    Raises:
        ContractError: There is no such file, or no picture in it.
    """
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    except (OSError, cv2.error) as error:
        raise ContractError(f"photo '{path}' cannot be read ({error}); give a PNG or JPEG") from error
    if picture is None:
        raise ContractError(f"photo '{path}' is no picture that can be read; give the path of a PNG or JPEG")
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(picture[top : top + side, left : left + side, ::-1], size)


def write_video(path: Path, frames: Array, rate_hz: float = VIDEO_HZ) -> None:
    """Write ``(N, 3, H, W)`` uint8 RGB pictures as a video without loss, so that `read_video` gives them back.

    Raises:
        ContractError: The suffix is none of `SUFFIXES`, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ContractError(f"no video can be written to '{path}'; choose a name that ends in {', '.join(SUFFIXES)}")
    height, width = frames.shape[2:]
    codec = cv2.VideoWriter.fourcc(*"FFV1")
    film = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, rate_hz, (width, height))
    if not film.isOpened():
        raise ContractError(f"video '{path}' cannot be written; check that its folder exists and may be written to")
    for picture in frames:
        film.write(np.ascontiguousarray(picture.transpose(1, 2, 0)[..., ::-1]))
    film.release()


def _grabbed(path: str) -> Iterator[cv2.VideoCapture]:
    """A video at one picture after the other. One thread: the control loop needs the other cores."""
    film = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        while film.grab():
            yield film
    finally:
        film.release()


def _require_square(what: str, height: int, width: int) -> None:
    if height != width or not width:
        raise ContractError(
            f"{what} has pictures of {width} x {height} pixels, square ones are needed; crop them to the square in the "
            "middle that shows what the policy's camera sees"
        )


def _resized(picture: Array, size: int) -> Array:
    """Square ``(S, S, 3)`` to ``(3, size, size)``."""
    if len(picture) != size:
        picture = cv2.resize(np.ascontiguousarray(picture), (size, size), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
