import json
from pathlib import Path
from typing import Any

import pytest
from stub_endpoint import as_json, serving

from planners.endpoint import EndpointError
from planners.imagination import Attempt, Request, Verdict
from planners.memory import Memory, Rule
from planners.prompt import REMEDIES, ChatPolicy, RulePolicy
from planners.validate import RAMPS

ASKED = Request("go to the red door", "people", frames=32)


def attempt(request: Request, **checks: float) -> Attempt:
    reasons = [f"{name}: bad" for name, score in checks.items() if score < 1]
    return Attempt(request, 0, Verdict(min(checks.values()), checks, reasons))


def test_there_is_a_remedy_for_every_check() -> None:
    assert REMEDIES.keys() == RAMPS.keys()


def test_the_first_request_is_the_users() -> None:
    assert RulePolicy().propose(ASKED, [], Memory()) == ASKED


def test_every_unmet_check_gets_one_phrase() -> None:
    worded = RulePolicy().propose(ASKED, [attempt(ASKED, teleport=0.1, flicker=0.5, length=0.9)], Memory())
    assert worded.prompt.startswith(ASKED.prompt) and (worded.frames, worded.size) == (ASKED.frames, ASKED.size)
    assert REMEDIES["teleport"][0][0] in worded.prompt and REMEDIES["flicker"][0][0] in worded.prompt
    assert REMEDIES["length"][0][0] not in worded.prompt
    assert worded.negative_prompt == f"people, {REMEDIES['teleport'][1]}, {REMEDIES['flicker'][1]}"


def test_what_did_harm_goes_and_the_next_is_tried() -> None:
    memory, first, second = Memory(), *REMEDIES["speed"][0]
    history = [attempt(ASKED, speed=0.5)]
    history.append(attempt(RulePolicy().propose(ASKED, history, memory), speed=0.1))
    assert first in history[1].request.prompt
    worded = RulePolicy().propose(ASKED, history, memory)
    assert second in worded.prompt and first not in worded.prompt


def test_what_helped_stays_and_prompts_do_not_grow_without_end() -> None:
    memory, first, second = Memory(), *REMEDIES["speed"][0]
    history = [attempt(ASKED, speed=0.1)]
    for score in (0.5, 0.6, 0.6, 0.6):
        history.append(attempt(RulePolicy().propose(ASKED, history, memory), speed=score))
    assert history[-1].request.prompt == f"{ASKED.prompt} {first} {second}"


def test_the_most_trusted_phrase_comes_first() -> None:
    memory = Memory()
    memory.rules = [Rule("Calm.", "speed", tested=2, helped=0), Rule("Like a snail.", "speed", tested=3, helped=3)]
    assert "Like a snail." in RulePolicy().propose(ASKED, [attempt(ASKED, speed=0.1)], memory).prompt
    assert RulePolicy().propose(ASKED, [], memory).prompt == f"{ASKED.prompt} Like a snail."


def completion(content: Any, tokens: int | None = 100) -> Any:
    text = content if isinstance(content, str) else json.dumps(content)
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return as_json({"choices": [{"message": {"role": "assistant", "content": text}}], **usage})


ANSWER = {
    "prompt": "go to the red door, slowly and steadily",
    "negative_prompt": "cuts",
    "rules": [{"text": "slowly and steadily", "category": "speed"}, {"text": "not in there", "category": "speed"}],
}


def chat(url: str, path: Path | None = None, **settings: Any) -> ChatPolicy:
    return ChatPolicy(url, "tiny", path, **{"timeout": 20.0, "retries": 0, "pause": 0.01, **settings})


def test_the_model_words_the_request() -> None:
    memory = Memory()
    with serving(completion(ANSWER)) as stub:
        policy = chat(f"{stub.url}/v1/", key="secret")
        worded = policy.propose(ASKED, [attempt(ASKED, speed=0.1)], memory)
    assert (worded.prompt, worded.negative_prompt, worded.frames) == (ANSWER["prompt"], "cuts", 32)
    assert [rule.text for rule in memory.rules] == ["slowly and steadily"], "only what it really wrote"
    (sent,) = stub.requests
    assert sent["model"] == "tiny" and sent["response_format"]["json_schema"]["strict"] is True
    question = json.loads(sent["messages"][1]["content"])
    assert question["instruction"] == ASKED.prompt and question["attempts"][0]["reasons"] == ["speed: bad"]
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    assert (policy.calls_made, policy.tokens_used) == (1, 100)


