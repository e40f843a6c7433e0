"""Frames of the Waymo Open Dataset's end-to-end driving challenge (arXiv 2510.26125), and predictions for it.

Field numbers are those of the published ``end_to_end_driving_data.proto``, ``end_to_end_driving_submission.proto`` and
``dataset.proto``. Everything is in the car's frame at the time of the frame: x forward, y left, z up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from envs.logs.protobuf import (
    BYTES,
    FIXED32,
    VARINT,
    Field,
    WireError,
    blob,
    fields,
    number,
    packed,
    read_floats,
    read_text,
    require,
)
from envs.logs.tfrecord import records
from envs.metrics.rater_feedback import LARGEST_LABEL, RATE, WAYPOINTS, rater_feedback_score
from envs.metrics.scene import FARTHEST, checked
from policies.files import replace_file
from policies.spec import Array, ContractError

Intent = Literal["unknown", "straight", "left", "right"]
INTENTS: tuple[Intent, ...] = ("unknown", "straight", "left", "right")
CAMERAS = (
    "unknown", "front", "front_left", "front_right", "side_left", "side_right", "rear_left", "rear", "rear_right",
)  # fmt: skip
CLUSTER = "scenario_cluster"  # key in the list of clusters
COLUMNS = {1: ("position", 0), 2: ("position", 1), 3: ("position", 2), 4: ("velocity", 0), 5: ("velocity", 1)} | {
    6: ("acceleration", 0),
    7: ("acceleration", 1),
}
WIDTHS = {"position": 3, "velocity": 2, "acceleration": 2}
ENTRY = 1  # type of a submission to the end-to-end challenge


@dataclass(frozen=True)
class States:
    """States of the car at 4 Hz.

    Args:
        position: ``(N, 3)`` x, y, z in m; z is 0 where the file has none.
        velocity: ``(N, 2)`` in m/s, ``(0, 2)`` where the file has none.
        acceleration: ``(N, 2)`` in m/s^2, ``(0, 2)`` where the file has none.
        score: Of the raters, in [0, 10]; None if nobody has rated it.
    """

    position: Array
    velocity: Array
    acceleration: Array
    score: float | None = None


@dataclass(frozen=True)
class Frame:
    """One moment of a drive.

    Args:
        name: That predictions for it are given under: the sequence, a hyphen and the index of the frame in it.
        timestamp: Microseconds.
        past: The last 4 s, 16 states, the last of them now.
        future: The next 5 s, 20 states, the first one in 0.25 s; empty where it is kept secret.
        intent: Where the car is told to go.
        preferences: Possible futures that people have rated.
        images: JPEG file of each camera.
    """

    name: str
    timestamp: int
    past: States
    future: States
    intent: Intent
    preferences: tuple[States, ...]
    images: Mapping[str, bytes]

    @property
    def sequence(self) -> str:
        """Name of the drive."""
        return self.name.rpartition("-")[0] or self.name

    @property
    def speed(self) -> float:
        """Now, in m/s.

        Raises:
            ContractError: The frame has no velocities.
        """
        if not len(self.past.velocity):
            raise ContractError(f"frame '{self.name}' has 0 past velocities, needed is 1 at least; leave it out")
        return float(np.linalg.norm(self.past.velocity[-1]))

    @property
    def rated(self) -> tuple[list[Array], Array]:
        """Trajectories ``(N, 2)`` that were rated and their labels ``(R,)``, as the rater feedback score takes them."""
        found = [state for state in self.preferences if state.score is not None and len(state.position)]
        return [state.position[:, :2].astype(float) for state in found], np.array([state.score for state in found])

    def rater_feedback_score(self, plans: Array, probabilities: Array | None = None) -> Array:
        """Scores ``(P,)`` of plans ``(P, 20, 2)`` in m at 4 Hz, see `envs.metrics.rater_feedback_score`.

        Raises:
            ContractError: Nobody has rated this frame, or the plans do not fit.
        """
        trajectories, labels = self.rated
        if not trajectories:
            raise ContractError(f"frame '{self.name}' has 0 rated trajectories, needed is 1 at least; leave it out")
        return rater_feedback_score(plans, trajectories, labels, self.speed, probabilities)


def read_frames(path: Path, *, images: bool = True, check: bool = True) -> Iterator[Frame]:
    """Read the frames of a file one after the other.

    Args:
        path: A TFRecord file of the dataset.
        images: Whether to keep the pictures.
        check: Whether checksums of the records are compared; without, pictures are not looked at and reading is fast.

    Raises:
        ContractError: The file is damaged, or holds something else; the message says where.
    """
    for position, data in records(path, check=check):
        try:
            yield _frame(data, images)
        except WireError as error:
            raise ContractError(
                f"{path} holds something that is no end-to-end frame: {error}, at byte {position + error.position}; "
                "give files of the end-to-end dataset"
            ) from error
        except ContractError as error:
            raise ContractError(f"{path}, record at byte {position}: {error}") from error


def _frame(data: bytes, images: bool) -> Frame:
    found: dict[str, Any] = {"name": "", "timestamp": 0, "intent": INTENTS[0], "images": {}, "preferences": []}
    empty = _states(data, ())
    found |= {"past": empty, "future": empty}
    for field in fields(data):
        if field.number == 1:
            require(field, BYTES)
            found |= _camera_frame(data, field, images)
        elif field.number in (5, 6):
            found["future" if field.number == 5 else "past"] = _nested_states(data, field)
        elif field.number == 7:
            require(field, VARINT)
            found["intent"] = INTENTS[field.value] if field.value < len(INTENTS) else INTENTS[0]
        elif field.number == 8:
            found["preferences"].append(_nested_states(data, field))
    if not found["name"]:
        raise ContractError("there is no frame with a name in it; give files of the end-to-end dataset")
    return Frame(**{**found, "preferences": tuple(found["preferences"])})


def _camera_frame(data: bytes, frame: Field, images: bool) -> dict[str, Any]:
    """Name, timestamp and pictures."""
    found: dict[str, Any] = {"images": {}}
    for field in fields(data, frame.begin, frame.end):
        if field.number == 1:
            require(field, BYTES)
            for part in fields(data, field.begin, field.end):
                if part.number == 1:
                    found["name"] = read_text(data, part)
        elif field.number == 2:
            require(field, VARINT)
            found["timestamp"] = field.value
        elif field.number == 4 and images:
            require(field, BYTES)
            name, picture = _picture(data, field)
            found["images"][name] = picture
    return found


def _picture(data: bytes, image: Field) -> tuple[str, bytes]:
    camera, picture = 0, b""
    for field in fields(data, image.begin, image.end):
        if field.number == 1:
            require(field, VARINT)
            camera = field.value
        elif field.number == 2:
            require(field, BYTES)
            picture = data[field.begin : field.end]
    return CAMERAS[camera] if camera < len(CAMERAS) else f"camera_{camera}", picture


def _nested_states(data: bytes, field: Field) -> States:
    require(field, BYTES)
    return _states(data, fields(data, field.begin, field.end))


def _states(data: bytes, parts: Any) -> States:
    columns: dict[tuple[str, int], list[Array]] = {}
    score: float | None = None
    for part in parts:
        if part.number in COLUMNS:
            columns.setdefault(COLUMNS[part.number], []).append(read_floats(data, part))
        elif part.number == 8:
            require(part, FIXED32)
            value = float(read_floats(data, part)[0])
            if value > LARGEST_LABEL:
                raise ContractError(f"a preference score is {value:g}, allowed is [0, {LARGEST_LABEL:g}]; copy again")
            score = value if value >= 0 else None  # -1 marks trajectories that nobody has rated
    values = {}
    for name, width in WIDTHS.items():
        given = [np.concatenate(columns.get((name, axis), [np.empty(0, np.float32)])) for axis in range(width)]
        sizes = [len(column) for column in given]
        if name == "position" and not sizes[2]:
            given[2] = np.zeros_like(given[0])
        if len({len(column) for column in given}) > 1:
            raise ContractError(f"components of a {name} have {sizes} values, needed are equally many; copy it again")
        values[name] = checked(f"a {name}", np.stack(given, -1), (None, width), FARTHEST).astype(np.float32)
    return States(**values, score=score)


def read_clusters(path: Path) -> dict[str, str]:
    """Which cluster of scenarios each sequence belongs to, from the dataset's JSON file that lists them.

    Args:
        path: ``{sequence: cluster}`` or ``{sequence: {"scenario_cluster": cluster}}``.

    Raises:
        ContractError: There is no such file, or it holds something else.
    """
    try:
        listed = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ContractError(f"{path} is no list of clusters ({error}); give the dataset's JSON file") from error
    if not isinstance(listed, dict):
        raise ContractError(f"{path} holds a {type(listed).__name__}, needed is a dictionary of sequences")
    clusters = {}
    for name, entry in listed.items():
        cluster = entry.get(CLUSTER) if isinstance(entry, dict) else entry
        if not isinstance(cluster, str):
            raise ContractError(f"{path} gives '{name}' the cluster {cluster!r}, needed is a text; copy it again")
        clusters[str(name)] = cluster
    return clusters


def encode_prediction(name: str, plan: Array) -> bytes:
    """Encode one ``FrameTrajectoryPredictions``.

    Args:
        name: Of the frame.
        plan: ``(20, 2)`` x, y in m at 4 Hz from 0.25 s on.

    Raises:
        ContractError: The name is empty or the plan has another shape.
    """
    if not name:
        raise ContractError("a prediction has no name; give that of its frame")
    values = checked(f"plan of frame '{name}'", plan, (WAYPOINTS, 2), FARTHEST)
    return blob(1, name) + blob(2, packed(1, values[:, 0]) + packed(2, values[:, 1]))


def write_submission(
    path: Path, plans: Mapping[str, Array], *, account: str, method: str, parameters: str, pretrained: bool
) -> None:
    """Write one ``E2EDChallengeSubmission``, as the challenge takes it.

    Args:
        path: Of the file.
        plans: ``(20, 2)`` x, y in m at 4 Hz from 0.25 s on for every frame of the test set, by the frame's name.
        account: Address that one is registered under.
        method: Short name of the method.
        parameters: About how many parameters the model has, for example ``"200K"``.
        pretrained: Whether a public language model was trained further.

    Raises:
        ContractError: There are no plans, or one of them has another shape.
    """
    if not plans:
        raise ContractError("there are 0 plans to submit; give one for every frame of the test set")
    parts = [blob(1, encode_prediction(name, plan)) for name, plan in plans.items()]
    parts += [number(2, ENTRY), blob(3, account), blob(4, method), number(11, int(pretrained)), blob(12, parameters)]
    replace_file(path, b"".join(parts))


def constant_velocity(frame: Frame) -> Array:
    """``(20, 2)`` waypoints in m of a car that goes on as it does now, straight ahead."""
    return np.stack([frame.speed * (1 + np.arange(WAYPOINTS)) / RATE, np.zeros(WAYPOINTS)], -1)
