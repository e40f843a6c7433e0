"""Senses: features that are computed from what a robot observes, on the way into a network, with numpy and OpenCV only.

A contract may name the feature of a sense. Whoever drives the policy then provides what the sense is computed from, see
`outer`; training adds the feature to recorded episodes once (``kinoflow data --sense``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from policies.spec import Array, ChunkPolicy, Feature, Observation, Spec

FRAMES, SIDE = 16, 96  # of a goal video
FOVY, HEIGHT, PITCH = 1.396, 1.2, 0.1745  # rad, m, rad: the head camera on its nominal mount
CELLS = 24  # per side of the flow that is fitted
FIT = 0.08  # share of the floor that has to move like a floor for a match
NEAR = (1.0, 1.0, 0.8)  # m, m, rad: a displacement beyond is no match
REACH = 3.0  # m
SIMILAR = 0.2  # correlation with a frame, below which there is nothing to compare
GOOD = 0.35  # share with which no other guess is tried
FAINT = 0.01  # share of the floor that has to fit where the length of a step is known
STEPS = np.linspace(0.05, 0.62, 40)  # m between frames
AGREE = 0.15  # relative deviation of the steps between frames
LEAST = 0.1  # share of the floor that has to stay in the picture
CONTRAST = 20.0  # grey levels between neighbouring pixels that are easy to follow
CANDIDATES = 4  # frames that are compared, those that look most alike
ONWARD = tuple((ahead, turn) for ahead in (0.2, 0.35, 0.55) for turn in (-0.3, 0.0, 0.3))  # guesses from frame to frame
BESIDE = ((0.0, 0.0), (0.25, 0.0), (-0.25, 0.0), (0.0, 0.3), (0.0, -0.3))  # and from a picture to a frame
FAR = 8.0  # m

CAMERA = Feature("camera", (3, SIDE, SIDE), "1", "head_camera", "uint8")
GOAL_VIDEO = Feature("goal_video", (FRAMES, 3, SIDE, SIDE), "1", "head_camera", "uint8", constant=True)


@dataclass(frozen=True)
class Sense:
    """A feature and how to compute one sample of it.

    Args:
        feature: What the network sees.
        inputs: What it is computed from.
        compute: Maps one sample of each input, without history, to one of the feature.
    """

    feature: Feature
    inputs: tuple[Feature, ...]
    compute: Callable[..., Array]


def goal_path(camera: Array, goal_video: Array) -> Array:
    """Where the frames of a goal video were taken, seen from here.

    The frame that fits best is found by its optical flow over the floor; the others follow from the displacements
    between successive frames, which are measured the same way, once per video.

    Args:
        camera: ``(3, 96, 96)`` uint8.
        goal_video: ``(16, 3, 96, 96)`` uint8.

    Returns:
        ``(16, 4)`` float32 per frame: x, y in m and yaw in rad in the frame of the robot, none beyond `REACH`, and the
        share of the floor that fits at the frame that was found, 0 at the others. All 0 where none was.
    """
    video = goal_video.tobytes()
    nearest, found = _nearest(camera.tobytes(), video)
    path = np.zeros((FRAMES, 4), np.float32)
    if found[3] == 0:
        return path
    path[nearest] = found
    onward = _onward(video)
    for frame in range(nearest, FRAMES - 1):
        path[frame + 1, :3] = _compose(path[frame, :3], onward[frame])
    for frame in reversed(range(nearest)):
        path[frame, :3] = _compose(path[frame + 1, :3], _inverse(onward[frame]))
    path[:, :3] = np.clip(path[:, :3], -REACH, REACH)
    return path


def video_path(goal_video: Array) -> Array:
    """Where the frames of a goal video were taken, seen from the first one.

    Args:
        goal_video: ``(16, 3, 96, 96)`` uint8.

    Returns:
        ``(16, 3)`` float32: x, y in m and yaw in rad, which is not wrapped.
    """
    poses = [np.zeros(3)]
    for step in _onward(goal_video.tobytes()):
        poses.append(_compose(poses[-1], step))
    path = np.array(poses)
    path[:, 2] = np.unwrap(path[:, 2])
    return path.astype(np.float32)


def _pictures(content: bytes) -> Array:
    return np.frombuffer(content, np.uint8).reshape(-1, 3, SIDE, SIDE)


@lru_cache(4)  # a history shows most pictures twice
def _nearest(camera: bytes, video: bytes) -> tuple[int, Array]:
    """Index of the frame that was taken nearest to a picture, and the displacement to it as `fit_displacement`."""
    (here,), frames, texture = _pictures(camera), _pictures(video), _texture(camera)
    similar = _thumbnails(video) @ _thumbnails(camera)[0]
    alike = [
        frame for frame in np.argsort(similar)[-CANDIDATES:] if similar[frame] > SIMILAR
    ]  # none in a black picture
    nearest, best = 0, np.zeros(4, np.float32)
    for guess, flow in zip(*_guesses(BESIDE), strict=True):
        if best[3] > GOOD or not alike:
            break
        cells = np.stack([_cells(here, frames[frame], flow) for frame in alike])
        found = fit_displacement(cells, np.tile(guess, (len(alike), 1)), texture)
        first = int(found[:, 3].argmax())
        if found[first, 3] > max(FIT, best[3]):
            nearest, best = int(alike[first]), found[first]
    return nearest, best


@lru_cache(4)
def _thumbnails(content: bytes) -> Array:
    """Small blurred grey pictures ``(N, 576)`` of mean 0 and length 1."""
    import cv2

    rows = [cv2.cvtColor(np.ascontiguousarray(p.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY) for p in _pictures(content)]
    small = [cv2.resize(row, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float32) for row in rows]
    flat = np.stack([cv2.GaussianBlur(row, (0, 0), 1.5).ravel() for row in small])
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


@lru_cache(2)
def _onward(video: bytes) -> Array:
    """Displacements ``(15, 3)`` from each frame of a video to the next.

    The frames are farther apart than optical flow reaches, so it starts from several guesses. They are equally far
    apart: all fits together tell how far, and of each pair the best fit that agrees is taken. Where none does, the step
    is one straight ahead.
    """
    guesses, flows = _guesses(ONWARD)
    cells = [[_cells(*pair, guess) for guess in flows] for pair in pairwise(_pictures(video))]
    texture = _texture(video)
    found = np.stack([fit_displacement(np.stack(tried), guesses, texture[k]) for k, tried in enumerate(cells)])
    lengths, fits = np.linalg.norm(found[..., :2], axis=-1), found[..., 3]
    agreeing = np.abs(lengths - STEPS[:, None, None]) < AGREE * STEPS[:, None, None]
    usual = STEPS[(agreeing * fits).max(-1).sum(-1).argmax()]
    best = np.where(np.abs(lengths - usual) < AGREE * usual, fits, 0)
    steps = found[np.arange(FRAMES - 1), best.argmax(1), :3]
    return np.where(best.max(1, keepdims=True) > FAINT, steps, np.array([usual, 0, 0], np.float32))


@lru_cache(2)
def _guesses(steps: tuple[tuple[float, float], ...]) -> tuple[Array, Array]:
    """Displacements ``(N, 3)`` for steps ahead in m that turn by rad, and their flow ``(N, 2, 96, 96)``."""
    moved = np.array([(ahead, 0.5 * ahead * turn, turn) for ahead, turn in steps])
    return moved, _floor_flow(moved, SIDE).reshape(-1, SIDE, SIDE, 2).transpose(0, 3, 1, 2)


def _floor_flow(steps: Array, cells: int) -> Array:
    """Exact flow of the floor, and above the horizon of a wall `FAR` away, for displacements ``(N, 3)``.

    Returns:
        ``(N, cells * cells, 2)`` px right and down at the centres of a grid over the picture.
    """
    places, points = _scene(cells)
    x, y, turn = (part[:, None] for part in steps.T)
    cos, sin = np.cos(turn), np.sin(turn)
    ahead, left = points[:, 2] - x, -points[:, 0] - y
    down = np.broadcast_to(points[:, 1], ahead.shape)
    moved = np.stack([sin * ahead - cos * left, down, np.maximum(cos * ahead + sin * left, 0.1)], -1) @ _LEVELLING
    return np.clip(moved[..., :2] / np.maximum(moved[..., 2:], 0.1) * _FOCAL - places, -SIDE, SIDE)


@lru_cache(2)
def _scene(cells: int) -> tuple[Array, Array]:
    """Centres ``(P, 2)`` of a grid in px from the middle, row by row, and what they see there, ``(P, 3)`` m."""
    along = (np.arange(cells) + 0.5) * (SIDE / cells) - 0.5 * SIDE
    places = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    rays = np.concatenate([places / _FOCAL, np.ones((len(places), 1))], 1) @ _LEVELLING.T
    return places, rays * np.minimum(HEIGHT / np.maximum(rays[:, 1:2], 1e-3), FAR)


def _cells(first: Array, second: Array, guess: Array) -> Array:
    """Flow between two pictures, mean of each cell, ``(cells, 2)``."""
    from policies.dis import dis_flow

    cell = SIDE // CELLS
    return dis_flow(first, second, guess).reshape(2, CELLS, cell, CELLS, cell).mean((2, 4)).reshape(2, -1).T


def _texture(content: bytes) -> Array:
    """How much there is to see in each cell of pictures, ``(N, cells)`` in [0, 1]."""
    grey = _pictures(content).mean(1)
    slope = np.zeros_like(grey)
    slope[:, 1:] += np.abs(np.diff(grey, axis=1))
    slope[:, :, 1:] += np.abs(np.diff(grey, axis=2))
    cell = SIDE // CELLS
    steepest = slope.reshape(-1, CELLS, cell, CELLS, cell).max((2, 4)).reshape(-1, CELLS**2)
    return np.clip(steepest / CONTRAST, 0, 1)


def _compose(first: Array, second: Array) -> Array:
    cos, sin = np.cos(first[2]), np.sin(first[2])
    x, y = first[0] + cos * second[0] - sin * second[1], first[1] + sin * second[0] + cos * second[1]
    return np.array([x, y, (first[2] + second[2] + np.pi) % (2 * np.pi) - np.pi])


def _inverse(step: Array) -> Array:
    cos, sin = np.cos(step[2]), np.sin(step[2])
    return np.array([-cos * step[0] - sin * step[1], sin * step[0] - cos * step[1], -step[2]])


def fit_displacement(flow: Array, start: Array, texture: Array) -> Array:
    """Fit planar displacements to the flow of a floor.

    Gauss-Newton steps; what does not move like the floor loses weight from step to step (Geman & McClure's weights by
    graduated non-convexity, as in `policies.egomotion.robust_twist_of`).

    Args:
        flow: ``(N, cells * cells, 2)`` px right and down.
        start: ``(N, 3)`` displacements to begin with.
        texture: ``(cells * cells,)``, or one per flow, in [0, 1]; where there is none, flow stays as it was guessed.

    Returns:
        ``(N, 4)`` float32: m, m, rad, share of the floor that fits; 0 beyond `NEAR`.
    """
    moved, prior = start.astype(float), np.broadcast_to(np.maximum(_prior() * texture, 1e-9), flow.shape[:2])
    for scale in (np.inf, *(NOISE_PX * 2.0**k for k in reversed(range(ROUNDS))), NOISE_PX):
        predicted = _floor_flow(moved, CELLS)
        relation = np.stack([(_floor_flow(moved + unit, CELLS) - predicted) / SMALL for unit in SMALL * np.eye(3)], -1)
        missing = flow - predicted
        trust = prior * _inside(predicted) / (1 + (missing**2).sum(-1) / scale**2) ** 2
        weighted = trust[..., None, None] * relation
        matrix = np.einsum("ncia,ncib->nab", weighted, relation) + RIDGE * np.eye(3)
        moved = moved + np.linalg.solve(matrix, np.einsum("ncia,nci->na", weighted, missing)[..., None])[..., 0]
    predicted = _floor_flow(moved, CELLS)
    distance, seen = np.linalg.norm(flow - predicted, axis=-1), prior * _inside(predicted)
    trust = seen / (1 + (distance / NOISE_PX) ** 2) ** 2
    fit = trust.sum(1) / np.maximum(seen.sum(1), LEAST * prior.sum(1))
    found = np.concatenate([moved, fit[:, None]], 1).astype(np.float32)
    return np.where((np.abs(moved) < NEAR).all(1)[:, None], found, np.float32(0))


def _inside(flow: Array) -> Array:
    """Which cells ``(N, P)`` stay in the picture."""
    return (np.abs(_scene(CELLS)[0] + flow) < SIDE / 2).all(-1)


@lru_cache(1)
def _prior() -> Array:
    """Trust ``(P,)`` in cells before anything is known: the nearer the floor, the less may stand in front of it."""
    _, points = _scene(CELLS)
    return np.where(points[:, 2] < FAR - 1, points[:, 2].min() / points[:, 2], 0)


ROUNDS, NOISE_PX, RIDGE, SMALL = 5, 0.5, 1e-4, 1e-3
_FOCAL = 0.5 * SIDE / np.tan(0.5 * FOVY)
_LEVELLING = np.array([[1, 0, 0], [0, np.cos(PITCH), np.sin(PITCH)], [0, -np.sin(PITCH), np.cos(PITCH)]])

GOAL_PATH = Feature("goal_path", (FRAMES, 4), "m, rad, 1", "base_link")
VIDEO_PATH = Feature("video_path", (FRAMES, 3), "m, rad", "goal_video", constant=True)
SENSES = {
    "goal_path": Sense(GOAL_PATH, (CAMERA, GOAL_VIDEO), goal_path),
    "video_path": Sense(VIDEO_PATH, (GOAL_VIDEO,), video_path),
}


def outer(spec: Spec) -> Spec:
    """The contract of a policy towards the world: senses replaced by what they are computed from."""
    features: dict[str, Feature] = {}
    for feature in spec.observations:
        parts = SENSES[feature.name].inputs if feature.name in SENSES else (feature,)
        features |= {part.name: part for part in parts}
    return dataclasses.replace(spec, observations=tuple(features.values()))


def sense(spec: Spec, observation: Observation) -> dict[str, Array]:
    """Turn an observation of `outer` into what the network of ``spec`` sees."""
    return {
        feature.name: sensed(SENSES[feature.name], observation) if feature.name in SENSES else observation[feature.name]
        for feature in spec.observations
    }


def sensed(found: Sense, observation: Mapping[str, Array]) -> Array:
    """Compute a sense for every sample of its inputs; what is constant has one sample for all."""
    steps = max(len(observation[feature.name]) for feature in found.inputs)
    samples = (
        [observation[feature.name][min(step, len(observation[feature.name]) - 1)] for feature in found.inputs]
        for step in range(steps)
    )
    return np.stack([found.compute(*sample) for sample in samples])


class Sensing:
    """A policy behind its senses: a `ChunkPolicy` that takes what the senses are computed from.

    Args:
        policy: Policy whose contract names senses.
    """

    def __init__(self, policy: ChunkPolicy) -> None:
        self.spec, self._policy = outer(policy.spec), policy

    @property
    def arrival(self) -> float:
        """Probability that the robot is where it shall stop at the newest chunk, 0 where the policy does not say."""
        return getattr(self._policy, "arrival", 0.0)

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk, see `policies.spec.ChunkPolicy`.

        Raises:
            ContractError: The observation does not fit the contract.
        """
        self.spec.check(observation)
        return self._policy.act(sense(self._policy.spec, observation), noise, committed, hold)


def sensing(policy: ChunkPolicy) -> ChunkPolicy:
    """Put a policy behind its senses if it has any."""
    return policy if outer(policy.spec) == policy.spec else Sensing(policy)
