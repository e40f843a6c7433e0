"""kinoflow/MetaDrive-v0: the task of kinoflow/Driving-v0 on the maps, in the traffic and with the physics of MetaDrive.

MetaDrive (arXiv 2109.12674) draws the map by the seed, moves the car, whose wheels can slip, and drives the others.
Observations, commands, success and scores are computed by the same code as in `envs.driving`, so that a policy for one
drives in the other. MetaDrive's pictures and its observations are not used, hence its assets are never downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import shapely

from envs.driving import PATHS, DrivingEnv, RoadEdge
from envs.logs.tracks import seamless
from envs.metrics import RoadUsers, ScoredScene, Vehicle
from envs.metrics.tracker import HEADING, SPEED, STATE_SIZE
from envs.roads import SPACING, Lane, Scene, resampled
from envs.scenes import MOST
from envs.traffic import SOON, TICK, Paths, box_corners, overlap
from policies.spec import Array

MAPS = 100_000  # different ones; a seed draws one of them
BLOCKS = 3  # of roads behind one another: bends, junctions, roundabouts, ramps
DENSITY = 0.1  # of the traffic, MetaDrive's custom
LIMIT = 30 / 3.6  # m/s; MetaDrive has no speed limits, its own drivers keep to this
GOAL = 120.0  # m along the right route; the first junction is 50 m away
LANES = 8.0  # m beside a route that its other lanes can be
AHEAD, BEFORE = 190.0, 12.0  # m of routes, and m by which they begin before the first lane does
JOINT = 1.0  # m between the end of a lane and the begin of the one that it leads to
CROSSING, MARGIN = 2.0, 0.3  # m^2 that crossing lanes share, and m that neighbours may
CAR = Vehicle(front=3.674, rear=0.841, width=1.852, wheelbase=2.469)  # MetaDrive's default one
THRUST, BRAKES = 2.87, 21.0  # m/s^2 at full throttle and at full brakes
HARDEST = 8.0  # m/s^2
SLOWEST = 1.0  # m/s, a yaw rate is a curvature at this speed at least
CORRECTION = 0.4  # share of the error of the yaw rate that is steered against, because tyres slip
QUIET = 50  # log level: MetaDrive greets with warnings about pictures that nobody asks for


class MetaDriveEnv(DrivingEnv):
    """`envs.driving.DrivingEnv` in MetaDrive: observations, actions, rewards and scores are the same.

    The way is 120 m long. The scene is drawn by the seed of the reset, ``options`` are not read. There can be one such
    environment per process; close it before the next is made.

    Args:
        step_hz: Steps per simulated second: 5, the rate policies plan at, or 10.
        images: Draw ``raster``; it is black without.
        own_driver: Let MetaDrive's own driver drive (the intelligent driver model); actions are then without effect.
        density: Of the traffic: vehicles per 10 m of lane, about.
        render_mode: ``"rgb_array"`` for pictures.

    Raises:
        ImportError: MetaDrive is not installed.
        RuntimeError: Another one is open.
    """

    alone = True

    def __init__(
        self,
        step_hz: float = 5.0,
        images: bool = True,
        own_driver: bool = False,
        density: float = DENSITY,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(step_hz=step_hz, render_mode=render_mode)
        self.images, self.own_driver = images, own_driver
        self.simulation = _simulation(own_driver, density)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begin on a map, in traffic and at a speed that the seed draws."""
        gymnasium.Env.reset(self, seed=seed)
        self.simulation.reset(seed=int(self.np_random.integers(MAPS)))
        vehicle, speed = self.simulation.agent, float(self.np_random.uniform(0.4, 1.0) * LIMIT)
        vehicle.set_velocity([np.cos(vehicle.heading_theta), np.sin(vehicle.heading_theta)], speed)
        self.scene = _scene(self.simulation, speed)
        self._ground = seamless([shapely.Polygon(lane.polygon) for lane in self.scene.lanes])
        self.traffic: Any = Surroundings(self.simulation)
        self.time, self.collision, self._scored = 0.0, False, {}
        self._paths, self._routes = Paths(self.scene.paths), Paths(self.scene.routes)
        self._map = RoadEdge(self.scene)
        self._begin = np.array([self._along(route)[0] for route in self.scene.routes])
        self.history: list[tuple[Array, Array, Array]] = []
        self._seen: list[dict[str, Body]] = []
        self._note()
        return self.observe(), self._info()

    @property
    def state(self) -> Array:
        """``(8 + 8 * 5,)``: the car, then poses of the middles and sizes of the eight nearest others."""
        poses, sizes = (values[0] for values in self.traffic.boxes)
        return np.concatenate([self.traffic.car[0], np.concatenate([poses, sizes], 1).ravel()])

    @property
    def progress(self) -> float:
        """Metres along the right route, on any of its lanes."""
        found = [(index, *self._along(self.scene.routes[index])) for index in self.right_routes]
        return max([place - float(self._begin[index]) for index, place, beside in found if beside < LANES], default=0.0)

    @property
    def success(self) -> bool:
        """Whether the car has come as far as it should."""
        return not self.failed and self.progress >= GOAL

    def _tick(self, command: Array) -> None:
        self.simulation.step([0.0, 0.0] if self.own_driver else self.traffic.pedals(command))
        self.traffic.look()
        self.collision = self.collision or bool(self.traffic.collided[0])
        self._note()

    def _note(self) -> None:
        # Who is nearest changes: the others are kept by name instead of by row.
        self.history.append((self.traffic.car[0].copy(), np.zeros((MOST, 3)), np.zeros(MOST, bool)))
        self._seen.append(self.traffic.bodies)

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        observed = super().observe()
        if not self.images:
            observed["raster"] = np.zeros_like(observed["raster"])
        return observed

    def scored_scene(self) -> ScoredScene:
        """What the PDM score has to know of the scene: the road, and where everybody was until now."""
        names = sorted({name for bodies in self._seen for name in bodies})
        poses, valid = np.zeros((len(names), len(self._seen), 3)), np.zeros((len(names), len(self._seen)), bool)
        bodies: dict[str, Body] = {}
        for index, seen in enumerate(self._seen):
            bodies |= seen
            for name, body in seen.items():
                row = names.index(name)
                poses[row, index], valid[row, index] = body.pose, True
        sizes = np.array([bodies[name].size for name in names]).reshape(-1, 2)
        users = RoadUsers(poses, sizes, [bodies[name].kind for name in names], valid) if names else RoadUsers()
        return replace(super().scored_scene(), road_users=users, drivable=self._ground, vehicle=CAR)

    def close(self) -> None:
        self.simulation.close()


