"""A damaged policy is refused by the name of its file, with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from parents import flow

from policies.policy import Policy
from policies.spec import ContractError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
WEIGHTS, SETTINGS = "policy.safetensors", "policy.json"


def without(content: bytes, key: str) -> bytes:
    return json.dumps({name: value for name, value in json.loads(content).items() if name != key}).encode()


def with_setting(content: bytes, key: str, value: object) -> bytes:
    return json.dumps({**json.loads(content), key: value}).encode()


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut off": (WEIGHTS, lambda content: content[:-100], "is damaged: .*copy it again"),
    "empty": (WEIGHTS, lambda content: b"", "is damaged: "),
    "pointer": (WEIGHTS, lambda content: POINTER, "is damaged: .*git lfs pull"),
    "no JSON": (SETTINGS, lambda content: POINTER, "cannot be read: JSONDecodeError.*git lfs pull"),
    "no text": (SETTINGS, lambda content: b"{\xff}", "cannot be read: UnicodeDecodeError"),
    "list": (SETTINGS, lambda content: b"[]", "cannot be read: TypeError"),
    "no steps": (SETTINGS, lambda content: without(content, "steps"), r"cannot be read: KeyError\('steps'\)"),
    "no units": (
        SETTINGS,
        lambda content: with_setting(content, "spec", {}),
        "cannot be read: .*not a policy contract",
    ),
    "option": (SETTINGS, lambda content: with_setting(content, "config", {"x": 1}), "cannot be read: .*argument 'x'"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_policy_is_refused_by_name(tmp_path: Path, what: str) -> None:
    name, damage, message = DAMAGE[what]
    flow().save(tmp_path)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ContractError, match=f"^{name} of {tmp_path} {message}"):
        Policy.load(tmp_path)
