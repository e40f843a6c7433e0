"""Small recorded drives in the formats of others, as files that are made by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from policies.spec import Array

TIME = np.arange(1, 21) / 4
TURN, SPEED = 0.7, 6.0  # rad and m/s of the recorded drive
COUNT = 60


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit."""
    total = 0xFFFFFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = total >> 1 ^ (0x82F63B78 if total & 1 else 0)
    return total ^ 0xFFFFFFFF


def slow_mask(data: bytes) -> int:
    total = slow_crc(data)
    return ((total >> 15 | total << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def tfrecord(path: Path, *bodies: bytes) -> Path:
    parts = []
    for body in bodies:
        length = struct.pack("<Q", len(body))
        parts += [length, struct.pack("<I", slow_mask(length)), body, struct.pack("<I", slow_mask(body))]
    path.write_bytes(b"".join(parts))
    return path


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def floats(number: int, values: Array, packed: bool = True) -> bytes:
    if packed:
        return message(number, np.asarray(values, "<f4").tobytes())
    return b"".join(varint(number << 3 | 5) + struct.pack("<f", value) for value in values)


def states(position: Array, speed: float = 0.0, score: float | None = None, packed: bool = True) -> bytes:
    body = floats(1, position[:, 0], packed) + floats(2, position[:, 1], packed)
    if speed:
        body += floats(4, np.full(len(position), speed)) + floats(5, np.zeros(len(position)))
        body += floats(6, np.full(len(position), 0.5)) + floats(7, np.zeros(len(position)))
    return body + (b"" if score is None else floats(8, np.array([score]), packed=False))


def straight(speed: float, times: Array = TIME) -> Array:
    return np.stack([speed * times, 0 * times], -1)


def frame(name: str = "drive-004", rated: bool = True, image: bytes = b"\xff\xd8jpeg") -> bytes:
    context = message(1, name.encode()) + message(2, b"\x08\x01")  # and a calibration, which is not read
    inner = message(1, context) + varint(2 << 3) + varint(1_700_000_000_000_000)
    inner += message(4, varint(1 << 3) + varint(7) + message(2, image) + message(3, bytes(40)))
    body = message(1, inner) + message(5, states(straight(8.0))) + varint(7 << 3) + varint(2)
    body += message(6, states(straight(8.0, np.arange(-15, 1) / 4), speed=8.0, packed=False))
    for speed, score in ((8.0, 9.0), (6.0, 5.0), (4.0, 1.0)):
        body += message(8, states(straight(speed), score=score if rated else -1.0))
    return body + message(99, b"from the future")


def entry(index: int, **changes: Any) -> dict[str, Any]:
    """One frame as NAVSIM's tools write it: the car drives straight, somebody stands, somebody drives ahead."""
    ahead = np.array([np.cos(TURN), np.sin(TURN)])
    here = np.array([1000.0, 2000.0]) + SPEED * 0.5 * index * ahead
    local = [[30 - SPEED * 0.5 * index, 0.0, 0, 4.5, 2.0, 1.6, 0.0], [20.0, 5.0, 0, 0.6, 0.6, 1.7, np.pi / 2]]
    return {
        "token": f"t{index}",
        "frame_idx": index,
        "timestamp": 1_600_000_000_000_000 + 500_000 * index,
        "log_name": "log",
        "log_token": "l",
        "scene_token": "s",
        "scene_name": "scene",
        "map_location": "us-nv-las-vegas-strip",
        "roadblock_ids": ["17", "18"],
        "traffic_lights": [(4711, True), (4712, False)],
        "vehicle_name": "car",
        "can_bus": np.zeros(18),
        "lidar_path": "MergedPointCloud/a.pcd",
        "ego2global_translation": [*here.tolist(), 0.3],
        "ego2global_rotation": [np.cos(TURN / 2), 0.0, 0.0, np.sin(TURN / 2)],
        "ego2global": np.eye(4),
        "ego_dynamic_state": [SPEED, 0.1, 0.4, 0.0],
        "driving_command": np.array([0, 1, 0, 0]),
        "cams": {"CAM_F0": {"data_path": "CAM_F0/a.jpg", "cam_intrinsic": np.eye(3)}},
        "anns": {
            "gt_boxes": np.array(local, np.float32),
            "gt_names": np.array(["vehicle", "pedestrian"]),
            "gt_velocity_3d": np.zeros((2, 3), np.float32),
            "instance_tokens": ["i0", "i1"],
            "track_tokens": np.array(["parked", "walker"], object),
        },
        **changes,
    }


def to_map(points: Any) -> Array:
    """Points along and beside the recorded way in the frame of the map."""
    turn = np.array([[np.cos(TURN), np.sin(TURN)], [-np.sin(TURN), np.cos(TURN)]])
    return np.asarray(points, float) @ turn + [1000.0, 2000.0]


def strip(low: float, high: float, begin: float = -20, end: float = 90) -> Array:
    return to_map([[begin, low], [end, low], [end, high], [begin, high]])


def boxes(x: Array, y: float = 0.0, speed: float = 0.0, size: tuple[float, float, float] = (4.6, 1.9, 1.5)) -> Any:
    count = len(x)
    measures = dict(zip(("length", "width", "height"), (np.full(count, value) for value in size), strict=True))
    return {
        "position": np.stack([x, np.full(count, y), np.zeros(count)], -1),
        "heading": np.zeros(count),
        "velocity": np.stack([np.full(count, speed), np.zeros(count)], -1),
        "valid": np.ones(count, bool),
        **measures,
    }


def track(name: str, kind: str, of: Any) -> Any:
    return {"type": kind, "state": of, "metadata": {"type": kind, "object_id": name, "track_length": COUNT}}


def lane(y: float, backwards: bool = False, polygon: bool = True) -> Any:
    line = np.stack([np.linspace(-20, 120, 30), np.full(30, y), np.zeros(30)], -1)
    corners = np.array([[-20, y - 1.75], [120, y - 1.75], [120, y + 1.75], [-20, y + 1.75]])
    found = {"type": "LANE_SURFACE_STREET", "polyline": line[::-1] if backwards else line, "speed_limit_kmh": [50.0]}
    return {**found, "polygon": corners} if polygon else found


def toy_scenario(**changes: Any) -> Any:
    """A car that drives at 6 m/s, one that stands ahead in the next lane, somebody who waits, and a red light."""
    time = 0.1 * np.arange(COUNT)
    light = {"type": "TRAFFIC_LIGHT", "metadata": {"type": "TRAFFIC_LIGHT"}, "lane": "1"}
    states = ["TRAFFIC_LIGHT_RED"] * 20 + ["TRAFFIC_LIGHT_GREEN"] * (COUNT - 20)
    return {
        "id": "scenario-1",
        "version": "MetaDrive v0.4.3",
        "length": COUNT,
        "metadata": {"metadrive_processed": False, "coordinate": "metadrive", "ts": time, "sdc_id": "ego"},
        "tracks": {
            "ego": track("ego", "VEHICLE", boxes(6 * time, speed=6.0)),
            "7": track("7", "VEHICLE", boxes(0 * time + 14, y=3.5)),
            "8": track("8", "PEDESTRIAN", boxes(0 * time + 60, size=(0.5, 0.5, 1.7))),
            "9": track("9", "TRAFFIC_CONE", boxes(0 * time + 20, y=-5, size=(0, 0, 0))),
        },
        "dynamic_map_states": {"light": {**light, "state": {"object_state": states}}},
        "map_features": {
            "1": lane(0.0),
            "2": lane(3.5, backwards=True),
            "3": lane(-3.5, polygon=False),
            "line": {"type": "ROAD_EDGE_BOUNDARY", "polyline": np.zeros((5, 2))},
        },
        **changes,
    }
