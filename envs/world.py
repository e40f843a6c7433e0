"""What collection and evaluation need of an environment, and how they make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
from gymnasium.envs.registration import load_env_creator

from policies.spec import Array, ContractError, Spec


class World(Protocol):
    """A Gymnasium environment, unwrapped, with what makes its episodes comparable.

    One whose robot moves already when an episode begins says with which velocities, as a command: ``underway``.

    One whose pictures need a process of their own says ``alone = True``. One that knows what no policy may see but
    training may has ``LABELS``, constant features, and their values in ``labels``.

    Its class may set ``COMMAND``: constructor arguments that make it step at the rate commands leave at, for robots
    whose commands are interpolated from the actions of a chunk.
    """

    contract: Spec  # history and horizon are 1: they belong to the policy
    time: float  # s since the reset
    step_dt: float  # s per step
    execute: int  # actions of a chunk that are customarily executed before the next is planned
    objective: str  # what to compare policies by: "success" or one of the metrics
    noise: float  # share of the command range that demonstrations are customarily perturbed by, at most

    @property
    def state(self) -> Array: ...  # (S,) of the simulator
    @property
    def pose(self) -> Array: ...  # (2,) or more; its first two are drawn as the path
    @property
    def rest(self) -> Array: ...  # (A,) action that changes nothing
    @property
    def success(self) -> bool: ...
    @property
    def failed(self) -> bool: ...  # nothing can make this episode a success any more
    @property
    def metrics(self) -> Mapping[str, float]: ...  # of the episode so far
    def observe(self) -> dict[str, Array]: ...


def make(env: str, kwargs: Mapping[str, Any], *, commands: bool = False, **more: Any) -> Any:
    """Make an environment without wrappers.

    Args:
        env: Gymnasium id.
        kwargs: Its arguments, for example the embodiment.
        commands: Step at the rate commands leave at instead of that of a policy's actions.
        more: Further arguments, for example the render mode.

    Raises:
        ContractError: There is no such environment.
    """
    try:
        entry = gymnasium.spec(env).entry_point
    except gymnasium.error.Error as error:
        known = sorted(name for name in gymnasium.registry if name.startswith("kinoflow/"))
        raise ContractError(f"there is no environment '{env}'; choose one of {', '.join(known)}") from error
    creator = load_env_creator(str(entry))
    rate = getattr(creator, "COMMAND", {}) if commands else {}
    return gymnasium.make(env, disable_env_checker=True, **{**kwargs, **rate, **more}).unwrapped


def robot(embodiment: str | None) -> dict[str, str]:
    """Arguments of an environment for a robot; none where it has only one."""
    return {"embodiment": embodiment} if embodiment else {}
