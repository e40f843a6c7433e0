"""A language model that reads a driving scene in the place of the small decoder of `policies.intent`."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from planners.endpoint import Endpoint, EndpointError
from policies.files import prepare_file
from policies.spec import Array, ContractError, Observation, Spec

if TYPE_CHECKING:
    from policies.policy import Policy

KEY = "OPENAI_API_KEY"  # environment variable
REPLY_TOKENS = 200  # of one reply at most
REPLY_BYTES = 1 << 20

SCENE = ("car", "command", "paths", "others")
"""Features that a scene is described from, as `envs.driving.DrivingEnv` observes them."""
COMMANDS = ("left", "straight", "right")
SHOWN = (0, 2, 4, 6, 8, 11)  # points of a path that are told
BEND = 10.0  # degrees by which a path turns
STANDING = 0.2  # m/s

TASK = """You are the driver of a car and read one traffic scene in four steps.
Places are in metres as seen from the car's rear axle, x ahead and y to the left; its front is {front:.1f} m ahead.
1. perceive: what is first ahead, at most {far:g} m away and at most {corridor:g} m beside the line straight ahead.
2. predict: going on with the present speed and steering, is there a conflict within the plan, leaving the road \
included: "soon" in its first half, "later" in its second half, "clear" if there is none.
3. judge: which ways are open in the first half of the plan, steering left, going on, steering right; "none" if no way.
4. plan: what to do within the plan, first sideways: keep; change-left or change-right, at its end at least \
{aside:g} m beside the present line in about the same direction; turn-left or turn-right, by {turn:.0f} degrees or \
more. Then lengthways: hold the speed; accelerate or decelerate by at least {change:g} m/s; stop, which is standing \
or below {slow:g} m/s at the end. Follow the command and the paths, keep to the speed limit, hit nobody.
Answer with one JSON object that has these keys, each with one of these texts:"""


@dataclass(frozen=True)
class Reading:
    """What each of `policies.intent.STEPS` said, a word of its list.

    Args:
        perceive: What is first ahead.
        predict: Whether and when going on ends in a conflict.
        judge: Which ways are open.
        plan: The intent, one of `policies.maneuver.INTENTS`.
    """

    perceive: str
    predict: str
    judge: str
    plan: str


class Answer(NamedTuple):
    """What came of a question: a reading, or None and why there is none."""

    reading: Reading | None
    reason: str = ""


def describe(observation: Observation, spec: Spec) -> str:
    """Put a driving scene into words.

    Args:
        observation: `SCENE` of `envs.driving.DrivingEnv`, arrays ``(T_obs, *shape)``, newest last; more may be there.
        spec: Contract of the policy that plans there.

    Raises:
        ContractError: The contract has no such features.
    """
    _require_scene(spec)
    car, command, paths, others = (np.asarray(observation[name][-1], float) for name in SCENE)
    speed, gain, steering, limit = car
    wheels = f"{abs(math.degrees(steering)):.0f} deg {_side(steering)}"
    lines = [
        f"The plan covers {spec.horizon * spec.dt:.1f} s.",
        f"Car: {speed:.1f} m/s, acceleration {_tidy(gain)} m/s^2, wheels {wheels}, speed limit {limit:.1f} m/s.",
        f"Command: {COMMANDS[int(command.argmax())] if command.any() else 'none, any path is right'}.",
        "Paths, from left to right, as x,y:" if paths[:, 0].any() else "Paths: none is known.",
        *(_path(row[1:].reshape(-1, 2)) for row in paths if row[0] > 0),
    ]
    there = sorted((row for row in others if row[5] > 0), key=lambda row: math.hypot(row[0], row[1]))
    lines.append("Others, nearest first:" if there else "Others: nobody.")
    return "\n".join([*lines, *map(_other, there)])


def _require_scene(spec: Spec) -> None:
    known = [feature.name for feature in spec.observations]
    if missing := [name for name in SCENE if name not in known]:
        raise ContractError(
            f"observation '{missing[0]}' is missing, the policy sees {known}; "
            f"only driving scenes with {', '.join(SCENE)} can be described"
        )


def _tidy(value: float) -> str:
    return f"{round(float(value), 1) + 0.0:g}"  # adding zero turns -0 into 0


def _side(value: float) -> str:
    return "left" if value >= 0 else "right"


def _path(points: Array) -> str:
    """A path ``(12, 2)`` in m."""
    begin, end = (math.atan2(*(points[k + 1] - points[k])[::-1]) for k in (0, len(points) - 2))
    turned = math.degrees(math.remainder(end - begin, 2 * math.pi))
    bend = f"turns {abs(turned):.0f} deg {_side(turned)}" if abs(turned) >= BEND else "straight"
    places = " ".join(f"{_tidy(x)},{_tidy(y)}" for x, y in points[[*SHOWN]])
    return f"- {bend}: {places}"


def _other(row: Array) -> str:
    """Somebody, ``(8,)`` as in a row of ``others``."""
    x, y, cos, sin, speed, length, width, kind = row
    name = "person" if kind > 0.5 else "thing" if kind < -0.5 else "vehicle"
    heading = math.degrees(math.atan2(sin, cos))
    way = "our way" if abs(heading) < 45 else "towards us" if abs(heading) > 135 else f"to the {_side(heading)}"
    moves = f"{speed:.1f} m/s {way}" if speed >= STANDING else "standing"
    place = f"{abs(x):.1f} m {'ahead' if x >= 0 else 'behind'}, {abs(y):.1f} m {_side(y)}"
    return f"- {name}, {place}, {length:.1f} x {width:.1f} m, {moves}"


class Reasoner:
    """Asks a language model behind an OpenAI-compatible endpoint what `policies.intent.STEPS` ask.

    Args:
        base: Address up to and without ``/chat/completions``; empty to replay only, without a network.
        model: Name of the model.
        replay: File of the replies so far (JSON lines), which are not asked for again; need not exist yet, unless only
            it is used. Several processes may add to it.
        key: Bearer token; by default what the environment variable OPENAI_API_KEY holds, if anything.
        timeout: Seconds for one exchange.
        retries: Repetitions after a failure that may pass.
        pause: Seconds before the first repetition, doubled before each further one.

    Raises:
        EndpointError: ``base`` is no address; ``key`` cannot be sent; ``replay`` is no such file; there is neither.
        OSError: ``replay`` cannot be written.
    """

    def __init__(
        self,
        base: str,
        model: str,
        replay: Path | None = None,
        key: str | None = None,
        timeout: float = 5.0,
        retries: int = 1,
        pause: float = 0.2,
    ) -> None:
        from policies.intent import STEPS

        if not base and (replay is None or not replay.is_file()):
            raise EndpointError(
                f"there is nobody to ask and no replay ({replay}); give an address or a file of replies"
            )
        token = (os.environ.get(KEY, "") if key is None else key).strip()
        if not (token.isascii() and token.isprintable()):
            raise EndpointError(f"the key has characters that no header may have; check {KEY}")
        url = f"{base.rstrip('/')}/chat/completions"
        self._endpoint = Endpoint(url, timeout, retries, pause, REPLY_BYTES, token) if base else None
        self._model, self._words, self._task = model, STEPS, _task(STEPS)
        self._replay = None if replay is None else _Replay(replay)
        self.patience = timeout * (retries + 1) + pause * (2**retries - 1) if base else 0.0
        """Seconds that `ask` takes at most."""

    def ask(self, scene: str) -> Answer:
        """Have a scene read, see `describe`; whatever fails is the reason in the answer."""
        payload = self._payload(scene)
        key = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
        try:
            known = None if self._replay is None else self._replay.replies.get(key)
            if known is not None:
                return Answer(self._checked(known))
            if self._endpoint is None:
                return Answer(None, f"the replay has no reply {key[:12]} of {self._model} to this scene:\n{scene}")
            reply = _content(self._endpoint, payload)
            reading = self._checked(reply)
            if self._replay is not None:
                self._replay.add(key, scene, reply)
            return Answer(reading)
        except (EndpointError, OSError) as error:
            return Answer(None, str(error))

    def _payload(self, scene: str) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": {step: {"type": "string", "enum": [*words]} for step, words in self._words.items()},
            "required": [*self._words],
            "additionalProperties": False,
        }
        return {
            "model": self._model,
            "messages": [{"role": "system", "content": self._task}, {"role": "user", "content": scene}],
            "temperature": 0,
            "max_tokens": REPLY_TOKENS,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reading", "strict": True, "schema": schema},
            },
        }

    def _checked(self, reply: str) -> Reading:
        """Hold a reply against the schema; not every endpoint does."""
        try:
            answer = json.loads(reply)
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"the model replied no JSON ({error})") from error
        if not isinstance(answer, dict) or answer.keys() != self._words.keys():
            raise EndpointError(f"the model's reply has not the keys {[*self._words]}: {reply[:200]}")
        for step, words in self._words.items():
            if answer[step] not in words:
                raise EndpointError(f"the model's {step} is {str(answer[step])[:40]!r}, none of {', '.join(words)}")
        return Reading(**answer)


def _task(steps: Mapping[str, tuple[str, ...]]) -> str:
    from policies.ground import CAR as CORNERS
    from policies.ground import CORRIDOR, FAR
    from policies.maneuver import CAR, TURN

    task = TASK.format(front=CORNERS[0][0], far=FAR, corridor=CORRIDOR, turn=math.degrees(TURN), **CAR._asdict())
    # once more in the text, because not every endpoint knows schemas
    return "\n".join([task, *(f"{step}: {', '.join(words)}" for step, words in steps.items())])


def _content(endpoint: Endpoint, payload: Mapping[str, Any]) -> str:
    """Post a question and return what the model said."""
    body = endpoint.post(payload)[1]
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise EndpointError(f"{endpoint.name} did not reply with a chat completion ({error!r})") from error
    if not isinstance(content, str):
        raise EndpointError(f"{endpoint.name} replied no text; the model may have refused")
    return content


class _Replay:
    """Replies by the hash of what was asked, in a file that only grows.

    Args:
        path: JSON lines; a line that an interruption has cut off is none.

    Raises:
        EndpointError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            prepare_file(path)
        *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        try:
            known = [json.loads(line) for line in lines]
            self.replies: dict[str, str] = {str(line["key"]): str(line["reply"]) for line in known}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EndpointError(f"{path} is no file of replies ({error!r}); move it away") from error

    def add(self, key: str, scene: str, reply: str) -> None:
        """Append a reply as one whole line."""
        self.replies[key] = reply
        line = json.dumps({"key": key, "scene": scene, "reply": reply}).encode() + b"\n"
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            # whoever holds the lock is alone: what follows the last line break was cut off by an interruption
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


