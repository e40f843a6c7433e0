import json
from pathlib import Path

import pytest

from planners.imagination import Attempt, ImaginationError, Request, Verdict
from planners.memory import CAP, Memory, Rule, same


def attempt(prompt: str, negative: str = "", **checks: float) -> Attempt:
    return Attempt(Request(prompt, negative), 0, Verdict(min(checks.values(), default=0.0), checks, ()))


BEFORE = attempt("go", speed=0.3)


def test_confidence_rises_with_help_and_falls_without() -> None:
    memory = Memory()
    memory.learn("Slowly please.", "speed")
    seen = [memory.rules[0].confidence]
    for after in (0.9, 0.9, 0.3, 0.0):  # helps, helps, does nothing, hurts
        memory.observe(BEFORE, attempt("go Slowly please.", speed=after))
        seen.append(memory.rules[0].confidence)
    assert seen == pytest.approx([1 / 2, 2 / 3, 3 / 4, 3 / 5, 3 / 7])
    rule = memory.rules[0]
    assert (rule.tested, rule.helped, rule.hurt) == (4, 2, 1)


def test_only_the_check_of_a_rule_counts() -> None:
    rule = Rule("Slowly.", "speed")
    assert rule.change(attempt("go", speed=0.3, horizon=0.1), attempt("go Slowly.", speed=0.3, horizon=0.9)) == 0.0
    assert rule.change(attempt("go", horizon=0.1), attempt("go Slowly.", horizon=0.9)) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (attempt("go", speed=0.3), attempt("go", speed=0.9)),  # not used
        (attempt("go Slowly.", speed=0.3), attempt("go Slowly.", speed=0.9)),  # used before already
        (attempt("go Slowly.", speed=0.3), attempt("go", speed=0.9)),  # given up
        (attempt("go", speed=1.0), attempt("go Slowly.", speed=1.0)),  # nothing to mend
    ],
)
def test_attempts_that_show_nothing_are_no_test(before: Attempt, after: Attempt) -> None:
    memory = Memory()
    memory.learn("Slowly.", "speed")
    memory.observe(before, after)
    assert memory.rules == [Rule("Slowly.", "speed")] and memory.changes([before, after]) == {}


def test_phrases_of_the_negative_prompt_count_too() -> None:
    assert Rule("cuts", "teleport").change(attempt("go", teleport=0), attempt("go", "cuts", teleport=1)) == 1


def test_merging_is_no_evidence() -> None:
    memory = Memory()
    first = memory.learn("The camera moves slowly ahead.", "speed")
    memory.observe(BEFORE, attempt(f"go {first.text}", speed=0.1))
    known = memory.rules[0]
    for _ in range(5):
        assert memory.learn("the camera slowly moves ahead", "speed") == known
    assert memory.rules == [known] and known.confidence < 0.5


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Keep the camera level.", "keep the camera LEVEL", True),
        ("Keep the camera level at all times.", "Keep the camera level.", False),
        ("Pass the table on the left side.", "Pass the table on the right side.", False),
        ("People are in the picture.", "No people are in the picture.", False),
        ("Warm light.", "A slow walk.", False),
    ],
)
def test_what_says_the_same(one: str, other: str, alike: bool) -> None:
    assert same(one, other) is alike and same(other, one) is alike


def test_rules_of_different_checks_are_not_merged() -> None:
    memory = Memory()
    memory.learn("A slow walk.", "speed")
    memory.learn("A slow walk.", "turn")
    assert [rule.category for rule in memory.rules] == ["speed", "turn"]


def test_what_does_not_help_is_dropped() -> None:
    memory = Memory()
    memory.learn("Slowly.", "speed")
    memory.observe(BEFORE, attempt("go Slowly.", speed=0.0))
    assert memory.rules, "one test is not enough"
    memory.observe(BEFORE, attempt("go Slowly.", speed=0.0))
    assert not memory.rules


def test_the_least_trusted_makes_room() -> None:
    memory = Memory()
    memory.rules = [Rule(f"word{k} text{k}", "speed", tested=4, helped=4) for k in range(CAP - 1)]
    memory.rules.append(Rule("doubtful", "speed", tested=3, helped=1, hurt=2))
    memory.learn("brand new", "speed")
    texts = [rule.text for rule in memory.rules]
    assert len(texts) == CAP and "brand new" in texts and "doubtful" not in texts


def test_short_term_changes_add_up_over_a_run() -> None:
    memory = Memory()
    memory.learn("Slowly.", "speed")
    history = [BEFORE, attempt("go Slowly.", speed=0.5), attempt("go", speed=0.6), attempt("go Slowly.", speed=0.2)]
    assert memory.changes(history) == {"Slowly.": pytest.approx(0.2 - 0.4)}
    assert memory.rules[0].tested == 0, "looking back is no test"


def test_advice_is_what_is_trusted_most() -> None:
    memory = Memory()
    memory.rules = [Rule("a", "x", 4, 0, 0), Rule("b", "x", 2, 2, 0), Rule("c", "x"), Rule("d", "x", 8, 8, 0)]
    assert [rule.text for rule in memory.advice()] == ["d", "b", "c"]
    assert [rule.text for rule in memory.advice(count=1)] == ["d"]


def test_rules_survive_the_disk(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "deep" / "rules.json")
    memory.learn("Slowly.", "speed")
    memory.observe(BEFORE, attempt("go Slowly.", speed=0.9))
    memory.save()
    (written,) = json.loads((tmp_path / "deep" / "rules.json").read_text())["rules"]
    assert written == {
        "text": "Slowly.",
        "category": "speed",
        "tested": 1,
        "helped": 1,
        "hurt": 0,
        "confidence": pytest.approx(2 / 3, abs=1e-3),
    }
    assert Memory(tmp_path / "deep" / "rules.json").rules == memory.rules


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"rules": [{}]}',
        '{"rules": [{"text": "a", "category": "b", "tested": 1, "helped": 2, "hurt": 0}]}',
        '{"rules": [{"text": "a", "category": "b", "tested": 1.5, "helped": 0, "hurt": 0}]}',
        '{"rules": [{"text": " ", "category": "b", "tested": 1, "helped": 0, "hurt": 0}]}',
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "rules.json").write_text(content)
    with pytest.raises(ImaginationError, match=r"rules\.json"):
        Memory(tmp_path / "rules.json")


def test_a_rule_has_text() -> None:
    with pytest.raises(ImaginationError, match="without text"):
        Memory().learn("  \n", "speed")
