"""Scenes by seed: a road network, a car before its decision, and traffic, pedestrians and obstacles around it."""

from __future__ import annotations

import numpy as np

from envs.roads import (
    ARM,
    KINDS,
    LANE_WIDTH,
    NETWORKS,
    SPACING,
    Lane,
    Network,
    RoadUser,
    Scene,
    UserKind,
    beside,
    headings,
)
from policies.spec import Array, ContractError

MOST = 8  # others in a scene
BEHIND, AHEAD = 12.0, 130.0  # m of a route that are kept
CLEAR = 14.0  # m between vehicles at the begin
CAR_SIZES = ((4.2, 1.8), (4.8, 1.9), (5.4, 2.0), (7.5, 2.4))
PARKED_SIZE, CONE_SIZE, PERSON_SIZE = (4.6, 1.9), (0.6, 0.6), (0.6, 0.6)
RAMP = 18.0  # m over which a car moves aside
PASSING = 2.9  # m from the middle of a parked car to that of the car that passes it


def sample_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of everything random.
        kind: One of `envs.roads.KINDS`, a random one by default.

    Raises:
        ContractError: There is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ContractError(f"there are no scenes of kind '{kind}'; choose one of {', '.join(KINDS)}")
    kind = kind or KINDS[rng.integers(len(KINDS))]
    network = NETWORKS[kind](rng)
    start, limit = _start(network, rng), float(rng.uniform(7, 12))
    obstacles: list[RoadUser] = []
    if kind in ("parked", "narrow"):
        network, obstacles = _obstructed(kind, network, start, rng)
    begin = round(start / SPACING)
    routes, paths = (
        tuple(way[max(0, begin - round(BEHIND)) : begin + round(AHEAD)] for way in ways)
        for ways in (network.routes, network.paths)
    )
    here, angle = network.routes[0][begin], headings(network.routes[0])[begin]
    speed = float(rng.uniform(0.4, 1.0) * limit)
    users = [*obstacles, *_traffic(network, here, limit, rng), *_pedestrians(network, begin, rng)][:MOST]
    chosen = int(rng.integers(len(routes)))
    pose = (float(here[0]), float(here[1]), float(angle))
    scene = Scene(
        kind, tuple(network.lanes), routes, paths, chosen, not network.choice, pose, speed, limit, tuple(users)
    )
    return turned(scene, float(rng.uniform(-np.pi, np.pi)))


def _start(network: Network, rng: np.random.Generator) -> float:
    """How far along its routes the car begins, in m: shortly before it has to decide, or to turn."""
    latest = min(round(ARM / SPACING), *map(len, network.routes))
    for route in network.routes[1:]:
        apart = np.linalg.norm(route[:latest] - network.routes[0][:latest], axis=-1) > 0.3
        latest = int(apart.argmax()) if apart.any() else latest
    if len(network.routes) == 1:
        latest = 60
    return float(max(2.0, latest * SPACING - rng.uniform(12, 40)))


def _obstructed(kind: str, network: Network, start: float, rng: np.random.Generator) -> tuple[Network, list[RoadUser]]:
    """Put something into the way of the car and lead its routes around."""
    route = network.routes[0]
    along = np.arange(len(route)) * SPACING
    place = start + rng.uniform(25, 45)
    index = round(place / SPACING)

    def still(offset: float, where: int, size: tuple[float, float]) -> RoadUser:
        kind: UserKind = "static" if size == CONE_SIZE else "vehicle"
        return RoadUser(beside(route, offset)[where : where + 2], 0.0, 0.0, 0.0, size, kind)

    def around(offset: float, hold: float) -> Array:
        rise = np.clip((RAMP + hold - np.abs(along - place)) / RAMP, 0, 1)
        return beside(route, offset * rise**2 * (3 - 2 * rise))

    if kind == "narrow":
        gap, shift = rng.uniform(3.6, 4.2), rng.uniform(-0.4, 0.4)
        gates = [index, index + 8]
        cones = [still(shift + side * (gap + CONE_SIZE[1]) / 2, gate, CONE_SIZE) for gate in gates for side in (1, -1)]
        return network._replace(routes=[around(shift, 12)], traffic=[]), cones
    if rng.random() < 0.5:  # a wide one-way street: either side will do
        lanes = [Lane(beside(route, side * LANE_WIDTH)) for side in (1, -1)] + [Lane(route)]
        routes = [around(side * PASSING, 4) for side in (1, -1)]
        return Network(lanes, routes, [], [route], choice=True), [still(0.0, index, PARKED_SIZE)]
    inset = rng.uniform(-0.9, 0.0)
    parked = still(inset, index, PARKED_SIZE)
    return network._replace(routes=[around(inset + PASSING, 4)], traffic=network.traffic[1:]), [parked]


def _traffic(network: Network, here: Array, limit: float, rng: np.random.Generator) -> list[RoadUser]:
    """Vehicles on random paths, with room between them."""
    users: list[RoadUser] = []
    taken = [here]
    for _ in range(int(rng.integers(0, 6)) if network.traffic else 0):
        path = network.traffic[rng.integers(len(network.traffic))]
        for _attempt in range(5):
            place = rng.uniform(0, min(len(path) - 20, 150)) * SPACING
            where = path[round(place)]
            if np.linalg.norm(where - here) < 80 and min(np.linalg.norm(where - other) for other in taken) > CLEAR:
                wish = limit * rng.uniform(0.6, 1.1)
                size = CAR_SIZES[rng.choice(len(CAR_SIZES), p=(0.4, 0.35, 0.15, 0.1))]
                users.append(RoadUser(path, place, wish * rng.uniform(0.5, 1.0), wish, size, "vehicle"))
                taken.append(where)
                break
    return users


def _pedestrians(network: Network, begin: int, rng: np.random.Generator) -> list[RoadUser]:
    """People who cross a route ahead of the car."""
    users = []
    for _ in range(int(rng.choice(3, p=(0.6, 0.3, 0.1)))):
        route = network.routes[rng.integers(len(network.routes))]
        index = begin + int(rng.integers(18, 55))
        if index >= len(route) - 1:
            continue
        angle = headings(route)[index] + np.pi / 2
        side, pace = rng.choice([-1.0, 1.0]), rng.uniform(0.8, 1.6)
        reach = np.arange(-8.0, 30.0, SPACING)[:, None] * [np.cos(angle), np.sin(angle)] * side
        users.append(RoadUser(route[index] + reach, float(rng.uniform(0, 7)), pace, pace, PERSON_SIZE, "pedestrian"))
    return users


def turned(scene: Scene, angle: float) -> Scene:
    """The scene turned about the origin: nothing may depend on which way is north."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    x, y, yaw = scene.start
    position = np.array([x, y]) @ turn
    return Scene(
        scene.kind,
        tuple(lane._replace(centre=lane.centre @ turn) for lane in scene.lanes),
        tuple(route @ turn for route in scene.routes),
        tuple(path @ turn for path in scene.paths),
        scene.chosen,
        scene.commanded,
        (float(position[0]), float(position[1]), yaw + angle),
        scene.speed,
        scene.limit,
        tuple(user._replace(path=user.path @ turn) for user in scene.others),
    )
