"""What attempts and runs have shown about wordings: short-term changes of the score, long-term rules on disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from planners.imagination import Attempt, ImaginationError
from policies.files import replace_file

CAP = 50  # rules
OVERLAP = 0.6  # share of common words from which two rules say the same
OPPOSED = {"left", "right", "up", "down", "forward", "backward", "no", "not", "never", "without", "slow", "fast"}
NOTICED = 0.05  # change of a score that counts
WEAK, TRIED = 0.25, 2  # rules of less confidence are dropped after so many tests
LONGEST = 300  # characters of a rule


@dataclass(frozen=True)
class Rule:
    """A phrase for the prompt and how it has done.

    Args:
        text: The phrase, as it goes into a prompt or negative prompt.
        category: The check it is meant to mend.
        tested: Attempts that began to use it while there was something to mend.
        helped: Of these, those in which the check did better.
        hurt: Those in which it did worse.
    """

    text: str
    category: str
    tested: int = 0
    helped: int = 0
    hurt: int = 0

    @property
    def confidence(self) -> float:
        """Rule of succession in which a test that hurt counts twice: 0.5 untested, up with help, down without."""
        return (1 + self.helped) / (2 + self.tested + self.hurt)

    def used_in(self, attempt: Attempt) -> bool:
        """Whether an attempt's request contains the phrase."""
        return self.text in attempt.request.prompt or self.text in attempt.request.negative_prompt

    def change(self, before: Attempt, after: Attempt) -> float | None:
        """Change of the score of its check when ``after`` began to use the phrase; None where it shows nothing.

        Every attempt also has a seed of its own, so one change is weak evidence.
        """
        if self.used_in(before) or not self.used_in(after):
            return None
        was, now = (a.verdict.checks.get(self.category, a.verdict.score) for a in (before, after))
        return None if min(was, now) > 1 - NOTICED else now - was


class Memory:
    """Rules that outlive a run. One process at a time writes the file.

    Args:
        path: JSON file, need not exist yet; None keeps the rules in the process.

    Raises:
        ImaginationError: The file holds something else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.rules: list[Rule] = [] if path is None or not path.exists() else _read(path)

    def learn(self, text: str, category: str) -> Rule:
        """Keep a phrase; one that says the same as a known rule is that rule, which is no evidence for it.

        Where there are `CAP` rules already, the least trusted one goes.
        """
        text = " ".join(text.split())[:LONGEST].strip()
        if not text:
            raise ImaginationError("a rule without text helps nobody; give the phrase that goes into the prompt")
        for rule in self.rules:
            if rule.category == category and same(rule.text, text):
                return rule
        if len(self.rules) >= CAP:
            self.rules.remove(min(self.rules, key=lambda rule: (rule.confidence, rule.tested)))
        self.rules.append(Rule(text, category))
        return self.rules[-1]

    def observe(self, before: Attempt, after: Attempt) -> None:
        """Credit the phrases that the later of two neighbouring attempts began to use, and drop what is no good."""
        self.rules = [_credited(rule, rule.change(before, after)) for rule in self.rules]
        self.rules = [rule for rule in self.rules if rule.tested < TRIED or rule.confidence >= WEAK]

    def changes(self, history: Sequence[Attempt]) -> dict[str, float]:
        """Short-term memory: by rule text, what its check gained over the attempts of this run that began to use it."""
        gained: dict[str, float] = {}
        for before, after in itertools.pairwise(history):
            for rule in self.rules:
                change = rule.change(before, after)
                if change is not None:
                    gained[rule.text] = gained.get(rule.text, 0.0) + change
        return gained

    def advice(self, least: float = 0.4, count: int = 10) -> list[Rule]:
        """The most trusted rules."""
        trusted = [rule for rule in self.rules if rule.confidence >= least]
        return sorted(trusted, key=lambda rule: (-rule.confidence, -rule.tested))[:count]

    def save(self) -> None:
        """Write the file in one step."""
        if self._path is not None:
            rules = [dataclasses.asdict(rule) | {"confidence": round(rule.confidence, 4)} for rule in self.rules]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps({"rules": rules}, indent=1).encode())


def same(one: str, other: str) -> bool:
    """Whether two phrases share most of their words and differ in none that turns the meaning round."""
    first, second = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    return not (first ^ second) & OPPOSED and len(first & second) > OVERLAP * len(first | second)


def _credited(rule: Rule, change: float | None) -> Rule:
    if change is None:
        return rule
    helped, hurt = rule.helped + (change > NOTICED), rule.hurt + (change < -NOTICED)
    return replace(rule, tested=rule.tested + 1, helped=helped, hurt=hurt)


def _read(path: Path) -> list[Rule]:
    try:
        return [_rule(item) for item in json.loads(path.read_text())["rules"]][:CAP]
    except (ValueError, KeyError, TypeError) as error:
        raise ImaginationError(f"{path} holds no rules ({error}); mend or remove it") from error


def _rule(item: dict[str, Any]) -> Rule:
    counts = [item[name] for name in ("tested", "helped", "hurt")]
    if not all(type(count) is int and count >= 0 for count in counts) or counts[1] + counts[2] > counts[0]:
        raise ValueError(f"tested, helped, hurt are {counts}")
    if not isinstance(item["text"], str) or not item["text"].strip() or not isinstance(item["category"], str):
        raise ValueError(f"text and category are {item['text']!r} and {item['category']!r}")
    return Rule(item["text"], item["category"], *counts)  # the confidence follows from the counts