@dataclass(frozen=True)
class Body:
    """Somebody or something on the road.

    Args:
        pose: ``(3,)`` x, y of its middle in m, heading in rad.
        size: Length and width, m.
        speed: m/s.
        kind: One of `envs.metrics.scene.KINDS`.
    """

    pose: Array
    size: tuple[float, float]
    speed: float
    kind: str


class Surroundings:
    """The car and the eight nearest others in MetaDrive, in the form of `envs.traffic.Traffic` with one scene.

    Args:
        simulation: MetaDrive's environment, after a reset.
    """

    def __init__(self, simulation: Any) -> None:
        self._simulation = simulation
        self.car = np.zeros((1, STATE_SIZE))
        self.look()
        self.car[:, 4:] = 0.0  # there is no last state yet that anything could have changed from

    def look(self) -> None:
        """Bring everything up to date with the simulation."""
        vehicle = self._simulation.agent
        heading, last = float(vehicle.heading_theta), self.car[0].copy()
        ahead = np.array([np.cos(heading), np.sin(heading)])
        speed = float(np.asarray(vehicle.velocity) @ ahead)
        place = np.asarray(vehicle.position)[:2] - CAR.ahead * ahead
        turned = (heading - last[HEADING] + np.pi) % (2 * np.pi) - np.pi
        rate = turned / TICK
        steering = np.radians(float(vehicle.steering) * vehicle.max_steering)
        change = (speed - last[SPEED]) / TICK
        self.car[0] = *place, last[HEADING] + turned, speed, change, steering, rate, (rate - last[6]) / TICK
        self.bodies = _bodies(self._simulation)
        near = sorted(self.bodies.values(), key=lambda body: float(np.linalg.norm(body.pose[:2] - place)))[:MOST]
        missing = MOST - len(near)
        near += [Body(np.array([1e4, 1e4, 0.0]), (0.1, 0.1), 0.0, "static")] * missing
        poses = np.stack([body.pose for body in near])[None]
        self.boxes = poses, np.array([body.size for body in near])[None]
        self.centre, self.size = poses[..., :2], self.boxes[1]
        self.direction = np.stack([np.cos(poses[..., 2]), np.sin(poses[..., 2])], -1)
        self.speed = np.array([[body.speed for body in near]])
        self.person = np.array([[body.kind == "pedestrian" for body in near]])
        self.still = np.array([[body.kind == "static" for body in near]])
        self.present = np.arange(MOST)[None] < MOST - missing

    @property
    def own_box(self) -> tuple[Array, Array]:
        """Pose ``(1, 3)`` of the middle of the car, and its size ``(2,)``."""
        heading = self.car[:, HEADING]
        forward = np.stack([np.cos(heading), np.sin(heading), np.zeros(1)], -1)
        return self.car[:, : HEADING + 1] + CAR.ahead * forward, np.array([CAR.length, CAR.width])

    @property
    def collided(self) -> Array:
        """Whether the car touches anybody ``(1,)``."""
        own = box_corners(*self.own_box)[:, None]
        return np.asarray(overlap(own, box_corners(*self.boxes)).any(-1))

    def pedals(self, command: Array) -> list[float]:
        """Steering wheel (left is positive) and throttle (brakes are negative) in [-1, 1] for a command ``(2,)``."""
        speed, turn = map(float, command)
        here, rate = float(self.car[0, SPEED]), float(self.car[0, 6])
        wanted = turn + CORRECTION * (turn - rate)
        angle = np.arctan(CAR.wheelbase * wanted / max(here, SLOWEST))
        push = float(np.clip((speed - here) / SOON, -HARDEST, THRUST))
        largest = np.radians(self._simulation.agent.max_steering)
        return [float(np.clip(angle / largest, -1, 1)), push / THRUST if push > 0 else push / BRAKES]


