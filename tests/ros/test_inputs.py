"""What a policy node takes from its parameters and from the topic of goal videos."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs the ROS 2 wheels: pip install 'kinoflow[ros]'")

from policies.spec import ActionSpec, ContractError, Feature, Spec
from ros_nodes import inputs
from ros_nodes.convert import text_values
from ros_nodes.inputs import Inputs
from ros_nodes.pictures import read_video, write_video
from ros_nodes.policy_node import PolicySettings

FRAMES, SIZE, TEXT = 4, 32, 32
VIDEO = Feature("goal_video", (FRAMES, 3, SIZE, SIZE), "1", "head_camera", "uint8", constant=True)
SENTENCE = Feature("instruction", (TEXT,), "1", "text", "uint8", constant=True)
ACTION = ActionSpec(("vx",), ("m/s",), "base_link", (-1.0,), (1.0,))


class Taker:
    """Stands for node and pilot: takes note of what they get."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.told: list[str] = []

    def receive(self, name: str, stamp: float, read: Callable[[], Any]) -> None:
        try:
            self.given[name] = read()
        except ContractError as error:
            self.given[name] = str(error)

    def create_subscription(self, *what: Any) -> None:
        """Nothing comes."""

    def destroy_subscription(self, what: Any) -> None:
        """Nothing came."""

    def get_logger(self) -> Any:
        return SimpleNamespace(info=self.told.append)


class Desk:
    """Inputs of a policy that follows a video, with what they hand on."""

    def __init__(self, *features: Feature, **settings: str) -> None:
        self.taker = Taker()
        spec = Spec(features or (VIDEO, SENTENCE), ACTION, 10.0, 1, 1)
        self.inputs = Inputs(self.taker, self.taker, spec, PolicySettings(**settings))  # type: ignore[arg-type]

    def show(self, path: Path | str) -> Any:
        """Publish a path; returns what the pilot got once it has been read."""
        self.inputs._on_video(SimpleNamespace(data=str(path)))  # type: ignore[arg-type]
        self.inputs._reader.submit(lambda: None).result()
        return self.taker.given["goal_video"]


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    return film(tmp_path / "goal.mp4", 1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that were read."""
    paths: list[str] = []

    def noted(path: str, frames: int, size: int) -> Any:
        paths.append(path)
        return read_video(path, frames, size)

    monkeypatch.setattr(inputs, "read_video", noted)
    return paths


def film(path: Path, seed: int) -> Path:
    write_video(path, np.random.default_rng(seed).integers(0, 256, (FRAMES, 3, SIZE, SIZE), np.uint8))
    return path


def test_the_sentence_beside_the_video_counts_where_no_other_is_stated(goal: Path) -> None:
    assert "instruction" not in Desk(goal=str(goal)).taker.given, "there is none"
    goal.with_suffix(".txt").write_text("Geh zur T\u00fcr.\n", encoding="utf-8")
    desk = Desk(goal=str(goal))
    np.testing.assert_array_equal(desk.taker.given["instruction"], text_values("Geh zur T\u00fcr.", TEXT))
    assert "Geh zur T\u00fcr." in desk.taker.told[0]
    explicit = Desk(goal=str(goal), instruction="Stop here.").taker
    np.testing.assert_array_equal(explicit.given["instruction"], text_values("Stop here.", TEXT))
    assert explicit.told == []
    assert Desk(VIDEO, goal=str(goal)).taker.given.keys() == {"goal_video"}, "a policy that reads none is told none"


def test_a_text_beside_the_video_that_is_no_sentence_is_refused(goal: Path) -> None:
    goal.with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match=r"goal.txt' lies beside the goal video and cannot be read"):
        Desk(goal=str(goal))
    assert "instruction" in Desk(goal=str(goal), instruction="Stop here.").taker.given


def test_a_video_that_cannot_be_read_takes_the_place_of_the_old_goal(goal: Path) -> None:
    desk = Desk(goal=str(goal))
    for path, reason in (
        (f"{'x' * 5000}.mp4", "cannot be read"),
        ("none.mp4", "no such file"),
        ("a\0b", "no such file"),
    ):
        assert reason in desk.show(path)
        assert isinstance(desk.show(goal), np.ndarray)


def test_a_video_is_decoded_once_until_it_changes(goal: Path, decoded: list[str]) -> None:
    desk = Desk(goal=str(goal))
    first = desk.show(goal)
    np.testing.assert_array_equal(desk.show(goal), first)
    assert len(decoded) == 1, "on both subscriptions, and stated before"
    os.utime(film(goal, 2), ns=(1, 1))
    assert not np.array_equal(desk.show(goal), first) and len(decoded) == 2
    other = film(goal.with_name("other.mp4"), 3)
    for path in (other, goal, other):
        desk.show(path)
    assert len(decoded) == 5
    for _ in range(2):  # what failed is tried again
        desk.show("none.mp4")
    assert len(decoded) == 7
