"""Logs of NAVSIM, in pickles that are written here, and pickles that want more than to be read."""

from __future__ import annotations

import builtins
import collections
import json
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_logs import SPEED, TURN, entry, strip, to_map

from envs.logs.navsim import MapExtract, read_extracts, read_frames, scenes
from envs.logs.pickles import read_pickle
from envs.metrics import Lane, pdm_score
from envs.metrics.tracker import sampled
from policies.spec import ContractError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles as a call: whoever loads it the usual way makes it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def log(path: Path, count: int = 14, protocol: int = 4, **changes: Any) -> Path:
    path.write_bytes(pickle.dumps([entry(index, **changes) for index in range(count)], protocol=protocol))
    return path


def extract(**changes: Any) -> MapExtract:
    lanes = [Lane(strip(-2, 2)), Lane(strip(2, 6), on_route=False)]
    given = {"lanes": lanes, "centreline": to_map([[-20, 0], [90, 0]]), "drivable": [strip(-2, 6)], "speed_limit": 13.0}
    return MapExtract(**{**given, **changes})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_survive_every_protocol(tmp_path: Path, protocol: int) -> None:
    shared = [1, 2]
    given = {
        "numbers": [1, -2.5, True, None, 10**30],
        "texts": ("a", "ä", b"", b"\xff\x00", ""),
        "sets": {1, 2},
        "ordered": collections.OrderedDict(b=1, a=2),
        "counts": collections.defaultdict(int, b=1),
        "counter": collections.Counter("aab"),
        "shared": [shared, shared],
        "arrays": [
            np.arange(6.0).reshape(2, 3),
            np.arange(6, dtype=np.int16).reshape(2, 3).T,
            np.array([True, False]),
            np.zeros((0, 7), np.float32),
            np.array(3.5),
            np.array(["ab", "c"]),
            np.array([b"ab"]),
            np.array([{"a": 1}, None, "text"], object),
            np.float64(2.5),
            np.bool_(True),
            np.str_("word"),
        ],
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(given, protocol=protocol))
    found = read_pickle(tmp_path / "a.pkl")
    for array, expected in zip(found.pop("arrays"), given.pop("arrays"), strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)
    assert found == given and all(type(found[name]) is dict for name in ("ordered", "counts", "counter"))
    assert found["shared"][0] is found["shared"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"posix\.system"),
        (builtins.eval, r"(builtins|__builtin__)\.eval"),
        (builtins.getattr, r"(builtins|__builtin__)\.getattr"),
        (np.load, r"numpy\.load"),
    ],
)
def test_a_pickle_that_runs_something_is_refused_and_runs_nothing(
    tmp_path: Path, function: Any, name: str, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    hidden = collections.OrderedDict(deep=[entry(0), (Call(function, f"touch {trace}"),)])
    (tmp_path / "log.pkl").write_bytes(pickle.dumps([hidden], protocol=protocol))
    with pytest.raises(ContractError, match=rf"log\.pkl wants to run '{name}' before byte \d+.*nothing was run"):
        read_frames(tmp_path / "log.pkl")
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch trace'\ntR.",
        b"(S'touch trace'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch trace\x85R.",
        b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__init__.__globals__\x93.",
        b"cnumpy\nndarray\n(S'__class__'\nS'x'\ndb.",
        b"cnumpy\ndtype\n}S'__setstate__'\nS'x'\nsb.",
        b"\x82\x01.",
        b"Ppersistent\n.",
    ],
)
def test_hand_made_programs_are_refused(tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.pkl").write_bytes(program)
    with pytest.raises(ContractError, match=r"log\.pkl"):
        read_frames(Path("log.pkl"))
    assert [path.name for path in tmp_path.iterdir()] == ["log.pkl"]


def test_records_are_inert() -> None:
    """Nothing that a pickle may name is real: a list of names cannot become a way to call something."""
    from envs.logs.pickles import KNOWN
    from policies.pickles import Record

    assert not callable(Record()) and not KNOWN.fullmatch("numpy.core.multiarray.fromfile")
    assert not KNOWN.fullmatch("builtins.eval") and not KNOWN.fullmatch("collections.OrderedDict.x")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_cut_logs_are_refused(tmp_path: Path, share: float) -> None:
    path = log(tmp_path / "log.pkl")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ContractError, match=r"log\.pkl is damaged or no pickle, near byte \d+.*copy it again"):
        read_frames(path)


