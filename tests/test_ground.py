"""Where velocity commands lead, what they are called, and how much room there is around."""

import math

import numpy as np
import pytest
import shapely
import shapely.affinity
import torch

from envs.driving import ACTION, FEATURES, DrivingEnv
from envs.roads import Lane, RoadUser, Scene, line
from policies.flow import from_velocity
from policies.ground import AHEAD, Anywhere, RasterGround, ScanGround, ground_of
from policies.maneuver import INTENTS, Maneuvers, allowed
from policies.motion import PLACES, PRECISION, Motion
from policies.norm import Normaliser
from policies.spec import ActionSpec, ContractError, Feature, Spec

WHEELED = ActionSpec(("vx", "vy", "wz"), ("m/s", "m/s", "rad/s"), "base_link", (-0.3, -0.2, -0.7), (0.6, 0.2, 0.7))
DRIVING = Spec(FEATURES, ACTION, 5.0, 1, 24)


def chunk(*rows: tuple[float, ...], count: int = 24) -> torch.Tensor:
    return torch.tensor([rows[min(index * len(rows) // count, len(rows) - 1)] for index in range(count)])


def test_a_constant_turn_is_a_circle() -> None:
    poses = Motion(ACTION, 0.05).poses(torch.tensor([[4.0, 0.5]]).expand(63, -1))
    x, y, heading = poses[-1].tolist()
    assert heading == pytest.approx(0.5 * 63 * 0.05)
    assert x == pytest.approx(8 * math.sin(heading), abs=0.01)
    assert y == pytest.approx(8 * (1 - math.cos(heading)), abs=0.01)


def test_sideways_velocity_counts_where_there_is_one() -> None:
    poses = Motion(WHEELED, 0.1).poses(torch.tensor([[0.0, 0.2, 0.0]]).expand(10, -1))
    assert poses[-1].tolist() == pytest.approx([0, 0.2, 0], abs=1e-6)


def test_commands_that_are_no_velocities_are_refused() -> None:
    table = ActionSpec(("x", "y"), ("1", "1"), "table", (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ContractError, match=r"\('x', 'y'\) do not say where they lead"):
        Motion(table, 0.1)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (((8.0, 0.0),), "keep hold"),
        (((4.0, 0.0), (8.0, 0.0)), "keep accelerate"),
        (((8.0, 0.0), (4.0, 0.0)), "keep decelerate"),
        (((8.0, 0.0), (0.0, 0.0)), "keep stop"),
        (((0.0, 0.0),), "keep stop"),
        (((6.0, 0.15),), "turn-left hold"),
        (((6.0, -0.15),), "turn-right hold"),
        (((8.0, 0.12), (8.0, -0.12)), "change-left hold"),
        (((8.0, -0.12), (8.0, 0.12)), "change-right hold"),
        (((6.0, 0.08),), "keep hold"),  # 22 degrees are neither a turn nor a change of lanes
        (((6.0, 0.3), (0.0, 0.0)), "turn-left stop"),
    ],
)
def test_chunks_are_called_what_they_do(rows: tuple[tuple[float, ...], ...], name: str) -> None:
    label = Maneuvers(ACTION, 0.2).labels(chunk(*rows)[None])
    assert INTENTS[int(label)] == name


def test_commands_allow_what_they_name() -> None:
    def names(intent: str) -> set[str]:
        return {name for name, fine in zip(INTENTS, allowed(intent), strict=True) if fine}

    assert names("") == set(INTENTS)
    assert names("turn-left stop") == {"turn-left stop"}
    assert names("left") == {name for name in INTENTS if "left" in name}
    assert names("pass-left") == names("left") and names("follow stop") == {"keep stop"}
    assert names("keep decelerate") == {"keep decelerate"}
    for wrong in ("fly", "left right", "stop hold"):
        with pytest.raises(ContractError, match=r"there is no intent 'fly'|nothing is"):
            allowed(wrong)


def observed(*others: RoadUser) -> tuple[RasterGround, dict[str, torch.Tensor]]:
    way = Lane(line(160, (-20, 0, 0)))
    scene = Scene("straight", (way,), (way.centre,), (way.centre,), 0, True, (0.0, 0.0, 0.0), 5.0, 10.0, others)
    env = DrivingEnv()
    observation, _ = env.reset(seed=0, options={"scene": scene})
    ground = ground_of(DRIVING)
    assert isinstance(ground, RasterGround)
    ground.prepare(Normaliser.identity(DRIVING))
    return ground, {name: torch.from_numpy(value)[None, None] for name, value in observation.items()}


def test_the_room_on_a_road_is_that_of_the_corner_nearest_to_its_edge() -> None:
    ground, observation = observed()
    poses = torch.tensor([[[10.0, 0, 0], [10, 1.0, 0], [10, 1.6, 0], [10, 4, 0], [10, 0, 0.5]]])
    room = ground.margin(observation, poses)[0].tolist()
    assert room[:2] == pytest.approx([1.35, 0.35], abs=0.2)  # 2.5 m less half of the width
    assert room[2] < 0
    assert room[3] < 0
    assert room[4] < room[0] - 0.5


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.3, 0.8, 1.6])
def test_the_room_to_others_is_that_between_the_outlines_on_an_open_road(angle: float) -> None:
    thing = RoadUser(line(200, (0, 0, 0)), 20.0, 0.0, 0.0, (1.0, 1.0), "static")
    ground, observation = observed(thing)
    observation["raster"][:, :, 0] = 255  # road everywhere
    other = shapely.box(19.5, -0.5, 20.5, 0.5)
    outline = shapely.box(-1.127, -1.15, 4.049, 1.15)
    poses = torch.cartesian_prod(torch.linspace(8, 24, 17), torch.linspace(-4, 4, 17), torch.tensor([angle]))
    room = ground.clearance(observation, poses[None, :, None], 0.2)[0].numpy()
    placed = [
        shapely.affinity.translate(shapely.affinity.rotate(outline, float(a), (0, 0), use_radians=True), x, y)
        for x, y, a in poses.tolist()
    ]
    touching, apart = shapely.intersects(placed, other), shapely.distance(placed, other)
    near = ~touching & (apart < 2)  # farther away there may be the edge of the raster
    assert (room[touching] < 0.15).all()
    assert (room[near] > 0).mean() > 0.98
    assert np.abs(room - apart)[near].max() < 0.35


def test_others_take_room_where_they_will_be() -> None:
    ahead = RoadUser(line(200, (0, 0, 0)), 30.0, 2.0, 2.0, (4.0, 2.0), "vehicle")
    ground, observation = observed(ahead)
    motion = Motion(ACTION, 0.2)
    slow, fast = (motion.poses(torch.tensor([[speed, 0.0]]).expand(24, -1)) for speed in (2.0, 10.0))
    room = ground.clearance(observation, torch.stack([slow, fast])[None], 0.2)[0]
    assert room[0] > 1
    assert room[1] < 0
    assert AHEAD[int(ground.ahead(observation)[0])] == "nothing"  # 30 m are far


def test_what_is_first_ahead_is_told() -> None:
    person = RoadUser(line(20, (12, -5, math.pi / 2)), 5.0, 1.0, 1.0, (0.6, 0.6), "pedestrian")
    behind = RoadUser(line(200, (0, 0, 0)), 20.0, 2.0, 2.0, (4.0, 2.0), "vehicle")
    ground, observation = observed(behind, person)
    assert AHEAD[int(ground.ahead(observation)[0])] == "person"


def test_a_scan_frees_what_it_reaches() -> None:
    spec = Spec((Feature("scan", (72,), "m", "base_link"),), WHEELED, 10.0, 1, 16)
    ground = ground_of(spec)
    assert isinstance(ground, ScanGround)
    scan = torch.full((1, 1, 72), 5.0)
    scan[..., 34:39] = 1.0  # beam 36 looks ahead
    poses = torch.tensor([[[0.3, 0, 0], [0.9, 0, 0], [2.0, 0, 0], [-3.0, 0, 0], [-4.9, 0, 0]]])
    room = ground.margin({"scan": scan}, poses)[0].tolist()
    assert room[0] == pytest.approx(0.7 - 0.3, abs=0.05)
    assert room[1] < 0
    assert room[2] < 0  # behind what is seen
    assert room[3] > 1
    assert room[4] < 0
    assert AHEAD[int(ground.ahead({"scan": scan})[0])] == "thing"


def test_without_a_map_everywhere_is_free() -> None:
    spec = Spec((Feature("goal", (2,), "m", "base_link"),), WHEELED, 10.0, 1, 16)
    ground = ground_of(spec)
    assert isinstance(ground, Anywhere)
    assert (ground.margin({"goal": torch.zeros(1, 1, 2)}, torch.zeros(1, 3, 3)) > 0).all()


def test_a_loss_of_places_punishes_early_turns_most() -> None:
    motion, noise, data = Motion(ACTION, 0.2), torch.zeros(1, 24, 2), torch.zeros(1, 24, 2)
    data[..., 0] = 8.0

    def loss(error: torch.Tensor) -> float:
        field = from_velocity(lambda x, t: data - noise + error)
        return float(motion.matching_loss(field, data, noise, torch.zeros(1), lambda chunks: chunks))

    def wrong(step: int, action: int) -> torch.Tensor:
        error = torch.zeros(1, 24, 2)
        error[0, step, action] = 0.1
        return error

    assert loss(torch.zeros(1, 24, 2)) == 0
    early, late, faster = loss(wrong(0, 1)), loss(wrong(23, 1)), loss(wrong(0, 0))
    assert early > 5 * late and early > 5 * faster
    unit = PRECISION * motion.fastest * 0.2 * 24
    along = torch.tensor(0.2 * 0.1 / unit)
    expected = 0.1**2 / 48 + PLACES * ((1 + along**2).sqrt() - 1)
    assert faster == pytest.approx(float(expected), rel=1e-3)
