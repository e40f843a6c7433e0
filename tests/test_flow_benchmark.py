"""The flow benchmark on a few pairs: the truth has no error, and the result is plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.flow import (
    DIS,
    EXACT,
    FLOOR,
    LEARNED,
    SIZES,
    ZERO,
    as_text,
    compare,
    floor_plane_flow,
    load_pairs,
    measure,
)
from envs.flow_pairs import Pair, exact_flow
from envs.pictures import unavailable
from policies.egomotion import Camera, floor_depth
from policies.nets.flow import FlowNet

ROOMS, PAIRS, SEED = 2, 2, 520_300
drawing = pytest.mark.skipif(bool(unavailable()), reason="no OpenGL library")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "flow_net.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(FlowNet().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def result(weights: Path) -> dict[str, Any]:
    return measure(ROOMS, PAIRS, SEED, weights)


def floor(moved: tuple[float, float, float]) -> Pair:
    """A pair in an endless hall, black."""
    camera, drive = Camera(96, float(np.radians(80)), 1.17, 0.2), np.array(moved)
    depth = np.minimum(floor_depth(camera, 96).double().numpy(), 1e6).reshape(96, 96)
    flow, there = exact_flow(depth, drive, camera.pitch)
    black = np.zeros((3, 96, 96), np.uint8)
    return Pair(black, black, flow, there > 0, drive, camera.height, camera.pitch)


def test_the_floor_plane_model_is_right_about_a_floor_and_small_motions() -> None:
    pair = floor((0.002, -0.001, 0.002))
    error = np.linalg.norm(floor_plane_flow(pair) - pair.flow, axis=0)
    assert error.max() < 0.02 * np.linalg.norm(pair.flow, axis=0).max()


def test_zero_is_as_wrong_as_the_motion_is_large(weights: Path) -> None:
    row = compare(floor((0.1, 0.02, -0.1)), weights)
    np.testing.assert_array_equal(row["error"][ZERO], row["size"])


@drawing
def test_every_method_is_measured_on_the_same_pixels(result: dict[str, Any]) -> None:
    assert result["epe"][ZERO]["mean"] == pytest.approx(result["sizes"]["mean_motion"])
    assert sum(result["sizes"]["share_of_pixels"]) == pytest.approx(1)
    for errors in result["epe"].values():
        parts = [
            share * error
            for share, error in zip(result["sizes"]["share_of_pixels"], errors["by_size"], strict=True)
            if error is not None
        ]
        assert sum(parts) == pytest.approx(errors["mean"], rel=1e-4)
    assert result["epe"][DIS]["mean"] < result["epe"][ZERO]["mean"]


@drawing
def test_ego_motion_of_the_exact_flow_is_the_best(result: dict[str, Any]) -> None:
    exact, nothing = result["ego_motion"][EXACT], result["ego_motion"][ZERO]
    assert exact["displacement_m"] < 0.3 * nothing["displacement_m"] and exact["yaw_rad"] < 0.3 * nothing["yaw_rad"]


@drawing
def test_times_are_relative_to_dense_inverse_search(result: dict[str, Any]) -> None:
    assert result["time"][DIS]["over_dis"] == 1 and set(result["time"]) == set(result["epe"]) >= {LEARNED, FLOOR}


@drawing
def test_the_result_is_json_and_the_text_names_every_method(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert all(name in as_text(result) for name in (*result["epe"], *result["ego_motion"]))
    assert len(result["sizes"]["edges"]) == len(SIZES) - 1


@drawing
def test_pairs_are_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "pairs.npz"
    taken = load_pairs(path, range(SEED, SEED + 1), 2)
    again = load_pairs(path, range(0), 0)
    assert set(taken) == {"first", "second", "flow", "share"}
    assert all(np.array_equal(taken[name], again[name]) for name in taken)
