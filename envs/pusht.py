"""kinoflow/PushT-v0: push a T-shaped block onto its outline, on the public gym-pusht simulation (arXiv 2303.04137).

The table is 512 x 512 pixels; all lengths are in these pixels, whose unit is 1.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np

from envs.episodes import Episode
from policies.spec import ActionSpec, Array, ContractError, Feature, Spec

SIDE = 512.0
POLICY_HZ = 10.0
TIME_LIMIT = 30.0  # s
SUCCESS_COVERAGE = 0.95
LEVER = 60.0  # px, half the length of the bar

FRAME = "table"
ACTION = ActionSpec(("x", "y"), ("1", "1"), FRAME, (0.0, 0.0), (SIDE, SIDE))
FEATURES = (
    Feature("agent_pos", (2,), "1", FRAME),
    Feature("block_pose", (4,), "1", FRAME),
    Feature("environment_state", (16,), "1", FRAME),
)
PIXELS = Feature("pixels", (3, 96, 96), "1", "camera")

RECORDED = ("state", "action")
"""Arrays of the public human demonstrations, besides the pictures ``img``."""

# Corners of the two bars of the T in the frame of the block, in the order of gym-pusht's key points.
CORNERS = np.array([[-60, 0], [60, 0], [60, 30], [-60, 30], [-15, 30], [15, 30], [15, 120], [-15, 120]], float)


def keypoints(block_pose: Array) -> Array:
    """Corners of blocks with poses ``(..., 4)`` = x, y, cos, sin, as ``(..., 16)`` x0, y0, x1, y1, ..."""
    x, y, cos, sin = np.moveaxis(np.asarray(block_pose, float)[..., None], -2, 0)
    corners = np.stack([x + cos * CORNERS[:, 0] - sin * CORNERS[:, 1], y + sin * CORNERS[:, 0] + cos * CORNERS[:, 1]])
    return np.moveaxis(corners, 0, -1).reshape(*corners.shape[1:-1], 16)


def features(agent: Array, block: Array) -> dict[str, Array]:
    """Low-dimensional observations of agents ``(..., 2)`` and blocks ``(..., 3)`` = x, y, angle in rad."""
    pose = np.concatenate([block[..., :2], np.cos(block[..., 2:]), np.sin(block[..., 2:])], -1)
    observed = {"agent_pos": agent, "block_pose": pose, "environment_state": keypoints(pose)}
    return {name: np.asarray(value, np.float32) for name, value in observed.items()}


def demonstration(arrays: dict[str, Array], seed: int) -> Episode:
    """An episode of the public human demonstrations, see `envs.replay_buffer`.

    Args:
        arrays: ``state`` (T, 5) = agent x, y, block x, y, angle; ``action`` (T, 2); ``img`` (T, 96, 96, 3) in 0..255
            becomes ``pixels`` where it is given.
        seed: Number of the demonstration.
    """
    state = arrays["state"].astype(float)
    observed = features(state[:, :2], state[:, 2:])
    if "img" in arrays:
        observed["pixels"] = np.moveaxis(arrays["img"], -1, 1).astype(np.float32) / 255
    resting = np.zeros((len(state), 2))
    states = np.concatenate([state[:, :2], resting, state[:, 2:]], 1).astype(np.float32)
    actions = arrays["action"].astype(np.float32)
    return Episode(seed, observed, actions, actions, np.zeros(len(state), np.float32), states)


class PushTEnv(gymnasium.Env[Any, Array]):
    """Push the T onto its outline with a round agent that follows commanded positions.

    Observation: ``agent_pos`` (2,); ``block_pose`` (4,) = x, y, cos, sin; ``environment_state`` (16,), the corners of
    the T; with ``pixels`` also the picture from above, (3, 96, 96) in [0, 1]. Action: the position (2,) the agent is
    to move to. Reward: covered share of the outline over 0.95, at most 1. Success: more than 0.95 is covered.

    Args:
        pixels: Also observe the picture, which takes four times as long as everything else.
        tracker_error: Standard deviation in px of the position errors of two independent trackers, of which one
            provides ``block_pose`` and the other ``environment_state``; both are new in every step. Angles are off by
            as much at `LEVER` from the origin of the block.
        render_mode: ``"rgb_array"`` for pictures.

    Raises:
        ImportError: gym-pusht is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": POLICY_HZ}  # noqa: RUF012 (Gymnasium's own convention)
    extent = (SIDE, SIDE)  # of what `render` shows
    step_dt = 1 / POLICY_HZ
    execute, objective, noise = 8, "score", 0.03

    def __init__(self, pixels: bool = False, tracker_error: float = 0.0, render_mode: str | None = None) -> None:
        self.game = _game()
        self.pixels, self.tracker_error, self.render_mode = pixels, tracker_error, render_mode
        self._errors = np.zeros((2, 3))
        offered = (*FEATURES, PIXELS) if pixels else FEATURES
        self.contract = Spec(offered, ACTION, POLICY_HZ, history=1, horizon=1)
        self.action_space = gymnasium.spaces.Box(0.0, SIDE, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(
            {feature.name: gymnasium.spaces.Box(-np.inf, np.inf, feature.shape) for feature in offered}
        )
        self.time = self.coverage = self.best_coverage = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Place agent and block at random, or at ``options["state"]``, laid out like `state`."""
        super().reset(seed=seed)
        self.game.reset(seed=seed)
        if options and "state" in options:
            self._restore(np.asarray(options["state"], float))
        self._errors, self._target = self._track(), np.array(self.game.agent.position, np.float32)
        self.time = 0.0
        self.coverage = self.best_coverage = float(self.game._get_coverage())
        return self.observe(), self._info()

    def _restore(self, state: Array) -> None:
        agent, block = self.game.agent, self.game.block
        agent.position, agent.velocity = tuple(state[:2]), tuple(state[2:4])
        block.angle = state[6]  # before the position: the block turns about its centre of gravity
        block.position = tuple(state[4:6])

    @property
    def state(self) -> Array:
        """``(7,)`` position and velocity of the agent, position and angle of the block."""
        agent, block = self.game.agent, self.game.block
        return np.array([*agent.position, *agent.velocity, *block.position, block.angle])

    @property
    def success(self) -> bool:
        """Whether the block covers its outline."""
        return self.coverage > SUCCESS_COVERAGE

    @property
    def failed(self) -> bool:
        """Nothing on this table is final."""
        return False

    @property
    def metrics(self) -> dict[str, float]:
        """Best coverage so far, and the customary score: the same over 0.95, at most 1."""
        score = min(self.best_coverage / SUCCESS_COVERAGE, 1.0)
        return {"score": round(score, 4), "coverage": round(self.best_coverage, 4)}

    @property
    def rest(self) -> Array:
        """Position that the agent is moving to already; where it is before the first command."""
        return self._target.copy()

    @property
    def pose(self) -> Array:
        """``(2,)`` position of the agent, which is drawn as the path of an episode."""
        return np.array(self.game.agent.position)

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        target = np.asarray(action, np.float32)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ContractError(f"action must be 2 finite values {ACTION.names}, got {action}")
        self._target = ACTION.clip(target)
        _, reward, _, _, info = self.game.step(self._target.astype(float))
        self._errors = self._track()
        self.time += self.step_dt
        self.coverage = float(info["coverage"])
        self.best_coverage = max(self.best_coverage, self.coverage)
        return self.observe(), float(reward), self.success, self.time >= TIME_LIMIT - 1e-9, self._info()

    def observe(self) -> dict[str, Array]:
        """Return the current observation."""
        block, agent = self.game.block, np.array(self.game.agent.position)
        pose, corners = (features(agent, np.array([*block.position, block.angle]) + error) for error in self._errors)
        observed = {**pose, "environment_state": corners["environment_state"]}
        if self.pixels:
            picture = self.game._render()
            observed["pixels"] = (np.moveaxis(picture, -1, 0) / np.float32(255)).astype(np.float32)
        return observed

    def _track(self) -> Array:
        """Errors ``(2, 3)`` of both trackers in x, y and angle."""
        return self.tracker_error * self.np_random.standard_normal((2, 3)) / (1, 1, LEVER)

    def _info(self) -> dict[str, Any]:
        return {"success": self.success, **self.metrics}

    def render(self) -> Array:
        """Return a ``(680, 680, 3)`` uint8 picture."""
        return self.game.render()

    def close(self) -> None:
        self.game.close()


def _game() -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # read by pygame while it loads; there may be no display
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs.pusht import PushTEnv as Game
    except ImportError as error:
        raise ImportError(f"PushT needs gym-pusht ({error}); install it: pip install 'kinoflow[pusht]'") from error
    return Game(obs_type="state")


gymnasium.register("kinoflow/PushT-v0", entry_point="envs.pusht:PushTEnv")
gymnasium.register("kinoflow/PushTTrackers-v0", entry_point="envs.pusht:PushTEnv", kwargs={"tracker_error": 10.0})
gymnasium.register("kinoflow/PushTPixels-v0", entry_point="envs.pusht:PushTEnv", kwargs={"pixels": True})
