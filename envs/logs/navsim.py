"""Logs of NAVSIM and OpenScene: pickled lists of frames at 2 Hz, with the boxes that people have annotated.

The logs name a map and do not hold it: nuPlan's maps need its own tools. Whoever has them extracts the polygons around
a scene and gives them as a `MapExtract`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from envs.logs.pickles import read_pickle
from envs.logs.tracks import interpolated, sample_times
from envs.metrics import EgoState, Lane, RoadUsers, ScoredScene
from envs.metrics.scene import FARTHEST, checked
from policies.spec import Array, ContractError

Command = Literal["left", "straight", "right", "unknown"]
COMMANDS: tuple[Command, ...] = ("left", "straight", "right", "unknown")
PERIOD = 0.5  # s between frames
LATE = 0.1  # s by which frames may be apart from that
HISTORY, FUTURE = 4, 10  # frames of a scene up to now, and later ones
ANNOTATIONS = {"gt_boxes": 7, "gt_velocity_3d": 3}
TOKENS = ("gt_names", "instance_tokens", "track_tokens")
KINDS = {"vehicle": "vehicle", "pedestrian": "pedestrian", "bicycle": "bicycle"}  # everything else is static


@dataclass(frozen=True)
class Boxes:
    """What people have annotated in a frame.

    Args:
        boxes: ``(K, 7)`` x, y, z, length, width, height in m and heading in rad, in the frame of the rear axle.
        names: Kind of each.
        velocities: ``(K, 3)`` m/s.
        tokens: Of the track of each: the same in all frames.
    """

    boxes: Array
    names: tuple[str, ...]
    velocities: Array
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """One moment of a log.

    Args:
        token: Of the frame.
        log: Name of the log.
        scene: Token of the scene of the log.
        place: Name of the map.
        timestamp: Microseconds.
        pose: ``(3,)`` x, y in m and heading in rad of the rear axle in the frame of the map.
        velocity: ``(2,)`` m/s, in the frame of the rear axle.
        acceleration: ``(2,)`` m/s^2, in the frame of the rear axle.
        command: Where the car is told to go.
        roadblocks: Of the route; empty where it is unknown.
        lights: Identifier of a lane connector, and whether its light is red.
        cameras: Path of the picture of each camera, relative to the folder of the sensors.
        lidar: Path of the points, likewise; empty if there are none.
        annotations: Boxes of others.
    """

    token: str
    log: str
    scene: str
    place: str
    timestamp: int
    pose: Array
    velocity: Array
    acceleration: Array
    command: Command
    roadblocks: tuple[str, ...]
    lights: tuple[tuple[str, bool], ...]
    cameras: Mapping[str, str]
    lidar: str
    annotations: Boxes


@dataclass(frozen=True)
class Scene:
    """Consecutive frames of a log that plans are made and scored in.

    Args:
        frames: Every 0.5 s.
        history: How many of them are up to now.
    """

    frames: tuple[Frame, ...]
    history: int = HISTORY

    @property
    def now(self) -> Frame:
        """The frame at t=0, whose token is that of the scene."""
        return self.frames[self.history - 1]

    @property
    def future(self) -> Array:
        """Waypoints ``(1, F, 3)`` of the recorded drive in the frame of the car at t=0, the first one at 0.5 s."""
        here, poses = self.now.pose, np.stack([frame.pose for frame in self.frames[self.history :]])
        cos, sin = np.cos(here[2]), np.sin(here[2])
        x, y = (poses[:, :2] - here[:2]).T
        turn = (poses[:, 2] - here[2] + np.pi) % (2 * np.pi) - np.pi
        return np.stack([cos * x + sin * y, cos * y - sin * x, turn], -1)[None]

    @property
    def ego(self) -> EgoState:
        """The car at t=0; the logs do not tell how it steers."""
        x, y, heading = self.now.pose.tolist()
        return EgoState(x, y, heading, float(self.now.velocity[0]), float(self.now.acceleration[0]))

    @property
    def road_users(self) -> RoadUsers:
        """Everybody who is annotated from t=0 on, in the frame of the map, interpolated to 10 Hz."""
        frames = self.frames[self.history - 1 :]
        tracks: dict[str, dict[int, Array]] = {}
        kinds: dict[str, str] = {}
        for index, frame in enumerate(frames):
            cos, sin, seen = np.cos(frame.pose[2]), np.sin(frame.pose[2]), frame.annotations
            for token, name, box in zip(seen.tokens, seen.names, seen.boxes, strict=True):
                x, y = frame.pose[0] + cos * box[0] - sin * box[1], frame.pose[1] + sin * box[0] + cos * box[1]
                tracks.setdefault(token, {})[index] = np.array([x, y, frame.pose[2] + box[6], box[3], box[4]])
                kinds[token] = KINDS.get(name, "static")
        if not tracks:
            return RoadUsers()
        poses, valid = np.zeros((len(tracks), len(frames), 5)), np.zeros((len(tracks), len(frames)), bool)
        for row, track in enumerate(tracks.values()):
            places = list(track)
            poses[row, places], valid[row, places] = np.stack(list(track.values())), True
        sizes = np.stack([next(iter(track.values()))[3:] for track in tracks.values()])
        times = PERIOD * np.arange(len(frames))
        shown, known = interpolated(times, poses[..., :3], valid, sample_times(0, times[-1]), PERIOD)
        return RoadUsers(shown, np.maximum(sizes, 0.01), [kinds[token] for token in tracks], known)

    def scored(self, extract: MapExtract) -> ScoredScene:
        """What plans are scored against.

        Args:
            extract: The map around the scene.

        Raises:
            ContractError: The map does not fit, see `envs.metrics.ScoredScene`.
        """
        red = {name for name, stops in self.now.lights if stops}
        return ScoredScene(
            self.ego,
            extract.lanes,
            extract.centreline,
            self.road_users,
            drivable=extract.drivable,
            intersections=extract.intersections,
            red_lights=[area for name, area in extract.connectors.items() if name in red],
            speed_limit=extract.speed_limit,
        )


@dataclass(frozen=True)
class MapExtract:
    """The map around a scene, in the frame of the map, in m.

    Args:
        lanes: Of all directions, and the connectors of lanes.
        centreline: ``(M, 2)`` of the route, in driving direction.
        drivable: Polygons where a car may be: roadblocks, intersections, drivable areas and car parks.
        intersections: Polygons.
        connectors: Polygons of the lane connectors on the route by their identifier, which traffic lights are known by.
        speed_limit: m/s; None if it is unknown.
    """

    lanes: Sequence[Lane]
    centreline: Array
    drivable: Sequence[Any] = ()
    intersections: Sequence[Any] = ()
    connectors: Mapping[str, Any] = field(default_factory=dict)
    speed_limit: float | None = None


def read_extracts(path: Path) -> dict[str, MapExtract]:
    """Read the maps around scenes, which were extracted with the tools that nuPlan's maps need.

    Args:
        path: A JSON file: by the token of the scene a dictionary with the names of `MapExtract`, in which each lane is
            ``{"polygon": [[x, y], ...], "on_route": true, "intersection": false}``.

    Raises:
        ContractError: There is no such file, or it holds something else; the message says which scene.
    """
    try:
        listed = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ContractError(f"{path} holds no maps ({error}); give a JSON file by the tokens of scenes") from error
    extracts, token = {}, ""
    try:
        for token, given in listed.items():
            lanes = [Lane(**lane) for lane in given["lanes"]]
            extracts[token] = MapExtract(
                **{**given, "lanes": lanes, "centreline": np.array(given["centreline"], float)}
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{path}: the map of scene '{token}' is incomplete: {error!r}; extract it again") from error
    return extracts


def read_frames(path: Path) -> list[Frame]:
    """Read a log.

    Args:
        path: A pickled list of frames; nothing in it is run.

    Raises:
        ContractError: The file is damaged or no such log, or a frame lacks something; the message says which.
    """
    listed = read_pickle(path)
    if not isinstance(listed, (list, tuple)):
        raise ContractError(f"{path} holds a {type(listed).__name__}, needed is a list of frames; give a log of NAVSIM")
    frames = []
    for index, entry in enumerate(listed):
        try:
            frames.append(_frame(entry))
        except ContractError as error:
            raise ContractError(f"{path}, frame {index}: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ContractError(
                f"{path}, frame {index} is not as NAVSIM writes it: {error!r}; give a log of NAVSIM or OpenScene"
            ) from error
    return frames


def scenes(frames: Sequence[Frame], *, history: int = HISTORY, future: int = FUTURE, every: int = 1) -> Iterator[Scene]:
    """All stretches of a log that are long enough and whose route is known.

    Those in which frames are missing are left out.

    Args:
        frames: Of one log.
        history: Frames up to now.
        future: Later frames.
        every: Frames between the beginnings of two scenes.

    Raises:
        ContractError: A number is not positive.
    """
    if min(history, future, every) < 1:
        raise ContractError(f"history, future and every are {history}, {future}, {every}; needed are positive numbers")
    for first in range(0, len(frames) - history - future + 1, every):
        part = tuple(frames[first : first + history + future])
        apart = np.diff([frame.timestamp for frame in part]) / 1e6
        if part[history - 1].roadblocks and (np.abs(apart - PERIOD) <= LATE).all():
            yield Scene(part, history)


def _frame(entry: Mapping[str, Any]) -> Frame:
    dynamic = checked("ego_dynamic_state", entry["ego_dynamic_state"], (4,), 1e3)
    onehot = checked("driving_command", entry["driving_command"], (None,))
    command = COMMANDS[int(onehot.argmax())] if 0 < len(onehot) <= len(COMMANDS) and onehot.any() else "unknown"
    cameras = {name.lower(): str(camera["data_path"]) for name, camera in (entry.get("cams") or {}).items()}
    return Frame(
        token=str(entry["token"]),
        log=str(entry["log_name"]),
        scene=str(entry["scene_token"]),
        place=str(entry["map_location"]),
        timestamp=int(entry["timestamp"]),
        pose=_pose(entry),
        velocity=dynamic[:2],
        acceleration=dynamic[2:],
        command=command,
        roadblocks=tuple(str(name) for name in entry["roadblock_ids"]),
        lights=tuple((str(name), bool(stops)) for name, stops in entry["traffic_lights"]),
        cameras=cameras,
        lidar=str(entry.get("lidar_path") or ""),
        annotations=_boxes(entry["anns"]),
    )


def _pose(entry: Mapping[str, Any]) -> Array:
    """``(3,)`` of the rear axle, from a translation and a quaternion (w, x, y, z)."""
    x, y, _ = checked("ego2global_translation", entry["ego2global_translation"], (3,), FARTHEST)
    quaternion = checked("ego2global_rotation", entry["ego2global_rotation"], (4,), 1.1)
    length = float(np.linalg.norm(quaternion))
    if length < 0.9:
        raise ContractError(f"ego2global_rotation has length {length:g}, needed is 1; give a quaternion (w, x, y, z)")
    w, i, j, k = quaternion / length
    return np.array([x, y, np.arctan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k))])


def _boxes(given: Mapping[str, Any]) -> Boxes:
    count = len(given["gt_boxes"])
    numbers = {
        name: checked(name, np.reshape(given[name], (-1, width)), (count, width), FARTHEST)
        for name, width in ANNOTATIONS.items()
    }
    texts = {name: tuple(str(text) for text in given[name]) for name in TOKENS}
    for name, found in texts.items():
        if len(found) != count:
            raise ContractError(f"anns have {len(found)} {name} for {count} boxes; needed are equally many")
    return Boxes(numbers["gt_boxes"], texts["gt_names"], numbers["gt_velocity_3d"], texts["track_tokens"])
