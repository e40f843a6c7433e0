"""The parents of a composition beside each other, where who is late is left out. numpy and ONNX Runtime.

There are as many threads as parents, and as many of them work as there are cores: one that has an answer asks the next
parent, and one that has the last answer of a step takes the step. On one core a single thread so does everything, until
a parent stalls on it and another thread goes on with the rest. ONNX Runtime releases the interpreter, so on several
cores the parents run at the same time.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import numpy as np
import onnxruntime

from policies.manifest import Consensus, Parent, Sampler, parent_graphs
from policies.network import STEP, Runnable, bind, check_signature, digest_of, open_session, part
from policies.runtime.blend import Blend, Shares, share
from policies.spec import Array, ContractError, Observation, Spec

_END_S = 10.0  # that the end of the process waits for a parent that is stuck
_THREADS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Ensemble(Runnable):
    """The parents of a composition as one policy.

    A chunk may wait ``patience_s`` for its parents. The time is divided among steps and parents as the work is, so that
    one that stalls leaves the others what they need for the rest. Who has not answered when a step is over, and has had
    its own share, is left out if somebody else has answered: for the rest of this chunk and of every chunk that begins
    while it is still busy. Then it takes part again. Its weight is shared by the others, action by action. While nobody
    answers, all are waited for, up to ``patience_s``. A parent that fails is left out like one that is late.

    The patience is infinite until it is set, because simulated time must not depend on the machine; the inference
    process sets it.

    Like any composition it says nothing about `arrival`.

    Args:
        graphs: The models that `policies.manifest.parent_graphs` names, per parent.
        spec: Contract of the composition.
        sampler: Time grid and temperature.
        consensus: The parents, their weights and the units of the actions.
        threads: Threads of ONNX Runtime per parent.

    Raises:
        BundleError: A graph is damaged or does not fit; the message names it.
    """

    def __init__(
        self, graphs: Mapping[str, bytes], spec: Spec, sampler: Sampler, consensus: Consensus, threads: int = 1
    ) -> None:
        super().__init__(spec)
        self._members = [
            _Member(index, parent, spec, graphs, threads) for index, parent in enumerate(consensus.parents)
        ]
        calls: SimpleQueue[bool] = SimpleQueue()
        self._round = _Round(self._members, consensus, spec, sampler, calls)
        # The threads must not hold on to this object, or it would never be freed and they would never end.
        for member in self._members:
            name = f"kinoflow-parent-{member.index}"
            thread = threading.Thread(target=_serve, args=(calls, self._round), name=name, daemon=True)
            _THREADS.add(thread)
            thread.start()
        weakref.finalize(self, _end, calls, len(self._members))

    def _plan(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        actions = self._round.plan(observation, noise, committed, hold, self.patience_s)
        absent = [f"{m.parent.name} is left out since {m.absence}" for m in self._members if m.absence]
        self.warning, self.disagreement = "; ".join(absent), self._round.blend.spread
        if actions is None:
            raise ContractError(f"no parent answers that could drive: {self.warning}; check what they run on")
        return actions


class _Member:
    """One parent: sessions, buffers and what it was asked. While it is busy only the thread that runs it touches it."""

    def __init__(self, index: int, parent: Parent, spec: Spec, graphs: Mapping[str, bytes], threads: int) -> None:
        self.index, self.parent = index, parent
        self.busy = False
        self.fresh = True
        """Whether the observation has to be encoded first."""
        self.absence = ""
        """Since when it is left out and why, empty while it takes part."""
        self.until = 0.0
        """When it is late with what it was asked."""
        self.encode_s = self.estimate_s = math.inf
        """Shortest times so far."""
        features = {feature.name: feature for feature in spec.observations}
        seen = (features[name] for name in parent.observations)
        self.observation = {f.name: np.zeros((1, 1 if f.constant else parent.history, *f.shape), f.dtype) for f in seen}
        self.x, self.step = np.zeros((1, *spec.noise_shape), np.float32), np.zeros((), np.int64)
        self.estimate = np.zeros((2, *spec.noise_shape), np.float32)
        encode, estimate = parent_graphs(index)
        with part(encode):
            session = open_session(graphs[encode], threads)
            self._context = _context(session)
            self._encode = bind(session, self.observation, self._context)
        with part(estimate):
            asked: dict[str, Array] = {**self._context, "x": self.x, STEP: self.step}
            answered = {"data": self.estimate[:1], "noise": self.estimate[1:]}
            self._estimate = bind(open_session(graphs[estimate], threads), asked, answered)

    def run(self) -> str:
        """Answer what was asked; return what went wrong, empty if nothing did."""
        try:
            if self.fresh:
                self.encode_s = min(self.encode_s, _seconds(self._encode))
                self.fresh = False
            self.estimate_s = min(self.estimate_s, _seconds(self._estimate))
        except Exception as error:  # whatever it is: the others go on
            return f"{type(error).__name__}: {error}"
        return "" if np.isfinite(self.estimate).all() else "its estimate is not finite"


def _seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _context(session: onnxruntime.InferenceSession) -> dict[str, Array]:
    """Buffers for what one graph hands to the other: c0, c1, ..., of any shape."""
    shapes = {f"c{k}": shape for k, shape in enumerate(digest_of(session)[0].values())}
    check_signature("output", session.get_outputs(), shapes)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _serve(calls: SimpleQueue[bool], chunk: _Round) -> None:
    """Main function of a thread."""
    while calls.get():
        member = chunk.take()
        while member is not None:
            member = chunk.answer(member, member.run())


def _end(calls: SimpleQueue[bool], threads: int) -> None:
    """End the threads as soon as they have nothing to do."""
    for _ in range(threads):
        calls.put(False)


@atexit.register
def _wait() -> None:
    """Wait for parents that are stuck: one that comes back after the interpreter's end aborts the process."""
    end = time.monotonic() + _END_S
    for thread in list(_THREADS):
        thread.join(max(0.0, end - time.monotonic()))


