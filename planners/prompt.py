"""Wording the next request: by rules, or by a language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planners.endpoint import Endpoint, EndpointError
from planners.imagination import Attempt, Request, best
from planners.memory import Memory, Rule
from policies.files import replace_file

MET = 0.8  # score from which a check needs no remedy

# By check: phrases to add to the prompt, in the order in which they are tried, and one for the negative prompt.
REMEDIES: dict[str, tuple[tuple[str, ...], str]] = {
    "length": (("The film lasts until the goal is reached.", "One long uncut take."), "short clip"),
    "frozen": (("The camera keeps moving at walking pace.", "No picture stands still."), "still image, freeze frame"),
    "teleport": (("One continuous take without cuts.", "Every picture follows smoothly."), "cut, scene change"),
    "horizon": (("The horizon stays at one height.", "A stabilised level camera."), "shaking, tilting camera"),
    "tilt": (("The camera does not tilt.", "A camera on a gimbal."), "handheld, tilted camera"),
    "coherence": (("The same things stay in view.", "A sharp, realistic film."), "noise, morphing objects"),
    "flicker": (("Constant light and exposure.", "Even indoor lighting."), "flicker, flashing light"),
    "floor": (("The floor ahead is well visible.", "A real room with a flat floor."), "abstract, blurred, warped"),
    "speed": (("The camera moves slowly, at half a metre per second.", "A slow walk."), "fast motion, time lapse"),
    "turn": (("The camera turns slowly.", "Wide gentle curves."), "fast pan, spinning camera"),
    "forward": (("The camera moves into the scene.", "Filmed while walking ahead."), "reversed, moving backwards"),
    "goal": (("The film ends in front of the goal.", "The last picture shows the goal close by."), "another place"),
}


class RulePolicy:
    """Rewords without a model: for every check that is not met it adds the most trusted phrase not tried yet.

    Phrases that came before and did no harm stay. The seed is no part of the wording: every attempt has its own.
    """

    def propose(self, request: Request, history: Sequence[Attempt], memory: Memory) -> Request:
        """Add phrases to what the user asked for; the first attempt gets those that have helped more than not."""
        if not history:
            return _worded(request, [rule.text for rule in memory.advice(least=0.501, count=3)], [])
        failed = [name for name, score in _worst_first(history[-1]) if score < MET and name in REMEDIES]
        for name in failed:
            for text in REMEDIES[name][0]:
                memory.learn(text, name)
        changes, kept = memory.changes(history), history[best(history)]
        texts = [rule.text for rule in memory.rules if rule.used_in(kept) and changes.get(rule.text, 0.0) >= 0]
        for name in failed:
            fresh = [rule for rule in memory.rules if rule.category == name and not any(map(rule.used_in, history))]
            if fresh:
                texts.append(max(fresh, key=lambda rule: rule.confidence).text)
        seen = dict.fromkeys(name for attempt in history for name, score in _worst_first(attempt) if score < MET)
        return _worded(request, texts, [REMEDIES[name][1] for name in seen if name in REMEDIES])


def _worst_first(attempt: Attempt) -> list[tuple[str, float]]:
    return sorted(attempt.verdict.checks.items(), key=lambda item: item[1])


def _worded(request: Request, phrases: Sequence[str], negative: Sequence[str]) -> Request:
    prompt = " ".join(dict.fromkeys([request.prompt, *phrases]))
    unwanted = ", ".join(dict.fromkeys([*filter(None, [request.negative_prompt]), *negative]))
    return replace(request, prompt=prompt, negative_prompt=unwanted)


LONGEST = 2000  # characters of a prompt
REPLY_TOKENS = 800  # of one reply at most
REPLY_BYTES = 1 << 20
MOST_RULES = 5  # of one reply

TASK = (
    "You word prompts for a model that makes first-person videos of a robot moving through a building. The video "
    "serves as goal for the robot: one continuous take by a level camera at steady walking pace, from the present "
    "place to the goal. You get the instruction, the attempts so far with what a validator measured (scores 0 to 1, 1 "
    "is good), and phrases with the confidence that they help. Word the next prompt so that the worst checks improve, "
    "without changing what the instruction asks for. Under 'rules' list phrases that occur word for word in your "
    "prompt or negative prompt and the check each shall improve."
)

_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": _TEXT,
        "negative_prompt": _TEXT,
        "rules": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"text": _TEXT, "category": _TEXT},
                "required": ["text", "category"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["prompt", "negative_prompt", "rules"],
    "additionalProperties": False,
}


class ChatPolicy:
    """Lets a language model word the requests, and `RulePolicy` where it fails or its budget is spent, with a warning.

    Every exchange goes to a transcript. A question whose answer is there is not asked again, so a run with the same
    instruction, seeds and memory is repeated from its transcript, without a network if ``base`` is empty.

    Args:
        base: Address up to and without ``/chat/completions``; empty to replay only.
        model: Name of the model.
        transcript: JSON lines; need not exist yet.
        key: Bearer token.
        calls: Questions at most; repetitions after a failed connection are not counted.
        tokens: Tokens at most, as the endpoint counts them, questions and answers together.
        timeout: Seconds for one exchange.
        retries: Repetitions after a failure that may pass.
        pause: Seconds before the first repetition, doubled before each further one.

    Raises:
        EndpointError: ``base`` is no address; the transcript is none; an answer is missing while replaying.
    """

    def __init__(
        self,
        base: str,
        model: str,
        transcript: Path | None = None,
        key: str = "",
        calls: int = 20,
        tokens: int = 50_000,
        timeout: float = 60.0,
        retries: int = 2,
        pause: float = 1.0,
    ) -> None:
        url = f"{base.rstrip('/')}/chat/completions"
        self._endpoint = Endpoint(url, timeout, retries, pause, REPLY_BYTES, key) if base else None
        self._model, self._path, self._calls, self._tokens = model, transcript, calls, tokens
        self._lines = [] if transcript is None or not transcript.exists() else _lines(transcript)
        self._rules = RulePolicy()
        self.calls_made = self.tokens_used = 0

    def propose(self, request: Request, history: Sequence[Attempt], memory: Memory) -> Request:
        """Ask for the next wording; the user's own words stay part of the prompt."""
        try:
            answer = _checked(self._ask(_payload(self._model, request, history, memory)))
        except _NoAnswerError as error:
            warnings.warn(f"the next request is worded by rules: {error}", stacklevel=2)
            return self._rules.propose(request, history, memory)
        prompt = answer["prompt"] if request.prompt in answer["prompt"] else f"{request.prompt} {answer['prompt']}"
        worded = replace(request, prompt=prompt, negative_prompt=answer["negative_prompt"])
        for rule in answer["rules"]:
            if rule["text"].strip() and (rule["text"] in prompt or rule["text"] in worded.negative_prompt):
                memory.learn(rule["text"], rule["category"])
        return worded

    def _ask(self, payload: dict[str, Any]) -> str:
        key = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
        known = [line for line in self._lines if line["key"] == key]
        if known and ("reply" in known[-1] or self._endpoint is None):
            if "reply" not in known[-1]:
                raise _NoAnswerError(known[-1]["failure"])
            return str(known[-1]["reply"])
        if self._endpoint is None:
            raise EndpointError(f"{self._path} has no answer to this question; replay with what it was recorded with")
        try:
            reply, tokens = self._exchange(self._endpoint, payload)
        except (EndpointError, _NoAnswerError) as error:
            self._record({"key": key, "payload": payload, "failure": str(error)})
            raise _NoAnswerError(str(error)) from error
        self._record({"key": key, "payload": payload, "reply": reply, "tokens": tokens})
        return reply

    def _exchange(self, endpoint: Endpoint, payload: dict[str, Any]) -> tuple[str, int]:
        if self.calls_made >= self._calls or self.tokens_used + REPLY_TOKENS > self._tokens:
            raise _NoAnswerError(
                f"the budget is spent ({self.calls_made} of {self._calls} calls, "
                f"{self.tokens_used} of {self._tokens} tokens)"
            )
        self.calls_made += 1
        body = endpoint.post(payload)[1]
        try:
            answer = json.loads(body)
            reply = answer["choices"][0]["message"]["content"]
            tokens = (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            self.tokens_used += len(body) // 3
            raise _NoAnswerError(f"{endpoint.name} did not reply with a chat completion ({error!r})") from error
        if type(tokens) is not int or tokens < 0:
            tokens = (len(json.dumps(payload)) + len(body)) // 3  # rather too many than too few
        self.tokens_used += tokens
        return str(reply), tokens

    def _record(self, line: Mapping[str, Any]) -> None:
        self._lines.append(dict(line))
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, "".join(json.dumps(item) + "\n" for item in self._lines).encode())


