"""Video generators that need no simulator: one that spoils the videos of another, and one behind HTTP."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planners.endpoint import Endpoint, EndpointError
from planners.imagination import AnyVideo, Array, ImaginationError, Request, Video, VideoGenerator

SHIFT = (0.12, 0.25)  # of the picture's height, a horizon that jumps
DROPPED = (0.2, 0.4)  # of the video, pictures that a teleport leaves out
FROZEN = (0.2, 0.4)  # of the video
KEPT = (0.4, 0.8)  # of the video, before it ends early
GAIN = (0.55, 0.85)  # brightness of the darkened pictures of a flicker


@dataclass(frozen=True, eq=False)
class Edit:
    """What becomes of the pictures of a video, for those who may know it.

    Args:
        source: ``(T,)`` int, which picture of the untouched video each of the T pictures is made of.
        mirrored: ``(T,)`` bool, left and right are exchanged.
        down: ``(T,)`` px by which the content is moved down; the border row fills the gap.
        gain: ``(T,)`` factor of the brightness.
    """

    source: Array
    mirrored: Array
    down: Array
    gain: Array

    @classmethod
    def of(cls, source: Array) -> Edit:
        """Choose pictures and leave them as they are."""
        count = len(source)
        return cls(source, np.zeros(count, bool), np.zeros(count, int), np.ones(count))

    def apply(self, frames: Array) -> Array:
        """``(T, 3, H, W)`` uint8 pictures made of those of the untouched video."""
        made = frames[self.source]
        made[self.mirrored] = made[self.mirrored, :, :, ::-1]
        rows = np.arange(made.shape[2])
        for index in np.flatnonzero(self.down):
            made[index] = made[index][:, np.clip(rows - self.down[index], 0, len(rows) - 1)]
        for index in np.flatnonzero(self.gain != 1):
            made[index] = (made[index] * self.gain[index]).round().astype(np.uint8)
        return made


Fault = Callable[[Array, np.random.Generator], Edit]


def _begin(count: int, rng: np.random.Generator) -> int:
    """A picture in the middle half of the video, where a fault sets in."""
    return int(rng.integers(max(1, count // 4), max(2, 3 * count // 4)))


def _share(frames: Array, span: tuple[float, float], rng: np.random.Generator) -> int:
    return max(1, round(len(frames) * rng.uniform(*span)))


def _change(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _freeze(frames: Array, rng: np.random.Generator) -> Edit:
    """The picture stands still for a while, where it would have moved, and then jumps to where it would have been."""
    count = min(_share(frames, FROZEN, rng), len(frames) - 1)
    change = np.array([_change(one, other) for one, other in zip(frames[:-count], frames[count:], strict=True)])
    begin = int(rng.choice(np.flatnonzero(change >= np.median(change))))
    source = np.arange(len(frames))
    source[begin : begin + count] = begin
    return Edit.of(source)


def _mirror(frames: Array, rng: np.random.Generator) -> Edit:
    """From some picture on left and right are exchanged."""
    edit = Edit.of(np.arange(len(frames)))
    edit.mirrored[_begin(len(frames), rng) :] = True
    return edit


def _jump(frames: Array, rng: np.random.Generator) -> Edit:
    """The horizon moves up or down at once and, mostly, back again."""
    edit, begin = Edit.of(np.arange(len(frames))), _begin(len(frames), rng)
    end = int(rng.integers(begin + 1, len(frames) + 1))
    edit.down[begin:end] = round(frames.shape[2] * rng.uniform(*SHIFT)) * (1 if rng.random() < 0.5 else -1)
    return edit


def _flicker(frames: Array, rng: np.random.Generator) -> Edit:
    """Every picture of a stretch has its own brightness, about half of them are darkened."""
    edit, count = Edit.of(np.arange(len(frames))), max(3, _share(frames, FROZEN, rng))
    begin = int(rng.integers(0, max(1, len(frames) - count)))
    stretch = edit.gain[begin : begin + count]
    dark = rng.random(len(stretch)) < 0.5
    dark[:2] = False, True
    stretch[dark] = rng.uniform(*GAIN, dark.sum())
    return edit


def _truncate(frames: Array, rng: np.random.Generator) -> Edit:
    """The video ends early."""
    return Edit.of(np.arange(max(2, _share(frames, KEPT, rng))))


def _reverse(frames: Array, rng: np.random.Generator) -> Edit:
    """The video runs backwards."""
    return Edit.of(np.arange(len(frames))[::-1])


FAULTS: dict[str, Fault] = {
    "teleport": lambda frames, rng: Edit.of(np.arange(len(frames))),  # see `DegradedImagination.make`
    "frozen": _freeze,
    "mirror": _mirror,
    "horizon": _jump,
    "flicker": _flicker,
    "truncated": _truncate,
    "reversed": _reverse,
}


@dataclass(frozen=True, eq=False)
class Made:
    """A video of a `DegradedImagination` and the truth about it, which is for a judge and not for a validator.

    Args:
        video: What a validator gets to see.
        fault: Label, empty if there is none.
        origin: The untouched video as its generator made it.
        edit: How the pictures of ``video`` come from those of ``origin``.
    """

    video: Video
    fault: str
    origin: AnyVideo
    edit: Edit


class DegradedImagination:
    """Another generator's videos with faults whose labels are known, to measure what a validator finds.

    Args:
        inner: Makes the videos.
        faults: Names out of `FAULTS` and ``others`` to choose from.
        share: Share of the seeds whose video gets a fault; the others pass as they are.
        others: By name, generators whose videos are wrong as a whole, such as a camera that goes through a wall.

    A teleport asks ``inner`` for a longer video and leaves a stretch in the middle out, so its length and its end are
    those of a good one.
    """

    def __init__(
        self,
        inner: VideoGenerator,
        faults: Sequence[str] = tuple(FAULTS),
        share: float = 1.0,
        others: Mapping[str, VideoGenerator] | None = None,
    ) -> None:
        self._inner, self._faults, self._share, self._others = inner, tuple(faults), share, dict(others or {})
        known = [*FAULTS, *self._others]
        if unknown := set(faults) - set(known):
            raise ImaginationError(f"unknown faults {sorted(unknown)}; choose from {known}")

    def fault(self, seed: int) -> str:
        """The label of the video of a seed, empty if it has no fault."""
        rng = np.random.default_rng([seed, 0])
        return self._faults[rng.integers(len(self._faults))] if rng.random() < self._share else ""

    def generate(self, request: Request, seed: int) -> Video:
        """Make a video and spoil it as `fault` says."""
        return self.make(request, seed).video

    def make(self, request: Request, seed: int) -> Made:
        """Do what `generate` does and tell how."""
        fault, rng = self.fault(seed), np.random.default_rng([seed, 1])
        dropped = max(1, round(request.frames * rng.uniform(*DROPPED))) if fault == "teleport" else 0
        longer = dataclasses.replace(request, frames=request.frames + dropped)
        made = self._others.get(fault, self._inner).generate(longer, seed)
        count = len(made.frames)
        kept = np.arange(count)
        if dropped:
            begin = _begin(count - dropped, rng)
            kept = np.delete(kept, np.arange(begin, begin + dropped))
        edit = FAULTS[fault](made.frames[kept], rng) if fault in FAULTS else Edit.of(np.arange(count))
        edit = dataclasses.replace(edit, source=kept[edit.source])
        provenance = "degraded" if fault else made.provenance
        return Made(Video(edit.apply(made.frames), made.rate_hz, provenance), fault, made, edit)


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
