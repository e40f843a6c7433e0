import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from planners.imagination import (
    AnyVideo,
    Attempt,
    ImaginationError,
    Orchestrator,
    Request,
    Trace,
    Verdict,
    Video,
    attempt_seed,
)
from planners.memory import Memory
from planners.prompt import RulePolicy


class Counting:
    """Makes a video that shows its seed; stops working after so many."""

    def __init__(self, works: int = 100) -> None:
        self.works = works
        self.requests: list[Request] = []

    def generate(self, request: Request, seed: int) -> Video:
        if self.works == 0:
            raise ConnectionError("pulled the plug")
        self.works -= 1
        self.requests.append(request)
        return Video(np.full((request.frames, 3, *request.size), seed % 251, np.uint8), 10.0, "rendered")


class Listed:
    """Gives scores by number of the call and objects to the check 'speed'."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def score(self, video: AnyVideo, request: Request) -> Verdict:
        value = self.scores.pop(0)
        return Verdict(value, {"speed": value, "length": 1.0}, [] if value > 0.9 else ["speed: too fast"])


class Numbering:
    """Writes the number of the attempt behind the prompt."""

    def propose(self, request: Request, history: Sequence[Attempt], memory: Memory) -> Request:
        return Request(f"{request.prompt} {len(history)}", "", request.frames, request.size)


def orchestrator(generator: Counting, *scores: float, attempts: int = 5) -> Orchestrator:
    return Orchestrator(generator, Listed(*scores), Numbering(), Memory(), attempts, frames=4, size=(16, 16))


def shown(trace: Trace) -> int:
    return int(trace.video.frames[0, 0, 0, 0])


def test_the_first_good_video_ends_the_loop() -> None:
    generator = Counting()
    trace = orchestrator(generator, 0.2, 0.85, 1.0).run("go", 4)
    assert trace.accepted and trace.best == 1 and len(trace.attempts) == 2
    assert [request.prompt for request in generator.requests] == ["go 0", "go 1"]
    assert shown(trace) == attempt_seed(4, 1) % 251


def test_without_a_good_one_the_best_is_kept_and_said_to_be_no_good() -> None:
    trace = orchestrator(Counting(), 0.2, 0.7, 0.7, 0.1, attempts=4).run("go", 4)
    assert not trace.accepted and trace.best == 1 and len(trace.attempts) == 4
    assert shown(trace) == attempt_seed(4, 1) % 251


def test_a_run_is_repeatable_and_every_attempt_has_its_own_seed() -> None:
    one, other = (orchestrator(Counting(), 0, 0, 0, 0, 0).run("go", 9) for _ in range(2))
    assert one.attempts == other.attempts
    assert len({attempt.seed for attempt in one.attempts} | {attempt_seed(10, k) for k in range(5)}) == 10


def test_a_trace_survives_the_disk(tmp_path: Path) -> None:
    trace = orchestrator(Counting(), 0.2, 0.85).run("go to the 門", 4, tmp_path / "deep" / "run")
    loaded = Trace.load(tmp_path / "deep" / "run")
    assert (loaded.request, loaded.seed, loaded.accepted) == (trace.request, trace.seed, trace.accepted)
    assert [attempt.request for attempt in loaded.attempts] == [attempt.request for attempt in trace.attempts]
    assert [dict(attempt.verdict.checks) for attempt in loaded.attempts] == [
        {"speed": s, "length": 1.0} for s in (0.2, 0.85)
    ]
    assert loaded.attempts[0].verdict.reasons == ("speed: too fast",)
    np.testing.assert_array_equal(loaded.video.frames, trace.video.frames)
    assert (loaded.video.rate_hz, loaded.video.provenance) == (10.0, "rendered")
    assert len(list((tmp_path / "deep" / "run").iterdir())) == 2, "only the trace and the best video stay"


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = orchestrator(Counting(), 0.1, 0.3, 0.2, 0.9).run("go", 4, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        orchestrator(Counting(works=2), 0.1, 0.3).run("go", 4, tmp_path / "broken")
    generator = Counting()
    resumed = orchestrator(generator, 0.2, 0.9).run("go", 4, tmp_path / "broken")
    assert [request.prompt for request in generator.requests] == ["go 2", "go 3"]
    assert resumed.attempts == whole.attempts and shown(resumed) == shown(whole)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    orchestrator(Counting(), 0.9).run("go", 4, tmp_path)
    assert orchestrator(Counting(works=0)).run("go", 4, tmp_path).accepted


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    orchestrator(Counting(), 0.9).run("go", 4, tmp_path)
    for prompt, seed in (("stop", 4), ("go", 5)):
        with pytest.raises(ImaginationError, match=r"instead of .*; write elsewhere or remove it"):
            orchestrator(Counting(), 0.9).run(prompt, seed, tmp_path)


def test_a_folder_of_other_videos_is_refused_by_name(tmp_path: Path) -> None:
    def run(**origin: str) -> Trace:
        parts = (Counting(), Listed(0.9), Numbering(), Memory())
        return Orchestrator(*parts, frames=4, size=(16, 16), origin=origin).run("go", 4, tmp_path)

    assert run(env="room", robot="boat").origin == {"env": "room", "robot": "boat"}
    assert run(env="room", robot="boat").accepted
    for origin, message in (
        ({"env": "hall", "robot": "boat"}, "run with env 'room' instead of 'hall';"),
        ({"env": "room"}, "run with robot 'boat' instead of None;"),
        ({"env": "room", "robot": "boat", "photo": "x"}, "run with photo None instead of 'x';"),
    ):
        with pytest.raises(ImaginationError, match=message):
            run(**origin)


def test_writing_that_breaks_off_leaves_the_old_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = orchestrator(Counting(), 0.2, attempts=1).run("go", 4, tmp_path)

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise OSError("no space left")
        path.write_bytes(content)

    monkeypatch.setattr("planners.imagination.replace_file", full)
    with pytest.raises(OSError, match="no space"):
        orchestrator(Counting(), 0.9).run("go", 4, tmp_path)
    np.testing.assert_array_equal(Trace.load(tmp_path).video.frames, old.video.frames)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"format": 2}', '{"format": 1, "seed": 4}'])
def test_damaged_traces_are_refused(tmp_path: Path, damage: str) -> None:
    orchestrator(Counting(), 0.9).run("go", 4, tmp_path)
    (tmp_path / "trace.json").write_text(damage)
    with pytest.raises(ImaginationError, match=str(tmp_path)):
        Trace.load(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("attempts", []), ("seed", "x"), ("attempts", [{}]), ("video", None)])
def test_changed_traces_are_refused(tmp_path: Path, key: str, value: object) -> None:
    orchestrator(Counting(), 0.9).run("go", 4, tmp_path)
    record = json.loads((tmp_path / "trace.json").read_text())
    (tmp_path / "trace.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(ImaginationError, match="run again"):
        Trace.load(tmp_path)


def test_a_trace_never_reads_outside_its_folder(tmp_path: Path) -> None:
    orchestrator(Counting(), 0.9).run("go", 4, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "trace.json").read_text())
    np.savez(tmp_path / "other.npz", frames=np.zeros((4, 3, 16, 16), np.uint8))
    record["video"]["file"] = "../other.npz"
    (tmp_path / "run" / "trace.json").write_text(json.dumps(record))
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "run")


def test_what_helped_reaches_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"

    def run(*scores: float) -> Trace:
        memory = Memory(path)
        parts = (Counting(), Listed(*scores), RulePolicy(), memory)
        return Orchestrator(*parts, frames=4, size=(16, 16)).run("go", 4)

    first = run(0.2, 0.9)
    phrase = first.attempts[1].request.prompt.removeprefix("go ")
    (rule,) = [rule for rule in Memory(path).rules if rule.text == phrase]
    assert (rule.category, rule.tested, rule.helped) == ("speed", 1, 1)
    assert run(0.9).attempts[0].request.prompt == f"go {phrase}"


@pytest.mark.parametrize(
    ("frames", "rate"),
    [
        (np.zeros((4, 16, 16, 3), np.uint8), 10.0),
        (np.zeros((1, 3, 16, 16), np.uint8), 10.0),
        (np.zeros((4, 3, 16, 16), np.float32), 10.0),
        (np.zeros((4, 3, 16, 16), np.uint8), 0.0),
        (np.zeros((4, 3, 16, 16), np.uint8), float("nan")),
    ],
)
def test_videos_of_another_layout_are_refused(frames: np.ndarray, rate: float) -> None:
    with pytest.raises(ImaginationError, match=r"frames are|rate_hz"):
        Video(frames, rate, "rendered")


def test_a_generator_may_return_its_own_kind_of_video_but_not_any() -> None:
    class Other:
        frames, rate_hz, provenance = np.zeros((4, 3, 16, 16)), 10.0, "rendered"

    class Generator:
        def generate(self, request: Request, seed: int) -> AnyVideo:
            return Other()

    parts = (Generator(), Listed(1.0), Numbering(), Memory())
    with pytest.raises(ImaginationError, match="float64"):
        Orchestrator(*parts).run("go", 0)
    Other.frames = Other.frames.astype(np.uint8)
    assert Orchestrator(*parts).run("go", 0).accepted


@pytest.mark.parametrize("score", [1.2, -0.1, float("nan")])
def test_scores_out_of_range_are_refused(score: float) -> None:
    with pytest.raises(ImaginationError, match="scores are 0 to 1"):
        orchestrator(Counting(), score).run("go", 4)


def test_bad_requests_are_refused() -> None:
    for prompt, frames, size in ((" ", 16, (96, 96)), ("go", 1, (96, 96)), ("go", 16, (8, 96))):
        with pytest.raises(ImaginationError):
            Request(prompt, "", frames, size)
    with pytest.raises(ImaginationError, match="attempts is 0"):
        orchestrator(Counting(), attempts=0)


def test_samples_are_spread_over_the_video() -> None:
    frames = np.arange(61, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 16, 16), np.uint8)
    assert Video(frames, 10.0, "rendered").sample(16)[:, 0, 0, 0].tolist() == list(range(0, 61, 4))
