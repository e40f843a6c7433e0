"""Reads RECON (arXiv 2104.05859): drives of a Clearpath Jackal outdoors, seen through a wide camera.

One HDF5 file is one drive of T samples: ``images/rgb_left`` (T,) JPEG; ``commands/linear_velocity`` and
``commands/angular_velocity`` (T,), what the robot was told; ``jackal/linear_velocity`` and ``jackal/angular_velocity``
(T,), what its odometry measured; ``jackal/position`` (T, 2 or 3) and ``jackal/yaw`` (T,). SI units. Read so far:
files written by the tests, in the layout that public readers of the release use.

The files have no time stamps. Most public readers take 4 Hz, conversions exist that say 3 or 10: `RATE_HZ` is an
assumption that nothing in a file confirms. The camera is 0.95 m above the ground and its lens is distorted; the middle
square of its picture spans about 84 degrees, that of `VideoNavEnv` 80.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import h5py
import numpy as np

from envs.episodes import Episode
from envs.nav import BODIES, Embodiment
from envs.video_nav import FRAMES, TEXT, VideoNavEnv
from policies.sentence import sentence_bytes
from policies.spec import Array, ContractError, Feature, Spec

ENV = "kinoflow/VideoNav-v0"
EMBODIMENT: Embodiment = "wheeled"
RATE_HZ = 4.0
SIDE = 96  # pixels
PICTURES, POSITION, YAW = "images/rgb_left", "jackal/position", "jackal/yaw"
COMMANDS = ("commands/linear_velocity", "commands/angular_velocity")
MEASURED = ("jackal/linear_velocity", "jackal/angular_velocity")
LIMITS = (2.0, 0.2, 4.0)  # m/s, m/s, rad/s: what a Jackal can do, and what `VideoNavEnv` allows sideways
MASK = Feature("action_mask", (3,), "1", "base_link", constant=True, label=True)
DRIVEN = (1.0, 0.0, 1.0)  # nobody commands a robot with fixed wheels sideways: 0 teaches nothing


def contract() -> Spec:
    """Contract of the episodes: that of `VideoNavEnv` with a Jackal's limits and the label ``action_mask`` (3,).

    The mask is 1 where an action is a demonstration and 0 where the robot had no choice.
    """
    spec = VideoNavEnv(EMBODIMENT, picture_size=SIDE, images=False).contract
    action = replace(spec.action, low=tuple(-limit for limit in LIMITS), high=LIMITS, acceleration=())
    return replace(spec, observations=(*spec.observations, MASK), action=action)


def recon_files(folder: Path) -> list[Path]:
    """Files of a folder in the order of their names.

    Raises:
        ContractError: There are none.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in (".hdf5", ".h5"))
    if not files:
        raise ContractError(f"{folder} holds no .hdf5 files; give the folder of RECON's files")
    return files


def read_recon(path: Path, seed: int, instruction: str = "") -> Episode:
    """Read one drive at 10 Hz.

    Pictures and commands hold until the next sample. ``camera`` is the middle square in 96 x 96; ``twist`` the mean of
    the measured velocity over the last second; ``goal_video`` 16 pictures evenly over the drive; actions are
    (vx, 0, wz); states are x, y in m and yaw in rad.

    Args:
        path: File of the drive.
        seed: Number of the drive.
        instruction: What the robot is told, at most 96 bytes of UTF-8.

    Raises:
        ContractError: Something is missing, unreadable, of another length, not finite or beyond a Jackal's limits, or
            the instruction is too long.
    """
    said = sentence_bytes(instruction, TEXT)
    pictures, numbers = _load(path)
    spec = contract()
    steps = np.arange(int((len(pictures) - 1) * spec.rate_hz / RATE_HZ) + 1)
    held = np.floor(steps * RATE_HZ / spec.rate_hz + 1e-9).astype(int)
    seen = np.stack([_decoded(path, index, data) for index, data in enumerate(pictures)])
    actions, measured = (_velocity(numbers, names)[held].astype(np.float32) for names in (COMMANDS, MEASURED))
    if (np.abs(actions) > LIMITS).any():
        most = np.abs(actions).max(0)
        raise ContractError(
            f"{path}: commands reach {most[0]:g} m/s and {most[2]:g} rad/s, a Jackal {LIMITS[0]:g} and {LIMITS[2]:g}; "
            "give files in SI units"
        )
    observations = {
        "camera": seen[held],
        "twist": _recent_mean(measured, round(spec.rate_hz)),
        "goal_video": seen[np.linspace(0, len(seen) - 1, FRAMES).round().astype(int)][None],
        "instruction": said[None],
        "embodiment": np.array([[name == EMBODIMENT for name in BODIES]], np.float32),
        MASK.name: np.array([DRIVEN], np.float32),
    }
    places = np.column_stack([numbers[POSITION][:, :2], numbers[YAW]])[held].astype(np.float32)
    return Episode(seed, observations, actions, actions, np.zeros(len(steps), np.float32), places)


def _load(path: Path) -> tuple[list[bytes], dict[str, Array]]:
    names = (*COMMANDS, *MEASURED, POSITION, YAW)
    try:
        with h5py.File(path) as file:
            missing = [name for name in (PICTURES, *names) if name not in file]
            pictures = [] if missing else [bytes(data) for data in file[PICTURES][()]]
            numbers = {} if missing else {name: np.asarray(file[name][()], float) for name in names}
    except (OSError, TypeError, ValueError) as error:
        raise ContractError(f"{path} cannot be read ({error}); fetch it again or leave it out") from error
    if missing:
        raise ContractError(f"{path} has no '{missing[0]}'; it is no drive of RECON, leave it out")
    count = len(pictures)
    if count < 2:
        raise ContractError(f"{path} has {count} pictures, a drive needs 2; leave it out")
    for name, values in numbers.items():
        if values.shape not in (((count, 2), (count, 3)) if name == POSITION else ((count,), (count, 1))):
            raise ContractError(
                f"{path}: '{name}' has shape {values.shape} beside {count} pictures; fetch it again or leave it out"
            )
        if not np.isfinite(values).all():
            raise ContractError(f"{path}: '{name}' is not finite; leave the file out")
    return pictures, {name: values if name == POSITION else values.reshape(count) for name, values in numbers.items()}


def _velocity(numbers: dict[str, Array], names: tuple[str, str]) -> Array:
    ahead, turn = (numbers[name] for name in names)
    return np.column_stack([ahead, np.zeros_like(ahead), turn])


def _recent_mean(values: Array, count: int) -> Array:
    """Mean of the last ``count`` rows up to each row of ``(N, A)``, of fewer at the begin."""
    return np.stack([values[max(0, end - count) : end].mean(0) for end in range(1, len(values) + 1)])


def _decoded(path: Path, index: int, data: bytes) -> Array:
    """The middle square of a JPEG as ``(3, 96, 96)`` uint8 RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if pixels is None:
        raise ContractError(f"{path}: picture {index} of '{PICTURES}' is no JPEG; fetch it again or leave it out")
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    small = cv2.resize(pixels[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., ::-1].transpose(2, 0, 1))
