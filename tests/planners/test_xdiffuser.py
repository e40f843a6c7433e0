"""Trajectories composed of pieces and guided by a way through a graph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.mazes import EPISODE, Maze, sample_maze, stitch_trajectories
from planners.pieces import Pieces, composed
from planners.search import NoRoute, Route
from planners.train_trajectory import config_for
from planners.xdiffuser import Sampler, XDiffuser
from policies.archive import BundleError, pack, unpack
from policies.spec import Array, ContractError
from policies.trajectory import TrajectoryModel

STEP_S = 0.1
START, GOAL = np.array([0.0, 0.0]), np.array([12.0, 12.0])


@pytest.fixture(scope="module")
def maze() -> Maze:
    return sample_maze(np.random.default_rng(5), (4, 4), 0.4)


@pytest.fixture(scope="module")
def places(maze: Maze) -> list[Array]:
    return list(stitch_trajectories(maze, np.random.default_rng(0), 150))


@pytest.fixture(scope="module")
def planner(places: list[Array]) -> XDiffuser:
    """A planner whose model has learned nothing."""
    torch.manual_seed(0)
    model = TrajectoryModel(replace(config_for(places), widths=(16, 16, 16))).eval()
    return XDiffuser.build(places, model, 4, STEP_S, np.random.default_rng(0), 300, {"env": "here"})


@pytest.fixture(scope="module")
def trained(places: list[Array]) -> XDiffuser:
    """A planner whose model has learned a little."""
    torch.manual_seed(0)
    model = TrajectoryModel(replace(config_for(places), widths=(32, 32, 32)))
    states, rng = model.normal(torch.from_numpy(np.stack(places))), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(250):
        first = torch.randint(EPISODE - 76, (64, 1), generator=rng)
        rows = first + 4 * torch.arange(20)
        optimiser.zero_grad()
        model.loss(states[torch.randint(len(states), (64, 1), generator=rng), rows], rng).backward()
        optimiser.step()
    return XDiffuser.build(places, model.eval(), 4, STEP_S, np.random.default_rng(0), 300)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_pieces_take_as_long_as_the_way(planner: XDiffuser) -> None:
    for steps in (60, 240):
        pieces = planner.pieces(Route(np.zeros((2, 2)), np.array([0.0, steps])))
        assert pieces.total == 1 + steps // 4 and pieces.horizon <= planner.model.config.horizon


def test_a_trajectory_begins_and_ends_where_it_shall(planner: XDiffuser, maze: Maze) -> None:
    way = planner.way(START, GOAL)
    for start in (START, np.r_[START, 0.5, 0.2]):
        found = planner.denoise(way, start, GOAL, generator(), Sampler(samples=3), planner.pieces(way))
        np.testing.assert_allclose(found[:, 0], np.tile(START, (3, 1)), atol=0.05)
        np.testing.assert_allclose(found[:, -1], np.tile(GOAL, (3, 1)), atol=0.05)
        assert np.isfinite(found).all() and found.dtype == np.float32


def test_how_fast_a_robot_is_enters_as_where_it_came_from(planner: XDiffuser) -> None:
    start, pieces = np.r_[START, 1.5, -0.5], Pieces(np.array([0, 8]), 12)
    field = composed(planner.model, planner._begin(start), GOAL, pieces, 1)
    data = field(torch.randn(2, 12, 2), torch.full((2,), 0.5)).data
    known = planner.model.restore(data)
    torch.testing.assert_close(known[0, :2], torch.tensor([[-0.6, 0.2], [0.0, 0.0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(known[1, -1], torch.tensor([12.0, 12.0]), atol=1e-5, rtol=0)


def test_the_way_pulls_what_has_learned_nothing_onto_it(planner: XDiffuser) -> None:
    way = planner.way(START, GOAL)
    pieces = planner.pieces(way)

    def off(pull: float) -> float:
        found = planner.denoise(way, START, GOAL, generator(), Sampler(pull=pull), pieces)
        moments = np.linspace(0, way.times[-1], pieces.total)
        wanted = np.stack([np.interp(moments, way.times, way.states[:, axis]) for axis in (0, 1)], -1)
        return float(np.linalg.norm(found - wanted, axis=-1).mean())

    assert off(0.2) < 0.5 * off(2.0) < off(np.inf)


def test_plans_are_checked_and_the_way_is_what_is_left(planner: XDiffuser, trained: XDiffuser, maze: Maze) -> None:
    never = replace(planner, leap=0.01)
    for one, origins in ((never, {"way"}), (trained, {"denoised", "helped"})):
        sampler = Sampler(samples=4, attempts=4)
        planned = one.plan(START, GOAL, maze.segment_free, generator(), sampler)
        places = planned.route.states
        assert maze.segment_free(places[:-1], places[1:]).all() and (np.diff(planned.route.times) > 0).all()
        np.testing.assert_allclose(places[[0, -1]], [START, GOAL], atol=0.05)
        assert planned.pieces >= 1 and planned.search_s > 0 and planned.denoise_s > 0
        assert planned.rejected or planned.origin == "denoised"
        assert planned.origin in origins


def test_every_flaw_is_found(planner: XDiffuser) -> None:
    line = np.stack([np.linspace(0, 3, 13), np.zeros(13)], -1)
    clear = lambda start, end: np.ones(len(start), bool)  # noqa: E731
    assert planner.flaw(line, clear) == ""
    assert planner.flaw(np.where(np.arange(13)[:, None] == 5, np.nan, line), clear) == "not finite"
    assert planner.flaw(20 * line, clear) == "leap"
    assert planner.flaw(line, lambda start, end: start[:, 0] < 2) == "wall"
    assert replace(planner, turn=0.1).flaw(np.where(np.arange(13)[:, None] == 5, line + 0.2, line), clear) == "turn"


def test_a_goal_in_a_wall_is_refused(planner: XDiffuser, maze: Maze) -> None:
    with pytest.raises(NoRoute) as refusal:
        planner.plan(START, np.array([-1.99, 0.0]), maze.segment_free, generator())
    assert refusal.value.reason == "goal"


def test_the_same_seed_gives_the_same_plan(trained: XDiffuser, maze: Maze) -> None:
    one, two = (trained.plan(START, GOAL, maze.segment_free, generator()).route.states for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_planner_comes_back_from_its_file(trained: XDiffuser, maze: Maze, tmp_path: Path) -> None:
    trained.save(tmp_path / "planner.kfp")
    again = XDiffuser.load(tmp_path / "planner.kfp")
    assert again.origin == trained.origin and (again.stride, again.leap, again.turn) == (4, trained.leap, trained.turn)
    np.testing.assert_array_equal(again.graph.nodes, trained.graph.nodes)
    np.testing.assert_allclose(again.speeds, trained.speeds, rtol=1e-3)
    way = again.way(START, GOAL)
    found = [one.denoise(way, START, GOAL, generator(), Sampler(), one.pieces(way)) for one in (trained, again)]
    assert np.abs(found[0] - found[1]).mean() < 0.2  # weights are kept at half precision


def test_damaged_and_foreign_files_are_refused(planner: XDiffuser, tmp_path: Path) -> None:
    file = tmp_path / "planner.kfp"
    with pytest.raises(FileNotFoundError, match="train one"):
        XDiffuser.load(file)
    planner.save(file)
    names = ("planner.json", "weights.safetensors", "graph.npz")
    parts = unpack(file, lambda read: names)
    for name in names:
        changed = bytearray(parts[name])
        changed[len(changed) // 2] ^= 1
        file.write_bytes(pack({**parts, name: bytes(changed)}))
        with pytest.raises(BundleError):
            XDiffuser.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="zip"):
        XDiffuser.load(file)


@pytest.mark.parametrize("name", ["steps", "samples", "pull", "window", "every", "attempts"])
def test_nothing_of_a_sampler_is_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0"):
        Sampler(**{name: 0})


@pytest.mark.parametrize(
    ("start", "goal", "message"),
    [
        ([np.nan, 0.0], GOAL, "the start is .*not finite"),
        ([0.0, 0.0, 0.0, np.inf], GOAL, "the start is .*not finite"),
        (START, [np.nan, 1.0], "the goal is .*not finite"),
        ([0.0, 0.0, 0.0], GOAL, r"the start has shape \(3,\), a plan needs \(2,\) in m, or \(4,\)"),
        (START, [0.0, 0.0, 0.0], r"the goal has shape \(3,\), a plan needs \(2,\)"),
        (START, [[0.0, 0.0]], r"the goal has shape \(1, 2\)"),
    ],
)
def test_what_is_no_place_is_refused_by_name(
    planner: XDiffuser, maze: Maze, start: list[float], goal: list[float], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        planner.plan(start, goal, maze.segment_free, generator())


@pytest.mark.parametrize("velocity", [[], [0.1, 0.0]])
def test_who_is_there_stays_there(planner: XDiffuser, maze: Maze, velocity: list[float]) -> None:
    planned = planner.plan(np.r_[START, velocity], START, maze.segment_free, generator())
    assert planned.route.states.tolist() == [[0, 0], [0, 0]] and planned.route.times.tolist() == [0, 4]
    assert (planned.origin, planned.pieces, planned.rejected) == ("way", 0, {})


@pytest.mark.parametrize(
    ("lengths", "stride", "step_s", "message"),
    [
        ([], 4, STEP_S, "no state"),
        ([1], 4, STEP_S, "the longest trajectory has 1 states, 9 are needed"),
        ([100], 0, STEP_S, "stride is 0"),
        ([100], 4, 0.0, "step_s is 0.0"),
        ([100], 4, np.nan, "step_s is nan"),
    ],
)
def test_nothing_is_built_of_nothing(
    planner: XDiffuser, places: list[Array], lengths: list[int], stride: int, step_s: float, message: str
) -> None:
    cut = [places[0][:length] for length in lengths]
    with pytest.raises(ContractError, match=message):
        XDiffuser.build(cut, planner.model, stride, step_s, np.random.default_rng(0), 20)
    with pytest.raises(ContractError, match="do not move"):
        XDiffuser.build([np.zeros((50, 2))], planner.model, 4, STEP_S, np.random.default_rng(0), 20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("origin", []),
        ("model", 3),
        ("model", {"centre": [0, 0], "scale": 1.0, "widths": [7]}),
        ("sha256", []),
        ("sha256", {}),
        ("stride", 0),
        ("stride", "a"),
        ("leap", float("nan")),
        ("turn", -1.0),
        ("step_s", 0),
        ("speed", "fast"),
        ("format", 9),
    ],
)
def test_a_manifest_that_was_edited_is_refused(planner: XDiffuser, tmp_path: Path, name: str, value: object) -> None:
    file, names = tmp_path / "planner.kfp", ("planner.json", "weights.safetensors", "graph.npz")
    planner.save(file)
    parts = unpack(file, lambda read: names)
    manifest = {**json.loads(parts[names[0]]), name: value}
    file.write_bytes(pack({**parts, names[0]: json.dumps(manifest).encode()}))
    with pytest.raises(BundleError, match=str(file)):
        XDiffuser.load(file)


def test_a_part_without_a_hash_is_refused(planner: XDiffuser, tmp_path: Path) -> None:
    file, names = tmp_path / "planner.kfp", ("planner.json", "weights.safetensors", "graph.npz")
    planner.save(file)
    parts = unpack(file, lambda read: names)
    manifest = json.loads(parts[names[0]])
    manifest["sha256"] = {names[1]: hashlib.sha256(parts[names[1]]).hexdigest()}
    file.write_bytes(pack({**parts, names[0]: json.dumps(manifest).encode()}))
    with pytest.raises(BundleError, match=names[2]):
        XDiffuser.load(file)


def test_what_is_no_planner_is_named(planner: XDiffuser, tmp_path: Path) -> None:
    file = tmp_path / "planner.kfp"
    planner.save(file)
    whole = file.read_bytes()
    bundle = pack({"manifest.json": b"{}", "policy.onnx": b""})
    for content, message in (
        (b"", "zip"),
        (b"text", "zip"),
        (whole[:-99], "copy the planner"),
        (bundle, "is a policy"),
    ):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=f"^{file} .*{message}"):
            XDiffuser.load(file)
    with pytest.raises(BundleError, match="is a directory, not a planner"):
        XDiffuser.load(tmp_path)
