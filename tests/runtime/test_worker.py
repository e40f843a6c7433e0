from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import numpy as np
import pytest
from toy_policies import LARGE, SPEC, Arriving, Follow, observation

from policies.runtime.slot import HEADER_BYTES, Slot
from policies.runtime.worker import BatchWorker, InferenceWorker, InlineWorker, Request, Result, Worker, WorkerError
from policies.spec import Spec

LOADER = "toy_policies:load"


def request(stamp: float, value: float = 0.5, hold: float = 0.0, spec: Spec = SPEC) -> Request:
    history = {name: np.stack([array] * spec.history) for name, array in observation(value, spec).items()}
    shape = (spec.horizon, spec.action.dim)
    return Request(
        stamp, history, np.ones(shape, np.float32), np.full(shape, -2.0), np.full(spec.horizon, hold, np.float32)
    )


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must happen; the test's time limit ends a wait in vain."""
    while not condition():
        time.sleep(1e-3)


def answer(worker: Worker, sequence: int) -> Result:
    """Wait for the answer to one request."""
    while True:
        result = worker.latest()
        if result is not None and result.sequence == sequence:
            return result
        time.sleep(1e-3)


def resources() -> tuple[int, list[str]]:
    """Open files of this process and everything in shared memory that multiprocessing names."""
    memory = Path("/dev/shm")
    named = [path.name for path in memory.iterdir()] if memory.is_dir() else []
    return len(os.listdir("/proc/self/fd")), sorted(
        name for name in named if name.startswith(("psm_", "sem.mp", "pym"))
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[InferenceWorker]:
    with InferenceWorker("follow", LOADER, SPEC) as running:
        running.wait_ready()
        yield running


def test_answer_matches_the_inline_worker(worker: InferenceWorker) -> None:
    inline = InlineWorker(Follow())
    for hold in (0.0, 0.25, 1.0):
        question = request(stamp=12.5, value=0.75, hold=hold)
        remote, local = answer(worker, worker.submit(question)), answer(inline, inline.submit(question))
        np.testing.assert_array_equal(remote.actions, local.actions)
        assert remote.actions.dtype == np.float32
        assert remote.stamp == local.stamp == 12.5 and remote.error == ""
        assert remote.seconds > 0


def test_arrival_comes_through_every_worker() -> None:
    with InferenceWorker("arriving", LOADER, SPEC) as process:
        process.wait_ready()
        for value in (0.75, 0.0, 0.25):
            for worker in (process, InlineWorker(Arriving())):
                assert answer(worker, worker.submit(request(1.0, value))).arrival == value
    silent = InlineWorker(Follow())
    assert answer(silent, silent.submit(request(1.0))).arrival == 0


def test_every_robot_of_a_batch_arrives_by_itself() -> None:
    policy, values = Arriving(), (0.25, 1.0, 0.0)
    workers = [BatchWorker(policy) for _ in values]
    numbers = [worker.submit(request(1.0, value)) for worker, value in zip(workers, values, strict=True)]
    BatchWorker.answer(workers)
    results = [answer(worker, number) for worker, number in zip(workers, numbers, strict=True)]
    assert [result.arrival for result in results] == [0.25, 1.0, 0.0]
    assert [float(result.actions[0, 0]) for result in results] == [0.25, 1.0, 0.0]


def test_every_result_is_returned_once(worker: InferenceWorker) -> None:
    result = answer(worker, worker.submit(request(1.0)))
    assert worker.latest() is None
    following = answer(worker, worker.submit(request(2.0, value=0.1)))
    assert result.actions[0, 0] == 0.5 and following.actions[0, 0] == np.float32(0.1)


def test_error_of_the_policy_comes_back_as_text_and_the_process_goes_on(worker: InferenceWorker) -> None:
    result = answer(worker, worker.submit(request(3.0, value=float("nan"))))
    assert result.error.startswith("ContractError: observation 'goal' is not finite")
    assert not result.actions.any() and result.stamp == 3.0
    assert worker.alive
    assert answer(worker, worker.submit(request(4.0))).error == ""


def test_worker_is_warm_and_has_one_numeric_thread() -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    with InferenceWorker("process", LOADER, SPEC, warm_up=5) as worker:
        worker.wait_ready()
        worker.wait_ready()
        result = answer(worker, worker.submit(request(0.0)))
        assert worker.warm_up_s > 0
    assert result.actions[0].tolist() == [1, 6]
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_latest_request_wins() -> None:
    with InferenceWorker("slow", LOADER, SPEC, warm_up=1) as worker:
        worker.wait_ready()
        numbers = [worker.submit(request(float(k))) for k in range(20)]
        seen: list[Result] = []
        while not seen or seen[-1].sequence != numbers[-1]:
            result = worker.latest()
            seen += [] if result is None else [result]
            time.sleep(1e-3)
    assert len(seen) < len(numbers)
    assert [result.sequence for result in seen] == sorted(result.sequence for result in seen)
    assert all(result.stamp == numbers.index(result.sequence) for result in seen)


def test_no_torn_observation_under_a_flood_of_requests() -> None:
    with InferenceWorker("large", LOADER, LARGE, warm_up=1) as worker:
        worker.wait_ready()
        answers = 0
        questions = [request(float(k), value=float(k), spec=LARGE) for k in range(50)]
        while answers < 200:
            for question in questions:
                worker.submit(question)
                result = worker.latest()
                if result is not None:
                    answers += 1
                    assert (result.actions == result.stamp).all()


def test_slot_refuses_a_record_that_is_half_written() -> None:
    kind = np.dtype([("value", np.float32, (3,))])
    memory = RawArray(ctypes.c_ubyte, HEADER_BYTES + kind.itemsize)
    writer, reader = Slot(memory, kind), Slot(memory, kind)
    assert not reader.refresh()
    writer.record["value"] = [1, 2, 3]
    assert writer.publish() == 2
    raw = memoryview(memory)
    header, payload = np.frombuffer(raw, np.int64, 2), np.frombuffer(raw, np.float32, offset=HEADER_BYTES)
    header[0] = 3
    assert not reader.refresh()
    header[0] = 4
    payload[1] = 9
    assert not reader.refresh()
    payload[1] = 2
    assert reader.refresh() and reader.record["value"].tolist() == [1, 2, 3] and reader.sequence == 4
    assert not reader.refresh()


@pytest.mark.parametrize(
    ("path", "loader", "spec", "message"),
    [
        ("missing", LOADER, SPEC, "KeyError: 'missing'"),
        ("follow", "no_such_module:load", SPEC, "ModuleNotFoundError"),
        ("follow", LOADER, LARGE, "ContractError: 'follow' has the contract"),
        ("die", LOADER, SPEC, "died while it loaded"),
    ],
)
def test_failure_to_load_is_explained(path: str, loader: str, spec: Spec, message: str) -> None:
    with InferenceWorker(path, loader, spec) as worker:
        with pytest.raises(WorkerError, match=message):
            worker.wait_ready()
        until(lambda: not worker.alive)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_killed_worker_is_noticed_and_leaves_nothing_behind() -> None:
    InferenceWorker("follow", LOADER, SPEC).close()  # starts what multiprocessing keeps for good
    before = resources()
    worker = InferenceWorker("follow", LOADER, SPEC)
    worker.wait_ready()
    assert worker.alive and worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: not worker.alive)
    for stamp in range(3):
        worker.submit(request(float(stamp)))
    assert worker.latest() is None
    worker.close()
    assert resources() == before