def test_changed_bytes_never_run_anything(tmp_path: Path) -> None:
    path = log(tmp_path / "log.pkl", count=1)
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for place in rng.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            read_frames(path)
        except ContractError as error:
            assert "log.pkl" in str(error)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 1}, "holds a dict, needed is a list"),
        ([1], "frame 0 is not as NAVSIM writes it"),
        ([{**entry(0), "anns": None}], "frame 0 is not as"),
        ([entry(0), {key: value for key, value in entry(1).items() if key != "token"}], "frame 1.*'token'"),
        ([entry(0, ego2global_rotation=[0, 0, 0, 0])], "frame 0: ego2global_rotation has length 0"),
        ([entry(0, ego2global_translation=[np.nan, 0, 0])], "frame 0: ego2global_translation is not finite"),
        ([entry(0, ego_dynamic_state=[1, 2])], r"ego_dynamic_state has shape \(2,\)"),
        ([entry(0, anns={**entry(0)["anns"], "track_tokens": ["one"]})], "1 track_tokens for 2 boxes"),
        ([entry(0, anns={**entry(0)["anns"], "gt_boxes": np.zeros((2, 6))})], "frame 0"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, value: Any, said: str) -> None:
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ContractError, match=said) as refusal:
        read_frames(tmp_path / "log.pkl")
    assert "log.pkl" in str(refusal.value)


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        read_frames(tmp_path / "nowhere.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_everything_of_a_frame_is_read(tmp_path: Path, protocol: int) -> None:
    frames = read_frames(log(tmp_path / "log.pkl", protocol=protocol))
    second = frames[1]
    assert (second.token, second.log, second.place, second.command) == (
        "t1",
        "log",
        "us-nv-las-vegas-strip",
        "straight",
    )
    np.testing.assert_allclose(second.pose, [*to_map([3.0, 0.0]), TURN])
    assert second.velocity.tolist() == [SPEED, 0.1] and second.acceleration.tolist() == [0.4, 0.0]
    assert second.lights == (("4711", True), ("4712", False)) and second.roadblocks == ("17", "18")
    assert second.cameras == {"cam_f0": "CAM_F0/a.jpg"}
    assert second.annotations.names == ("vehicle", "pedestrian") and second.annotations.boxes.shape == (2, 7)


def test_a_scene_is_what_was_recorded(tmp_path: Path) -> None:
    (scene,) = scenes(read_frames(log(tmp_path / "log.pkl")))
    assert scene.now.token == "t3" and len(scene.frames) == 14
    ahead = SPEED * 0.5 * np.arange(1, 11)
    np.testing.assert_allclose(scene.future, np.stack([ahead, 0 * ahead, 0 * ahead], -1)[None], atol=1e-6)
    users = scene.road_users
    assert users.kinds == ("vehicle", "pedestrian") and np.asarray(users.poses).shape == (2, 51, 3)
    np.testing.assert_allclose(np.asarray(users.poses)[0, :, :2], to_map([[30.0, 0.0]] * 51), atol=1e-3)
    np.testing.assert_allclose(np.asarray(users.poses)[1, 7, :2], to_map([20 + SPEED * 2.2, 5.0]), atol=1e-3)
    np.testing.assert_allclose(np.asarray(users.speeds)[1], SPEED, atol=1e-3)


def test_whoever_is_seen_once_is_there_once(tmp_path: Path) -> None:
    nobody = {key: value[:0] for key, value in entry(0)["anns"].items()}
    listed = [entry(index, **({} if index in (3, 4, 8) else {"anns": nobody})) for index in range(14)]
    (tmp_path / "log.pkl").write_bytes(pickle.dumps(listed))
    (scene,) = scenes(read_frames(tmp_path / "log.pkl"))
    there = np.flatnonzero(np.asarray(scene.road_users.valid)[0])
    assert there.tolist() == [0, 1, 2, 3, 4, 5, 25]


def test_an_empty_road_is_one(tmp_path: Path) -> None:
    nobody = {key: value[:0] for key, value in entry(0)["anns"].items()}
    (scene,) = scenes(read_frames(log(tmp_path / "log.pkl", anns=nobody)))
    assert scene.road_users.kinds == ()


def test_scenes_need_a_route_and_all_frames(tmp_path: Path) -> None:
    frames = read_frames(log(tmp_path / "log.pkl", count=20))
    assert len(list(scenes(frames))) == 7
    assert len(list(scenes(frames, every=14))) == 1
    gap = scenes([*frames[:9], *frames[10:]], future=2)
    assert [scene.now.token for scene in gap] == ["t3", "t4", "t5", "t6", "t13", "t14", "t15", "t16", "t17"]
    assert not list(scenes(read_frames(log(tmp_path / "log.pkl", count=20, roadblock_ids=[]))))
    with pytest.raises(ContractError, match="needed are positive numbers"):
        list(scenes(frames, history=0))


def test_the_recorded_drive_scores_better_than_a_crash(tmp_path: Path) -> None:
    (scene,) = scenes(read_frames(log(tmp_path / "log.pkl")))
    turned = SPEED * 0.5 * np.arange(1, 11) / 15
    around = np.stack([15 * np.sin(turned), 15 * np.cos(turned) - 15, -turned], -1)[None]
    plans = sampled(np.concatenate([0.3 * scene.future, scene.future, around]), 0.5, scene.now.pose)
    score = pdm_score(plans, scene.scored(extract()))
    assert score.no_collision.tolist() == [1, 0, 1] and score.drivable_area.tolist() == [1, 1, 0]
    assert score.total[0] > 0 and score.total[1] == score.total[2] == 0


def test_red_lights_close_their_lanes(tmp_path: Path) -> None:
    (scene,) = scenes(read_frames(log(tmp_path / "log.pkl")))
    connectors = {"4711": strip(-2, 2, 28, 34), "4712": strip(-2, 2, 22, 24)}
    scored = scene.scored(extract(connectors=connectors))
    assert len(scored.red_lights) == 1
    plan = sampled(scene.future, 0.5, scene.now.pose)
    assert pdm_score(plan, scored, version=2).traffic_light.tolist() == [0]
    assert pdm_score(sampled(0.3 * scene.future, 0.5, scene.now.pose), scored, version=2).traffic_light.tolist() == [1]


def test_maps_are_read(tmp_path: Path) -> None:
    path, lane = tmp_path / "maps.json", {"polygon": strip(-2, 2).tolist(), "on_route": True}
    path.write_text(json.dumps({"t3": {"lanes": [lane], "centreline": [[0, 0], [1, 1]], "speed_limit": 12.0}}))
    (found,) = read_extracts(path).values()
    assert found.speed_limit == 12.0 and found.lanes[0].on_route and found.centreline.shape == (2, 2)
    for text in ("{", "[]", '{"t3": {}}', '{"t3": {"lanes": [{"area": 1}], "centreline": []}}'):
        path.write_text(text)
        with pytest.raises(ContractError, match=r"maps\.json"):
            read_extracts(path)


def test_the_pickles_here_hold_what_numpy_writes() -> None:
    """Protocols 0 to 4 write arrays as a reconstruction, 5 as a buffer: both have to be read."""
    names = {
        protocol: {str(argument) for _, argument, _ in pickletools.genops(pickle.dumps(np.ones(3), protocol=protocol))}
        for protocol in (2, 5)
    }
    assert any("_reconstruct" in name for name in names[2]) and any("_frombuffer" in name for name in names[5])
