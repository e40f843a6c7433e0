import base64
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stub_endpoint import as_json, serving
from textured_room import TexturedRoom

from planners.endpoint import EndpointError
from planners.generators import FAULTS, DegradedImagination, HttpVideoGenerator
from planners.imagination import ImaginationError, Request, Video

REQUEST = Request("go to the door", "cuts", frames=24, size=(32, 32))


class Counting:
    """Pictures whose top left value is their number."""

    def generate(self, request: Request, seed: int) -> Video:
        frames = np.random.default_rng(seed).integers(0, 200, (request.frames, 3, *request.size), np.uint8)
        frames[:, :, 0, 0] = np.arange(request.frames)[:, None]
        return Video(frames, 8.0, "rendered")


def numbers(video: Video) -> np.ndarray:
    return video.frames[:, 0, 0, 0].astype(int)


def spoiled(fault: str, seed: int = 3) -> tuple[Video, Video]:
    return DegradedImagination(Counting(), [fault]).generate(REQUEST, seed), Counting().generate(REQUEST, seed)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_fault_is_repeatable_and_changes_the_video(fault: str, seed: int) -> None:
    video, clean = spoiled(fault, seed)
    again, _ = spoiled(fault, seed)
    assert video.provenance == "degraded" and video.frames.dtype == np.uint8
    np.testing.assert_array_equal(video.frames, again.frames)
    assert video.frames.shape != clean.frames.shape or (video.frames != clean.frames).any()
    assert video.frames.shape[0] == REQUEST.frames or fault == "truncated"


def test_a_teleport_leaves_out_one_stretch_in_the_middle() -> None:
    video, _ = spoiled("teleport")
    steps = np.diff(numbers(video))
    assert (steps > 1).sum() == 1 and (steps[steps != steps.max()] == 1).all()


def test_frozen_pictures_are_repeated_and_then_skipped() -> None:
    video, clean = spoiled("frozen")
    steps = np.diff(numbers(video))
    assert (steps == 0).sum() >= 3 and numbers(video)[0] == 0
    assert steps.sum() == numbers(video)[-1] and steps.max() >= 1
    assert (video.frames == clean.frames).all((1, 2, 3)).sum() >= REQUEST.frames // 2


def test_a_mirror_sets_in_once_and_stays() -> None:
    video, clean = spoiled("mirror")
    mirrored = (video.frames == clean.frames[:, :, :, ::-1]).all((1, 2, 3))
    assert mirrored[-1] and not mirrored[0] and (np.diff(mirrored.astype(int)) >= 0).all()


def test_a_horizon_jump_moves_the_rows() -> None:
    video, clean = spoiled("horizon")
    moved = (video.frames != clean.frames).any((1, 2, 3))
    at = int(np.flatnonzero(moved)[0])
    shifts = [
        s for s in range(-12, 13) if (np.roll(clean.frames[at], s, 1)[:, 12:20] == video.frames[at, :, 12:20]).all()
    ]
    assert len(shifts) == 1 and abs(shifts[0]) >= 3


def test_flicker_darkens_pictures() -> None:
    video, clean = spoiled("flicker")
    gain = video.frames.mean((1, 2, 3)) / clean.frames.mean((1, 2, 3))
    assert gain.min() < 0.9 and gain.max() == pytest.approx(1.0, abs=0.01)


def test_a_truncated_video_ends_early_and_a_reversed_one_runs_backwards() -> None:
    short, clean = spoiled("truncated")
    assert 2 <= len(short.frames) < 0.85 * REQUEST.frames
    np.testing.assert_array_equal(short.frames, clean.frames[: len(short.frames)])
    np.testing.assert_array_equal(spoiled("reversed")[0].frames, clean.frames[::-1])


def test_labels_follow_from_the_seed_and_the_rest_passes_untouched() -> None:
    subject = DegradedImagination(Counting(), share=0.5)
    labels = [subject.fault(seed) for seed in range(200)]
    assert set(labels) == {"", *FAULTS} and 60 < labels.count("") < 140
    seed = labels.index("")
    video = subject.generate(REQUEST, seed)
    assert video.provenance == "rendered"
    np.testing.assert_array_equal(video.frames, Counting().generate(REQUEST, seed).frames)


@pytest.mark.parametrize("fault", ["", *FAULTS])
@pytest.mark.parametrize("seed", range(3))
def test_a_judge_is_told_what_was_done(fault: str, seed: int) -> None:
    subject = DegradedImagination(Counting(), [fault or "teleport"], share=float(bool(fault)))
    made = subject.make(REQUEST, seed)
    assert made.fault == fault
    np.testing.assert_array_equal(made.edit.apply(made.origin.frames), made.video.frames)
    np.testing.assert_array_equal(made.video.frames, subject.generate(REQUEST, seed).frames)
    left = made.edit.source[~made.edit.mirrored & (made.edit.down == 0) & (made.edit.gain == 1)]
    same = (made.video.frames == made.origin.frames[made.edit.source]).all((1, 2, 3))
    assert same.sum() == len(left)