def _simulation(own_driver: bool, density: float) -> Any:
    try:
        from metadrive.engine.base_engine import BaseEngine
        from metadrive.engine.engine_utils import engine_initialized
        from metadrive.envs.metadrive_env import MetaDriveEnv as Simulation
        from metadrive.obs.observation_base import DummyObservation
        from metadrive.policy.env_input_policy import EnvInputPolicy
        from metadrive.policy.idm_policy import IDMPolicy
    except ImportError as error:
        raise ImportError(f"MetaDrive is missing ({error}); install it: pip install 'kinoflow[drive]'") from error
    if engine_initialized():
        raise RuntimeError("MetaDrive has 1 engine per process, and it is in use; close the other environment first")
    # It would download models for pictures, which are not drawn, and not begin where there is no network.
    BaseEngine.try_pull_asset = staticmethod(lambda: None)
    ends = ("out_of_route_done", "out_of_road_done", "on_continuous_line_done", "crash_vehicle_done")
    return Simulation(
        {
            "num_scenarios": MAPS,
            "store_map": False,
            "map": BLOCKS,
            "traffic_density": density,
            "random_traffic": False,
            "agent_observation": DummyObservation,
            "agent_policy": IDMPolicy if own_driver else EnvInputPolicy,
            "horizon": None,
            "force_destroy": True,  # a body that is used again remembers how it last swayed
            "log_level": QUIET,
            **dict.fromkeys((*ends, "crash_object_done", "crash_human_done"), False),
        }
    )


