"""What cannot be composed is refused by name, with the remedy; what is unstated is taken from another parent."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from parents import ACTIONS, POSE, SPEC

from policies.agreement import agree, check_scales
from policies.spec import ActionSpec, ContractError, Feature, Spec

ARM = ActionSpec(("dx", "dy", "dz", "drx", "dry", "drz", "gripper_close"), ("1",) * 7, "world", (-1.0,) * 7, (1.0,) * 7)
ARM_SPEC = dataclasses.replace(SPEC, action=ARM)


def other(**changes: Any) -> Spec:
    """A contract whose action differs."""
    return dataclasses.replace(SPEC, action=dataclasses.replace(ACTIONS, **changes))


def arm(*names: str) -> Spec:
    return dataclasses.replace(SPEC, action=dataclasses.replace(ARM, names=names))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (SPEC, ARM_SPEC, "2 components"),
        (SPEC, other(names=("dx", "dy")), "one is a change, the other an absolute value"),
        (SPEC, other(names=("x", "z")), "commands 'y' where another commands 'z'"),
        (SPEC, other(units=("mm", "mm")), "action: units is .'m', 'm'. in one parent"),
        (SPEC, other(frame="base"), "frame is table in one parent and base in another"),
        (SPEC, dataclasses.replace(SPEC, rate_hz=20.0), r"\[10.0, 20.0\] Hz"),
        (SPEC, other(low=(60.0, 60.0), high=(70.0, 70.0)), "do not overlap"),
        (ARM_SPEC, arm("dx", "dy", "dz", "drx", "dry", "drz", "gripper_open"), "gripper sign"),
        (ARM_SPEC, arm("dx", "dy", "dz", "qx", "qy", "qz", "gripper_close"), "'drx' is part of axis-angle, 'qx'"),
        (
            SPEC,
            dataclasses.replace(SPEC, observations=(dataclasses.replace(POSE, frame="world"),)),
            "observation 'pose': frame .* rename",
        ),
        (SPEC, dataclasses.replace(SPEC, observations=(dataclasses.replace(POSE, shape=(3,)),)), "'pose': shape"),
    ],
)
def test_contradictions_are_refused_by_name(first: Spec, second: Spec, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        agree([first, second])


def test_unstated_parts_are_taken_from_the_other_parent() -> None:
    foreign = Spec(
        (Feature("pose", (4,), "", ""), Feature("pixels", (3, 8, 8), "", "")),
        ActionSpec(("", ""), ("", ""), "", (-1.0, -9.0), (9.0, 1.0)),
        rate_hz=0.0,
        history=2,
        horizon=15,
        past=1,
    )
    agreed = agree([foreign, SPEC])
    assert agreed.action == dataclasses.replace(ACTIONS, low=(-1.0, -9.0), high=(9.0, 1.0))
    assert agreed.observations == (POSE, Feature("pixels", (3, 8, 8), "", ""))
    assert (agreed.rate_hz, agreed.history, agreed.horizon, agreed.past) == (10.0, 2, 15, 1)


def test_scales_that_nearly_agree_are_accepted() -> None:
    check_scales([None, ((0.95, 0.98), (0.0, 0.0)), ((3.0, 3.0), (1.0, 0.0))])
    with pytest.raises(ContractError, match=r"normaliser scale.*0.5, 2 .*level='action'"):
        check_scales([((0.5, 2.0), (0.0, 0.0))])
