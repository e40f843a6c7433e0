import dataclasses

import numpy as np
import pytest

from policies.spec import ActionSpec, ContractError, Feature, Spec

ACTION = ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-0.3, -1.0), (0.6, 1.0))
SPEC = Spec((Feature("goal", (2,), "m", "base_link"), Feature("scan", (8,), "m", "base_link")), ACTION, 10.0, 3, 16)


def observation() -> dict[str, np.ndarray]:
    return {"goal": np.zeros((3, 2), np.float32), "scan": np.ones((3, 8), np.float32)}


def test_a_fitting_observation_passes() -> None:
    SPEC.check(observation())


@pytest.mark.parametrize("change", [{"goal": None}, {"extra": np.zeros(3)}])
def test_missing_and_unknown_features_are_named(change: dict) -> None:
    changed = {k: v for k, v in (observation() | change).items() if v is not None}
    with pytest.raises(ContractError, match=r"goal.*scan"):
        SPEC.check(changed)


def test_a_wrong_shape_names_the_feature_and_both_shapes() -> None:
    with pytest.raises(ContractError, match=r"'scan' has shape \(8,\), the policy needs \(3, 8\)"):
        SPEC.check(observation() | {"scan": np.ones(8, np.float32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_must_be_finite(bad: float) -> None:
    broken = observation()
    broken["goal"][1, 0] = bad
    with pytest.raises(ContractError, match="'goal' is not finite"):
        SPEC.check(broken)


def test_json_round_trip() -> None:
    assert Spec.from_json(SPEC.to_json()) == SPEC


def test_incomplete_json_is_refused() -> None:
    data = SPEC.to_json()
    del data["rate_hz"]
    with pytest.raises(ContractError, match="rate_hz"):
        Spec.from_json(data)


def test_history_and_horizon_are_the_policys_own() -> None:
    SPEC.require(dataclasses.replace(SPEC, history=1, horizon=1))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(SPEC, observations=SPEC.observations[:1]), "'scan'"),
        (dataclasses.replace(SPEC, observations=(Feature("goal", (2,), "m", "map"), SPEC.observations[1])), "'goal'"),
        (dataclasses.replace(SPEC, action=dataclasses.replace(ACTION, units=("m/s", "1"))), "action units"),
        (dataclasses.replace(SPEC, action=dataclasses.replace(ACTION, names=("vx", "vy"))), "action names"),
        (dataclasses.replace(SPEC, rate_hz=16.0), "rate_hz"),
    ],
)
def test_every_difference_between_two_contracts_is_named(other: Spec, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        SPEC.require(other)


def test_clipping_keeps_shape_and_limits() -> None:
    clipped = ACTION.clip(np.array([[9.0, -9.0], [0.1, 0.2]], np.float32))
    np.testing.assert_allclose(clipped, [[0.6, -1.0], [0.1, 0.2]], rtol=1e-6)


CAMERA = Feature("camera", (3, 4, 4), "1", "head_camera", "uint8")
TEXT = Feature("instruction", (6,), "1", "text", "uint8", constant=True)
SEEING = dataclasses.replace(SPEC, observations=(CAMERA, TEXT))


def test_pictures_are_bytes_and_constants_have_no_history() -> None:
    seen = {"camera": np.zeros((3, 3, 4, 4), np.uint8), "instruction": np.zeros((1, 6), np.uint8)}
    SEEING.check(seen)
    assert Spec.from_json(SEEING.to_json()) == SEEING
    with pytest.raises(ContractError, match=r"'instruction' has shape \(3, 6\), the policy needs \(1, 6\)"):
        SEEING.check(seen | {"instruction": np.zeros((3, 6), np.uint8)})
    with pytest.raises(ContractError, match="'camera' is float32, the policy needs uint8"):
        SEEING.check(seen | {"camera": np.zeros((3, 3, 4, 4), np.float32)})


def test_floats_do_not_stand_in_for_bytes_nor_a_sensor_for_a_constant() -> None:
    for change in ({"dtype": "float32"}, {"constant": False}):
        other = dataclasses.replace(SEEING, observations=(CAMERA, dataclasses.replace(TEXT, **change)))
        with pytest.raises(ContractError, match="observation 'instruction'"):
            SEEING.require(other)
