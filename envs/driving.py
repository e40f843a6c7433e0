"""kinoflow/Driving-v0: drive a car through traffic on procedural roads, in the plane and kinematic."""

from __future__ import annotations

from typing import Any

import cv2
import gymnasium
import numpy as np
import shapely

from envs.metrics import EgoState, RoadUsers, ScoredScene, score_states
from envs.metrics import Lane as ScoredLane
from envs.metrics.comfort import SHORTEST
from envs.metrics.tracker import SPEED, YAW_RATE
from envs.roads import COMMANDS, SPACING, Scene
from envs.scenes import MOST, sample_scene
from envs.traffic import TICK, Paths, Traffic, box_corners
from policies.raster import BACK, EDGE, PER_METRE, PIXEL, PIXELS, RASTER
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

POLICY_HZ = 5.0
TIME_LIMIT = 25.0  # s
GOAL = 70.0  # m along a right route
ASIDE = 3.5  # m beside a route that still count as on it
PATHS, POINTS, EVERY = 3, 12, 5.0  # paths ahead, points of each, m between them
SIGHT = 60.0  # m
CELL = 0.25  # m, of the map of distances
LATER = 1.5  # s, where others will be then is in the raster as well
FRAME = "base_link"
FILM = 480  # pixels

ACTION = ActionSpec(("speed", "yaw_rate"), ("m/s", "rad/s"), FRAME, (0.0, -0.95), (15.0, 0.95), acceleration=(5.0, 2.0))
FEATURES = (
    Feature("car", (4,), "m/s, m/s^2, rad, m/s", FRAME),
    Feature("command", (len(COMMANDS),), "1", FRAME),
    Feature("paths", (PATHS, 1 + 2 * POINTS), "m", FRAME),
    Feature("others", (MOST, 8), "m, m/s", FRAME),
    RASTER,
)