class _Scene(NamedTuple):
    """An observation, when it was taken, and in which drive."""

    observation: dict[str, Array]
    taken: float
    drive: int


class ReasonedPolicy:
    """A policy whose intent a language model decides, in the background: a `policies.spec.ChunkPolicy`.

    A chunk is planned with the newest reading as commanded intent, or with the head's own one where none is young
    enough or it contradicts what the user commands. The head also keeps to its own intent where it finds the reading's
    plan out of the question (``refuse`` of `policies.intent.Config`).

    Args:
        policy: Its head is a `policies.intent.StreamingIntent`; nobody else may change its settings meanwhile.
        reasoner: Who is asked.
        every: Least seconds from one question to the next.
        limit: Seconds for which a reading holds, from when its scene was observed.

    Raises:
        ContractError: The head is another one, or the policy does not see what a scene is described from.
    """

    def __init__(self, policy: Policy, reasoner: Reasoner, every: float = 1.0, limit: float = 3.0) -> None:
        from policies.intent import StreamingIntent

        if not isinstance(policy.head, StreamingIntent):
            raise ContractError(f"the head is {type(policy.head).__name__}; only StreamingIntent takes an intent")
        _require_scene(policy.spec)
        self._policy, self._reasoner, self._every, self._limit = policy, reasoner, every, limit
        self._acting, self._changed = threading.Lock(), threading.Condition()
        self._scene: _Scene | None = None
        self._newest: tuple[Reading, float] | None = None
        self._failure, self._drive, self._closed = "nobody has answered yet", 0, False
        self.reading: Reading | None = None
        """What the newest chunk was commanded by, None if by the head alone."""
        self.reason = ""
        """Why the newest chunk has no reading."""
        self._thread = threading.Thread(target=self._listen, name="reasoner", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> Spec:
        """The contract of the policy."""
        return self._policy.spec

    @property
    def arrival(self) -> float:
        """See `policies.policy.Policy`."""
        return self._policy.arrival

    def act(self, observation: Observation, noise: Array, committed: Array, hold: Array) -> Array:
        """Plan one chunk, see `policies.spec.ChunkPolicy`; does not wait for the model.

        Raises:
            ContractError: The observation does not fit the contract.
        """
        now = time.monotonic()
        with self._acting:
            head = self._policy.head
            own = head.config
            self.reading, self.reason = self._usable(now, own.intent)
            if self.reading is not None:
                head.config = dataclasses.replace(own, intent=self.reading.plan)
            try:
                chunk = self._policy.act(observation, noise, committed, hold)
            finally:
                head.config = own
        # copied, because the caller may reuse the arrays while they are being described
        seen = {name: observation[name][-1:].copy() for name in SCENE}
        with self._changed:
            self._scene = _Scene(seen, now, self._drive)
            self._changed.notify_all()
        return chunk

    def _usable(self, now: float, commanded: str) -> Answer:
        from policies.maneuver import INTENTS, allowed

        with self._changed:
            newest, failure = self._newest, self._failure
        if newest is None:
            return Answer(None, failure)
        reading, taken = newest
        if now - taken >= self._limit:
            late = f"the newest reading is {now - taken:.1f} s old, at most {self._limit} s may be"
            return Answer(None, f"{late}; {failure}" if failure else late)
        if not allowed(commanded)[INTENTS.index(reading.plan)]:
            return Answer(None, f"the model plans '{reading.plan}', but '{commanded}' is commanded")
        return Answer(reading)

    def forget(self) -> None:
        """Drop the newest reading and the question under way, as at the begin of another drive."""
        with self._changed:
            self._scene, self._newest, self._failure = None, None, "nobody has answered yet"
            self._drive += 1

    def close(self) -> None:
        """Stop asking; waits for an exchange under way, at most `Reasoner.patience`. `act` goes on without readings."""
        with self._changed:
            self._closed, self._newest, self._failure = True, None, "the reasoner is closed"
            self._changed.notify_all()
        self._thread.join(self._reasoner.patience + 1)

    def __enter__(self) -> ReasonedPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        while (scene := self._next()) is not None:
            begun, answer = time.monotonic(), self._answer(scene)
            with self._changed:
                if not self._closed and scene.drive == self._drive:
                    self._newest = self._newest if answer.reading is None else (answer.reading, scene.taken)
                    self._failure = answer.reason
                rest = self._every - (time.monotonic() - begun)
                self._changed.wait_for(lambda: self._closed, max(rest, 0.0))

    def _next(self) -> _Scene | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._scene is not None)
            scene, self._scene = self._scene, None
            return None if self._closed else scene

    def _answer(self, scene: _Scene) -> Answer:
        try:
            return self._reasoner.ask(describe(scene.observation, self.spec))
        except Exception as error:  # a thread that died would look like a model that never answers
            return Answer(None, f"asking failed: {error!r}")
