"""Random rooms with coloured landmarks and doors, and walks through them that pass one and end at another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mujoco
import numpy as np

from envs.rooms import HALF_SIZE, Array, Obstacle, Room, Routes, sample_point

COLOURS = {
    "red": (0.85, 0.08, 0.08),
    "blue": (0.1, 0.2, 0.85),
    "green": (0.08, 0.6, 0.15),
    "yellow": (0.95, 0.88, 0.1),
    "purple": (0.5, 0.1, 0.65),
    "orange": (1.0, 0.45, 0.02),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}
KINDS = ("box", "cylinder", "cone", "ball")
DOOR = "door"

CEILING = 2.8  # m
ENCLOSURE_GROUP = 1  # geom group of walls and ceiling, so that a camera outside can leave them out

SPACING = 1.7  # m between the centres of two landmarks
STEP = 0.05  # m between two points of a path
SMOOTHING = 0.4  # m, standard deviation of the kernel that rounds the corners of a route
LENGTH = (3.0, 8.0)  # m
CLEARANCE = 0.55  # m, a path keeps this from everything
CURVATURE = 1.15  # rad/m, at 0.55 m/s this turns at 0.63 rad/s: what every body can do
WINDING = 0.6  # of the walks go around something that is in the straight way
DOORS = 0.2  # of the walks end at a door where that is possible, more by chance
IN_FRONT = (0.8, 1.0)  # m between the end of a path and the surface of its landmark
NARROW = 0.25  # m, a straight line that comes nearer to something is no way for a robot
PASSING = 1.4  # m between a path and the surface of the landmark it passes
BESIDE = 0.1  # m farther than the nearest point of the path still counts as beside it
MIDDLE = (0.35, 0.75)  # of a path, where it passes it
APART = 1.2  # m between the places to stop at
SIGHT = 6.0  # m
VIEW = 0.6  # rad to either side that count as seen, a little less than the camera shows
START_OFFSET, START_TURN = 0.15, np.radians(10)  # m and rad, how far the robot starts from the begin of the path


@dataclass(frozen=True)
class Landmark:
    """A coloured object on the floor, or a door: a panel flush with a wall.

    Args:
        kind: ``"box"``, ``"cylinder"``, ``"cone"``, ``"ball"`` (on a post) or ``"door"``.
        colour: One of `COLOURS`.
        x: Position in m, world frame.
        y: Position in m, world frame.
        yaw: Its rotation in rad; a door faces this way.
        half: Radius or half the width in m.
        height: Height in m.
    """

    kind: str
    colour: str
    x: float
    y: float
    yaw: float = 0.0
    half: float = 0.3
    height: float = 1.0

    @property
    def name(self) -> str:
        """What an instruction calls it."""
        return f"{self.colour} {self.kind}"

    @property
    def footprint(self) -> Obstacle:
        """Its outline on the floor."""
        kind = "box" if self.kind in ("box", DOOR) else "cylinder"
        return Obstacle(kind, self.x, self.y, (0.01 if self.kind == DOOR else self.half, self.half), self.yaw)

    def in_front(self, points: Array) -> Array:
        """Which of ``(N, 2)`` points are at the distance to stop at; those before a door are also opposite it."""
        distance = self.footprint.distance(points)
        near = (distance >= IN_FRONT[0]) & (distance <= IN_FRONT[1])
        along = (points - np.array([self.x, self.y])) @ np.array([-np.sin(self.yaw), np.cos(self.yaw)])
        return near & (np.abs(along) < self.half) if self.kind == DOOR else near

    def bearing(self, pose: Array) -> float:
        """Where it is seen from a pose ``(3,)`` x, y, yaw: rad to the left."""
        angle = np.arctan2(self.y - pose[1], self.x - pose[0]) - pose[2]
        return float((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True)
class Surface:
    """A texture: pattern, its two colours, colour of its spots, and size of a tile in m."""

    pattern: str
    first: Array
    second: Array
    spots: Array
    tile: float

    @classmethod
    def sample(cls, rng: np.random.Generator, patterns: tuple[str, ...]) -> Surface:
        """Draw a texture in muted colours, so that landmarks stand out."""
        grey, tint = rng.uniform(0.3, 0.75), rng.uniform(-0.08, 0.08, 3)
        contrast = rng.uniform(0.06, 0.2) * rng.choice((-1, 1))
        first, second, spots = (np.clip(grey + tint + shift, 0.1, 0.9) for shift in (0, contrast, -contrast))
        return cls(str(rng.choice(patterns)), first, second, spots, float(rng.uniform(0.8, 2.0)))

    def add_to(self, spec: mujoco.MjSpec, name: str) -> None:
        """Add it to a scene as a material."""
        spec.add_texture(
            name=name,
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=getattr(mujoco.mjtBuiltin, f"mjBUILTIN_{self.pattern}"),
            width=64,
            height=64,
            rgb1=self.first,
            rgb2=self.second,
            mark=mujoco.mjtMark.mjMARK_RANDOM,
            markrgb=self.spots,
            random=0.03,
        )
        material = spec.add_material(name=name, texrepeat=[1 / self.tile] * 2, texuniform=True, specular=0.0)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name


@dataclass(frozen=True)
class Look:
    """Textures, light and how far the colours of the landmarks are off their names."""

    floor: Surface
    walls: Surface
    ceiling: Array  # (3,) colour
    tint: Array  # (C, 3), added to the colours
    light: Array  # (3,) direction
    brightness: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Look:
        """Draw how a room looks."""
        return cls(
            floor=Surface.sample(rng, ("CHECKER",)),
            walls=Surface.sample(rng, ("CHECKER", "GRADIENT", "FLAT")),
            ceiling=rng.uniform(0.6, 0.95) + rng.uniform(-0.05, 0.05, 3),
            tint=rng.uniform(-0.05, 0.05, (len(COLOURS), 3)),
            light=np.array([*rng.uniform(-0.7, 0.7, 2), -1.0]),
            brightness=float(rng.uniform(0.75, 1.15)),
        )

    def colour(self, name: str) -> list[float]:
        """RGBA of a colour name in this light."""
        tint = self.tint[list(COLOURS).index(name)]
        return [*np.clip(np.array(COLOURS[name]) + tint, 0, 1), 1.0]

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add materials and lights to a scene."""
        self.floor.add_to(spec, "floor")
        self.walls.add_to(spec, "walls")
        head, glow = spec.visual.headlight, self.brightness
        head.ambient, head.diffuse, head.specular = [0.5 * glow] * 3, [0.4 * glow] * 3, [0.0] * 3
        lamp = spec.worldbody.add_light(
            pos=[0, 0, CEILING], dir=self.light, type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, castshadow=False
        )
        lamp.diffuse, lamp.specular = [0.4 * glow] * 3, [0.0] * 3