def test_the_instruction_is_never_lost() -> None:
    with serving(completion({**ANSWER, "prompt": "A corridor."})) as stub:
        assert chat(stub.url).propose(ASKED, [], Memory()).prompt == "go to the red door A corridor."


def test_a_transcript_is_replayed_without_network(tmp_path: Path) -> None:
    path, history = tmp_path / "chat.jsonl", [attempt(ASKED, speed=0.1)]
    with serving(completion(ANSWER), (500, "text/plain", b"")) as stub:
        policy = chat(stub.url, path, key="secret")
        recorded = [policy.propose(ASKED, [], Memory())]
        with pytest.warns(UserWarning, match="worded by rules"):
            recorded.append(policy.propose(ASKED, history, Memory()))
    assert "secret" not in path.read_text() and len(path.read_text().splitlines()) == 2
    replay = ChatPolicy("", "tiny", path)
    assert replay.propose(ASKED, [], Memory()) == recorded[0]
    with pytest.warns(UserWarning, match="500"):
        assert replay.propose(ASKED, history, Memory()) == recorded[1]
    with pytest.raises(EndpointError, match="no answer to this question"):
        replay.propose(Request("something else"), [], Memory())


def test_known_answers_cost_nothing_and_failures_are_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    with serving((500, "text/plain", b""), completion(ANSWER)) as stub:
        with pytest.warns(UserWarning, match="worded by rules"):
            chat(stub.url, path).propose(ASKED, [], Memory())
        policy = chat(stub.url, path)
        assert [policy.propose(ASKED, [], Memory()).prompt for _ in range(3)] == [ANSWER["prompt"]] * 3
        assert len(stub.requests) == 2 and policy.calls_made == 1


@pytest.mark.parametrize("settings", [{"calls": 1}, {"tokens": 850}])
def test_the_budget_is_kept(settings: dict[str, Any]) -> None:
    with serving(completion(ANSWER)) as stub:
        policy = chat(stub.url, **settings)
        policy.propose(ASKED, [], Memory())
        with pytest.warns(UserWarning, match="budget is spent"):
            worded = policy.propose(ASKED, [attempt(ASKED, speed=0.1)], Memory())
    assert len(stub.requests) == 1 and REMEDIES["speed"][0][0] in worded.prompt


def test_an_endpoint_that_does_not_count_is_counted() -> None:
    with serving(completion(ANSWER, tokens=None)) as stub:
        policy = chat(stub.url)
        policy.propose(ASKED, [], Memory())
    assert policy.tokens_used > 300


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, "application/json", b"<html>"), "not reply with a chat completion"),
        (as_json({"choices": []}), "not reply with a chat completion"),
        (as_json([1]), "not reply with a chat completion"),
        ((401, "application/json", b"bad key"), "401"),
        (completion("Sure! Here is your prompt"), "no JSON"),
        (completion({"prompt": "x"}), "has not the keys"),
        (completion({**ANSWER, "extra": 1}), "has not the keys"),
        (completion({**ANSWER, "prompt": ""}), "no texts"),
        (completion({**ANSWER, "prompt": "x" * 5000}), "no texts"),
        (completion({**ANSWER, "negative_prompt": None}), "no texts"),
        (completion({**ANSWER, "rules": [{"text": 1, "category": "speed"}]}), "rules are no list"),
        (completion({**ANSWER, "rules": ["speed"]}), "rules are no list"),
    ],
)
def test_the_rules_take_over_when_the_model_fails(reply: Any, message: str) -> None:
    history = [attempt(ASKED, speed=0.1)]
    with serving(reply) as stub, pytest.warns(UserWarning, match=message):
        worded = chat(stub.url).propose(ASKED, history, Memory())
    assert worded == RulePolicy().propose(ASKED, history, Memory())


@pytest.mark.parametrize("content", ["{", '{"reply": "x"}', "[1]", '{"key": "x"}'])
def test_other_files_are_no_transcript(tmp_path: Path, content: str) -> None:
    (tmp_path / "chat.jsonl").write_text(content)
    with pytest.raises(EndpointError, match="no transcript"):
        ChatPolicy("", "tiny", tmp_path / "chat.jsonl")