class _NoAnswerError(Exception):
    """The model has not worded a request; the rules do."""


def _payload(model: str, request: Request, history: Sequence[Attempt], memory: Memory) -> dict[str, Any]:
    attempts = [
        {
            "prompt": attempt.request.prompt,
            "negative_prompt": attempt.request.negative_prompt,
            "score": round(attempt.verdict.score, 3),
            "checks": {name: round(score, 3) for name, score in attempt.verdict.checks.items()},
            "reasons": list(attempt.verdict.reasons),
        }
        for attempt in history
    ]
    question = {"instruction": request.prompt, "attempts": attempts, "advice": [*map(_advice, memory.advice())]}
    return {
        "model": model,
        "messages": [{"role": "system", "content": TASK}, {"role": "user", "content": json.dumps(question)}],
        "temperature": 0,
        "max_tokens": REPLY_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "request", "strict": True, "schema": SCHEMA},
        },
    }


def _advice(rule: Rule) -> dict[str, Any]:
    return dataclasses.asdict(rule) | {"confidence": round(rule.confidence, 3)}


def _checked(reply: str) -> dict[str, Any]:
    """Hold a reply against `SCHEMA`; not every endpoint does."""
    try:
        answer = json.loads(reply)
    except ValueError as error:
        raise _NoAnswerError(f"the model replied no JSON ({error})") from error
    if not isinstance(answer, dict) or answer.keys() != SCHEMA["properties"].keys():
        raise _NoAnswerError(f"the model's reply has not the keys {list(SCHEMA['properties'])}")
    texts = [answer["prompt"], answer["negative_prompt"]]
    if not all(isinstance(text, str) and len(text) <= LONGEST for text in texts) or not answer["prompt"].strip():
        raise _NoAnswerError(f"the model's prompts are no texts of 1 to {LONGEST} characters")
    rules = answer["rules"]
    fits = isinstance(rules, list) and all(isinstance(r, dict) and r.keys() == {"text", "category"} for r in rules)
    if not fits or not all(isinstance(text, str) for rule in rules for text in rule.values()):
        raise _NoAnswerError("the model's rules are no list of {text, category}")
    return {**answer, "rules": rules[:MOST_RULES]}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if all(isinstance(line["key"], str) and ("reply" in line or "failure" in line) for line in lines):
            return lines
    except (ValueError, KeyError, TypeError) as error:
        raise EndpointError(f"{path} is no transcript ({error}); move it away") from error
    raise EndpointError(f"{path} is no transcript; move it away")