def _bodies(simulation: Any) -> dict[str, Body]:
    """Everybody but the car, by name."""
    from metadrive.component.static_object.traffic_object import TrafficObject
    from metadrive.component.traffic_participants.base_traffic_participant import BaseTrafficParticipant
    from metadrive.component.traffic_participants.cyclist import Cyclist
    from metadrive.component.vehicle.base_vehicle import BaseVehicle

    found = {}
    for name, item in simulation.engine.get_objects().items():
        if item is simulation.agent or not isinstance(item, (BaseVehicle, BaseTrafficParticipant, TrafficObject)):
            continue
        kind = "vehicle" if isinstance(item, BaseVehicle) else "static" if isinstance(item, TrafficObject) else ""
        kind = kind or ("bicycle" if isinstance(item, Cyclist) else "pedestrian")
        pose = np.array([*item.position[:2], item.heading_theta], float)
        found[str(name)] = Body(pose, (float(item.LENGTH), float(item.WIDTH)), float(item.speed), kind)
    return found


def _scene(simulation: Any, speed: float) -> Scene:
    """The map and the ways through it as `envs.driving` takes them; others are not among them."""
    graph, vehicle = simulation.current_map.road_network.graph, simulation.agent
    ways = _ways(graph, list(vehicle.navigation.checkpoints))
    first = vehicle.lane.index[2]
    lines = [_line(graph, way, first) for way in ways]
    turned = [_heading(line[-1] - line[-2]) for line in lines]
    begin = _heading(lines[0][1] - lines[0][0])
    order = np.argsort([-((angle - begin + np.pi) % (2 * np.pi) - np.pi) for angle in turned], kind="stable")
    routes = tuple(lines[index] for index in order)
    heading = float(vehicle.heading_theta)
    rear = np.asarray(vehicle.position)[:2] - CAR.ahead * np.array([np.cos(heading), np.sin(heading)])
    return Scene(
        "metadrive",
        _lanes(graph),
        routes,
        routes,
        int(np.flatnonzero(order == 0)[0]),
        len(routes) > 1,
        (float(rear[0]), float(rear[1]), heading),
        speed,
        LIMIT,
        (),
    )


def _heading(step: Array) -> float:
    return float(np.arctan2(step[1], step[0]))


def _lanes(graph: Any) -> tuple[Lane, ...]:
    """All lanes; those that share ground with lanes of another road cross."""
    centres, roads, widths = [], [], []
    for start, ends in graph.items():
        for end, lanes in ends.items():
            for lane in lanes:
                centres.append(np.asarray(lane.get_polyline(SPACING), float)[:, :2])
                roads.append((start, end))
                widths.append(float(lane.width_at(0)))
    areas = [
        shapely.LineString(centre).buffer(max(width / 2 - MARGIN, 0.1), cap_style="flat")
        for centre, width in zip(centres, widths, strict=True)
    ]
    crossing = np.zeros(len(areas), bool)
    for one, other in zip(*shapely.STRtree(areas).query(areas, "intersects"), strict=True):
        if roads[one] != roads[other] and areas[one].intersection(areas[other]).area > CROSSING:
            crossing[[one, other]] = True
    return tuple(
        Lane(centre, bool(crosses), width) for centre, crosses, width in zip(centres, crossing, widths, strict=True)
    )


