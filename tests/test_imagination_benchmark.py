"""The judge of the imagination benchmark against known labels, and the benchmark on one room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.imagination import ATTEMPTS, KINDS, LOOP, PHOTO, as_text, measure, witness
from envs.pictures import unavailable
from envs.video_nav import VideoNavEnv
from planners.imagination import AnyVideo, Orchestrator, Request, Verdict, Video
from planners.memory import Memory
from planners.prompt import RulePolicy

pytestmark = pytest.mark.skipif(bool(unavailable()), reason="no OpenGL library")

SEEDS = (610_000, 610_001)
TASKS = 1
OBJECTIONS = {
    "teleport": "jump",
    "wall_clip": "collision",
    "frozen": "frozen",
    "wrong_turn": "place",
    "horizon": "tilt",
    "flicker": "light",
    "mirror": "mirrored",
    "reversed": "place",
}
DISTINCT = {"wrong_turn", "horizon", "flicker", "mirror", "reversed"}  # have no second thing wrong


@pytest.fixture(scope="module", params=SEEDS)
def room(request: pytest.FixtureRequest) -> Iterator[VideoNavEnv]:
    env = VideoNavEnv("wheeled")
    env.reset(seed=request.param)
    yield env
    env.close()


def judged(env: VideoNavEnv, kind: str, seed: int, frames: int = 64) -> tuple[str, tuple[str, ...]]:
    source = witness(env, [kind] if kind else KINDS, 1.0 if kind else 0.0)
    source.generate(Request(env.instruction, frames=frames), seed)
    return source.truths[seed]


@pytest.mark.parametrize("frames", [16, 64])
def test_a_walk_without_fault_is_good(room: VideoNavEnv, frames: int) -> None:
    assert judged(room, "", 0, frames) == ("", ())


@pytest.mark.parametrize("kind", OBJECTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_fault_is_judged_as_its_label_says(room: VideoNavEnv, kind: str, seed: int) -> None:
    label, objections = judged(room, kind, seed)
    assert label == kind and OBJECTIONS[kind] in objections
    assert kind not in DISTINCT or len(objections) == 1
    assert "jump" not in objections or kind in ("teleport", "frozen"), "no fault is a jump that is not called so"


def test_a_walk_to_the_other_place_is_wrong(room: VideoNavEnv) -> None:
    (other,) = {room.walk.passed.name, room.walk.final.name} - {stopped_at(room)}
    source = witness(room, share=0.0)
    source.generate(Request(f"stop at the {other}"), 0)
    assert source.truths[0] == ("", ("place",))


def stopped_at(env: VideoNavEnv) -> str:
    return (env.walk.passed if env.active == "first" else env.walk.final).name


class Curious:
    """Keeps what a validator is shown."""

    def __init__(self) -> None:
        self.shown: list[AnyVideo] = []

    def score(self, video: AnyVideo, request: Request) -> Verdict:
        self.shown.append(video)
        return Verdict(0.0, {}, ())


def test_the_validator_is_shown_pictures_only(room: VideoNavEnv) -> None:
    validator = Curious()
    Orchestrator(witness(room), validator, RulePolicy(), Memory(), frames=8).run(room.instruction, 0)
    assert len(validator.shown) == 5
    for video in validator.shown:
        assert type(video) is Video and set(vars(video)) == {"frames", "rate_hz", "provenance"}
        assert video.provenance == "rendered"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return measure(TASKS, SEEDS[0])


def test_the_loop_is_judged_by_the_truth_about_what_it_kept(result: dict[str, Any]) -> None:
    for name in (LOOP, PHOTO):
        good = [not row["objections"][row["loops"][name]["kept"]] for row in result["tasks"]]
        assert result["arms"][name]["success"]["mean"] == sum(good) / TASKS
    first = [not row["objections"][0] for row in result["tasks"]]
    assert result["arms"]["single shot"]["success"]["mean"] == sum(first) / TASKS
    assert all(len(row["faults"]) == len(row["objections"]) == ATTEMPTS for row in result["tasks"])


def test_all_kinds_are_counted(result: dict[str, Any]) -> None:
    for report in result["validators"].values():
        assert list(report["faults"]) == list(KINDS) and report["clean"]["bad"] == 0
        assert all(rates["videos"] == rates["bad"] == TASKS for rates in report["faults"].values())


def test_the_result_is_json_and_the_text_names_every_arm(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert all(name in as_text(result) for name in (*result["arms"], *result["differences"], *KINDS))
