"""A language model that reads driving scenes: what it is told, what it may say, and that nobody waits for it."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stub_endpoint import as_json, serving

from envs.driving import ACTION, FEATURES, DrivingEnv
from envs.roads import COMMANDS as ROAD_COMMANDS
from planners.endpoint import EndpointError
from planners.reasoner import COMMANDS, SCENE, Answer, Reading, ReasonedPolicy, Reasoner, describe
from policies.intent import STEPS, Config, StreamingIntent
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import Array, ContractError, Spec

SPEC = Spec(tuple(feature for feature in FEATURES if feature.name in SCENE), ACTION, 5.0, 1, 16)
WORDS = {"perceive": "person", "predict": "soon", "judge": "left+on", "plan": "turn-left stop"}


def observation() -> dict[str, Array]:
    """A car at 6 m/s that shall turn left, a person 9 m ahead and a car farther away that comes towards it."""
    seen = {feature.name: np.zeros((1, *feature.shape), np.float32) for feature in SPEC.observations}
    seen["car"][0] = 6.04, -0.04, 0.1, 10.0
    seen["command"][0, 0] = 1
    angle = np.linspace(0, np.pi / 2, 12)
    seen["paths"][0, 0] = np.r_[1, np.stack([35 * np.sin(angle), 35 - 35 * np.cos(angle)], -1).ravel()]
    seen["paths"][0, 1] = np.r_[1, np.stack([5.0 * np.arange(12), np.full(12, -3.5)], -1).ravel()]
    seen["others"][0, 0] = 30, 3.5, -1, 0, 8, 4.8, 1.9, 0
    seen["others"][0, 1] = 9, -1.24, 0, 1, 1.2, 0.6, 0.6, 1
    seen["others"][0, 2] = -12, 5, 1, 0, 0, 0.6, 0.6, -1
    return seen


def completion(content: Any) -> Any:
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    return as_json({"choices": [{"message": {"role": "assistant", "content": text}}]})


def reasoner(url: str, replay: Path | None = None, **settings: Any) -> Reasoner:
    return Reasoner(url, "tiny", replay, **{"key": "", "timeout": 20.0, "retries": 0, "pause": 0.01, **settings})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_scene_in_words() -> None:
    assert describe(observation(), SPEC).splitlines() == [
        "The plan covers 3.2 s.",
        "Car: 6.0 m/s, acceleration 0 m/s^2, wheels 6 deg left, speed limit 10.0 m/s.",
        "Command: left.",
        "Paths, from left to right, as x,y:",
        "- turns 82 deg left: 0,0 9.9,1.4 18.9,5.6 26.5,12.1 31.8,20.5 35,35",
        "- straight: 0,-3.5 10,-3.5 20,-3.5 30,-3.5 40,-3.5 55,-3.5",
        "Others, nearest first:",
        "- person, 9.0 m ahead, 1.2 m right, 0.6 x 0.6 m, 1.2 m/s to the left",
        "- thing, 12.0 m behind, 5.0 m left, 0.6 x 0.6 m, standing",
        "- vehicle, 30.0 m ahead, 3.5 m left, 4.8 x 1.9 m, 8.0 m/s towards us",
    ]


def test_an_empty_road_in_words() -> None:
    nothing = {name: np.zeros_like(values) for name, values in observation().items()}
    assert describe(nothing, SPEC).splitlines()[2:] == [
        "Command: none, any path is right.",
        "Paths: none is known.",
        "Others: nobody.",
    ]


def test_the_environment_is_what_is_described() -> None:
    assert COMMANDS == ROAD_COMMANDS
    env = DrivingEnv()
    seen, _ = env.reset(seed=1)
    text = describe({name: values[None] for name, values in seen.items()}, SPEC)
    assert len([line for line in text.splitlines() if line.count(",") > 3]) >= len(env.scene.paths)
    assert len(text) < 1500


def test_only_driving_scenes_have_words() -> None:
    blind = replace(SPEC, observations=SPEC.observations[:2])
    with pytest.raises(ContractError, match="'paths' is missing"):
        describe(observation(), blind)
    with pytest.raises(ContractError, match="'paths' is missing"):
        ReasonedPolicy(policy(blind), SimpleNamespace())  # type: ignore[arg-type]


def test_a_good_reply_is_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(completion(WORDS)) as stub:
        answer = reasoner(f"{stub.url}/v1/", key=None).ask("a scene")
    assert answer == (Reading(**WORDS), "")
    (sent,) = stub.requests
    assert sent["model"] == "tiny" and sent["messages"][1]["content"] == "a scene"
    task = sent["messages"][0]["content"]
    assert (
        "1.75 m beside" in task and "{" not in task and all(word in task for words in STEPS.values() for word in words)
    )
    schema = sent["response_format"]["json_schema"]
    assert schema["strict"] is True and schema["schema"]["additionalProperties"] is False
    assert {step: tuple(part["enum"]) for step, part in schema["schema"]["properties"].items()} == STEPS
    assert [*schema["schema"]["properties"]] == [*STEPS] == schema["schema"]["required"]
    assert stub.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion({**WORDS, "plan": "fly"}), "the model's plan is 'fly', none of keep hold"),
        (completion({**WORDS, "judge": ["left"]}), "the model's judge is"),
        (completion({**WORDS, "predict": None}), "the model's predict is 'None'"),
        (completion({step: WORDS[step] for step in ("perceive", "predict", "plan")}), "has not the keys"),
        (completion({**WORDS, "extra": 1}), "has not the keys"),
        (completion([WORDS]), "has not the keys"),
        (completion("I would stop."), "no JSON"),
        (completion("[" * 100_000), "no JSON"),
        (completion(None), "replied no text"),
        ((200, "text/html", b"<html>"), "not reply with a chat completion"),
        (as_json({"choices": []}), "not reply with a chat completion"),
        ((401, "application/json", b"bad key"), "401"),
        ((503, "text/plain", b"busy"), "503"),
    ],
)
def test_a_bad_reply_is_a_reason(reply: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with serving(reply) as stub:
        answer = reasoner(stub.url, path).ask("a scene")
    assert answer.reading is None and reason in answer.reason
    assert not path.exists(), "only what can be used is kept"


def test_the_timeout_is_kept_and_repetitions_are_bounded() -> None:
    def wait(handler: BaseHTTPRequestHandler) -> None:
        stub.over.wait(30)

    with serving(wait) as stub:
        impatient = reasoner(stub.url, timeout=0.2, retries=1)
        answer = impatient.ask("a scene")
        assert answer.reading is None and "no reply within 0.2 s, after 2 tries" in answer.reason
        assert len(stub.requests) == 2 and impatient.patience == pytest.approx(0.41)


def test_a_failure_that_passes_is_repeated() -> None:
    with serving((503, "text/plain", b"busy"), completion(WORDS)) as stub:
        assert reasoner(stub.url, retries=1).ask("a scene").reading == Reading(**WORDS)


def test_replies_are_replayed_without_network(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    with serving(completion(WORDS)) as stub:
        asked = reasoner(stub.url, path, key="secret")
        assert asked.ask("a scene").reading == asked.ask("a scene").reading == Reading(**WORDS)
        asked.ask("another scene")
        assert len(stub.requests) == 2
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["scene"], second["scene"]) == ("a scene", "another scene") and "secret" not in path.read_text()
    assert first["key"] == hashlib.sha256(json.dumps(stub.requests[0], sort_keys=True).encode()).hexdigest()
    replayed = reasoner("", path)
    assert replayed.ask("a scene").reading == Reading(**WORDS)
    missing = replayed.ask("a third scene")
    assert missing.reading is None
    assert "no reply" in missing.reason and "a third scene" in missing.reason


def test_a_line_that_was_cut_off_is_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with serving(completion(WORDS)) as stub:
        for scene in ("one", "two"):
            reasoner(stub.url, path).ask(scene)
        path.write_bytes(path.read_bytes()[:-20])
        again = reasoner(stub.url, path)
        assert again.ask("one").reading is not None and len(stub.requests) == 2
        assert again.ask("two").reading is not None and len(stub.requests) == 3
    assert [json.loads(line)["scene"] for line in path.read_text().splitlines()] == ["one", "two"]


def test_many_may_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with serving(completion(WORDS)) as stub:
        askers = [reasoner(stub.url, path) for _ in range(4)]
        tasks = [
            threading.Thread(target=lambda one=one, n=n: [one.ask(f"{n} {k}") for k in range(5)])
            for n, one in enumerate(askers)
        ]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    assert len({json.loads(line)["scene"] for line in path.read_text().splitlines()}) == 20


@pytest.mark.parametrize("content", ["{\n", "[1]\n", '{"key": "x"}\n'])
def test_other_files_are_no_replies(tmp_path: Path, content: str) -> None:
    (tmp_path / "replies.jsonl").write_text(content)
    with pytest.raises(EndpointError, match="no file of replies"):
        reasoner("", tmp_path / "replies.jsonl")


def test_what_cannot_work_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="nobody to ask"):
        reasoner("", tmp_path / "none.jsonl")
    with pytest.raises(EndpointError, match="key has characters") as caught:
        reasoner("http://localhost", key="sec\nret")
    assert "ret" not in str(caught.value)


def policy(spec: Spec = SPEC, **changes: Any) -> Policy:
    torch.manual_seed(0)
    head = StreamingIntent(spec, Config(width=32, depth=2, heads=2, encoder_depth=1, refuse=0.0, **changes))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Policy(head, Normaliser.identity(spec), steps=2).eval()


def planned(planner: Any) -> Array:
    shape = SPEC.horizon, SPEC.action.dim
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return planner.act(observation(), noise, np.zeros(shape, np.float32), np.zeros(SPEC.horizon, np.float32))


def test_a_young_reading_commands_and_a_stale_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    later = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later)
    monkeypatch.setattr("planners.reasoner.time", clock)
    own, commanded = planned(policy()), planned(policy(intent=WORDS["plan"]))
    assert abs(own - commanded).max() > 1e-4
    driver = policy()
    # one question only: the next scene would have its own, younger answer
    with serving(completion(WORDS)) as stub, ReasonedPolicy(driver, reasoner(stub.url), every=1e6, limit=1e3) as tried:
        np.testing.assert_array_equal(planned(tried), own)
        assert tried.reading is None and tried.reason == "nobody has answered yet"
        until(lambda: planned(tried) is not None and tried.reading is not None)
        np.testing.assert_array_equal(planned(tried), commanded)
        assert tried.reading == Reading(**WORDS) and driver.head.config.intent == ""
        later = 1e3
        np.testing.assert_array_equal(planned(tried), own)
        assert tried.reading is None and "old, at most 1000.0 s may be" in tried.reason
    assert len(stub.requests) == 1


def test_a_failure_leaves_the_driving_to_the_head() -> None:
    with serving((401, "text/plain", b"no")) as stub, ReasonedPolicy(policy(), reasoner(stub.url), every=0.0) as tried:
        until(lambda: planned(tried) is not None and "401" in tried.reason)
        np.testing.assert_array_equal(planned(tried), planned(policy()))


def test_whatever_fails_the_thread_lives() -> None:
    def ask(scene: str) -> Any:
        raise ZeroDivisionError(scene[:4])

    broken = SimpleNamespace(ask=ask, patience=0.0)
    with ReasonedPolicy(policy(), broken, every=0.0) as tried:  # type: ignore[arg-type]
        until(lambda: planned(tried) is not None and "ZeroDivisionError('The ')" in tried.reason)
        assert tried._thread.is_alive()


def test_what_the_user_commands_comes_first() -> None:
    for intent, obeyed in (("right", False), ("left", True)):
        driver = policy(intent=intent)
        with serving(completion(WORDS)) as stub, ReasonedPolicy(driver, reasoner(stub.url), limit=1e3) as tried:
            until(lambda: planned(tried) is not None and tried.reason != "nobody has answered yet")
            assert (tried.reading is not None) == obeyed
            assert obeyed or tried.reason == "the model plans 'turn-left stop', but 'right' is commanded"
        assert driver.head.config.intent == intent


def test_nobody_waits_for_a_slow_model_and_the_newest_scene_is_asked_next() -> None:
    asked = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        asked.wait(30)
        handler.send_response(503)
        handler.end_headers()

    with (
        serving(slow, completion(WORDS)) as stub,
        ReasonedPolicy(policy(), reasoner(stub.url, timeout=60), every=0.0, limit=1e3) as tried,
    ):
        planned(tried)
        until(lambda: len(stub.requests) == 1)
        begun = time.monotonic()
        for speed in (7.0, 8.0, 9.0):
            seen = observation()
            seen["car"][0, 0] = speed
            tried.act(seen, np.zeros((16, 2)), np.zeros((16, 2)), np.zeros(16))
            seen["car"][:] = -1  # whoever calls may reuse its arrays
        assert time.monotonic() - begun < 15 and len(stub.requests) == 1 and tried.reading is None
        asked.set()
        until(lambda: len(stub.requests) == 2)
        assert "Car: 9.0 m/s" in stub.requests[1]["messages"][1]["content"]


def test_an_answer_to_another_drive_is_dropped() -> None:
    begun, let, done = threading.Event(), threading.Event(), threading.Event()

    def ask(scene: str) -> Answer:
        begun.set()
        let.wait(30)
        done.set()
        return Answer(Reading(**WORDS))

    late = SimpleNamespace(ask=ask, patience=1.0)
    with ReasonedPolicy(policy(), late, every=0.0, limit=1e3) as tried:  # type: ignore[arg-type]
        planned(tried)
        assert begun.wait(30)
        tried.forget()
        let.set()
        assert done.wait(30)
        time.sleep(0.2)
        planned(tried)
        assert tried.reading is None
        until(lambda: planned(tried) is not None and tried.reading is not None)


def test_the_thread_ends_on_close_and_driving_goes_on() -> None:
    with serving(completion(WORDS)) as stub:
        tried = ReasonedPolicy(policy(), reasoner(stub.url), every=1e6, limit=1e3)
        until(lambda: planned(tried) is not None and tried.reading is not None)
        tried.close()
        tried.close()
        assert not tried._thread.is_alive()
        np.testing.assert_array_equal(planned(tried), planned(policy()))
        assert tried.reason == "the reasoner is closed"


def test_close_waits_for_an_exchange_and_not_longer() -> None:
    def wait(handler: BaseHTTPRequestHandler) -> None:
        stub.over.wait(30)

    with serving(wait) as stub:
        tried = ReasonedPolicy(policy(), reasoner(stub.url, timeout=0.5))
        planned(tried)
        until(lambda: len(stub.requests) == 1)
        tried.close()
        assert not tried._thread.is_alive()


def test_chunks_planned_at_once_do_not_disturb_each_other() -> None:
    own, commanded = planned(policy()), planned(policy(intent=WORDS["plan"]))
    with serving(completion(WORDS)) as stub, ReasonedPolicy(policy(), reasoner(stub.url), limit=1e3) as tried:
        found: list[Array] = []
        tasks = [threading.Thread(target=lambda: found.extend(planned(tried) for _ in range(10))) for _ in range(3)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
    assert len(found) == 30
    assert all(np.array_equal(chunk, own) or np.array_equal(chunk, commanded) for chunk in found)


def test_other_heads_take_no_intent() -> None:
    from policies.flowdit import Config as Plain
    from policies.flowdit import FlowDiT

    head = FlowDiT(SPEC, Plain(width=32, depth=1, heads=2, encoder_depth=1))
    other = Policy(head, Normaliser.identity(SPEC))
    with pytest.raises(ContractError, match="FlowDiT; only StreamingIntent"):
        ReasonedPolicy(other, SimpleNamespace())  # type: ignore[arg-type]