def test_another_generator_may_make_the_fault() -> None:
    class Grey:
        def generate(self, request: Request, seed: int) -> Video:
            return Video(np.full((request.frames, 3, *request.size), seed, np.uint8), 8.0, "rendered")

    subject = DegradedImagination(Counting(), ["grey"], others={"grey": Grey()})
    made = subject.make(REQUEST, 5)
    assert (made.fault, made.video.provenance, len(made.video.frames)) == ("grey", "degraded", REQUEST.frames)
    assert (made.video.frames == 5).all()


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ImaginationError, match="earthquake"):
        DegradedImagination(Counting(), ["earthquake"])


def png(picture: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", picture[::-1].transpose(1, 2, 0))[1].tobytes()).decode()


def http(url: str, **settings: Any) -> HttpVideoGenerator:
    return HttpVideoGenerator(url, **{"timeout": 20.0, "retries": 0, "pause": 0.01, **settings})


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return TexturedRoom().generate(Request("x", frames=8, size=(32, 32)), 5).frames


def test_png_replies_arrive_unchanged(pictures: np.ndarray) -> None:
    with serving(as_json({"rate_hz": 8, "frames": [*map(png, pictures)]})) as stub:
        video = http(f"{stub.url}/video?token=hidden").generate(REQUEST, 7)
    np.testing.assert_array_equal(video.frames, pictures)
    assert (video.rate_hz, video.provenance) == (8.0, f"generated by {stub.url}/video")
    assert stub.requests == [
        {
            "prompt": "go to the door",
            "negative_prompt": "cuts",
            "seed": 7,
            "frames": 24,
            "size": {"height": 32, "width": 32},
        }
    ]


def test_pictures_are_cut_to_the_shape_and_not_squeezed() -> None:
    wide = np.zeros((3, 64, 128), np.uint8)
    wide[0, :, 32:96] = 255
    with serving(as_json({"rate_hz": 8, "frames": [png(wide)] * 2})) as stub:
        video = http(stub.url).generate(REQUEST, 0)
    assert video.frames.shape == (2, 3, 32, 32) and (video.frames[:, 0] == 255).all() and not video.frames[:, 1:].any()


def test_mp4_replies_are_read(pictures: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (32, 32))
    assert film.isOpened()
    for picture in pictures:
        film.write(np.ascontiguousarray(picture[::-1].transpose(1, 2, 0)))
    film.release()
    with serving((200, "video/mp4", path.read_bytes())) as stub:
        video = http(stub.url).generate(REQUEST, 0)
    assert video.frames.shape == pictures.shape and video.rate_hz == pytest.approx(10.0)
    assert np.abs(video.frames.astype(int) - pictures).mean() < 20


def test_a_server_that_fails_once_is_asked_again(pictures: np.ndarray) -> None:
    with serving((500, "text/plain", b"no memory"), as_json({"rate_hz": 8, "frames": [*map(png, pictures)]})) as stub:
        video = http(stub.url, retries=1).generate(REQUEST, 0)
    assert len(video.frames) == 8 and len(stub.requests) == 2


SQUARE = png(np.zeros((3, 32, 32), np.uint8))
HUGE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 60_000, 60_000) + b"\0" * 20).decode()
BROKEN = base64.b64encode(base64.b64decode(SQUARE)[:40]).decode()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, "text/html", b"<html>"), "content type is 'text/html'"),
        ((200, "application/json", b"{"), "no JSON"),
        (as_json([1]), "'frames' is no list"),
        (as_json({"rate_hz": 8}), "'frames' is no list"),
        (as_json({"rate_hz": 8, "frames": [1, 2]}), "'frames' is no list"),
        (as_json({"rate_hz": 8, "frames": [SQUARE]}), "1 pictures"),
        (as_json({"frames": [SQUARE] * 2}), "'rate_hz' is None"),
        (as_json({"rate_hz": "8", "frames": [SQUARE] * 2}), "'rate_hz' is '8'"),
        (as_json({"rate_hz": float("nan"), "frames": [SQUARE] * 2}), "'rate_hz' is nan"),
        (as_json({"rate_hz": True, "frames": [SQUARE] * 2}), "'rate_hz' is True"),
        (as_json({"rate_hz": 8, "frames": ["&&", SQUARE]}), "picture 0 is no base64"),
        (as_json({"rate_hz": 8, "frames": [SQUARE, "AAAA"]}), "picture 1 is no PNG"),
        (as_json({"rate_hz": 8, "frames": [HUGE] * 2}), "60000 x 60000"),
        (as_json({"rate_hz": 8, "frames": [BROKEN] * 2}), "picture 0 cannot be read"),
        (as_json({"rate_hz": 8, "frames": [SQUARE] * 3000}), "3000 pictures"),
        ((200, "video/mp4", b"not a film"), "no mp4"),
        ((200, "video/mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 200), "0 x 0"),
    ],
)
def test_replies_that_break_the_contract_are_refused(reply: Any, message: str) -> None:
    with serving(reply) as stub, pytest.raises(EndpointError, match=message):
        http(stub.url, retries=3).generate(REQUEST, 0)
    assert len(stub.requests) == 1, "asking again would not help"


def test_a_reply_over_the_limit_is_refused(pictures: np.ndarray) -> None:
    reply = as_json({"rate_hz": 8, "frames": [*map(png, pictures)]})
    with serving(reply) as stub, pytest.raises(EndpointError, match="exceeds 1000 bytes"):
        http(stub.url, limit=1000).generate(REQUEST, 0)
