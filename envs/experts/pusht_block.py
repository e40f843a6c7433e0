"""The T of PushT: how it moves when it is pushed, where it can be pushed, and the ways around it.

The block keeps no momentum and its contacts have no friction, so the force of a push is the inward normal of the face
it acts on. A push at a fixed point of a face moves the block by a constant twist of its own frame: along the normal,
turning by ``lever / GYRATION`` radians per pixel, the lever being the signed offset of the force from the centre of
mass. Such a stroke is an arc.

Points and vectors are complex numbers in pixels, x + iy, so that ``exp(1j * angle)`` turns them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from policies.spec import Array

RADIUS = 15.0  # px, of the agent
ARENA = 512.0  # px, the agent stays within 0 .. ARENA
CENTRE = 45j  # centre of mass, block frame
GYRATION = 3000.0  # px^2, moment of inertia per mass
BOXES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))  # x0, y0, x1, y1 of bar and stem, block frame
OUTLINE = np.array([-60, 60, 60 + 30j, 15 + 30j, 15 + 120j, -15 + 120j, -15 + 30j, -60 + 30j])
CONVEX = np.array([1, 1, 1, 0, 1, 1, 0, 1], bool)
AREA = 6300.0  # px^2

BERTH = RADIUS + 9.0  # px, distance to the block that routes keep at its corners
TIGHT = RADIUS + 4.0  # px, and anywhere else
FAR = 1e6  # px, where there is no way
HOP = 1e-3  # px, added to each straight part of a way, so that ways never turn in circles

# Inward normal, middle and half the usable width of each face; the agent stays clear of corners.
FACES = (
    (1j, 0j, 52.0),
    (-1j, -46 + 30j, 6.0),
    (-1j, 46 + 30j, 6.0),
    (-1j, 120j, 9.0),
    (1, -60 + 15j, 9.0),
    (1, -15 + 85j, 28.0),
    (-1, 60 + 15j, 9.0),
    (-1, 15 + 85j, 28.0),
)


class Pose(NamedTuple):
    """Centre of mass of the block in px and its angle in radians; scalars or arrays of one shape."""

    centre: Array
    angle: Array

    def world(self, point: Array) -> Array:
        """Block frame to world."""
        return self.centre + (point - CENTRE) * np.exp(1j * self.angle)

    def block(self, point: Array) -> Array:
        """World to block frame."""
        return CENTRE + (point - self.centre) * np.exp(-1j * self.angle)

    def pushed(self, normal: Array, lever: Array, length: Array) -> Pose:
        """The pose after the centre of mass has moved by ``length`` along an arc."""
        bend = lever * length / GYRATION
        return Pose(self.centre + np.exp(1j * self.angle) * chord(bend) * normal * length, self.angle + bend)

    def to(self, other: Pose) -> tuple[Array, Array]:
        """Displacement in px, block frame, and turn in radians of the constant twist that leads to another pose."""
        turn = (other.angle - self.angle + np.pi) % (2 * np.pi) - np.pi
        return (other.centre - self.centre) * np.exp(-1j * self.angle) / chord(turn), turn

    def at(self, index: Array | int) -> Pose:
        """A selection of the poses."""
        return Pose(self.centre[index], self.angle[index])


def cross(a: Array, b: Array) -> Array:
    """Vector product."""
    return np.imag(np.conj(a) * b)


def chord(bend: Array) -> Array:
    """Displacement per length of an arc that sets out along x and turns by ``bend``."""
    return np.sinc(bend / (2 * np.pi)) * np.exp(0.5j * bend)


class Contact(NamedTuple):
    """A point of the outline where to push: face, inward normal and lever in px; scalars or arrays of one shape."""

    face: Array
    lever: Array

    @property
    def normal(self) -> Array:
        """Direction of the push, block frame."""
        return NORMAL[self.face]

    @property
    def effort(self) -> Array:
        """Travel of the contact per travel of the centre of mass."""
        return 1 + self.lever**2 / GYRATION

    def agent(self, distance: float) -> Array:
        """Where the agent is at a distance to the face, block frame."""
        along = -1j * self.normal
        return MIDDLE[self.face] + along * (self.lever - OFFSET[self.face]) - self.normal * distance

    def at(self, index: Array | int) -> Contact:
        """A selection of the contacts."""
        return Contact(self.face[index], self.lever[index])


class Stroke(NamedTuple):
    """Pushes: contact, and travel of the centre of mass in px, 0 for none; scalars or arrays of one shape."""

    contact: Contact
    length: Array

    def applied(self, pose: Pose) -> Pose:
        """The pose it leads to."""
        return pose.pushed(self.contact.normal, self.contact.lever, self.length)

    def at(self, index: Array | int) -> Stroke:
        """A selection of the strokes."""
        return Stroke(self.contact.at(index), self.length[index])


NORMAL = np.array([normal for normal, _, _ in FACES], complex)
MIDDLE = np.array([middle for _, middle, _ in FACES])
OFFSET = cross(MIDDLE - CENTRE, NORMAL)
HALF = np.array([half for _, _, half in FACES])


def uncovered(pose: Pose, goal: Pose) -> Array:
    """Share of the goal that the block leaves free, to first order in the distance of ``(N,)`` poses to goals."""
    sides = np.roll(OUTLINE, -1) - OUTLINE
    share = (np.arange(8) + 0.5) / 8
    points = (OUTLINE[:, None] + sides[:, None] * share).reshape(-1, 1)
    flux = np.repeat(sides * -1j / 8, 8)[:, None]
    moved = pose.block(goal.world(points)) - points
    return np.abs(np.real(np.conj(flux) * moved)).sum(0) / 2 / AREA


def blocked(start: Array, end: Array, margin: float) -> Array:
    """Whether segments, block frame, come nearer to the block than ``margin`` (Liang and Barsky's clipping)."""
    start, end = np.broadcast_arrays(start, end)
    way = end - start
    hit = np.zeros(start.shape, bool)
    for x0, y0, x1, y1 in BOXES:
        enter, leave = np.zeros(start.shape), np.ones(start.shape)
        for origin, slope, low, high in ((start.real, way.real, x0, x1), (start.imag, way.imag, y0, y1)):
            slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
            first, second = (low - margin - origin) / slope, (high + margin - origin) / slope
            enter, leave = np.maximum(enter, np.minimum(first, second)), np.minimum(leave, np.maximum(first, second))
        hit |= enter < leave
    return hit


def _corners() -> Array:
    """Convex corners of the outline, moved out to the berth."""
    before, after = OUTLINE - np.roll(OUTLINE, 1), np.roll(OUTLINE, -1) - OUTLINE
    return (OUTLINE + (BERTH + 0.1) * (before / abs(before) - after / abs(after)))[CONVEX]


def _hops(start: Array, end: Array) -> Array:
    """Lengths of direct ways between points, ``(S, E)``."""
    return np.where(blocked(start[:, None], end, TIGHT), FAR, HOP + np.abs(start[:, None] - end))


def _shortest(hops: Array) -> Array:
    """Lengths of the shortest ways between nodes (Floyd and Warshall)."""
    for middle in range(len(hops)):
        hops = np.minimum(hops, hops[:, middle, None] + hops[middle])
    return hops


def distances(points: Array) -> Array:
    """Lengths in px of the shortest ways between points, block frame, around the block, ``(N, N)``."""
    nodes = np.concatenate([points, _corners()])
    return _shortest(_hops(nodes, nodes))[: len(points), : len(points)]


def _sides(margin: float) -> tuple[Array, Array]:
    """Begins and ends of the sides of the block grown by a margin, in the order of the faces."""
    bar, stem = 60 + margin, 15 + margin
    width = [(-bar, bar), (-bar, -stem), (stem, bar), (-stem, stem)]
    height = [(-margin, 30 + margin), (30 + margin, 120 + margin)]
    line = MIDDLE - NORMAL * margin
    begin, end = np.array([*width, *height, *height]).T
    flat = NORMAL.real == 0
    return (
        np.where(flat, begin + 1j * line.imag, line.real + 1j * begin),
        np.where(flat, end + 1j * line.imag, line.real + 1j * end),
    )


_SIDES = _sides(BERTH)


def _feet(point: complex) -> Array:
    """The nearest point to another on each side of the block at a berth."""
    begin, end = _SIDES
    way = end - begin
    return begin + way * np.clip(np.real((point - begin) * np.conj(way)) / np.abs(way) ** 2, 0, 1)


class Routes:
    """Shortest ways of the agent around the block.

    Args:
        pose: Of the block, scalars.
        agent: Position, world.
    """

    def __init__(self, pose: Pose, agent: complex) -> None:
        self._pose = pose
        self.agent = complex(pose.block(np.array(agent)))
        self._exit = self._leave()
        corners = self._inside(_corners())
        self._nodes = np.concatenate([[self._exit], corners[~blocked(corners, corners, TIGHT)]])
        self._hops = _hops(self._nodes, self._nodes)
        self._ways = _shortest(self._hops)

    def _inside(self, point: Array) -> Array:
        """Points, block frame, moved into the arena."""
        world = self._pose.world(point)
        return self._pose.block(np.clip(world.real, 0, ARENA) + 1j * np.clip(world.imag, 0, ARENA))

    def _leave(self) -> complex:
        """Where the agent is clear of the block: where it is, or the nearest point at a comfortable distance."""
        feet = self._inside(_feet(self.agent))
        feet = feet[~blocked(feet, feet, TIGHT)]
        close = blocked(np.array(self.agent), np.array(self.agent), TIGHT)
        return complex(feet[np.abs(feet - self.agent).argmin()]) if close and len(feet) else self.agent

    def lengths(self, contact: Contact) -> Array:
        """Length in px of the way to each of ``(N,)`` contacts."""
        last = _hops(self._nodes, self._inside(contact.agent(BERTH)))
        return abs(self._exit - self.agent) + (self._ways[0, :, None] + last).min(0)

    def path(self, contact: Contact) -> Array:
        """Corner points of the way to a contact, block frame, from the agent to the touching agent."""
        stand = self._inside(contact.agent(BERTH))
        points = [complex(contact.agent(RADIUS)), complex(stand)]
        node = int((self._ways[0] + _hops(self._nodes, stand[None])[:, 0]).argmin())
        while node:
            points.append(complex(self._nodes[node]))
            before = self._ways[0] + np.where(np.arange(len(self._nodes)) == node, FAR, self._hops[:, node])
            node = int(before.argmin())
        return np.array([*points, self._exit, self.agent])[::-1]
