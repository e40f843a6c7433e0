"""Runs a policy bundle as a lifecycle node: observations in, velocity commands for the guard out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.bundle import Bundle
from policies.load import LOADER
from policies.runtime.buffer import ChunkBuffer
from policies.runtime.runner import Runner
from policies.runtime.worker import InferenceWorker
from ros_nodes import shared
from ros_nodes.commander import ACTIVE, Commander, CommanderSettings
from ros_nodes.inputs import Inputs
from ros_nodes.pilot import CAMERA, ODOMETRY, REPLAN, SCAN, Pilot, offered, timing


@dataclass(frozen=True)
class PolicySettings(CommanderSettings):
    """Parameters of the policy node, fixed while it is configured."""

    bundle: str = shared.setting("", "Path of the policy bundle (.kfb)")
    goal: str = shared.setting("", "Path of the goal video (.mp4), for policies that follow one")
    instruction: str = shared.setting("", "Sentence that says where to stop; else that beside the goal video (.txt)")
    scan_range_m: float = shared.setting(6.0, "Range in m of the scanner the policy was trained with", 0.5, 100.0)
    max_age_scan_s: float = shared.setting(0.25, "Age in s from which a scan is not used", 0.02, 1.0)
    max_age_camera_s: float = shared.setting(0.3, "Age in s from which a picture is not used", 0.02, 1.0)
    max_age_chunk_s: float = shared.setting(0.5, "Age in s from which a plan is not executed", 0.1, 2.0)
    plan_rate_hz: float = shared.setting(0.0, "Most plans per second, 0 for 1.5 per action of the policy", 0.0, 100.0)
    warm_up: int = shared.setting(10, "Inferences before the node counts as configured", 1, 1000)
    seed: int = shared.setting(0, "Seed of the sampling noise", 0, 2**31)


class PolicyNode(Commander[PolicySettings]):
    """Observes, plans in a process of its own and commands ``cmd_vel_policy`` from a loop on absolute deadlines.

    configure loads and verifies the bundle, starts the inference process and warms it up; activate starts the
    commands. While an input is missing, too old, not finite or outside the fence there are no commands, and if there
    were some before, ``stop`` makes the guard latch at once with the reason. A dead inference process leads through
    the error state back to unconfigured.

    What the goal is depends on the policy: a point on ``goal_pose``, or a video and a sentence, which the parameters
    ``goal`` and ``instruction`` give and the topics ``goal_video`` (path of a file here) and ``instruction`` replace.
    Without the parameter ``instruction`` the sentence beside that video counts, ``goal.txt`` of ``goal.mp4``.
    """

    def __init__(self) -> None:
        self._hash = ""
        self._worker: InferenceWorker | None = None
        self._pilot: Pilot | None = None
        self._inputs: Inputs | None = None
        super().__init__("policy", PolicySettings)

    def _prepare(self, settings: PolicySettings) -> Pilot:
        bundle = Bundle.load(settings.bundle)
        spec, self._hash = bundle.spec, bundle.manifest.fingerprint
        spec.require(offered(settings.names, spec))
        self._worker = InferenceWorker(settings.bundle, LOADER, spec, settings.warm_up)
        self._worker.wait_ready()
        buffer = ChunkBuffer(spec, settings.max_age_chunk_s)
        rate_hz = settings.plan_rate_hz or REPLAN * spec.rate_hz
        runner = Runner(self._worker, buffer, np.random.default_rng(settings.seed), rate_hz)
        ages = {name: getattr(settings, f"max_age_{name}_s") for name in (ODOMETRY, SCAN, CAMERA)}
        self._pilot = Pilot(spec, runner, ages)
        self._inputs = Inputs(self, self._pilot, spec, settings)
        return self._pilot

    def _end(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        self._inputs, self._pilot = None, None
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _watch(self) -> None:
        if self._state == ACTIVE and self._worker is not None and not self._worker.alive:
            self._failure = "the inference process has ended; configure the node again"
            if self._commanding:
                self._stop(self._failure)

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "state": self._state,
            "reason": self._summary()[1],
            "embodiment": self._settings.embodiment,
            "bundle": self._settings.bundle,
            "bundle_hash": self._hash,
            "warm_up_ms": round(1e3 * self._worker.warm_up_s, 3) if self._worker else None,
            "inference_pid": self._worker.pid if self._worker else None,
            "stops": self._stops,
            "last_stop": self._last_stop,
        }
        if self._pilot is not None:
            values |= {"input_age_s": self._pilot.ages(time.monotonic()), **self._pilot.report()}
        if self._loop is not None:
            values |= timing(self._loop)
        if self._pilot is not None:
            values["commands"] = self._pilot.commands
        return values


def main() -> None:
    """Entry point of the console script."""
    shared.spin(PolicyNode)


if __name__ == "__main__":
    main()