@dataclass(frozen=True)
class VideoRoom(Room):
    """A room with landmarks, objects first and then doors, and how it looks; its obstacles are the objects."""

    landmarks: tuple[Landmark, ...]
    look: Look

    def sees(self, pose: Array, target: Landmark, view: float = VIEW) -> bool:
        """Whether a camera at a pose ``(3,)`` x, y, yaw sees a landmark, at most 6 m away and not behind another.

        Args:
            pose: Of the camera.
            target: What to look for.
            view: How far to either side counts, rad.
        """
        line = np.linspace(pose[:2], (target.x, target.y), 40)
        if np.linalg.norm(line[-1] - line[0]) > SIGHT or abs(target.bearing(pose)) > view:
            return False
        others = [item for item in self.obstacles if item != target.footprint]
        return bool((np.min([item.distance(line) for item in others], axis=0) > 0).all())

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add the room to a scene: walls and ceiling in geom group 1, the rest in group 0."""
        world = spec.worldbody
        self.look.add_to(spec)
        plane, half = mujoco.mjtGeom.mjGEOM_PLANE, HALF_SIZE
        # planes of a finite size are drawn several times faster, but still keep everything on their side
        world.add_geom(name="floor", type=plane, size=[half, half, 0.1], material="floor")
        for index, (x, y) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
            turn, lean = np.pi / 2 * index, np.zeros(4)
            mujoco.mju_euler2Quat(lean, np.array([turn, -np.pi / 2, 0.0]), "zyx")
            world.add_geom(
                name=f"wall{index}",
                type=plane,
                size=[CEILING / 2, half, 0.1],
                pos=[x * half, y * half, CEILING / 2],
                quat=lean,
                material="walls",
                group=ENCLOSURE_GROUP,
            )
        world.add_geom(
            name="ceiling",
            type=plane,
            size=[half, half, 0.1],
            pos=[0, 0, CEILING],
            quat=[0, 1, 0, 0],
            rgba=[*self.look.ceiling, 1],
            group=ENCLOSURE_GROUP,
        )
        for index, item in enumerate(self.landmarks):
            _add_landmark(spec, f"landmark{index}", item, self.look.colour(item.colour))


def _add_landmark(spec: mujoco.MjSpec, name: str, item: Landmark, colour: list[float]) -> None:
    middle, shape, height = [item.x, item.y, item.height / 2], mujoco.mjtGeom, item.height / 2
    geom = spec.worldbody.add_geom(
        name=name, pos=middle, quat=[np.cos(item.yaw / 2), 0, 0, np.sin(item.yaw / 2)], rgba=colour
    )
    if item.kind == "box":
        geom.type, geom.size = shape.mjGEOM_BOX, [item.half, item.half, height]
    elif item.kind == "cylinder":
        geom.type, geom.size = shape.mjGEOM_CYLINDER, [item.half, height, 0]
    elif item.kind == "cone":
        mesh = spec.add_mesh(name=name)
        mesh.make_cone(16, 0)
        mesh.scale = [item.half, item.half, height]
        geom.type, geom.meshname = shape.mjGEOM_MESH, name
    elif item.kind == "ball":
        post = item.height - 2 * item.half
        geom.type, geom.size, geom.pos = shape.mjGEOM_SPHERE, [item.half, 0, 0], [item.x, item.y, post + item.half]
        spec.worldbody.add_geom(
            type=shape.mjGEOM_CYLINDER,
            size=[0.05, post / 2, 0],
            pos=[item.x, item.y, post / 2],
            rgba=[0.4, 0.4, 0.4, 1],
        )
    else:
        geom.type, geom.size, geom.contype, geom.conaffinity = shape.mjGEOM_BOX, [0.01, item.half, height], 0, 0


@dataclass(frozen=True)
class Walk:
    """A walk through a room.

    Args:
        path: ``(N, 3)`` x, y in m and yaw in rad, every `STEP` metres; it faces where it goes.
        passed: The object it passes.
        final: The object or door it ends at.
        middle: Index of the middle of the stretch of the path that is nearest to the passed object, within 0.1 m.
    """

    path: Array
    passed: Landmark
    final: Landmark
    middle: int


def sample_video_room(rng: np.random.Generator) -> tuple[VideoRoom, Walk]:
    """Draw a room with 5 to 9 objects and 2 to 4 doors and a walk of 3 to 8 m through it.

    The walk passes an object at 35 to 75 % of its length, having seen it, and ends 0.8 to 1 m in front of another
    object or a door, facing it. The robot starts within 0.15 m and 10 degrees of its first pose.
    """
    winding = bool(rng.random() < WINDING)
    while True:
        landmarks = (*_sample_objects(rng), *_sample_doors(rng))
        footprints = tuple(item.footprint for item in landmarks if item.kind != DOOR)
        room = VideoRoom(footprints, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), _named(landmarks, rng), Look.sample(rng))
        for _ in range(4):
            walk = _sample_walk(room, rng, winding)
            if walk:
                return replace(room, start=_start(walk.path[0], rng)), walk


def _sample_objects(rng: np.random.Generator) -> Iterator[Landmark]:
    """Objects without a colour, `SPACING` apart."""
    places: list[Array] = []
    count = rng.integers(5, 10)
    while len(places) < count:
        place = rng.uniform(1 - HALF_SIZE, HALF_SIZE - 1, 2)
        if all(np.linalg.norm(place - other) > SPACING for other in places):
            places.append(place)
    for x, y in places:
        half, height, yaw = rng.uniform(0.22, 0.35), rng.uniform(0.9, 1.5), rng.uniform(-np.pi, np.pi)
        yield Landmark(str(rng.choice(KINDS)), "", float(x), float(y), float(yaw), float(half), float(height))


def _sample_doors(rng: np.random.Generator) -> Iterator[Landmark]:
    """Doors without a colour, each on a wall of its own."""
    for wall in rng.permutation(4)[: rng.integers(2, 5)]:
        yaw, along = np.pi / 2 * wall, rng.uniform(1 - HALF_SIZE, HALF_SIZE - 1)
        facing = np.array([np.cos(yaw), np.sin(yaw)])
        x, y = -HALF_SIZE * facing + along * np.array([-facing[1], facing[0]])
        yield Landmark(DOOR, "", float(x), float(y), float(yaw), half=0.5, height=2.1)


def _named(landmarks: tuple[Landmark, ...], rng: np.random.Generator) -> tuple[Landmark, ...]:
    """Give them colours; no two of a kind have the same one."""
    left = {kind: list(rng.permutation(list(COLOURS))) for kind in (*KINDS, DOOR)}
    return tuple(replace(item, colour=str(left[item.kind].pop())) for item in landmarks)


def _start(pose: Array, rng: np.random.Generator) -> tuple[float, float, float]:
    angle, distance = rng.uniform(-np.pi, np.pi), START_OFFSET * np.sqrt(rng.random())
    x, y = pose[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
    return float(x), float(y), float(pose[2] + rng.uniform(-START_TURN, START_TURN))


def _sample_walk(room: VideoRoom, rng: np.random.Generator, winding: bool) -> Walk | None:
    routes = room.map.routes(sample_point(room, rng, clearance=0.8))
    finals = rng.permutation(np.array(room.landmarks, object))
    for final in sorted(finals, key=lambda item: item.kind != DOOR) if rng.random() < DOORS else finals:
        path = path_to(room, routes, final)
        if path is None or (winding and room.clearance(np.linspace(path[0, :2], path[-1, :2], 80)).min() > NARROW):
            continue
        passed = [(item, middle) for item in room.landmarks if item != final and (middle := _passes(room, path, item))]
        if passed:
            item, middle = passed[rng.integers(len(passed))]
            return Walk(path, item, final, middle)
    return None


def path_to(room: VideoRoom, routes: Routes, final: Landmark) -> Array | None:
    """The path ``(N, 3)`` to a landmark, None if there is none that a robot can follow and that ends facing it."""
    ends = room.map.points[final.in_front(room.map.points)]
    end = routes.nearest(ends[room.clearance(ends) > CLEARANCE])
    if end is None:
        return None
    # on to the landmark itself, so that the path turns to it before it ends
    line = rounded(np.concatenate([routes.path(end)[::-1], end[None], [(final.x, final.y)]]))
    line = line[: 1 + int(np.argmax(final.footprint.distance(line) < np.mean(IN_FRONT)))]
    if not LENGTH[0] <= (len(line) - 1) * STEP <= LENGTH[1] or room.clearance(line).min() < CLEARANCE:
        return None
    direction = np.gradient(line, axis=0)
    path = np.column_stack([line, np.unwrap(np.arctan2(direction[:, 1], direction[:, 0]))])
    feasible = np.abs(np.diff(path[:, 2])).max() < CURVATURE * STEP and abs(final.bearing(path[-1])) < VIEW / 2
    return path if feasible and final.in_front(path[-1:, :2])[0] and room.sees(path[-1], final) else None


def rounded(corners: Array) -> Array:
    """Points ``(N, 2)`` every `STEP` metres along a polyline ``(M, 2)`` whose corners are rounded off."""
    line = resampled(corners)
    reach = int(3 * SMOOTHING / STEP)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * STEP / SMOOTHING) ** 2)
    longer = np.pad(line, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")  # keeps both ends in place
    return resampled(np.stack([np.convolve(axis, kernel / kernel.sum(), "valid") for axis in longer.T], -1))


def resampled(corners: Array) -> Array:
    """Points ``(N, 2)`` every `STEP` metres along a polyline ``(M, 2)``; its end is left out by less than a step."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    wanted = np.arange(0, along[-1], STEP)
    return np.stack([np.interp(wanted, along, axis) for axis in corners.T], -1)


def _passes(room: VideoRoom, path: Array, item: Landmark) -> int:
    """Index of the middle of the stretch beside an object that a path passes and has seen before, 0 if it does not."""
    distance = item.footprint.distance(path[:, :2])
    nearest = int(distance.argmin())
    apart = np.linalg.norm(path[nearest, :2] - path[-1, :2]) > APART
    in_the_middle = MIDDLE[0] <= nearest / (len(path) - 1) <= MIDDLE[1]
    if item.kind == DOOR or distance[nearest] > PASSING or not in_the_middle or not apart:
        return 0
    seen = sum(room.sees(path[index], item) for index in np.linspace(0, nearest, 12).astype(int))
    return _middle(distance < distance[nearest] + BESIDE, nearest) if seen >= 3 else 0


def _middle(stretch: Array, inside: int) -> int:
    """Middle of the stretch of true values around one of them: along a bend, the nearest point alone is arbitrary."""
    outside = np.flatnonzero(~stretch)
    first = outside[outside < inside].max(initial=-1) + 1
    last = outside[outside > inside].min(initial=len(stretch)) - 1
    return int(first + last) // 2
