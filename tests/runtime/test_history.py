from __future__ import annotations

import numpy as np
import pytest
from toy_policies import SPEC, observation

from policies.runtime.history import History
from policies.spec import ActionSpec, ContractError, Feature, Spec


def goals(history: History) -> list[float]:
    return history.window()["goal"][:, 0].tolist()


def make(length: int) -> History:
    action = ActionSpec(("vx",), ("m/s",), "base_link", (-1.0,), (1.0,))
    return History(Spec((Feature("goal", (2,), "m", "map"),), action, 10.0, length, 8))


def goal(value: float) -> dict[str, np.ndarray]:
    return {"goal": np.full(2, value)}


def test_window_has_the_shapes_and_the_type_of_the_contract() -> None:
    history = History(SPEC)
    history.add(observation(1.0), 0.0)
    SPEC.check(history.window())
    assert all(array.dtype == np.float32 for array in history.window().values())


def test_first_sample_fills_the_past() -> None:
    history = make(4)
    history.add(goal(7.0), 3.0)
    assert goals(history) == [7, 7, 7, 7]
    history.add(goal(8.0), 3.1)
    assert goals(history) == [7, 7, 7, 8]


@pytest.mark.parametrize("sensor_hz", [10.0, 50.0, 83.0, 200.0, 1000.0])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_samples_are_one_policy_step_apart_at_any_sensor_rate(sensor_hz: float, length: int) -> None:
    history = make(length)
    for k in range(3000):
        history.add(goal(k / sensor_hz), k / sensor_hz)
    newest = 2999 / sensor_hz
    assert history.newest == newest
    wanted = newest - 0.1 * np.arange(length)[::-1]
    tolerance = max(0.5 / sensor_hz, 0.1 / 8) + 1e-3
    np.testing.assert_allclose(goals(history), wanted, atol=tolerance)
    assert goals(history)[-1] == pytest.approx(newest, rel=1e-6)


def test_older_and_repeated_stamps_are_dropped() -> None:
    history = make(2)
    assert history.add(goal(1.0), 1.0)
    assert not history.add(goal(2.0), 1.0)
    assert not history.add(goal(3.0), 0.5)
    assert goals(history) == [1, 1]


def test_clear_forgets_everything() -> None:
    history = make(2)
    history.add(goal(1.0), 5.0)
    history.clear()
    assert history.newest is None
    with pytest.raises(ContractError, match="0 observations"):
        history.window()
    assert history.add(goal(2.0), 1.0)
    assert goals(history) == [2, 2]


def test_wrong_observations_are_refused_by_name() -> None:
    history = make(2)
    with pytest.raises(ContractError, match="position"):
        history.add({"position": np.zeros(2)}, 0.0)
    with pytest.raises(ContractError, match=r"'goal' has shape \(1, 2\), one sample has \(2,\)"):
        history.add({"goal": np.zeros((1, 2))}, 0.0)
    with pytest.raises(ContractError, match="stamp is nan"):
        history.add(goal(1.0), float("nan"))
    assert history.newest is None


def test_constants_are_kept_once_and_bytes_stay_bytes() -> None:
    action = ActionSpec(("vx",), ("m/s",), "base_link", (-1.0,), (1.0,))
    camera = Feature("camera", (3, 2, 2), "1", "head_camera", "uint8")
    video = Feature("video", (4, 3, 2, 2), "1", "head_camera", "uint8", constant=True)
    history = History(Spec((camera, video), action, 10.0, 2, 8))
    for step in range(3):
        picture = np.full((3, 2, 2), 100 + step, np.uint8)
        history.add({"camera": picture, "video": np.full((4, 3, 2, 2), 200 + step, np.uint8)}, 0.1 * step)
    window = history.window()
    history._spec.check(window)
    assert window["camera"][:, 0, 0, 0].tolist() == [101, 102]
    assert window["video"].shape == (1, 4, 3, 2, 2) and (window["video"] == 202).all()
