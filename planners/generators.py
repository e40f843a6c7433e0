"""Video generators that need no simulator: one that spoils the videos of another, and one behind HTTP."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planners.endpoint import Endpoint, EndpointError
from planners.imagination import Array, ImaginationError, Request, Video, VideoGenerator

Fault = Callable[[Array, np.random.Generator], Array]

SHIFT = (0.12, 0.25)  # of the picture's height, a horizon that jumps
DROPPED = (0.2, 0.4)  # of the video, pictures that a teleport leaves out
FROZEN = (0.2, 0.4)  # of the video
KEPT = (0.4, 0.8)  # of the video, before it ends early
GAIN = (0.55, 0.85)  # brightness of the darkened pictures of a flicker


def _begin(frames: Array, rng: np.random.Generator) -> int:
    """A picture in the middle half of the video, where a fault sets in."""
    return int(rng.integers(max(1, len(frames) // 4), max(2, 3 * len(frames) // 4)))


def _share(frames: Array, span: tuple[float, float], rng: np.random.Generator) -> int:
    return max(1, round(len(frames) * rng.uniform(*span)))


def _change(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _freeze(frames: Array, rng: np.random.Generator) -> Array:
    """The picture stands still for a while, where it would have moved, and then jumps to where it would have been."""
    count = min(_share(frames, FROZEN, rng), len(frames) - 1)
    change = np.array([_change(one, other) for one, other in zip(frames[:-count], frames[count:], strict=True)])
    begin = int(rng.choice(np.flatnonzero(change >= np.median(change))))
    spoiled = frames.copy()
    spoiled[begin : begin + count] = frames[begin]
    return spoiled


def _mirror(frames: Array, rng: np.random.Generator) -> Array:
    """From some picture on left and right are exchanged: every later turn goes the wrong way."""
    begin = _begin(frames, rng)
    return np.concatenate([frames[:begin], frames[begin:, :, :, ::-1]])


def _jump(frames: Array, rng: np.random.Generator) -> Array:
    """The horizon moves up or down at once and, mostly, back again."""
    begin, rows = _begin(frames, rng), frames.shape[2]
    end = int(rng.integers(begin + 1, len(frames) + 1))
    shift = round(rows * rng.uniform(*SHIFT)) * (1 if rng.random() < 0.5 else -1)
    source = np.clip(np.arange(rows) - shift, 0, rows - 1)  # the border row fills the gap
    spoiled = frames.copy()
    spoiled[begin:end] = frames[begin:end][:, :, source]
    return spoiled


def _flicker(frames: Array, rng: np.random.Generator) -> Array:
    """Every picture of a stretch has its own brightness, about half of them are darkened."""
    count = max(3, _share(frames, FROZEN, rng))
    begin = int(rng.integers(0, max(1, len(frames) - count)))
    gain = np.ones(len(frames))
    stretch = gain[begin : begin + count]
    dark = rng.random(len(stretch)) < 0.5
    dark[:2] = False, True
    stretch[dark] = rng.uniform(*GAIN, dark.sum())
    return (frames * gain[:, None, None, None]).round().astype(np.uint8)


def _truncate(frames: Array, rng: np.random.Generator) -> Array:
    """The video ends early."""
    return frames[: max(2, _share(frames, KEPT, rng))]


def _reverse(frames: Array, rng: np.random.Generator) -> Array:
    """The video runs backwards."""
    return frames[::-1].copy()


FAULTS: dict[str, Fault] = {
    "teleport": lambda frames, rng: frames,  # made while generating, see `DegradedImagination`
    "frozen": _freeze,
    "wrong_turn": _mirror,
    "horizon": _jump,
    "flicker": _flicker,
    "truncated": _truncate,
    "reversed": _reverse,
}


class DegradedImagination:
    """Another generator's videos with faults whose labels are known, to measure what a validator finds.

    Args:
        inner: Makes the videos.
        faults: Names out of `FAULTS` to choose from.
        share: Share of the seeds whose video gets a fault; the others pass as they are.

    A teleport asks ``inner`` for a longer video and leaves a stretch in the middle out, so its length and its end are
    those of a good one.
    """

    def __init__(self, inner: VideoGenerator, faults: Sequence[str] = tuple(FAULTS), share: float = 1.0) -> None:
        if unknown := set(faults) - FAULTS.keys():
            raise ImaginationError(f"unknown faults {sorted(unknown)}; choose from {list(FAULTS)}")
        self._inner, self._faults, self._share = inner, tuple(faults), share

    def fault(self, seed: int) -> str:
        """The label of the video of a seed, empty if it has no fault."""
        rng = np.random.default_rng([seed, 0])
        return self._faults[rng.integers(len(self._faults))] if rng.random() < self._share else ""

    def generate(self, request: Request, seed: int) -> Video:
        """Make a video and spoil it as `fault` says."""
        fault, rng = self.fault(seed), np.random.default_rng([seed, 1])
        dropped = max(1, round(request.frames * rng.uniform(*DROPPED))) if fault == "teleport" else 0
        made = self._inner.generate(dataclasses.replace(request, frames=request.frames + dropped), seed)
        if not fault:
            return Video(made.frames, made.rate_hz, made.provenance)
        frames = made.frames
        if dropped:
            begin = _begin(frames[dropped:], rng)
            frames = np.concatenate([frames[:begin], frames[begin + dropped :]])
        return Video(FAULTS[fault](frames, rng), made.rate_hz, "degraded")


class HttpVideoGenerator:
    """A video model behind an endpoint of the user.

    The endpoint gets ``{"prompt", "negative_prompt", "seed", "frames", "size": {"height", "width"}}`` and replies 200
    with either an mp4 (``Content-Type: video/mp4``), or ``application/json``:
    ``{"rate_hz": 10.0, "frames": ["<PNG in base64>", ...]}``. Pictures of another size are cut and resized.

    Args:
        url: Address of the endpoint.
        timeout: Seconds for one video, the queue of the server included.
        retries: Repetitions after a failure that may pass.
        pause: Seconds before the first repetition, doubled before each further one.
        limit: Bytes of a reply at most.
        key: Bearer token.
    """

    MOST_FRAMES = 2048
    MOST_PIXELS = 2048 * 2048  # of one picture; small files can hold huge ones

    def __init__(
        self,
        url: str,
        timeout: float = 600.0,
        retries: int = 2,
        pause: float = 1.0,
        limit: int = 1 << 28,
        key: str = "",
    ) -> None:
        self._endpoint = Endpoint(url, timeout, retries, pause, limit, key)

    def generate(self, request: Request, seed: int) -> Video:
        """Ask for one video.

        Raises:
            EndpointError: No reply, or one that is not as described above.
        """
        height, width = request.size
        kind, body = self._endpoint.post(
            {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "seed": seed,
                "frames": request.frames,
                "size": {"height": height, "width": width},
            }
        )
        reader: dict[str, Callable[[bytes], tuple[list[Array], float]]] = {
            "video/mp4": self._from_mp4,
            "application/json": self._from_json,
        }
        if kind not in reader:
            raise self._wrong(f"content type is '{kind}', expected one of {list(reader)}")
        pictures, rate = reader[kind](body)
        if len(pictures) < 2:
            raise self._wrong(f"{len(pictures)} pictures, a video has at least 2")
        frames = np.stack([_resized(picture, request.size) for picture in pictures])
        return Video(frames, rate, f"generated by {self._endpoint.name}")

    def _wrong(self, what: str) -> EndpointError:
        return EndpointError(f"{self._endpoint.name}: {what}; see HttpVideoGenerator for the reply it has to give")

    def _from_json(self, body: bytes) -> tuple[list[Array], float]:
        try:
            reply = json.loads(body)
        except ValueError as error:
            raise self._wrong(f"no JSON ({error})") from error
        rate, coded = (reply.get("rate_hz"), reply.get("frames")) if isinstance(reply, dict) else (None, None)
        if not isinstance(coded, list) or not all(isinstance(item, str) for item in coded):
            raise self._wrong("'frames' is no list of strings")
        self._check(len(coded), rate)
        return [self._picture(index, item) for index, item in enumerate(coded)], float(rate)  # type: ignore[arg-type]

    def _check(self, count: int, rate: Any) -> None:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1000:
            raise self._wrong(f"'rate_hz' is {rate!r}, expected pictures per second")
        if count > self.MOST_FRAMES:
            raise self._wrong(f"{count} pictures, at most {self.MOST_FRAMES} are read")

    def _picture(self, index: int, coded: str) -> Array:
        import cv2

        try:
            content = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise self._wrong(f"picture {index} is no base64 ({error})") from error
        if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
            raise self._wrong(f"picture {index} is no PNG")
        self._check_size(int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))
        try:
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise self._wrong(f"picture {index} cannot be read ({error.err})") from error
        if picture is None:
            raise self._wrong(f"picture {index} cannot be read")
        return np.asarray(picture)

    def _check_size(self, width: int, height: int) -> None:
        if not 0 < width * height <= self.MOST_PIXELS:
            raise self._wrong(f"a picture has {width} x {height} pixels, at most {self.MOST_PIXELS} are read")

    def _from_mp4(self, body: bytes) -> tuple[list[Array], float]:
        import cv2

        if body[4:8] != b"ftyp":
            raise self._wrong("content type is video/mp4, but the body is no mp4")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "reply.mp4"
            path.write_bytes(body)
            film = cv2.VideoCapture(str(path))
            try:
                self._check_size(int(film.get(cv2.CAP_PROP_FRAME_WIDTH)), int(film.get(cv2.CAP_PROP_FRAME_HEIGHT)))
                rate, pictures = film.get(cv2.CAP_PROP_FPS), []
                while (read := film.read())[0]:
                    pictures.append(np.asarray(read[1]))
                    self._check(len(pictures), rate)
            finally:
                film.release()
        return pictures, rate


def _resized(picture: Array, size: tuple[int, int]) -> Array:
    """OpenCV's ``(h, w, 3)`` BGR to ``(3, H, W)`` RGB; what does not fit the shape is cut off, not squeezed."""
    import cv2

    height, width = size
    rows = min(picture.shape[0], max(1, round(picture.shape[1] * height / width)))
    columns = min(picture.shape[1], max(1, round(picture.shape[0] * width / height)))
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    picture = picture[top : top + rows, left : left + columns]
    method = cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR
    picture = picture if picture.shape[:2] == size else cv2.resize(picture, (width, height), interpolation=method)
    return np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1))
