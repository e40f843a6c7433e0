"""Frames of the Waymo end-to-end dataset, in files that are written here byte by byte."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_logs import floats, frame, message, slow_crc, slow_mask, states, straight, tfrecord, varint

from envs.logs.protobuf import WireError, fields
from envs.logs.tfrecord import crc32c, masked, records
from envs.logs.waymo_e2e import (
    CAMERAS,
    Frame,
    constant_velocity,
    encode_prediction,
    read_clusters,
    read_frames,
    write_submission,
)
from envs.metrics import rater_feedback_score
from policies.spec import ContractError


def read(path: Path, **more: Any) -> list[Frame]:
    return list(read_frames(path, **more))


@pytest.mark.parametrize("size", [0, 1, 3, 9, 4095, 4096, 4097, 70_001])
def test_the_fast_checksum_is_the_slow_one(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == slow_crc(data)
    assert masked(data) == slow_mask(data)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_everything_of_a_frame_is_read(tmp_path: Path) -> None:
    first, second = read(tfrecord(tmp_path / "a.tfrecord", frame(), frame("drive-005", rated=False)))
    assert (first.name, first.sequence, first.timestamp, first.intent) == (
        "drive-004",
        "drive",
        1_700_000_000_000_000,
        "left",
    )
    np.testing.assert_allclose(first.future.position[:, :2], straight(8.0), rtol=1e-6)
    np.testing.assert_allclose(first.past.position[-1], [0, 0, 0])
    assert first.past.position.shape == (16, 3) and first.past.acceleration.shape == (16, 2)
    assert first.future.velocity.shape == (0, 2)
    assert first.speed == 8.0
    assert first.images == {CAMERAS[7]: b"\xff\xd8jpeg"}
    assert [state.score for state in first.preferences] == [9.0, 5.0, 1.0]
    assert [state.score for state in second.preferences] == [None] * 3
    assert read(tmp_path / "a.tfrecord", images=False)[0].images == {}


def test_ratings_score_plans(tmp_path: Path) -> None:
    (found,) = read(tfrecord(tmp_path / "a", frame()))
    plans = np.stack([straight(8.0), straight(6.0), straight(4.0)])
    score = found.rater_feedback_score(plans)
    np.testing.assert_allclose(score, rater_feedback_score(plans, *found.rated, 8.0))
    assert score[0] == 9.0 and (np.diff(score) < 0).all()
    np.testing.assert_allclose(constant_velocity(found), straight(8.0))


def test_a_frame_that_nobody_has_rated_is_not_scored(tmp_path: Path) -> None:
    (found,) = read(tfrecord(tmp_path / "a", frame(rated=False)))
    with pytest.raises(ContractError, match=r"drive-004.*0 rated trajectories"):
        found.rater_feedback_score(straight(8.0)[None])


def test_pictures_are_not_decoded_twice(tmp_path: Path) -> None:
    path = tfrecord(tmp_path / "a", frame(image=bytes(100_000)))
    tracemalloc.start()
    read(path, images=False)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 5_000_000


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-3], r"ends within the record at byte 0"),
        (lambda data: data[:7], r"ends within the record at byte 0"),
        (lambda data: data + b"\x01", r"ends within the record at byte \d{3,}"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], r"record at byte 0 has another checksum"),
        (lambda data: b"\x1f\x8b" + data[2:], r"no record at byte 0.*unpack it"),
        (lambda data: b"", r"^$"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Any, said: str) -> None:
    path = tfrecord(tmp_path / "drive.tfrecord", frame())
    path.write_bytes(damage(path.read_bytes()))
    if said == "^$":
        assert read(path) == []  # a file without records is one
        return
    with pytest.raises(ContractError, match=said) as refusal:
        read(path)
    assert "drive.tfrecord" in str(refusal.value)


def test_a_record_of_terabytes_is_refused(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 60)
    (tmp_path / "a").write_bytes(length + struct.pack("<I", slow_mask(length)) + bytes(100))
    with pytest.raises(ContractError, match="record of 1152921504606846976 bytes"):
        list(records(tmp_path / "a"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no frame with a name"),
        (message(1, b""), "no frame with a name"),
        (b"\x0a\x7f\x01", r"field 1 does not fit.*byte 12"),
        (message(1, message(1, b"\x0a\x05ab")), r"field 1 does not fit.*byte 16"),
        (b"\x80" * 11, r"a number does not end.*byte 12"),
        (b"\x0b", "no kind 3 of fields"),
        (frame() + message(5, message(1, b"abc")), "no whole numbers of 4 bytes"),
        (frame() + message(5, floats(1, np.ones(3)) + floats(2, np.ones(2))), "equally many"),
        (frame() + message(6, floats(1, [np.nan]) + floats(2, [0.0])), "not finite"),
        (frame() + message(8, states(straight(1.0), score=11.0)), r"preference score is 11, allowed is \[0, 10\]"),
        (frame() + varint(6 << 3) + varint(1), "field 6 is of kind 0"),
        (message(1, message(1, message(1, b"\xff\xfe"))), "field 1 is no text"),
    ],
)
def test_other_messages_are_refused(tmp_path: Path, body: bytes, said: str) -> None:
    path = tfrecord(tmp_path / "drive.tfrecord", body)
    with pytest.raises(ContractError, match=said) as refusal:
        read(path)
    assert "drive.tfrecord" in str(refusal.value)


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_end_in_a_refusal_or_in_fields(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(300):
        data = rng.bytes(int(rng.integers(0, 40)))
        try:
            found = list(fields(data))
        except WireError as error:
            assert 0 <= error.position <= len(data)
        else:
            assert all(0 <= one.begin <= one.end <= len(data) for one in found)


def test_cut_frames_are_refused_or_read(tmp_path: Path) -> None:
    body = frame()
    for size in range(0, len(body), 17):
        try:
            read(tfrecord(tmp_path / "a", body[:size]))
        except ContractError as error:
            assert str(tmp_path / "a") in str(error)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"nowhere\.tfrecord cannot be read"):
        read(tmp_path / "nowhere.tfrecord")


def test_clusters_are_read(tmp_path: Path) -> None:
    path = tmp_path / "clusters.json"
    path.write_text('{"a": {"scenario_cluster": "Cyclist"}, "b": "Others"}')
    assert read_clusters(path) == {"a": "Cyclist", "b": "Others"}
    for text in ("[1]", '{"a": 1}', "{", '{"a": {}}'):
        path.write_text(text)
        with pytest.raises(ContractError, match=r"clusters\.json"):
            read_clusters(path)


def schema() -> Any:
    """The messages of the dataset that are read or written, built with Google's own package."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="e2e.proto", package="e2e", syntax="proto2")
    kinds = {"text": 9, "bytes": 12, "int": 3, "float": 2, "bool": 8}

    def add(name: str, /, **parts: tuple[int, str, bool]) -> None:
        kind = file.message_type.add(name=name)
        for field, (number, of, repeated) in parts.items():
            made = kind.field.add(name=field, number=number, label=3 if repeated else 1, type=kinds.get(of, 11))
            if of not in kinds:
                made.type_name = f".e2e.{of}"
            elif of == "float" and repeated:
                made.options.packed = True

    columns = ("pos_x", "pos_y", "pos_z", "vel_x", "vel_y", "accel_x", "accel_y")
    add("Context", name=(1, "text", False))
    add("Image", name=(1, "int", False), image=(2, "bytes", False))
    add("Inner", context=(1, "Context", False), timestamp_micros=(2, "int", False), images=(4, "Image", True))
    numbers = {name: (index + 1, "float", True) for index, name in enumerate(columns)}
    add("States", **numbers, preference_score=(8, "float", False))
    parts = {"future": (5, "States", False), "past": (6, "States", False), "intent": (7, "int", False)}
    add("Frame", frame=(1, "Inner", False), **parts, preferences=(8, "States", True))
    add("Trajectory", pos_x=(1, "float", True), pos_y=(2, "float", True))
    add("Prediction", frame_name=(1, "text", False), trajectory=(2, "Trajectory", False))
    texts = {"account": (3, "text", False), "method": (4, "text", False), "parameters": (12, "text", False)}
    numbers = {"kind": (2, "int", False), "pretrained": (11, "bool", False)}
    add("Submission", predictions=(1, "Prediction", True), **texts, **numbers)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"e2e.{name}"))