def test_close_ends_a_loading_a_stuck_and_a_closed_worker() -> None:
    with InferenceWorker("follow", LOADER, SPEC) as loading:
        pass
    stuck = InferenceWorker("stuck", LOADER, SPEC, warm_up=1)
    stuck.wait_ready()
    stuck.submit(request(0.0))
    for worker in (loading, stuck):
        pid = worker.pid
        worker.close()
        worker.close()
        assert not worker.alive and worker.pid is None
        with pytest.raises(WorkerError, match="closed"):
            worker.submit(request(1.0))
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 2**22 + 1, 0)


def test_submitting_to_a_stuck_worker_never_waits() -> None:
    with InferenceWorker("stuck", LOADER, SPEC, warm_up=1) as worker:
        worker.wait_ready()
        question = request(0.0)
        for _ in range(70_000):  # more wake-ups than a pipe holds
            sequence = worker.submit(question)
        assert sequence == 140_000 and worker.latest() is None and worker.alive


def test_worker_outlives_the_thread_that_started_it() -> None:
    started: list[InferenceWorker] = []
    thread = threading.Thread(target=lambda: started.append(InferenceWorker("follow", LOADER, SPEC)))
    thread.start()
    thread.join()
    with started[0] as worker:
        worker.wait_ready()
        assert answer(worker, worker.submit(request(0.0))).error == ""


PARENT = """
import sys, time
from toy_policies import SPEC
from test_worker import LOADER, request
from policies.runtime.worker import InferenceWorker
if __name__ == "__main__":
    worker = InferenceWorker(sys.argv[1], LOADER, SPEC, warm_up=1)
    worker.wait_ready()
    worker.submit(request(0.0))
    print(worker.pid, flush=True)
    time.sleep(1000)
"""


def running(pid: int) -> bool:
    """Whether a process runs; one that ended but was not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads process states in /proc")
@pytest.mark.parametrize("path", ["follow", "stuck"])
def test_worker_ends_when_its_parent_is_killed(path: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.kill()
    try:
        until(lambda: not running(pid))
    finally:
        if running(pid):  # a worker that failed the test must not stay behind
            os.kill(pid, signal.SIGKILL)
