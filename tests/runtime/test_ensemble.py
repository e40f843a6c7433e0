"""Parents beside each other: real graphs that really stall and fail, and what the others make of it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_ensemble import FAIL, NAN, SPEC, STALL, make, planned, request

from policies.runtime.ensemble import Ensemble
from policies.runtime.worker import InferenceWorker, Request
from policies.spec import Array, ContractError, Spec

PATIENCE_S = 0.4  # of which the parent that answers needs a hundredth at most
NAMES = ("parent_0 (Tiny)", "parent_1 (Tiny)")


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return make()


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Leave what is started here that many cores at most."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usual)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


def pair(values: list[float], index: int, other: float) -> tuple[float, float]:
    """Values of both parents, with another one for the parent ``index``."""
    return (other, values[1]) if index == 0 else (values[0], other)


def test_parents_are_blended_by_their_weights(ensemble: Ensemble) -> None:
    np.testing.assert_allclose(ensemble.act(*request(1.0, 3.0)), planned(1.5), atol=1e-6)
    assert ensemble.disagreement == pytest.approx(np.sqrt(0.75 * 0.25) * 2)
    np.testing.assert_allclose(ensemble.act(*request(2.0, 2.0)), planned(2.0), atol=1e-6)
    assert ensemble.disagreement == pytest.approx(0, abs=1e-6) and ensemble.warning == ""


def test_each_parent_sees_its_own_history(ensemble: Ensemble) -> None:
    observation, *rest = request(1.0, 3.0)
    for name, seen in (("pose", 1), ("scan", 2)):
        observation[name][:-seen] = 100.0
    np.testing.assert_allclose(ensemble.act(observation, *rest), planned(1.5), atol=1e-6)


def test_held_actions_stay_and_limits_hold(ensemble: Ensemble) -> None:
    observation, noise, committed, hold = request(1.0, 3.0)
    committed[:], hold[:3] = -1.5, 1
    actions = ensemble.act(observation, noise, committed, hold)
    np.testing.assert_allclose(actions[:3], committed[:3], atol=1e-6)
    np.testing.assert_allclose(actions[3:], planned(1.5)[3:], atol=1e-6)
    np.testing.assert_array_equal(ensemble.act(*request(9.0, 9.0)), SPEC.action.clip(planned(9.0)))


def test_what_does_not_fit_is_named(ensemble: Ensemble) -> None:
    observation, noise, committed, hold = request(1.0, 3.0)
    with pytest.raises(ContractError, match="'pose' has shape"):
        ensemble.act(observation | {"pose": observation["pose"][:1]}, noise, committed, hold)
    with pytest.raises(ContractError, match=r"'noise' has shape \(7, 2\), the policy needs \(8, 2\)"):
        ensemble.act(observation, noise[1:], committed, hold)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="chooses cores with sched_setaffinity")
@pytest.mark.parametrize(("index", "count"), [(0, 1), (1, 1), (1, 2)])
def test_a_parent_that_stalls_is_left_out_until_it_is_back(index: int, count: int) -> None:
    values = [1.0, 3.0]
    with cores(count):
        ensemble = make()
    ensemble.patience_s = PATIENCE_S
    begin = time.monotonic()
    chunk = ensemble.act(*request(*pair(values, index, STALL)))
    assert time.monotonic() - begin < PATIENCE_S
    np.testing.assert_array_equal(chunk, planned(values[1 - index]))
    assert ensemble.warning.startswith(f"{NAMES[index]} is left out since ")
    assert "no answer within" in ensemble.warning and NAMES[1 - index] not in ensemble.warning
    assert ensemble.disagreement == 0

    warning, ensemble.patience_s = ensemble.warning, 1e6  # nobody waits for it while it is busy
    np.testing.assert_array_equal(ensemble.act(*request(*values)), planned(values[1 - index]))
    assert ensemble.warning == warning
    while ensemble.warning:  # the test's time limit ends a wait in vain
        time.sleep(0.01)
        ensemble.act(*request(*values))
    np.testing.assert_allclose(ensemble.act(*request(*values)), planned(1.5), atol=1e-6)


@pytest.mark.parametrize(("code", "reason"), [(NAN, "its estimate is not finite"), (FAIL, "out of data bounds")])
@pytest.mark.parametrize("index", [0, 1])
def test_a_parent_that_fails_is_left_out_at_once(ensemble: Ensemble, index: int, code: float, reason: str) -> None:
    values = [1.0, 3.0]
    for _ in range(2):
        chunk = ensemble.act(*request(*pair(values, index, code)))
        np.testing.assert_array_equal(chunk, planned(values[1 - index]))
        assert NAMES[index] in ensemble.warning and reason in ensemble.warning
    np.testing.assert_allclose(ensemble.act(*request(*values)), planned(1.5), atol=1e-6)
    assert ensemble.warning == ""


def test_without_any_parent_there_is_an_error_that_names_all_and_it_ends(ensemble: Ensemble) -> None:
    with pytest.raises(ContractError, match=r"no parent answers.*parent_0.*not finite.*parent_1.*bounds"):
        ensemble.act(*request(NAN, FAIL))
    np.testing.assert_allclose(ensemble.act(*request(1.0, 3.0)), planned(1.5), atol=1e-6)


def test_when_all_stall_there_is_an_error_until_one_is_back() -> None:
    ensemble = make()
    ensemble.patience_s = 0.1
    message = r"no parent answers.*parent_0 \(Tiny\).*no answer within.*parent_1 \(Tiny\).*no answer within"
    for _ in range(2):
        with pytest.raises(ContractError, match=message):
            ensemble.act(*request(STALL, STALL))
    while ensemble.warning:
        try:
            ensemble.act(*request(1.0, 3.0))
        except ContractError as error:
            assert "no parent answers" in str(error)
        time.sleep(0.01)
    np.testing.assert_allclose(ensemble.act(*request(1.0, 3.0)), planned(1.5), atol=1e-6)


def test_slow_parents_are_waited_for_when_nobody_limits_the_patience() -> None:
    ensemble = make(turns=4000)
    ensemble.act(*request(STALL, STALL))
    assert ensemble.warning == ""


def test_beyond_the_end_of_the_parent_that_is_left_its_last_action_goes_on() -> None:
    ensemble = make(ends=(8, 5))
    both = ensemble.act(*request(1.0, 3.0))
    np.testing.assert_allclose(both[:5], planned(1.5)[:5], atol=1e-6)
    np.testing.assert_array_equal(both[5:], planned(1.0)[5:])
    np.testing.assert_array_equal(ensemble.act(*request(NAN, 3.0)), planned(3.0))


def test_a_parent_that_only_pushes_away_never_drives_alone() -> None:
    ensemble = make(weights=(2.0, -1.0))
    np.testing.assert_allclose(ensemble.act(*request(1.0, 0.5)), planned(1.5), atol=1e-6)
    np.testing.assert_array_equal(ensemble.act(*request(1.0, NAN)), planned(1.0))
    with pytest.raises(ContractError, match="no parent answers that could drive"):
        ensemble.act(*request(NAN, 0.5))


def test_threads_end_with_the_policy_also_when_one_is_stuck() -> None:
    gc.collect()
    before = threading.active_count()
    ensemble = make()
    assert threading.active_count() == before + 2
    ensemble.patience_s = 0.1
    ensemble.act(*request(1.0, STALL))
    del ensemble
    gc.collect()
    while threading.active_count() > before:  # the test's time limit ends a wait in vain
        time.sleep(0.01)


def test_a_process_ends_in_order_while_a_parent_is_stuck() -> None:
    code = "from tiny_ensemble import *; e = make(); e.patience_s = 0.1; e.act(*request(1.0, STALL)); print(e.warning)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "parent_1" in done.stdout


def load(path: str) -> Ensemble:
    """Loader of the inference process."""
    return make()


def ask(worker: InferenceWorker, spec: Spec, *values: float) -> tuple[Array, str, str]:
    """Actions, error and warning that a worker answers."""
    sequence = worker.submit(Request(0.0, *request(*values)))
    while (result := worker.latest()) is None or result.sequence != sequence:
        time.sleep(1e-3)
    return result.actions, result.error, result.warning


def test_the_inference_process_limits_the_patience_and_passes_the_warning_on() -> None:
    with InferenceWorker("", "test_ensemble:load", SPEC) as worker:
        worker.wait_ready()
        actions, error, warning = ask(worker, SPEC, 1.0, STALL)
        np.testing.assert_array_equal(actions, planned(1.0))
        assert error == "" and warning.startswith("parent_1 (Tiny) is left out since ")
        actions, error, warning = ask(worker, SPEC, NAN, 3.0)
        assert "no parent answers" in error and "parent_0" in warning and "parent_1" in warning
        while warning:
            actions, error, warning = ask(worker, SPEC, 1.0, 3.0)
        np.testing.assert_allclose(actions, planned(1.5), atol=1e-6)


def test_the_module_needs_no_torch() -> None:
    code = "import sys; import policies.runtime.ensemble; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