def test_what_protobuf_writes_is_read(tmp_path: Path) -> None:
    given = schema()("Frame")()
    given.frame.context.name = "ä-1"
    given.frame.timestamp_micros = 2**40
    for camera in (1, 8, 12):
        given.frame.images.add(name=camera, image=bytes([camera]))
    given.past.pos_x.extend([1.5, 2.5])
    given.past.pos_y.extend([0.5, -0.5])
    given.past.pos_z.extend([3.0, 4.0])
    given.past.vel_x.extend([3.0, 3.0])
    given.past.vel_y.extend([4.0, 4.0])
    given.intent = 3
    given.preferences.add(pos_x=[1.0], pos_y=[2.0], preference_score=7.5)
    (found,) = read(tfrecord(tmp_path / "a", given.SerializeToString()))
    assert (found.name, found.timestamp, found.intent, found.speed) == ("ä-1", 2**40, "right", 5.0)
    assert found.images == {"front": b"\x01", "rear_right": b"\x08", "camera_12": b"\x0c"}
    np.testing.assert_array_equal(found.past.position, [[1.5, 0.5, 3], [2.5, -0.5, 4]])
    trajectories, labels = found.rated
    np.testing.assert_array_equal(trajectories[0], [[1, 2]])
    assert labels.tolist() == [7.5] and not len(found.future.position)


def test_protobuf_reads_what_is_written(tmp_path: Path) -> None:
    kinds, plan = schema(), straight(3.0) + np.array([0, 0.25])
    one = kinds("Prediction").FromString(encode_prediction("drive-1", plan))
    assert one.frame_name == "drive-1"
    np.testing.assert_allclose(np.stack([one.trajectory.pos_x, one.trajectory.pos_y], -1), plan, rtol=1e-6)
    about = {"account": "me@example.org", "method": "flow", "parameters": "200K", "pretrained": True}
    write_submission(tmp_path / "all.bin", {"drive-1": plan, "drive-2": -plan}, **about)
    every = kinds("Submission").FromString((tmp_path / "all.bin").read_bytes())
    assert [entry.frame_name for entry in every.predictions] == ["drive-1", "drive-2"]
    assert {name: getattr(every, name) for name in about} == about and every.kind == 1


def test_incomplete_submissions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"'drive-1' has shape \(19, 2\)"):
        encode_prediction("drive-1", straight(3.0)[1:])
    with pytest.raises(ContractError, match="has no name"):
        encode_prediction("", straight(3.0))
    with pytest.raises(ContractError, match="0 plans"):
        write_submission(tmp_path / "a", {}, account="a", method="b", parameters="1K", pretrained=False)
