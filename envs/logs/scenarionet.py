"""Scenarios of ScenarioNet and MetaDrive (arXiv 2306.12241): pickled dictionaries, read and written.

A file is one scenario: tracks of everybody with their boxes, the map as polylines and polygons, and traffic lights.
What `kinoflow/Driving-v0` has driven can be written, and replayed there.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from envs.driving import DrivingEnv
from envs.logs.pickles import read_pickle
from envs.logs.tracks import interpolated, repaired, sample_times, seamless
from envs.metrics import PACIFICA, EgoState, Lane, RoadUsers, ScoredScene, Vehicle
from envs.metrics.scene import FARTHEST, checked
from envs.metrics.tracker import STEP
from policies.files import replace_file
from policies.spec import Array, ContractError

VERSION = "MetaDrive v0.3.0.1"  # of the format
KINDS = {"VEHICLE": "vehicle", "PEDESTRIAN": "pedestrian", "CYCLIST": "bicycle", "OTHER": "vehicle"} | dict.fromkeys(
    ("TRAFFIC_CONE", "TRAFFIC_BARRIER", "TRAFFIC_OBJECT"), "static"
)
NAMES = {"vehicle": "VEHICLE", "pedestrian": "PEDESTRIAN", "bicycle": "CYCLIST", "static": "TRAFFIC_CONE"}
SIZES = {"vehicle": (4.5, 1.9, 1.6), "pedestrian": (0.6, 0.6, 1.7), "bicycle": (1.8, 0.7, 1.7), "static": (0.5,) * 3}
LANE = "LANE_"  # what the kinds of lanes begin with
CROSSING = "LANE_SURFACE_UNSTRUCTURE"  # what converters call the ground where lanes cross
LANE_WIDTH = 3.5  # m, of lanes of which only the middle is known
RED = ("TRAFFIC_LIGHT_RED", "LANE_STATE_STOP", "LANE_STATE_ARROW_STOP")
GAP = 0.3  # s without a sample that are bridged
BEYOND = 40.0  # m by which the recorded way goes on straight ahead, for plans that are faster
MOVED = 0.5  # m between points of the recorded way
ALONG = np.cos(np.radians(60))  # a lane that leads elsewhere is not on the route


@dataclass(frozen=True)
class Track:
    """Somebody or something, over the whole scenario.

    Args:
        kind: In the words of the format, for example ``"VEHICLE"``.
        position: ``(T, 3)`` middle of the box, m.
        heading: ``(T,)`` rad.
        velocity: ``(T, 2)`` m/s.
        size: ``(3,)`` length, width, height, m.
        valid: ``(T,)`` whether it is there.
    """

    kind: str
    position: Array
    heading: Array
    velocity: Array
    size: Array
    valid: Array


@dataclass(frozen=True)
class Feature:
    """Part of a map.

    Args:
        kind: In the words of the format, for example ``"LANE_SURFACE_STREET"``.
        polyline: ``(M, 2)`` m, of a lane its middle in driving direction; ``(0, 2)`` if there is none.
        polygon: ``(N, 2)`` m; ``(0, 2)`` if there is none.
    """

    kind: str
    polyline: Array
    polygon: Array = field(default_factory=lambda: np.zeros((0, 2)))

    @property
    def area(self) -> shapely.Polygon | None:
        """Of a lane; where there is no polygon, that of a usual one. None if it has none."""
        found = repaired(self.polygon)
        if found is None and len(self.polyline) > 1 and np.ptp(self.polyline, axis=0).max() > 0:
            way = shapely.LineString(self.polyline)
            found = repaired(np.array(way.buffer(LANE_WIDTH / 2, cap_style="flat").exterior.coords))
        return found


@dataclass(frozen=True)
class Light:
    """A traffic light.

    Args:
        lane: Identifier of the feature that it is for.
        states: ``T`` words of the format, for example ``"TRAFFIC_LIGHT_RED"``.
    """

    lane: str
    states: tuple[str, ...]


@dataclass(frozen=True)
class Scenario:
    """A drive and its surroundings, in one frame: x, y, z-up.

    Args:
        name: Of the scenario.
        times: ``(T,)`` s.
        ego: Which of the tracks is the car.
        tracks: By identifier.
        features: Of the map, by identifier.
        lights: By identifier.
    """

    name: str
    times: Array
    ego: str
    tracks: Mapping[str, Track]
    features: Mapping[str, Feature]
    lights: Mapping[str, Light] = field(default_factory=dict)

    @property
    def vehicle(self) -> Vehicle:
        """Measures of the car: those of a Pacifica, scaled to its length and width."""
        length, width, _ = self.tracks[self.ego].size
        scale = float(length) / PACIFICA.length
        return Vehicle(PACIFICA.front * scale, PACIFICA.rear * scale, float(width), PACIFICA.wheelbase * scale)

    def drive(self, start: int = 0, samples: int | None = None) -> Array:
        """Poses ``(N, 3)`` of the rear axle at 10 Hz from a sample of the scenario on, as they were driven.

        Args:
            start: Index of the first one.
            samples: How many; by default as many as there are.

        Raises:
            ContractError: The car is not there so long.
        """
        poses, valid = self._sampled([self.ego], start)
        there = len(valid[0]) if valid[0].all() else int(valid[0].argmin())
        samples = there if samples is None else samples
        if not 0 < samples <= there:
            raise ContractError(
                f"the car of scenario '{self.name}' is there for {there} samples from sample {start} on, asked for are "
                f"{samples}; begin earlier"
            )
        way = poses[0, :samples].copy()
        way[:, :2] -= self.vehicle.ahead * np.stack([np.cos(way[:, 2]), np.sin(way[:, 2])], -1)
        return way

    def _sampled(self, names: list[str], start: int) -> tuple[Array, Array]:
        """Poses ``(K, N, 3)`` of middles at 10 Hz and whether they are known."""
        if not 0 <= start < len(self.times):
            raise ContractError(
                f"start is {start}, scenario '{self.name}' has {len(self.times)} samples; begin earlier"
            )
        tracks = [self.tracks[name] for name in names]
        poses = np.stack([np.c_[track.position[:, :2], track.heading] for track in tracks])
        valid = np.stack([track.valid for track in tracks])
        gap = max(GAP, 2 * float(np.median(np.diff(self.times))) if len(self.times) > 1 else GAP)
        wanted = sample_times(self.times[start], self.times[-1])
        return interpolated(self.times, poses, valid, wanted, gap)

    def scored(self, start: int = 0, centreline: Array | None = None, speed_limit: float | None = None) -> ScoredScene:
        """What plans are scored against that begin at a sample of the scenario.

        Args:
            start: Index of that sample.
            centreline: ``(M, 2)`` of the route, m; by default the recorded way, and straight ahead from its end.
            speed_limit: m/s; None if it is unknown.

        Raises:
            ContractError: The car is not there, or the map has no lanes.
        """
        way = self.drive(start)
        line = _extended(way) if centreline is None else checked("centreline", centreline, (None, 2), FARTHEST)
        others = [name for name, track in self.tracks.items() if name != self.ego and track.kind in KINDS]
        users = RoadUsers()
        if others:
            poses, valid = self._sampled(others, start)
            sizes = np.stack([self.tracks[name].size[:2] for name in others])
            users = RoadUsers(poses, sizes, [KINDS[self.tracks[name].kind] for name in others], valid)
        areas = {name: one.area for name, one in self.features.items() if one.kind.startswith(LANE)}
        lanes = {name: area for name, area in areas.items() if area is not None}
        if not lanes:
            raise ContractError(f"scenario '{self.name}' has 0 lanes with an area, needed is 1; it cannot be scored")
        red = {light.lane for light in self.lights.values() if light.states[start] in RED}
        on_route = {name for name, area in lanes.items() if _leads_along(self.features[name].polyline, area, line)}
        return ScoredScene(
            self._ego_state(start, way),
            [Lane(area, name in on_route, self.features[name].kind == CROSSING) for name, area in lanes.items()],
            line,
            users,
            drivable=seamless(list(lanes.values())),
            red_lights=[lanes[name] for name in sorted(red & on_route)],
            speed_limit=speed_limit,
            vehicle=self.vehicle,
        )

    def _ego_state(self, start: int, way: Array) -> EgoState:
        track, (x, y, heading) = self.tracks[self.ego], way[0].tolist()
        ahead = np.array([np.cos(heading), np.sin(heading)])
        speeds = track.velocity @ ahead
        after = min(start + 1, len(speeds) - 1)
        step = max(float(self.times[after] - self.times[start]), 1e-3)
        change = float(speeds[after] - speeds[start]) / step if track.valid[after] else 0.0
        return EgoState(x, y, heading, float(speeds[start]), float(np.clip(change, -10, 10)))


def _extended(way: Array) -> Array:
    """The line ``(M, 2)`` that poses ``(N, 3)`` follow, and straight ahead from its end."""
    kept = [way[0, :2]]
    for point in way[1:, :2]:
        if np.linalg.norm(point - kept[-1]) >= MOVED:
            kept.append(point)
    kept.append(kept[-1] + BEYOND * np.array([np.cos(way[-1, 2]), np.sin(way[-1, 2])]))
    return np.array(kept)


def _leads_along(polyline: Array, area: shapely.Polygon, line: Array) -> bool:
    """Whether a line ``(M, 2)`` goes along a lane, in its direction."""
    part = shapely.LineString(line).intersection(area)
    if part.length < 1.0 or len(polyline) < 2:
        return False
    middle = part.centroid
    here = int(np.linalg.norm(line - np.array(middle.coords[0]), axis=-1).argmin())
    near = int(np.linalg.norm(polyline - np.array(middle.coords[0]), axis=-1).argmin())
    ways = [
        points[min(at + 1, len(points) - 1)] - points[max(at - 1, 0)] for points, at in ((line, here), (polyline, near))
    ]
    lengths = np.linalg.norm(ways[0]) * np.linalg.norm(ways[1])
    return bool(lengths > 0 and ways[0] @ ways[1] > ALONG * lengths)


def read_scenario(path: Path) -> Scenario:
    """Read a scenario.

    Args:
        path: A pickled scenario; nothing in it is run.

    Raises:
        ContractError: The file is damaged or no scenario; the message says what does not fit.
    """
    given = read_pickle(path)
    try:
        times = checked("metadata ts", given["metadata"]["ts"], (None,), 1e9)
        if not len(times) or (np.diff(times) <= 0).any():
            raise ContractError("metadata ts are not increasing; sort the samples by time")
        tracks = {str(name): _track(str(name), track, len(times)) for name, track in given["tracks"].items()}
        features = {str(name): _feature(str(name), part) for name, part in given["map_features"].items()}
        lights = {
            str(name): _light(str(name), light, len(times)) for name, light in given["dynamic_map_states"].items()
        }
        ego = str(given["metadata"].get("sdc_id", ""))
        if ego not in tracks:
            raise ContractError(f"metadata sdc_id is '{ego}', there are tracks {', '.join(list(tracks)[:5])}; set it")
        return Scenario(str(given["id"]), times, ego, tracks, features, lights)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ContractError(f"{path} is no scenario of ScenarioNet: {error!r}; give one of its .pkl files") from error


def _track(name: str, given: Mapping[str, Any], count: int) -> Track:
    state, kind = given["state"], str(given["type"])
    valid = np.asarray(state.get("valid", np.ones(count)), bool)
    if valid.shape != (count,):
        raise ContractError(f"valid of track '{name}' has shape {valid.shape}, needed is ({count},); cut it")

    def numbers(key: str, values: Any, shape: tuple[int, ...]) -> Array:
        there = valid.reshape(-1, *[1] * (len(shape) - 1))
        return checked(f"{key} of track '{name}'", np.where(there, np.asarray(values, float), 0.0), shape, FARTHEST)

    position = np.asarray(state["position"], float)
    if position.shape == (count, 2):
        position = np.c_[position, np.zeros(count)]
    usual = SIZES[KINDS.get(kind, "static")]
    sizes = [
        _size(state.get(key), valid, default) for key, default in zip(("length", "width", "height"), usual, strict=True)
    ]
    return Track(
        kind,
        numbers("position", position, (count, 3)),
        numbers("heading", np.asarray(state["heading"], float).reshape(count), (count,)),
        numbers("velocity", np.asarray(state.get("velocity", np.zeros((count, 2))), float)[:, :2], (count, 2)),
        checked(f"size of track '{name}'", sizes, (3,), 200),
        valid,
    )


def _size(given: Any, valid: Array, default: float) -> float:
    """A measure that may differ from sample to sample, and may be missing."""
    values = np.asarray([] if given is None else given, float).ravel()
    values = values[valid] if len(values) == len(valid) else values
    values = values[np.isfinite(values) & (values > 0)]
    return float(np.median(values)) if len(values) else default


def _feature(name: str, given: Mapping[str, Any]) -> Feature:
    lines = {}
    for key in ("polyline", "polygon"):
        value = given.get(key)
        points = np.zeros((0, 2)) if value is None or not len(value) else np.asarray(value, float)[:, :2]
        lines[key] = checked(f"{key} of map feature '{name}'", points, (None, 2), FARTHEST)
    return Feature(str(given["type"]), **lines)


def _light(name: str, given: Mapping[str, Any], count: int) -> Light:
    states = tuple(str(word) for word in given["state"]["object_state"])
    if len(states) != count:
        raise ContractError(f"light '{name}' has {len(states)} states, there are {count} samples; cut it")
    return Light(str(given.get("lane", "")), states)


def write_scenario(path: Path, scenario: Scenario) -> None:
    """Write a scenario, as MetaDrive and ScenarioNet read it.

    Args:
        path: Of the file.
        scenario: What to write.
    """
    count = len(scenario.times)
    features = {
        name: {"type": one.kind, "polyline": one.polyline}
        | ({"polygon": one.polygon} if len(one.polygon) else {})
        | ({"entry_lanes": [], "exit_lanes": [], "left_neighbor": [], "right_neighbor": []} if LANE in one.kind else {})
        for name, one in scenario.features.items()
    }
    lights = {
        name: {
            "type": "TRAFFIC_LIGHT",
            "state": {"object_state": list(light.states)},
            "lane": light.lane,
            "metadata": {"type": "TRAFFIC_LIGHT", "track_length": count, "object_id": name},
        }
        for name, light in scenario.lights.items()
    }
    metadata = {"metadrive_processed": False, "coordinate": "metadrive", "ts": scenario.times.astype(np.float32)}
    content = {
        "id": scenario.name,
        "version": VERSION,
        "length": count,
        "metadata": {**metadata, "sdc_id": scenario.ego, "scenario_id": scenario.name, "dataset": "kinoflow"},
        "tracks": {name: _written(name, track, count) for name, track in scenario.tracks.items()},
        "dynamic_map_states": lights,
        "map_features": features,
    }
    replace_file(path, pickle.dumps(content, protocol=4))


def _written(name: str, track: Track, count: int) -> dict[str, Any]:
    there = track.valid.astype(float)
    state = {
        "position": track.position * there[:, None],
        "heading": track.heading * there,
        "velocity": track.velocity * there[:, None],
        "valid": track.valid,
        **{key: size * there for key, size in zip(("length", "width", "height"), track.size, strict=True)},
    }
    metadata = {"type": track.kind, "track_length": count, "object_id": name}
    return {"type": track.kind, "state": {k: np.asarray(v) for k, v in state.items()}, "metadata": metadata}


def recorded(env: DrivingEnv, name: str) -> Scenario:
    """The present episode of a driving environment, from its beginning until now.

    Args:
        env: `kinoflow/Driving-v0`, after a reset.
        name: Of the scenario.
    """
    scored = env.scored_scene()
    cars = np.stack([car for car, *_ in env.history])
    heading = cars[:, 2]
    ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
    vehicle, count = scored.vehicle, len(cars)
    centre = np.c_[cars[:, :2] + vehicle.ahead * ahead, np.zeros(count)]
    size = np.array([vehicle.length, vehicle.width, SIZES["vehicle"][2]])
    tracks = {"ego": Track("VEHICLE", centre, heading, cars[:, 3:4] * ahead, size, np.ones(count, bool))}
    users = scored.road_users
    for index, kind in enumerate(users.kinds):
        poses, valid = np.asarray(users.poses)[index], np.asarray(users.valid)[index]
        if valid.any():
            size = np.array([*np.asarray(users.sizes)[index], SIZES[kind][2]])
            velocity = np.gradient(poses[:, :2], STEP, axis=0) if count > 1 else np.zeros((count, 2))
            place = np.c_[poses[:, :2], np.zeros(count)]
            tracks[f"other {index}"] = Track(NAMES[kind], place, poses[:, 2], velocity, size, valid)
    features = {
        f"lane {index}": Feature("LANE_SURFACE_STREET", np.asarray(lane.centre, float), np.asarray(lane.polygon, float))
        for index, lane in enumerate(env.scene.lanes)
    }
    return Scenario(name, STEP * np.arange(count), "ego", tracks, features)