class _Round:
    """The chunk that is being planned, and the rule by which its parents take turns.

    Args:
        members: The parents.
        consensus: Their weights and the units of the actions.
        spec: Contract of the composition.
        sampler: Time grid and temperature.
        calls: Each entry makes one thread look for a parent that has to be asked.
    """

    def __init__(
        self,
        members: Sequence[_Member],
        consensus: Consensus,
        spec: Spec,
        sampler: Sampler,
        calls: SimpleQueue[bool],
    ) -> None:
        self.blend = Blend(spec, sampler, consensus)
        self._members, self._parents, self._calls = members, consensus.parents, calls
        self._cores, self._steps = min(len(members), _cores()), len(sampler.grid) - 1
        self._shares: dict[tuple[bool, ...], Shares | None] = {}
        self._lock, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()
        self._present, self._waiting = [False] * len(members), [False] * len(members)
        self._unasked: list[_Member] = []
        self._step, self._ended, self._ends = 0, True, [0.0]
        self._stepped, self._patience_s, self._unit = 0.0, math.inf, math.inf

    def plan(
        self, observation: Observation, noise: Array, committed: Array, hold: Array, patience_s: float
    ) -> Array | None:
        """Plan one chunk; None when no parent answers."""
        with self._lock:
            self._begin(observation, noise, committed, hold, patience_s)
            timeout = self._time_left()
        while not self._done.acquire(timeout=timeout):
            with self._lock:
                self._settle()
                timeout = self._time_left()
        with self._lock:
            shares = self._shared()
            if shares is None:
                return None
            for member in self._members:
                if self._present[member.index]:
                    member.absence = ""
            return self.blend.actions(shares)

    def take(self) -> _Member | None:
        """Return a parent that has to be asked now, None when there is none."""
        with self._lock:
            return self._next()

    def answer(self, member: _Member, reason: str) -> _Member | None:
        """Take the estimate of a parent, or the reason why there is none, and return whom to ask next."""
        with self._lock:
            member.busy = False
            if self._waiting[member.index]:  # otherwise it is too late: the others have gone on
                self._waiting[member.index] = False
                if reason:
                    self._leave_out(member, reason)
                else:
                    self.blend.estimates[member.index] = member.estimate
                self._settle(spare=1)
            return self._next()

    def _next(self) -> _Member | None:
        if not self._unasked:
            return None
        member = self._unasked.pop()
        work = member.estimate_s + (member.encode_s if member.fresh else 0.0)
        own = self._unit * work if math.isfinite(work) else 0.0
        member.busy, member.until = True, max(self._ends[self._step], time.monotonic() + own)
        member.x[0], member.step[()] = self.blend.x, self._step
        return member

    def _begin(self, observation: Observation, noise: Array, committed: Array, hold: Array, patience_s: float) -> None:
        self._done.acquire(blocking=False)  # a caller that was interrupted did not take it
        for member in self._members:
            self._present[member.index] = not member.busy
            if not member.busy:
                member.fresh = True
                for name, buffer in member.observation.items():
                    buffer[0] = observation[name][-buffer.shape[1] :]
        self.blend.begin(noise, committed, hold)
        self._patience_s, self._step, self._ended = patience_s, 0, False
        self._divide()
        self._ask()

    def _divide(self) -> None:
        """Divide the patience as the work is."""
        encode = sum(member.encode_s for member in self._members)
        estimate = sum(member.estimate_s for member in self._members)
        if math.isinf(encode + estimate):  # somebody has never answered yet
            encode = estimate = 1.0
        now, self._unit = time.monotonic(), self._patience_s / (encode + self._steps * estimate)
        self._ends = [now + self._unit * (encode + (step + 1) * estimate) for step in range(self._steps)]

    def _time_left(self) -> float:
        """Time until something has to be decided, as locks take it."""
        if self._ended or math.isinf(self._patience_s):
            return -1
        asked = [member.until for member in self._members if self._waiting[member.index] and member.busy]
        times, now = [self._ends[self._step], *asked, self._stepped + self._patience_s], time.monotonic()
        return min(max(0.0, min((end for end in times if end > now), default=now) - now), threading.TIMEOUT_MAX)

    def _ask(self, spare: int = 0) -> None:
        """Let everybody who is there be asked about the present step."""
        self._stepped = time.monotonic()
        self._waiting = list(self._present)
        self._unasked = [member for member in self._members if self._present[member.index]]
        self._call(min(self._cores, len(self._unasked)) - spare)
        if not self._unasked:
            self._settle()

    def _call(self, threads: int) -> None:
        for _ in range(threads):
            self._calls.put(True)

    def _settle(self, spare: int = 0) -> None:
        """Go on once everybody has answered, or once the time is over and somebody has.

        Args:
            spare: Threads that will look for work after this by themselves.
        """
        if self._ended:
            return
        now = time.monotonic()
        if now >= self._ends[self._step]:
            self._hurry(now)
        if any(self._waiting):
            return
        shares = self._shared()
        if shares is not None:
            self.blend.advance(self._step, shares)
            self._step += 1
        if shares is None or self._step == self._steps:
            self._ended = True
            self._done.release()
        else:
            self._ask(spare)

    def _hurry(self, now: float) -> None:
        """The step should be over: ask whom nobody has asked yet, and leave out who is late if somebody answered."""
        self._call(len(self._unasked))
        if sum(self._present) > sum(self._waiting) or now >= self._stepped + self._patience_s:
            for member in self._members:
                if self._waiting[member.index] and member.busy and now >= member.until:
                    self._leave_out(member, f"no answer within {1e3 * (now - self._stepped):.0f} ms")
            self._stepped = now

    def _leave_out(self, member: _Member, reason: str) -> None:
        self._present[member.index] = self._waiting[member.index] = False
        self.blend.estimates[member.index] = 0
        member.absence = member.absence or f"{time.strftime('%H:%M:%S')}: {reason}"

    def _shared(self) -> Shares | None:
        """Weights of those who are there; None when nobody is who could drive."""
        present = tuple(self._present)
        if present not in self._shares:
            self._shares[present] = share(self._parents, present)
        return self._shares[present]


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
