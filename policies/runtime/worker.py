"""Runs a policy beside the control loop: in a process of its own, or inline for simulated time. numpy only.

Requests and results cross in shared memory, one slot each way: the newest wins, nothing queues up, nobody waits. The
memory has no name in the file system, so the kernel frees it with the last process, however that one ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from types import TracebackType
from typing import Any, NoReturn, Protocol

import numpy as np

from policies.runtime.slot import HEADER_BYTES, Memory, Slot
from policies.spec import Array, ChunkPolicy, ContractError, Observation, Spec

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NUMBERS = ("stamp", "seconds", "disagreement", "arrival", "steps", "missed")
_TEXT_BYTES, _CLOSE_S = 1024, 1.0


class WorkerError(RuntimeError):
    """The inference process did not start; the message has the reason."""


@dataclass(frozen=True)
class Request:
    """What a policy is asked; see `ChunkPolicy.act` for the arrays.

    Args:
        stamp: Time of the newest observation in seconds.
        observation: Arrays shaped ``(T_obs, *shape)``.
        noise: ``(past + H, A)``.
        committed: ``(H, A)``.
        hold: ``(H,)``.
        time_left_s: Seconds until the chunk is due. In simulated time, where nobody is late, it is not heeded.
    """

    stamp: float
    observation: Observation
    noise: Array
    committed: Array
    hold: Array
    time_left_s: float = math.inf


@dataclass(frozen=True)
class Result:
    """What a policy answered.

    Args:
        sequence: Number that `Worker.submit` returned for the request.
        stamp: Stamp of the request in seconds.
        actions: ``(H, A)`` float32; zeros after an error.
        seconds: Time the policy took.
        error: Message of the exception the policy raised, empty if it did not.
        disagreement: Between the parents of a composition, in normal units; 0 for other policies.
        warning: Which parents of a composition are left out, since when and why; empty when all is well.
        arrival: Probability that the robot is where it shall stop; 0 for policies that do not say.
        steps: Denoising steps; 0 for policies that do not say.
        missed: Whether the chunk was not ready when it was due.
    """

    sequence: int
    stamp: float
    actions: Array
    seconds: float
    error: str
    disagreement: float = 0.0
    warning: str = ""
    arrival: float = 0.0
    steps: int = 0
    missed: bool = False


class Worker(Protocol):
    """Runs a policy on request; used by one thread."""

    @property
    def spec(self) -> Spec: ...

    @property
    def alive(self) -> bool: ...

    def submit(self, request: Request) -> int:
        """Ask for a chunk and return the number of the request; a request not yet begun is replaced."""
        ...

    def latest(self) -> Result | None:
        """Return the newest result once, None when there is no new one. Does not wait."""
        ...


class InlineWorker:
    """Runs the policy inside `submit`, for simulated time; exceptions of the policy pass through.

    Args:
        policy: The policy.
    """

    alive = True

    def __init__(self, policy: ChunkPolicy) -> None:
        self.spec = policy.spec
        self._policy = policy
        self._sequence = 0
        self._result: Result | None = None

    def submit(self, request: Request) -> int:
        """Run the policy and return the number of the request."""
        self._sequence += 1
        begin = time.perf_counter()
        actions = self._policy.act(request.observation, request.noise, request.committed, request.hold)
        seconds = time.perf_counter() - begin
        self._result = Result(
            self._sequence, request.stamp, np.array(actions, np.float32), seconds, "", *_remarks(self._policy)
        )
        return self._sequence

    def latest(self) -> Result | None:
        """Return the newest result once."""
        result, self._result = self._result, None
        return result


class BatchWorker:
    """One episode's share of a policy that plans for many simulated episodes at once.

    Args:
        policy: Policy with ``act_batch``, see `policies.policy.Policy`.
    """

    alive = True

    def __init__(self, policy: Any) -> None:
        self.spec: Spec = policy.spec
        self._policy = policy
        self._sequence = 0
        self._request: Request | None = None
        self._result: Result | None = None

    def submit(self, request: Request) -> int:
        """Note the request and return its number; `answer` will answer it."""
        self._sequence += 1
        # The window of the observations is reused by the caller.
        self._request = replace(request, observation={k: v.copy() for k, v in request.observation.items()})
        return self._sequence

    def latest(self) -> Result | None:
        """Return the newest result once."""
        result, self._result = self._result, None
        return result

    @staticmethod
    def answer(workers: Iterable[BatchWorker]) -> None:
        """Answer the open requests of workers of one policy in one pass."""
        asked = [(worker, worker._request) for worker in workers if worker._request is not None]
        if not asked:
            return
        policy, begin = asked[0][0]._policy, time.perf_counter()
        chunks = policy.act_batch([(r.observation, r.noise, r.committed, r.hold) for _, r in asked])
        seconds = (time.perf_counter() - begin) / len(asked)
        doubt, _, _, steps = _remarks(policy)
        arrivals = getattr(policy, "arrivals", np.zeros(len(asked)))
        for (worker, request), actions, arrival in zip(asked, chunks, arrivals.tolist(), strict=True):
            worker._result = Result(
                worker._sequence, request.stamp, actions, seconds, "", doubt, arrival=arrival, steps=steps
            )
            worker._request = None


class InferenceWorker:
    """Runs a policy in a process of its own, so that inference never holds up the control loop.

    Errors of the policy come back as text and do not end the process; `alive` tells when something else did. The
    process ends with `close`, with the parent's end, or by itself when it cannot load the policy. The starting program
    needs the usual ``if __name__ == "__main__"`` guard of spawned processes.

    Args:
        path: What the loader is called with, for example the path of a bundle.
        loader: ``"package.module:function"`` that takes the path and returns a `ChunkPolicy`; runs in the new process.
        spec: Contract the loaded policy must have.
        warm_up: Inferences on zeros before the worker is ready: the first ones are slower.
    """

    def __init__(self, path: str, loader: str, spec: Spec, warm_up: int = 3) -> None:
        self.spec = spec
        self.warm_up_s = 0.0
        """Time of the last warm-up inference in seconds, known once ready."""
        context = multiprocessing.get_context("spawn")
        memory = [RawArray(ctypes.c_ubyte, HEADER_BYTES + kind.itemsize) for kind in (_ask(spec), _answer(spec))]
        self._requests, self._results = Slot(memory[0], _ask(spec)), Slot(memory[1], _answer(spec))
        wake, self._wake = context.Pipe(duplex=False)
        self._greeting, greeting = context.Pipe(duplex=False)
        os.set_blocking(self._wake.fileno(), False)
        arguments = (path, loader, spec, warm_up, *memory, wake, greeting)
        self._process = context.Process(target=_serve, args=arguments, name="kinoflow-inference", daemon=True)
        with one_numeric_thread():
            self._process.start()
        wake.close()
        greeting.close()
        self._ready = self._closed = False

    def __enter__(self) -> InferenceWorker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._closed and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id, None once closed."""
        return None if self._closed else self._process.pid

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the policy is loaded and warm.

        Raises:
            WorkerError: Loading or warming up failed, the process died, or the time is over.
        """
        if self._ready:
            return
        if self._closed or not self._greeting.poll(timeout_s):
            raise WorkerError(f"the policy was not ready within {timeout_s} s; give it more time or close the worker")
        try:
            error, self.warm_up_s = self._greeting.recv()
        except EOFError:
            raise WorkerError("the inference process died while it loaded the policy; see its output") from None
        if error:
            raise WorkerError(error)
        self._ready = True

    def submit(self, request: Request) -> int:
        """Ask for a chunk without waiting and return the number of the request.

        Raises:
            WorkerError: The worker is closed.
        """
        if self._closed:
            raise WorkerError("the worker is closed; start a new one")
        record = self._requests.record
        for name in ("stamp", "noise", "committed", "hold"):
            record[name] = getattr(request, name)
        for feature in self.spec.observations:
            record["observation"][feature.name] = request.observation[feature.name]
        record["due"] = time.monotonic() + request.time_left_s
        sequence = self._requests.publish()
        # A full pipe means that the worker will wake anyway, a broken one that it is dead, which `alive` tells.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._wake.fileno(), b"!")
        return sequence

    def latest(self) -> Result | None:
        """Return the newest result once, None when there is no new one."""
        if not self._results.refresh():
            return None
        record = self._results.record
        error, warning = (bytes(record[name]).decode("utf-8", "ignore") for name in ("error", "warning"))
        stamp, seconds, doubt, arrival, steps, missed = (float(record[name]) for name in _NUMBERS)
        number, actions = int(record["request"]), record["actions"].copy()
        return Result(number, stamp, actions, seconds, error, doubt, warning, arrival, int(steps), bool(missed))

    def close(self) -> None:
        """End the process, by force after one second. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._wake.close()
        self._process.join(_CLOSE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._greeting.close()


def _ask(spec: Spec) -> np.dtype:
    chunk = (spec.horizon, spec.action.dim)
    observation = np.dtype([(f.name, f.dtype, (spec.samples(f), *f.shape)) for f in spec.observations])
    shapes = {"noise": spec.noise_shape, "committed": chunk, "hold": chunk[:1]}
    arrays = [(name, np.float32, shape) for name, shape in shapes.items()]
    return np.dtype([("stamp", np.float64), ("due", np.float64), ("observation", observation), *arrays])


def _answer(spec: Spec) -> np.dtype:
    text, chunk = f"S{_TEXT_BYTES}", (spec.horizon, spec.action.dim)
    numbers = [("request", np.int64), *((name, np.float64) for name in _NUMBERS)]
    return np.dtype([*numbers, ("actions", np.float32, chunk), ("error", text), ("warning", text)])


@contextlib.contextmanager
def one_numeric_thread() -> Iterator[None]:
    """Environment for a child: numeric libraries read it while they load, before any code of ours runs there."""
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(
    path: str,
    loader: str,
    spec: Spec,
    warm_up: int,
    request_memory: Memory,
    result_memory: Memory,
    wake: Connection,
    greeting: Connection,
) -> None:
    """Main function of the inference process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=end_with_parent, daemon=True).start()
    requests, results = Slot(request_memory, _ask(spec)), Slot(result_memory, _answer(spec))
    try:
        policy = _load(path, loader, spec)
        seconds = _warm_up(policy, warm_up)
        _limit_patience(policy, min(seconds))
    except Exception as error:
        greeting.send((describe(error), 0.0))
        return
    greeting.send(("", seconds[-1]))
    while os.read(wake.fileno(), 4096):  # empty at the end: the parent closed the pipe
        if requests.refresh():
            _respond(policy, requests, results)


def end_with_parent() -> NoReturn:
    """Leave at once when the parent dies, also from the middle of an inference."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


def _load(path: str, loader: str, spec: Spec) -> ChunkPolicy:
    module, _, function = loader.partition(":")
    policy: ChunkPolicy = getattr(importlib.import_module(module), function)(path)
    if policy.spec != spec:
        raise ContractError(f"'{path}' has the contract {policy.spec}, {spec} is needed; load the matching bundle")
    return policy


def _warm_up(policy: ChunkPolicy, count: int) -> list[float]:
    """Seconds of ``count`` inferences on zeros, of one at least."""
    if hasattr(policy, "warm_up"):  # also of what these do not use
        policy.warm_up(count)
    record, times = np.zeros(1, _ask(policy.spec))[0], []
    for _ in range(max(1, count)):
        begin = time.perf_counter()
        _act(policy, record)
        times.append(time.perf_counter() - begin)
    return times


def _limit_patience(policy: ChunkPolicy, seconds: float) -> None:
    """From now on a composition goes on without parents that stall.

    A chunk that comes within one action period costs the robot one more action of the previous chunk at most. Parents
    that need longer than that when all is well get twice the ``seconds`` they need.
    """
    if hasattr(policy, "patience_s"):
        policy.patience_s = max(policy.spec.dt, 2 * seconds)


def _act(policy: ChunkPolicy, record: np.void) -> Array:
    observation: dict[str, Any] = {f.name: record["observation"][f.name] for f in policy.spec.observations}
    return policy.act(observation, record["noise"], record["committed"], record["hold"])


def _respond(policy: ChunkPolicy, requests: Slot, results: Slot) -> None:
    result = results.record
    result["request"], result["stamp"], result["error"] = requests.sequence, requests.record["stamp"], b""
    due = float(requests.record["due"])
    if hasattr(policy, "time_left_s"):
        policy.time_left_s = due - time.monotonic()  # one clock for all processes
    begin = time.perf_counter()
    try:
        result["actions"] = _act(policy, requests.record)
    except Exception as error:
        result["actions"], result["error"] = 0.0, describe(error).encode()
    result["seconds"] = time.perf_counter() - begin
    result["disagreement"], warning, result["arrival"], result["steps"] = _remarks(policy)
    result["warning"], result["missed"] = warning.encode(), time.monotonic() > due
    results.publish()


def _remarks(policy: ChunkPolicy) -> tuple[float, str, float, int]:
    """Disagreement, warning, arrival and steps of a policy; one that says nothing of the kind need not have them."""
    usual: dict[str, Any] = {"disagreement": 0.0, "warning": "", "arrival": 0.0, "steps": 0}
    doubt, warning, arrival, steps = (getattr(policy, name, value) for name, value in usual.items())
    return doubt, warning, arrival, steps


def describe(error: Exception) -> str:
    """What an error is and says, for the other process."""
    return f"{type(error).__name__}: {error}"