def _ways(graph: Any, told: list[str]) -> list[list[str]]:
    """Nodes of the roads ahead: first the way that the car is told, then those that leave it at the next junction."""
    ways = [told]
    for index in range(1, len(told) - 1):
        others = [node for node in graph.get(told[index], {}) if node not in (told[index + 1], told[index - 1])]
        others = [node for node in others if _connected(graph, told[index - 1 : index + 1], node)]
        if others:
            ways += [[*told[: index + 1], *_onward(graph, told[index], node)] for node in others[: PATHS - 1]]
            break
    return ways


def _connected(graph: Any, road: list[str], node: str) -> bool:
    """Whether a lane of a road leads to one of the next road."""
    ends, starts = graph[road[0]][road[1]], graph[road[1]][node]
    return any(np.linalg.norm(np.subtract(one.end, other.start)) < JOINT for one in ends for other in starts)


def _onward(graph: Any, start: str, node: str) -> list[str]:
    """Nodes behind a road, each time the straightest way."""
    nodes, length = [start, node], graph[start][node][0].length
    while length < AHEAD:
        here = graph[nodes[-2]][nodes[-1]][0]
        following = [name for name in graph.get(nodes[-1], {}) if _connected(graph, nodes[-2:], name)]
        following = [name for name in following if name not in nodes]
        if not following:
            break

        def bend(name: str, lane: Any = here) -> float:
            other = graph[nodes[-1]][name][0]
            turn = other.heading_theta_at(other.length) - lane.heading_theta_at(lane.length)
            return float(abs((turn + np.pi) % (2 * np.pi) - np.pi))

        nodes.append(min(following, key=bend))
        length += graph[nodes[-2]][nodes[-1]][0].length
    return nodes[1:]


def _line(graph: Any, nodes: list[str], first: int) -> Array:
    """The way ``(M, 2)`` along some roads from a lane of the first one, with as few changes of lanes as possible."""
    roads = [graph[start][end] for start, end in pairwise(nodes)]
    best: dict[int, tuple[int, list[tuple[int, int]]]] = {first: (0, [])}  # by lane: changes, and lanes so far
    for road, after in zip(roads, [*roads[1:], None], strict=True):
        reached: dict[int, tuple[int, list[tuple[int, int]]]] = {}
        for lane, (changes, taken) in best.items():
            for leave in range(len(road)):
                follows = [lane] if after is None else _next_lanes(road[leave], after)
                for entered in follows if after is not None or leave == lane else ():
                    cost = changes + abs(leave - lane)
                    if entered not in reached or cost < reached[entered][0]:
                        reached[entered] = cost, [*taken, (lane, leave)]
        if not reached:
            break
        best = reached
    _, taken = min(best.values(), key=lambda item: item[0])
    parts = [_between(road[enter], road[leave]) for road, (enter, leave) in zip(roads, taken, strict=False)]
    line = np.concatenate(parts)
    line = line[np.r_[True, np.linalg.norm(np.diff(line, axis=0), axis=-1) > 0.01]]
    before = (line[0] - line[1]) / np.linalg.norm(line[1] - line[0]) * np.arange(BEFORE, 0, -SPACING)[:, None]
    return resampled(np.concatenate([line[0] + before, line]))[: round((AHEAD + BEFORE) / SPACING)]


def _next_lanes(lane: Any, road: Any) -> list[int]:
    return [index for index, other in enumerate(road) if np.linalg.norm(np.subtract(lane.end, other.start)) < JOINT]


def _between(enter: Any, leave: Any) -> Array:
    """Points ``(N, 2)`` from the begin of a lane to the end of it or of a neighbour."""
    share = np.linspace(0, 1, max(2, round(float(enter.length)) + 1))
    one, other = (np.array([lane.position(part * lane.length, 0) for part in share])[:, :2] for lane in (enter, leave))
    rise = np.clip((share - 0.3) / 0.6, 0, 1)
    mix = (rise**2 * (3 - 2 * rise))[:, None]
    return (1 - mix) * one + mix * other


gymnasium.register("kinoflow/MetaDrive-v0", entry_point="envs.metadrive:MetaDriveEnv", kwargs={"images": True})