class DrivingEnv(gymnasium.Env[Any, Array]):
    """Drive 70 m along the right route within 25 s, hit nobody and stay on the road.

    Observation: ``car`` (4,), speed, acceleration, steering angle and speed limit; ``command`` (3,), one for left,
    straight or right, zeros where any way is right; ``paths`` (3, 25), where lanes lead, left ones first: whether there
    is one, then x, y of 12 points every 5 m; ``others`` (8, 8), nearest first: x, y, cos and sin of the heading, speed,
    length, width, 1 for people and -1 for things, zeros where there is nobody; ``raster`` (3, 64, 64) uint8, from
    above, 1 m per pixel, ahead is up and 16 m are behind: distance to the edge of the road (128 there, more on it, 32
    per m), others now, and in 1.5 s.
    Frame: rear axle, x forward, y left. Action: speed in m/s and yaw rate in rad/s, which the car
    approaches within about 0.4 s.

    Args:
        kind: Of scenes, see `envs.roads.KINDS`; any by default.
        step_hz: Steps per simulated second: 5, the rate policies plan at, or 10.
        render_mode: ``"rgb_array"`` for pictures.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own convention)
    COMMAND = {"step_hz": 10.0}  # noqa: RUF012
    contract = Spec(FEATURES, ACTION, POLICY_HZ, history=1, horizon=1)
    execute, objective = 1, "pdm"
    noise, longest, settle = 0.2, 48, 24  # steps; see `envs.collect.record`
    lead_in: int | None = 45

    def __init__(self, kind: str | None = None, step_hz: float = POLICY_HZ, render_mode: str | None = None) -> None:
        ticks = 1 / (step_hz * TICK)
        if ticks < 1 or abs(ticks - round(ticks)) > 1e-9:
            raise ValueError(f"step_hz={step_hz} does not divide the tick rate of {1 / TICK:g} Hz")
        self.kind, self.render_mode = kind, render_mode
        self.step_dt, self._ticks = 1 / step_hz, round(ticks)
        self.action_space = gymnasium.spaces.Box(*np.array((ACTION.low, ACTION.high), np.float32), dtype=np.float32)
        self.observation_space = gymnasium.spaces.Dict({feature.name: _space(feature) for feature in FEATURES})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begin a scene, a random one or ``options["scene"]``."""
        super().reset(seed=seed)
        self.scene: Scene = (options or {}).get("scene") or sample_scene(self.np_random, self.kind)
        self.traffic = Traffic([self.scene])
        self.time, self.collision = 0.0, False
        self._scored: dict[str, float] = {}
        self._paths = Paths(self.scene.paths)
        self._map = RoadEdge(self.scene)
        self._begin = np.array([self._along(route)[0] for route in self.scene.routes])
        self.history: list[tuple[Array, Array, Array]] = []
        self._note()
        return self.observe(), self._info()

    @property
    def pose(self) -> Array:
        """``(3,)``: x, y in m and heading in rad of the rear axle, world frame."""
        return self.traffic.car[0, :3]

    @property
    def state(self) -> Array:
        """``(8 + 2 * 8,)``: the car, see `envs.traffic.Traffic`, then place and speed of everybody else."""
        return np.concatenate([self.traffic.car[0], self.traffic.place[0], self.traffic.speed[0]])

    @property
    def rest(self) -> Array:
        """Command that stops the car."""
        return np.zeros(2, np.float32)

    @property
    def underway(self) -> Array:
        """Command that keeps the car as it is."""
        return self.traffic.car[0, [SPEED, YAW_RATE]].astype(np.float32)

    @property
    def right_routes(self) -> tuple[int, ...]:
        """Routes that the car may take."""
        return (self.scene.chosen,) if self.scene.commanded else tuple(range(len(self.scene.routes)))

    def _along(self, route: Array) -> tuple[float, float]:
        """How far along a route the car is, and how far beside it, in m."""
        apart = np.linalg.norm(route - self.pose[:2], axis=-1)
        return float(apart.argmin()) * SPACING, float(apart.min())

    @property
    def progress(self) -> float:
        """Metres along the right route, the best of them if there are several."""
        found = [(index, *self._along(self.scene.routes[index])) for index in self.right_routes]
        return max([place - self._begin[index] for index, place, beside in found if beside < ASIDE], default=0.0)

    @property
    def success(self) -> bool:
        """Whether the car has come as far as it should."""
        return not self.failed and self.progress >= GOAL

    @property
    def failed(self) -> bool:
        """Whether the car has hit somebody or left the road."""
        return self.collision or self.off_road

    @property
    def off_road(self) -> bool:
        """Whether a corner of the car is off the road."""
        return bool((self._map.distance(self._corners()) < 0).any())

    def _corners(self) -> Array:
        pose, size = self.traffic.own_box
        return box_corners(pose[0], size)

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        command = np.asarray(action, np.float32)
        if command.shape != (2,) or not np.isfinite(command).all():
            raise ContractError(f"action must be 2 finite values {ACTION.names}, got {action}")
        before = self.progress
        for _ in range(self._ticks):
            if not self.failed:  # whoever has crashed stays where it is
                self._tick(ACTION.clip(command))
        self.time = round(self.time + self.step_dt, 6)
        success, failed = self.success, self.failed
        reward = self.progress - before + float(success) - float(failed)
        return self.observe(), reward, success or failed, self.time >= TIME_LIMIT - 1e-9, self._info()

    def _tick(self, command: Array) -> None:
        self.traffic.step(command[None])
        self.collision = self.collision or bool(self.traffic.collided[0])
        self._note()

    def _note(self) -> None:
        self.history.append((self.traffic.car[0].copy(), self.traffic.boxes[0][0], self.traffic.present[0].copy()))

    @property
    def metrics(self) -> dict[str, float]:
        """PDM score of what was driven and its parts, and what came of the episode; see `envs.metrics`."""
        if self._scored.get("time") != self.time:
            self._scored = {"time": self.time, **self._score()}
        return {name: value for name, value in self._scored.items() if name != "time"}

    def _score(self) -> dict[str, float]:
        states = np.stack([car for car, *_ in self.history])
        rest = max(0, SHORTEST - len(states))  # whoever crashes at once is there for the rest of the second
        states = np.concatenate([states, np.repeat(states[-1:], rest, 0)])
        score = score_states(states[None], self.scored_scene())
        parts = {
            name: float(getattr(score, name)[0])
            for name in ("no_collision", "drivable_area", "time_to_collision", "progress", "comfort")
        }
        ended = {
            "collision": float(self.collision),
            "off_road": float(self.off_road),
            "progress_m": round(self.progress, 2),
        }
        return {"pdm": float(score.total[0]), **parts, **ended}

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        car = self.traffic.car[0]
        poses, sizes = (values[0] for values in self.traffic.boxes)
        later = poses[:, :2] + LATER * self.traffic.speed[0, :, None] * self.traffic.direction[0]
        numbers = {
            "car": np.array([car[3], car[4], car[5], self.scene.limit]),
            "command": np.array([self.scene.command == name for name in COMMANDS], float),
            "paths": self._paths_ahead(),
            "others": self._others(poses, sizes),
        }
        boxes = box_corners(poses, sizes)
        moved = boxes + (later - poses[:, :2])[:, None]
        edge = self._map.picture(car[:3])
        raster = np.stack([edge, *(_drawn(_to_car(part, car[:3])) for part in (boxes, moved))])
        return {**{name: value.astype(np.float32) for name, value in numbers.items()}, "raster": raster}

    def _paths_ahead(self) -> Array:
        table = np.zeros((PATHS, 1 + 2 * POINTS))
        for row, path in enumerate(self.scene.paths):
            place, _ = self._along(path)
            points, _ = self._paths.at(np.full(POINTS, row), place + EVERY * np.arange(POINTS))
            table[row] = np.r_[1.0, _to_car(points, self.pose).ravel()]
        return table

    def _others(self, poses: Array, sizes: Array) -> Array:
        table = np.zeros((MOST, 8))
        places = _to_car(poses[:, :2], self.pose)
        away = np.linalg.norm(places, axis=-1)
        kind = self.traffic.person[0] * 1.0 - self.traffic.still[0]
        for row, index in enumerate(np.argsort(away)):
            if away[index] < SIGHT:
                angle = poses[index, 2] - self.pose[2]
                heading = np.cos(angle), np.sin(angle)
                table[row] = *places[index], *heading, self.traffic.speed[0, index], *sizes[index], kind[index]
        return table

    def scored_scene(self) -> ScoredScene:
        """What the PDM score has to know of the scene: the road, and where everybody was until now."""
        lanes, right = self.scene.lanes, [self.scene.routes[index] for index in self.right_routes]
        ways = shapely.union_all([shapely.LineString(route) for route in right])
        on_route = [ways.intersection(shapely.Polygon(lane.polygon)).length > 5 for lane in lanes]
        kinds = np.where(self.traffic.person[0], "pedestrian", np.where(self.traffic.still[0], "static", "vehicle"))
        best = max(right, key=lambda route: -self._along(route)[1])
        poses = np.stack([poses for _, poses, _ in self.history], 1)
        valid = np.stack([present for *_, present in self.history], 1)
        return ScoredScene(
            EgoState(*self.history[0][0][:6].tolist()),
            [ScoredLane(lane.polygon, on, lane.intersection) for lane, on in zip(lanes, on_route, strict=True)],
            best,
            RoadUsers(poses, self.traffic.size[0], kinds.tolist(), valid),
            speed_limit=self.scene.limit,
        )

    def _info(self) -> dict[str, Any]:
        return {
            "success": self.success,
            "collision": self.collision,
            "off_road": self.off_road,
            "progress": self.progress,
        }

    def render(self) -> Array:
        """Return a ``(480, 480, 3)`` uint8 picture from above, the car's heading up."""
        scale = FILM / 80.0
        picture = np.full((FILM, FILM, 3), (222, 229, 218), np.uint8)

        def draw(points: Array, colour: tuple[int, int, int], closed: bool = True) -> None:
            local = _to_car(points, self.pose)
            pixels = (
                np.stack([FILM / 2 - scale * local[:, 1], 0.7 * FILM - scale * local[:, 0]], -1)
                .round()
                .astype(np.int32)
            )
            if closed:
                cv2.fillPoly(picture, [pixels], colour, cv2.LINE_AA)
            else:
                cv2.polylines(picture, [pixels], False, colour, 2, cv2.LINE_AA)

        for lane in self.scene.lanes:
            draw(lane.polygon, (120, 124, 130))
        for index in self.right_routes:
            draw(self.scene.routes[index], (170, 190, 230), closed=False)
        poses, sizes = (values[0] for values in self.traffic.boxes)
        for pose, size, person in zip(poses, sizes, self.traffic.person[0], strict=True):
            draw(box_corners(pose, size), (200, 120, 40) if person else (70, 70, 80))
        draw(self._corners(), (200, 40, 40) if self.failed else (30, 120, 60))
        return picture


