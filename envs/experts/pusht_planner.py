"""Which stroke to push the T of PushT with: the first of the fastest sequence of at most three.

Two strokes along different axes of the block lead from any pose to any other, in closed form once it is given how far
the first of them turns the block; they count when both act on a face. The search runs over that turn and, before such
a pair, over a grid of first strokes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.experts.pusht_block import (
    ARENA,
    BERTH,
    FACES,
    GYRATION,
    HALF,
    NORMAL,
    OFFSET,
    OUTLINE,
    RADIUS,
    Contact,
    Pose,
    Routes,
    Stroke,
    chord,
    cross,
    distances,
    uncovered,
)
from policies.spec import Array

WALLS = (7.0, 504.0)  # px, inner faces
PUSH_SPEED, TRAVEL_SPEED = 8.0, 14.0  # px per step
STROKE_STEPS = 6.0  # to settle before and after a stroke
NEVER = 1e6  # steps
TOLERANCE = 0.03  # share of the goal that a plan may leave uncovered
MISS_STEPS = 100.0  # per share uncovered
SLACK = np.stack(np.meshgrid([-1.0, 0, 1], [-1.0, 0, 1], [-0.02, 0, 0.02]), -1).reshape(-1, 3)  # px, px, rad

LENGTHS = np.array([1, 2, 3.5, 5, 8, 12, 18, 26, 37, 50, 66, 85, 108, 135, 165])  # px, travel of the contact
TURNS = np.array([0.01, 0.02, 0.04, 0.07, 0.11, 0.17, 0.25, 0.4, 0.6, 0.9, 1.3])  # rad
TURNS = np.concatenate([-TURNS[::-1], [0], TURNS])
LEVERS = np.arange(-80, 81)  # px
AXES = np.array([1, 1j, -1, -1j])
SPACING = 6.0  # px, between contacts of the grid
COUNTS = np.ceil(2 * HALF / SPACING).astype(int) + 1


def _grid() -> Contact:
    """Contacts in equal distances on each face, ``(C,)``."""
    slides = [np.linspace(-half, half, count) for half, count in zip(HALF, COUNTS, strict=True)]
    face = np.repeat(np.arange(len(FACES)), COUNTS)
    return Contact(face, OFFSET[face] + np.concatenate(slides))


def _facing() -> Array:
    """Face that a stroke along an axis with a lever acts on, or -1, ``(4, L)``."""
    on = (AXES[:, None] == NORMAL)[:, None] & (np.abs(LEVERS[:, None] - OFFSET) <= HALF + 1)
    return np.where(on.any(-1), on.argmax(-1), -1)


CONTACTS, FACING = _grid(), _facing()
BETWEEN = distances(CONTACTS.agent(BERTH)) / TRAVEL_SPEED
ROWS = np.repeat(np.arange(len(CONTACTS.face)), len(LENGTHS))
TRIED = Stroke(CONTACTS.at(ROWS), (LENGTHS / CONTACTS.effort[:, None]).ravel())


def _nearest(contact: Contact) -> Array:
    """Number of the nearest contact of the grid."""
    face = contact.face
    share = (contact.lever - OFFSET[face] + HALF[face]) / (2 * HALF[face])
    within = np.rint(np.clip(share, 0, 1) * (COUNTS[face] - 1)).astype(int)
    return np.cumsum(COUNTS)[face] - COUNTS[face] + within


def _steps(stroke: Stroke) -> Array:
    """Estimated duration without the way there."""
    return np.where(stroke.length > 0, STROKE_STEPS + stroke.length * stroke.contact.effort / PUSH_SPEED, 0)


def _outside(pose: Pose) -> Array:
    """How far blocks reach into the walls, px."""
    points = pose.world(OUTLINE[:, None])
    low, high = WALLS
    return np.max([low - points.real, points.real - high, low - points.imag, points.imag - high], (0, 1))


def _barred(pose: Pose, stroke: Stroke) -> Array:
    """Whether the agent would have to leave the arena for a stroke."""
    point = pose.world(stroke.contact.agent(RADIUS + 2))
    outside = (np.minimum(point.real, point.imag) < 0) | (np.maximum(point.real, point.imag) > ARENA)
    return outside & (stroke.length > 0)


class Origins(NamedTuple):
    """Poses ``(N,)`` from which a pair of strokes is to reach a goal."""

    pose: Pose
    goal: Pose
    steps: Array  # until then
    ways: Array  # row of the table of ways


class Pairs(NamedTuple):
    """Pairs of strokes ``(P,)``: number of the origin and strokes, of length 0 where one is enough."""

    origin: Array
    first: Stroke
    second: Stroke


def plan(pose: Pose, goal: Pose, routes: Routes) -> Stroke:
    """First stroke of the fastest sequence that brings the block to its goal.

    Args:
        pose: Of the block, scalars.
        goal: Where it belongs, scalars.
        routes: Ways of the agent around the block as it lies.

    Returns:
        The stroke, scalars. Where no sequence fits, the one that leads nearest to the goal.
    """
    here = Pose(pose.centre[None], pose.angle[None])
    room = max(float(_outside(here)[0]) + 0.5, 0.0)
    ways = np.vstack([BETWEEN, routes.lengths(CONTACTS) / TRAVEL_SPEED])
    begun = _begun(here, ways[-1], room)
    after = TRIED.applied(here)
    alone = begun + _remaining(after, goal)
    possible = np.flatnonzero(begun < NEVER)
    pairs = _pairs(origins := _origins(here, goal, after.at(possible), begun[possible], ROWS[possible]))
    steps, best = _fastest(origins, pairs, ways, room)
    if alone.min() <= steps:
        return TRIED.at(alone.argmin())
    if (origin := pairs.origin[best]) < len(possible):
        return TRIED.at(possible[origin])
    return (pairs.first if pairs.first.length[best] > 0 else pairs.second).at(best)


def _begun(here: Pose, arrive: Array, room: float) -> Array:
    """Steps until the end of each stroke of the grid."""
    halfway = TRIED._replace(length=TRIED.length / 2).applied(here)
    impossible = _barred(here, TRIED) | (np.maximum(_outside(TRIED.applied(here)), _outside(halfway)) > room)
    return arrive[ROWS] + _steps(TRIED) + NEVER * impossible


def _remaining(after: Pose, goal: Pose) -> Array:
    """Steps that are still to be expected after a plan of one stroke."""
    left = uncovered(after, goal)
    way, turn = after.to(goal)
    return np.where(left < TOLERANCE, left * MISS_STEPS, 100 + (np.abs(way) + 60 * np.abs(turn)) / PUSH_SPEED)


def _origins(here: Pose, goal: Pose, after: Pose, begun: Array, ways: Array) -> Origins:
    """After each first stroke, to the goal itself; and right away, to every pose that covers it well enough."""
    near = Pose(goal.centre + SLACK[:, 0] + 1j * SLACK[:, 1], goal.angle + SLACK[:, 2])
    missed = uncovered(near, goal)
    near, missed = near.at(missed < TOLERANCE), missed[missed < TOLERANCE]
    return Origins(
        Pose(*(np.append(a, np.repeat(b, len(missed))) for a, b in zip(after, here, strict=True))),
        Pose(*(np.append(np.full(len(begun), a), b) for a, b in zip(goal, near, strict=True))),
        np.append(begun, missed * MISS_STEPS),
        np.append(ways, np.full(len(missed), -1)),
    )


def _pairs(origins: Origins) -> Pairs:
    """All pairs of strokes on faces, over the grid of turns: x then y and y then x of the block."""
    way, turn = origins.pose.to(origins.goal)
    offset = way * chord(turn)
    axis = np.arange(2)[:, None, None]
    first = np.concatenate([TURNS[:, None] + 0 * turn, TURNS[:, None] + turn])
    second = turn - first
    u, v = chord(first) * AXES[axis], np.exp(1j * first) * chord(second) * AXES[1 - axis]
    area = cross(u, v)
    area = np.where(np.abs(area) < 0.02, np.nan, area)
    a, b = _placed(axis, cross(offset, v) / area, first), _placed(1 - axis, cross(u, offset) / area, second)
    fits = (a.contact.face >= 0) & (b.contact.face >= 0) & (a.length + b.length > 0)
    return Pairs(np.nonzero(fits)[2], a.at(fits), b.at(fits))


def _placed(axis: Array, length: Array, turn: Array) -> Stroke:
    """Strokes of signed lengths: on face -1 where there is none, and of length 0 where they are negligible."""
    idle = (np.abs(length) < 0.5) & (np.abs(turn) < 0.006)
    lever = turn * GYRATION / np.maximum(np.abs(length), 1e-3)
    possible = (np.abs(lever) <= LEVERS[-1]) & (np.abs(length) < ARENA)  # not a number is not possible
    column = np.where(possible, np.rint(lever) - LEVERS[0], 0).astype(int)
    face = np.where(possible, FACING[axis + 2 * (length < 0), column], -1)
    return Stroke(Contact(np.where(idle, 0, face), lever), np.where(idle, 0, np.abs(length)))


def _fastest(origins: Origins, pairs: Pairs, ways: Array, room: float) -> tuple[float, int]:
    """Steps of the fastest plan that ends with a pair, infinite where there is none, and number of the pair."""
    one, two = pairs.first.length > 0, pairs.second.length > 0
    row, near = origins.ways[pairs.origin], _nearest(pairs.first.contact)
    steps = origins.steps[pairs.origin] + _steps(pairs.first) + _steps(pairs.second)
    steps += np.where(one, ways[row, near], 0)
    steps += np.where(two, ways[np.where(one, near, row), _nearest(pairs.second.contact)], 0)
    short = np.argsort(steps)[:500]  # the checks take longer
    start, first, second = origins.pose.at(pairs.origin[short]), pairs.first.at(short), pairs.second.at(short)
    middle = first.applied(start)
    fits = (_outside(middle) <= room) & ~_barred(start, first) & ~_barred(middle, second)
    best = short[fits.argmax()] if fits.any() else 0
    return (float(steps[best]), int(best)) if fits.any() else (np.inf, 0)
