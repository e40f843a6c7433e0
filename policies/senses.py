"""Senses: features that are computed from what a robot observes, on the way into a network and in nothing but numpy.

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
FIT = 0.03  # share of the floor that has to move like a floor for a match
NEAR = (1.0, 1.0, 0.8)  # m, m, rad: a displacement beyond is no match
REACH = 3.0  # m
SIMILAR = 0.2  # correlation with a frame, below which there is nothing to compare
CANDIDATES = 6  # frames that are compared, those that look most alike
AHEAD, TURNS = (0.2, 0.35, 0.5), (-0.3, 0.0, 0.3)  # m and rad, guesses of the step from frame to frame
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
    path[nearest] = found[:4]
    onward = _onward(video)
    for frame in range(nearest, FRAMES - 1):
        path[frame + 1, :3] = _compose(path[frame, :3], onward[frame])
    for frame in reversed(range(nearest)):
        path[frame, :3] = _compose(path[frame + 1, :3], _inverse(onward[frame]))
    path[:, :3] = np.clip(path[:, :3], -REACH, REACH)
    return path


def _pictures(content: bytes) -> Array:
    return np.frombuffer(content, np.uint8).reshape(-1, 3, SIDE, SIDE)


@lru_cache(4)  # a history shows most pictures twice
def _nearest(camera: bytes, video: bytes) -> tuple[int, Array]:
    """Index of the frame that was taken nearest to a picture, and the displacement to it as `fit_displacement`."""
    (here,), frames = _pictures(camera), _pictures(video)
    similar = _thumbnails(video) @ _thumbnails(camera)[0]
    candidates = np.argsort(similar)[-CANDIDATES:]
    found = fit_displacement(np.stack([_cells(here, frames[frame]) for frame in candidates]))
    found[similar[candidates] < SIMILAR] = 0  # nothing moves in a black picture, so every frame would fit
    best = int(found[:, 3].argmax())
    return int(candidates[best]), found[best]


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

    The frames are farther apart than optical flow reaches, so it starts from several guesses and the best fit stays.
    They are equally far apart; where nothing fits or not as far, the step is one straight ahead.
    """
    frames, steps = _pictures(video), []
    for pair in pairwise(frames):
        tried = fit_displacement(np.stack([_cells(*pair, guess) for guess in _guesses()]))
        steps.append(tried[tried[:, 3].argmax(), :4])
    found = np.stack(steps)
    lengths = np.linalg.norm(found[:, :2], axis=1)
    usual = float(np.median(lengths[found[:, 3] > 0])) if found[:, 3].any() else AHEAD[1]
    fits = (found[:, 3:] > 0) & (np.abs(lengths - usual) < 0.4 * usual)[:, None]
    return np.where(fits, found[:, :3], np.array([usual, 0, 0], np.float32))


@lru_cache(1)
def _guesses() -> list[Array]:
    """Flow ``(2, 96, 96)`` of the floor for steps ahead as far as the frames of a video may be apart."""
    steps = [(ahead, 0.5 * ahead * turn, turn) for ahead in AHEAD for turn in TURNS]
    return [_floor_flow(np.array(step)).reshape(SIDE, SIDE, 2).transpose(2, 0, 1) for step in steps]


def _floor_flow(step: Array) -> Array:
    """Exact flow ``(pixels, 2)`` of the floor, and above the horizon of a wall `FAR` away, for a displacement."""
    places = _grid(SIDE)
    rays = np.concatenate([places / _FOCAL, np.ones((len(places), 1))], 1) @ _LEVELLING.T
    points = rays * np.minimum(HEIGHT / np.maximum(rays[:, 1:2], 1e-3), FAR)
    cos, sin = np.cos(step[2]), np.sin(step[2])
    ahead, left = points[:, 2] - step[0], -points[:, 0] - step[1]
    moved = np.stack([sin * ahead - cos * left, points[:, 1], np.maximum(cos * ahead + sin * left, 0.1)], 1)
    moved = moved @ _LEVELLING
    return np.clip(moved[:, :2] / np.maximum(moved[:, 2:], 0.1) * _FOCAL - places, -SIDE, SIDE)


def _cells(first: Array, second: Array, guess: Array | None = None) -> Array:
    """Flow between two pictures, mean of each cell, ``(cells, 2)``."""
    from policies.dis import dis_flow

    cell = SIDE // CELLS
    return dis_flow(first, second, guess).reshape(2, CELLS, cell, CELLS, cell).mean((2, 4)).reshape(2, -1).T


