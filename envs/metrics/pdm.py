"""The PDM score of NAVSIM of many plans: PDMS (version 1, arXiv 2406.15349) and EPDMS (version 2, arXiv 2506.04218).

A plan is driven by a tracker and a bicycle (`envs.metrics.tracker`); the drive is scored. ``reference_quirks=True`` is
for numbers that have to agree with NAVSIM's; without, the same terms are computed as they are meant:

* speeds are fitted with a price for jerk, not for acceleration (`envs.metrics.tracker.fitted`);
* comfort knows the lateral acceleration and does not hide behind long windows (`envs.metrics.comfort`);
* the progress of version 1 is not multiplied by the plan's own multipliers, which the total has already;
* driving direction adds up the way of 1.0 s, not of 1.1 s;
* whether a road user stands is asked when it is hit, not when it was first seen;
* the look-ahead of a car that rolls backwards goes backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely

from envs.metrics import contact
from envs.metrics.comfort import SHORTEST, comfortable, consistent
from envs.metrics.contact import bearing, contacts, corners, in_multiple_lanes, inside_any, shifted
from envs.metrics.scene import FARTHEST, ScoredScene, checked
from envs.metrics.tracker import HEADING, SPEED, STATE_SIZE, STEP, Vehicle, track
from policies.spec import Array, ContractError

STOPPED, CREEPING = 0.05, 5e-3  # m/s: below, nobody is at fault; below, no time to collision
AHEAD, BEHIND = np.deg2rad(30.0), np.deg2rad(150.0)  # around the heading
STATIC_PENALTY = 0.5  # score that is left after a collision with a static object
FUTURES = (0, 3, 6, 9)  # samples that time to collision looks ahead
SHORT_PROGRESS = 5.0  # m; below, everyone makes enough progress
WRONG_WAY = (2.0, 6.0)  # m within 1 s
OFF_CENTRE, OFF_CENTRE_SAMPLES = 0.5, 20  # m


@dataclass(frozen=True)
class PdmScore:
    """Scores in [0, 1], one per plan; every array is ``(P,)``.

    Args:
        no_collision: No collision at fault (NC): 0 with a vehicle, pedestrian or bicycle, 0.5 with a static object.
        drivable_area: All corners in drivable areas at all times (DAC), 0 or 1.
        driving_direction: Way off the route's lanes within one second (DDC), 0, 0.5 or 1; counts in version 2.
        traffic_light: No red light is touched (TLC), 0 or 1; 1 in version 1.
        progress: Way along the centreline, relative to the reference planner (EP).
        time_to_collision: Nobody is hit within a second at constant velocity (TTC), 0 or 1.
        comfort: Accelerations, jerks and yaw within bounds, in version 2 with the history (C, HC), 0 or 1.
        lane_keeping: Not off the centreline for 2 s (LK), 0 or 1; 1 in version 1.
        extended_comfort: Agrees with the previous plan (EC), 0 or 1; 1 in version 1 or without one.
        total: PDMS or EPDMS.
        progress_m: Way along the centreline in m, not negative.
    """

    no_collision: Array
    drivable_area: Array
    driving_direction: Array
    traffic_light: Array
    progress: Array
    time_to_collision: Array
    comfort: Array
    lane_keeping: Array
    extended_comfort: Array
    total: Array
    progress_m: Array

    def multipliers(self, version: int) -> Array:
        """Product ``(P,)`` of the terms that a violation of cannot be made up for."""
        product = self.no_collision * self.drivable_area
        return product * self.driving_direction * self.traffic_light if version == 2 else product

    def combined(self, version: int) -> Array:
        """The total ``(P,)`` of the terms."""
        weighted = 5 * self.progress + 5 * self.time_to_collision + 2 * self.comfort
        weight = 12
        if version == 2:
            weighted, weight = weighted + 2 * self.lane_keeping + 2 * self.extended_comfort, 16
        return self.multipliers(version) * weighted / weight


TERMS = (
    "no_collision", "drivable_area", "driving_direction", "traffic_light", "progress", "time_to_collision", "comfort",
    "lane_keeping", "extended_comfort",
)  # fmt: skip


def pdm_score(
    plans: Array,
    scene: ScoredScene,
    *,
    version: int = 1,
    reference_quirks: bool = False,
    previous: Array | None = None,
    previous_steps: int = 5,
    human: PdmScore | None = None,
) -> PdmScore:
    """Score plans in one scene.

    Args:
        plans: ``(P, N, 3)`` poses x, y, heading of the rear axle in the frame of the scene at 10 Hz from t=0, in m
            and rad; NAVSIM has N = 41. `envs.metrics.tracker.sampled` makes them from waypoints in the car's frame.
        scene: What they are scored against.
        version: 1 for PDMS, 2 for EPDMS.
        reference_quirks: As NAVSIM computes it, see the module.
        previous: ``(T, 8)`` or ``(P, T, 8)`` states of the plan before in the frame of the scene, for extended
            comfort.
        previous_steps: Age of that plan in samples of 0.1 s.
        human: Score ``(1,)`` of the human drive of the scene: no plan can fail a term that it fails (version 2).

    Raises:
        ContractError: Shapes, values or the version do not fit.
    """
    plans = checked("plans", plans, (None, None, 3), FARTHEST)
    _require_length("plans", plans)
    states = track(plans, scene.ego.state(scene.vehicle), STEP, scene.vehicle, reference_quirks=reference_quirks)
    return score_states(
        states,
        scene,
        version=version,
        reference_quirks=reference_quirks,
        previous=previous,
        previous_steps=previous_steps,
        human=human,
    )


def score_states(
    states: Array,
    scene: ScoredScene,
    *,
    version: int = 1,
    reference_quirks: bool = False,
    previous: Array | None = None,
    previous_steps: int = 5,
    human: PdmScore | None = None,
) -> PdmScore:
    """Score drives as they were driven.

    Args:
        states: ``(P, N, 8)`` states of `envs.metrics.tracker` at 10 Hz from t=0; N is `comfort.SHORTEST` at least. All
            windows in time are those of the written definitions, whatever N is. In version 2 nothing is asked for time
            to collision in the last 0.9 s, because it must not look beyond the end.
        scene: See `pdm_score`, as all other arguments.

    Raises:
        ContractError: Shapes, values or the version do not fit.
    """
    if version not in (1, 2):
        raise ContractError(f"version is {version}, known are 1 (PDMS) and 2 (EPDMS); choose one of them")
    states = checked("states", states, (None, None, STATE_SIZE), FARTHEST)
    _require_length("states", states)
    terms = _unreferenced(states, scene, version, reference_quirks)
    if previous is not None and version == 2:
        previous = checked("previous", previous, (None,) * (np.ndim(previous) - 1) + (STATE_SIZE,), FARTHEST)
        previous = _matching(previous, states, previous_steps)
        agree = consistent(states, previous, previous_steps, reference_quirks=reference_quirks, vehicle=scene.vehicle)
        terms = replace(terms, extended_comfort=agree.astype(float))
    reference = scene.reference
    if reference is None:
        from envs.metrics.reference_planner import reference_progress  # it scores its proposals with this module

        reference = reference_progress(
            scene, version=version, reference_quirks=reference_quirks, samples=states.shape[1]
        )
    terms = replace(terms, progress=_progress(terms, reference, version, reference_quirks))
    if human is not None and version == 2:
        excused = {name: np.where(getattr(human, name) == 0, 1.0, getattr(terms, name)) for name in TERMS}
        terms = replace(terms, **excused)
    return replace(terms, total=terms.combined(version))


def _require_length(name: str, drives: Array) -> None:
    if drives.shape[1] < SHORTEST:
        raise ContractError(f"{name} have {drives.shape[1]} samples, needed are {SHORTEST} at least; plan longer")


def _matching(previous: Array, states: Array, steps: int) -> Array:
    """The previous plan, if enough of it overlaps with each of the drives."""
    if previous.ndim not in (2, 3) or (previous.ndim == 3 and len(previous) not in (1, len(states))):
        raise ContractError(f"previous has shape {previous.shape}; give (T, 8), or (P, T, 8) for {len(states)} plans")
    if steps < 0 or previous.shape[-2] - steps < SHORTEST:
        raise ContractError(
            f"previous has {previous.shape[-2]} samples and is {steps} old, needed is an overlap of {SHORTEST}; "
            "give a longer or younger one"
        )
    return previous


def _unreferenced(states: Array, scene: ScoredScene, version: int, quirks: bool) -> PdmScore:
    """All terms but those that compare with other plans; these are 1, the total is 0."""
    middle, one = shifted(states, scene.vehicle.ahead), np.ones(len(states))
    off_road = np.asarray(~inside_any(scene.drivable_areas, corners(states, scene.vehicle)).all(-1))
    crossing = inside_any(scene.intersection_areas, middle) if version == 2 else np.zeros(middle.shape[:2], bool)
    ends = shapely.line_locate_point(scene.route, shapely.points(middle[:, [0, -1]]))
    past = states
    if version == 2 and scene.history is not None:
        history = np.broadcast_to(scene.history, (len(states), *scene.history.shape))
        past = np.concatenate([history, states], 1)
    comfort = comfortable(past, version, reference_quirks=quirks, vehicle=scene.vehicle).all(0)
    return PdmScore(
        no_collision=_no_collision(states, scene, off_road, quirks),
        drivable_area=(~off_road.any(1)).astype(float),
        driving_direction=_driving_direction(middle, scene, crossing, quirks),
        traffic_light=_traffic_light(states, scene) if version == 2 else one,
        progress=one,
        time_to_collision=_time_to_collision(states, scene, off_road, version, quirks),
        comfort=comfort.astype(float),
        lane_keeping=_lane_keeping(middle, scene, crossing) if version == 2 else one,
        extended_comfort=one,
        total=np.zeros(len(states)),
        progress_m=np.maximum(ends[:, 1] - ends[:, 0], 0.0),
    )


def _progress(terms: PdmScore, reference: float, version: int, quirks: bool) -> Array:
    """Progress ``(P,)`` relative to the better of the reference planner and the plan itself."""
    multipliers = terms.multipliers(version)
    credited = terms.progress_m * multipliers
    best = np.maximum(reference, credited)
    if version == 1 and quirks:
        return np.where(best > SHORT_PROGRESS, credited / np.maximum(best, 1e-9), (multipliers > 0).astype(float))
    return np.where(best > SHORT_PROGRESS, np.clip(terms.progress_m / np.maximum(best, 1e-9), 0, 1), 1.0)


def _half(vehicle: Vehicle) -> Array:
    return np.array([vehicle.length, vehicle.width]) / 2


def _no_collision(states: Array, scene: ScoredScene, off_road: Array, quirks: bool) -> Array:
    """Scores ``(P,)``: what happens at the first contact with each road user decides."""
    users, vehicle = scene.road_users, scene.vehicle
    poses, valid = users.until(states.shape[1])
    middle, score = shifted(states, vehicle.ahead), np.ones(len(states))
    speeds = np.asarray(users.speeds)
    for index, kind in enumerate(users.kinds):
        other, other_half = poses[index], np.asarray(users.sizes)[index] / 2
        hit = contacts(middle, states[..., HEADING], _half(vehicle), other, other_half, valid[index])
        plan = np.flatnonzero(hit.any(1))
        if not len(plan):
            continue
        when = hit[plan].argmax(1)
        car = states[plan, when]
        seen = np.full_like(when, valid[index].argmax()) if quirks else when
        standing = (kind == "static") | (speeds[index, np.minimum(seen, speeds.shape[1] - 1)] <= STOPPED)
        behind = bearing(car, other[when, :2]) > BEHIND
        bumper = np.array([0.0, vehicle.width / 2])
        frontal = contact.boxes_touch(shifted(car, vehicle.front), car[:, HEADING], bumper, other[when], other_half)
        astray = off_road[plan, when] | in_multiple_lanes(scene.lane_areas, corners(car, vehicle))
        fault = (np.abs(car[:, SPEED]) > STOPPED) & (standing | (~behind & (frontal | astray)))
        left = STATIC_PENALTY if kind == "static" else 0.0
        score[plan[fault]] = np.minimum(score[plan[fault]], left)
    return score


def _time_to_collision(states: Array, scene: ScoredScene, off_road: Array, version: int, quirks: bool) -> Array:
    """Scores ``(P,)``: the first contact of the car at constant velocity with each road user decides."""
    last = states.shape[1] - (0 if version == 1 else FUTURES[-1])
    score = np.ones(len(states))
    if last < 1:
        return score
    poses, valid = scene.road_users.until(last + FUTURES[-1])
    drive, vehicle = states[:, :last], scene.vehicle
    moving = np.abs(drive[..., SPEED]) >= CREEPING
    pace = np.abs(drive[..., SPEED]) if quirks else drive[..., SPEED]
    places = [shifted(drive, vehicle.ahead + pace * ahead * STEP) for ahead in FUTURES]
    for index in range(len(scene.road_users.kinds)):
        other, other_half = poses[index], np.asarray(scene.road_users.sizes)[index] / 2
        hits = []
        for ahead, place in zip(FUTURES, places, strict=True):
            then = slice(ahead, last + ahead)
            there = moving & valid[index, then]
            hits.append(contacts(place, drive[..., HEADING], _half(vehicle), other[then], other_half, there))
        hit = np.stack(hits, -1).reshape(len(states), -1)
        plan = np.flatnonzero(hit.any(1))
        if not len(plan):
            continue
        when, future = np.divmod(hit[plan].argmax(1), len(FUTURES))
        car = drive[plan, when]
        angle = bearing(car, other[when + np.array(FUTURES)[future], :2])
        bad = angle < AHEAD
        beside = np.flatnonzero(~bad & (angle <= BEHIND))
        box = corners(car[beside], vehicle)
        bad[beside] = (
            off_road[plan[beside], when[beside]]
            | inside_any(scene.intersection_areas, car[beside, :2])
            | in_multiple_lanes(scene.lane_areas, box)
        )
        score[plan[bad]] = 0.0
    return score


def _driving_direction(middle: Array, scene: ScoredScene, crossing: Array, quirks: bool) -> Array:
    """Scores ``(P,)`` for the way that the middle ``(P, N, 2)`` makes off the lanes of the route within one second."""
    away = ~inside_any(scene.route_areas, middle) & ~crossing
    way = np.linalg.norm(np.diff(middle, axis=1), axis=-1) * away[:, 1:]
    total = np.concatenate([np.zeros((len(way), 1)), np.cumsum(way, 1)], 1)
    window = min(round(1 / STEP) + quirks, way.shape[1])
    longest = (total[:, window:] - total[:, :-window]).max(1)
    # A sum of differences is not exact: the limit itself must not be missed by a rounding error.
    longest = np.round(longest, 9)
    return np.select([longest < WRONG_WAY[0], longest < WRONG_WAY[1]], [1.0, 0.5], 0.0)


def _traffic_light(states: Array, scene: ScoredScene) -> Array:
    """Scores ``(P,)``: 0 where the car touches a lane with a red light."""
    fine = np.ones(len(states), bool)
    for area in scene.red_lights:
        fine[fine] = ~inside_any((area,), shifted(states[fine], scene.vehicle.ahead)).any(1)
        rest = states[fine]
        fine[fine] = ~contact.touches(area, rest.reshape(-1, STATE_SIZE), scene.vehicle).reshape(rest.shape[:2]).any(1)
    return fine.astype(float)


def _lane_keeping(middle: Array, scene: ScoredScene, crossing: Array) -> Array:
    """Scores ``(P,)``: 0 after enough samples in a row off the centreline; those in intersections are left out."""
    near = np.zeros(middle.shape[:2], bool)
    near[~crossing] = shapely.dwithin(scene.route, shapely.points(middle[~crossing]), OFF_CENTRE)
    run, longest = np.zeros(len(middle), int), np.zeros(len(middle), int)
    for index in range(middle.shape[1]):
        run = np.where(crossing[:, index], run, np.where(near[:, index], 0, run + 1))
        longest = np.maximum(longest, run)
    return (longest < OFF_CENTRE_SAMPLES).astype(float)