class RoadEdge:
    """Signed distance to the edge of the road of a scene, positive on it."""

    def __init__(self, scene: Scene) -> None:
        reach = np.concatenate(scene.routes)
        self._origin = reach.min(0) - SIGHT / 2
        width, height = np.ceil((np.ptp(reach, axis=0) + SIGHT) / CELL).astype(int)
        road = np.zeros((height, width), np.uint8)
        for lane in scene.lanes:
            pixels = np.round((lane.polygon - self._origin) / CELL * 16).astype(np.int32)
            cv2.fillPoly(road, [pixels], 1, shift=4)
        inside, outside = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (road, 1 - road))
        self._distance = (np.where(road > 0, inside - 0.5, 0.5 - outside) * CELL).astype(np.float32)

    def distance(self, points: Array) -> Array:
        """In m, of points ``(N, 2)``; far away what it is at the border of the map."""
        where = ((points - self._origin) / CELL).astype(np.float32)
        found = cv2.remap(
            self._distance, where[:, None, 0], where[:, None, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return found[:, 0]

    def picture(self, pose: Array) -> Array:
        """``(64, 64)`` uint8 as the car at a pose ``(3,)`` sees it, 128 at the edge."""
        cos, sin = np.cos(pose[2]), np.sin(pose[2])
        ahead = PIXEL * (PIXELS - 0.5) - BACK  # of the first row
        x0, y0 = (
            pose[:2] - self._origin + ahead * np.array([cos, sin]) + PIXEL * (PIXELS - 1) / 2 * np.array([-sin, cos])
        ) / CELL
        step = PIXEL / CELL
        turn = np.array([[step * sin, -step * cos, x0], [-step * cos, -step * sin, y0]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(self._distance, turn, (PIXELS, PIXELS), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.clip(EDGE + PER_METRE * seen, 0, 255).astype(np.uint8)


def _to_car(points: Array, pose: Array) -> Array:
    """Points ``(..., 2)`` of the world in the frame of the car."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return (points - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])


def _drawn(boxes: Array) -> Array:
    """``(64, 64)`` uint8 picture of boxes ``(N, 4, 2)`` in the frame of the car."""
    picture = np.zeros((PIXELS, PIXELS), np.uint8)
    near = boxes[np.abs(boxes).max((1, 2)) < 2 * SIGHT]
    if len(near):
        pixels = np.stack([PIXELS / 2 - 0.5 - near[..., 1] / PIXEL, PIXELS - 0.5 - (near[..., 0] + BACK) / PIXEL], -1)
        cv2.fillPoly(picture, list((pixels * 16).round().astype(np.int32)), 255, cv2.LINE_AA, shift=4)
    return picture


def _space(feature: Feature) -> gymnasium.spaces.Box:
    if feature.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, feature.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, feature.shape, np.float32)


gymnasium.register("kinoflow/Driving-v0", entry_point="envs.driving:DrivingEnv")