def _compose(first: Array, second: Array) -> Array:
    cos, sin = np.cos(first[2]), np.sin(first[2])
    x, y = first[0] + cos * second[0] - sin * second[1], first[1] + sin * second[0] + cos * second[1]
    return np.array([x, y, (first[2] + second[2] + np.pi) % (2 * np.pi) - np.pi])


def _inverse(step: Array) -> Array:
    cos, sin = np.cos(step[2]), np.sin(step[2])
    return np.array([-cos * step[0] - sin * step[1], sin * step[0] - cos * step[1], -step[2]])


def fit_displacement(flow: Array) -> Array:
    """Fit planar displacements to the flow of a floor.

    What does not move like a floor loses weight, see `policies.egomotion.robust_twist_of`, which is the same in torch.

    Args:
        flow: ``(N, cells, 2)`` px right and down, cells row by row.

    Returns:
        ``(N, 5)`` float32: m, m, rad, share of the floor that fits, error of the fit in px. 0 where too little fits.
    """
    relation, prior = _relation(_PLACES + 0.5 * flow)  # where each point was halfway: an error of third order only
    trust = prior
    for scale in (*(NOISE_PX * 2.0**k for k in reversed(range(ROUNDS))), 0.0):
        weighted = trust[..., None, None] * relation
        matrix = np.einsum("ncia,ncib->nab", weighted, relation) + RIDGE * np.eye(3)
        moved = np.linalg.solve(matrix, np.einsum("ncia,nci->na", weighted, flow)[..., None])[..., 0]
        distance = np.linalg.norm(flow - np.einsum("ncia,na->nci", relation, moved), axis=-1)
        if scale:
            trust = prior / (1 + (distance / scale) ** 2) ** 2
    fit = trust.sum(1) / prior.sum(1)
    error = (trust * distance).sum(1) / np.maximum(trust.sum(1), 1e-9)
    matched = (fit > FIT) & (np.abs(moved) < NEAR).all(1)
    found = np.concatenate([moved, fit[:, None], error[:, None]], 1).astype(np.float32)
    return np.where(matched[:, None], found, np.float32(0))


def _relation(places: Array) -> tuple[Array, Array]:
    """Flow in px per displacement ``(..., 2, 3)`` in m, m and rad at ``(..., 2)`` places of the floor, with trust."""
    rays = np.concatenate([places / _FOCAL, np.ones((*places.shape[:-1], 1))], -1)
    near = np.maximum((rays @ _LEVELLING.T)[..., 1], 0) / HEIGHT  # 1 / depth of the floor, 0 above the horizon
    motion = -_FORWARD_LEFT * near[..., None, None] - np.cross(_TURN, rays)[..., None, :] * _TURNS
    relation = _FOCAL * (motion[..., :2] - rays[..., None, :2] * motion[..., 2:])
    return np.swapaxes(relation, -1, -2), near / near.max(-1, keepdims=True)


ROUNDS, NOISE_PX, RIDGE = 6, 0.25, 1e-4
_FOCAL = 0.5 * SIDE / np.tan(0.5 * FOVY)
_LEVELLING = np.array([[1, 0, 0], [0, np.cos(PITCH), np.sin(PITCH)], [0, -np.sin(PITCH), np.cos(PITCH)]])
_FORWARD_LEFT = np.array([[0, 0, 1], [-1, 0, 0], [0, 0, 0]]) @ _LEVELLING  # camera velocity per component of the twist
_TURN, _TURNS = np.array([0, -1, 0]) @ _LEVELLING, np.array([0, 0, 1])[:, None]


def _grid(cells: int) -> Array:
    """Centres ``(cells * cells, 2)`` of a grid over the picture in px from its middle, row by row."""
    along = (np.arange(cells) + 0.5) * (SIDE / cells) - 0.5 * SIDE
    return np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)


_PLACES = _grid(CELLS)

SENSES = {
    "goal_path": Sense(Feature("goal_path", (FRAMES, 4), "m, rad, 1", "base_link"), (CAMERA, GOAL_VIDEO), goal_path)
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
        feature.name: _sensed(SENSES[feature.name], observation)
        if feature.name in SENSES
        else observation[feature.name]
        for feature in spec.observations
    }


def _sensed(found: Sense, observation: Mapping[str, Array]) -> Array:
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
