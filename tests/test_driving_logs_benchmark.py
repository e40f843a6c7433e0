"""The scores of plans in recorded drives, on files that the tests of the readers write."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_logs import entry, frame, straight, strip, tfrecord, to_map, toy_scenario

from benchmarks.driving_logs import (
    CONSTANT,
    GIVEN,
    REPLAY,
    STANDING,
    as_text,
    displacement,
    main,
    measure_waymo,
    read_predictions,
)
from envs.logs.waymo_e2e import Frame, States
from policies.spec import Array, ContractError


@pytest.fixture
def waymo(tmp_path: Path) -> Path:
    """Two rated frames of different sequences and one that nobody has rated."""
    return tfrecord(tmp_path / "val.tfrecord", frame("a-004"), frame("b-001"), frame("c-1", rated=False))


@pytest.fixture
def navsim(tmp_path: Path) -> tuple[Path, Path]:
    """A log with one scene, and its map."""
    (tmp_path / "log.pkl").write_bytes(pickle.dumps([entry(index) for index in range(14)]))
    lanes = [{"polygon": strip(-2, 2).tolist()}, {"polygon": strip(2, 6).tolist(), "on_route": False}]
    around = {"lanes": lanes, "centreline": to_map([[-20, 0], [90, 0]]).tolist(), "drivable": [strip(-2, 6).tolist()]}
    (tmp_path / "maps.json").write_text(json.dumps({"t3": around, "elsewhere": around}))
    return tmp_path / "log.pkl", tmp_path / "maps.json"


def saved(path: Path, **plans: Array) -> Path:
    np.savez(path, **plans)
    return path


def report(tmp_path: Path, **options: Any) -> Any:
    main(json=tmp_path / "result.json", **options)
    return json.loads((tmp_path / "result.json").read_text())


def test_frames_are_scored_by_cluster(tmp_path: Path, waymo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clusters.json").write_text('{"a": {"scenario_cluster": "Cyclist"}, "b": "Others"}')
    plans = saved(tmp_path / "plans.npz", **{"a-004": straight(6.0), "b-001": straight(8.0)})
    result = report(tmp_path, waymo=(waymo,), clusters=tmp_path / "clusters.json", predictions=plans)["waymo"]
    methods = result["methods"]
    assert result["frames"] == 3 and all(row["rated"] == 2 for row in methods.values())
    assert set(methods) == {GIVEN, CONSTANT, STANDING, REPLAY}
    assert methods[CONSTANT]["rfs"] == methods[REPLAY]["rfs"] == 9.0 and methods[REPLAY]["ade_5"] == 0.0
    assert methods[GIVEN]["clusters"]["Others"] == 9.0 and 5.0 <= methods[GIVEN]["clusters"]["Cyclist"] < 9.0
    assert methods[GIVEN]["rfs"] == pytest.approx(np.mean(list(methods[GIVEN]["clusters"].values())))
    assert methods[STANDING]["ade_3"] == pytest.approx(8.0 * np.mean(np.arange(1, 13)) / 4)
    assert "Cyclist" in capsys.readouterr().out


def test_clusters_weigh_the_same_whatever_their_size(waymo: Path, tmp_path: Path) -> None:
    many = tfrecord(tmp_path / "more", *(frame(f"a-{index}") for index in range(3)))
    plans = {"a-004": straight(8.0), "b-001": straight(0.0), **{f"a-{index}": straight(8.0) for index in range(3)}}
    row = measure_waymo([waymo, many], plans, {"a": "A", "b": "B"})["methods"][GIVEN]
    assert row["rated"] == 5 and row["rfs"] == (9.0 + 4.0) / 2


def test_displacement_is_from_what_the_raters_like_best() -> None:
    none = np.zeros((0, 2))
    rated = [
        States(np.c_[straight(speed)[:count], np.zeros(count)], none, none, score)
        for speed, count, score in ((2.0, 20, 3.0), (4.0, 12, 8.0))
    ]
    one = Frame("a-1", 0, rated[0], rated[0], "unknown", tuple(rated), {})
    assert displacement(straight(4.0), one, 3) == 0.0
    assert displacement(straight(4.0), one, 5) == pytest.approx(np.arange(1, 9).sum() / 20)  # the rated one ends early


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ({"a-004": straight(1.0)}, "no 'b-001'"),
        ({"a-004": straight(1.0)[:8], "b-001": straight(1.0)}, r"'a-004' has shape \(8, 2\), needed is \(20, 2\)"),
    ],
)
def test_incomplete_predictions_are_refused(tmp_path: Path, waymo: Path, plans: Any, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        main(waymo=(waymo,), predictions=saved(tmp_path / "plans.npz", **plans))


def test_unreadable_predictions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "b.npz").write_bytes(pickle.dumps([1]))
    np.savez(tmp_path / "c.npz", plan=np.array([{}], object))
    np.save(tmp_path / "d.npy", np.zeros(3))
    for name in ("a.npz", "b.npz", "c.npz", "d.npy", "e.npz"):
        with pytest.raises(ContractError, match=name):
            read_predictions(tmp_path / name)


def test_files_without_ratings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="1 frames have 0 ratings"):
        measure_waymo([tfrecord(tmp_path / "a", frame(rated=False))])


@pytest.mark.parametrize("version", [1, 2])
def test_scenes_of_navsim_are_scored(tmp_path: Path, navsim: tuple[Path, Path], version: Any) -> None:
    ahead = np.stack([2.0 * 0.5 * np.arange(1, 9), np.zeros(8), np.zeros(8)], -1)
    plans = saved(tmp_path / "plans.npz", t3=ahead)
    log, maps = navsim
    result = report(tmp_path, navsim=(log,), maps=maps, predictions=plans, version=version)["navsim"]
    methods = result["methods"]
    assert result["version"] == version and {row["scenes"] for row in methods.values()} == {1}
    assert methods[CONSTANT]["no_collision"] == methods[REPLAY]["no_collision"] == 0  # somebody stands in the way
    assert methods[GIVEN]["no_collision"] == methods[STANDING]["no_collision"] == 1
    assert methods[REPLAY]["total"] == 0 < methods[STANDING]["total"]


def test_scenarios_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(toy_scenario()))
    methods = report(tmp_path, scenarionet=(tmp_path / "a.pkl",))["scenarionet"]["methods"]
    assert set(methods) == {CONSTANT, STANDING, REPLAY} and methods[REPLAY]["total"] > methods[STANDING]["total"] > 0
    assert "log replay" in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path: Path, navsim: tuple[Path, Path]) -> None:
    with pytest.raises(ContractError, match="there are no logs"):
        main()
    with pytest.raises(ContractError, match="--navsim needs --maps"):
        main(navsim=navsim[:1])
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(ContractError, match="0 scenes to score"):
        main(navsim=navsim[:1], maps=tmp_path / "none.json")


def test_the_report_is_a_table_per_dataset(waymo: Path) -> None:
    text = as_text({"waymo": measure_waymo([waymo])})
    assert text.splitlines()[0].split() == ["waymo", "scenes", "rfs", "ade_3", "ade_5"]
    assert len(text.splitlines()) == 4
