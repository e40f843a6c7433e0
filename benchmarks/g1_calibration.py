"""Measure how the walking G1 follows velocity commands, with and without calibration.

    python -m benchmarks.g1_calibration --json g1_calibration.json

The first part, ``response``, is the table in `envs.g1.calibration`. Everything runs in full physics on a flat floor and
takes about a minute on one core. All numbers but those of ``speed`` repeat exactly on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from json import dumps
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from rich.progress import track

from benchmarks.entry import check, run
from envs.g1.calibration import RESPONSE
from envs.g1.robot import FOOT_FRICTION
from envs.g1.walker import G1Body
from policies.spec import Array

AXES = G1Body.action.names
LOW, HIGH = np.array(G1Body.action.low), np.array(G1Body.action.high)
CONTROL_HZ, PHYSICS_STEPS = 50, 4
STRIDE = 50  # control steps per stride of both legs
SMOOTHING_S = (0.1, 0.2, 0.3, 0.5, 1.0)


class Floor:
    """The G1 alone on a flat floor."""

    def __init__(self, calibrated: bool) -> None:
        self.body = G1Body(calibrated=calibrated)
        self.model = self.scene().compile()
        self.data = mujoco.MjData(self.model)
        self.restart()

    def scene(self) -> mujoco.MjSpec:
        scene = mujoco.MjSpec()
        scene.option.timestep = 1 / (CONTROL_HZ * PHYSICS_STEPS)
        scene.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
        self.body.add_to(scene)
        return scene

    def restart(self) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.body.reset(self.model, self.data, 0.0, 0.0, 0.0)
        mujoco.mj_forward(self.model, self.data)

    def walk(self, command: Iterable[float], seconds: float) -> Array:
        """Return ``(N, 7)`` twist and pose after every control step; walking ends early when the robot falls."""
        wanted, rows = np.array(list(command)), []
        for _ in range(round(seconds * CONTROL_HZ)):
            self.body.control(self.model, self.data, wanted)
            mujoco.mj_step(self.model, self.data, PHYSICS_STEPS)
            rows.append(np.concatenate([self.body.twist(self.data), self.body.pose(self.data)]))
            if self.fallen:
                break
        return np.array(rows)

    @property
    def fallen(self) -> bool:
        return self.body.fallen(self.data)

    def velocity(self, command: Iterable[float], settle: float = 2.0, seconds: float = 8.0) -> Array:
        """Return ``(3,)`` mean twist over whole strides, walking from rest."""
        self.restart()
        self.walk(command, settle)
        return self.walk(command, seconds)[:, :3].mean(0)


def response(floor: Floor) -> dict[str, dict[str, list[float]]]:
    """Ask the gait for one axis at a time; what it delivers is made monotone, as the inverse needs it."""
    table = {}
    for axis, (asked, _) in enumerate(RESPONSE):
        commands = np.zeros((len(asked), 3))
        commands[:, axis] = asked
        delivered = [floor.velocity(command)[axis] for command in track(commands, f"response {AXES[axis]}")]
        table[AXES[axis]] = {"asked": asked.tolist(), "delivered": _rounded(np.maximum.accumulate(delivered))}
    return table


def tracking(floor: Floor, commands: Array, label: str) -> dict[str, Any]:
    """Compare the mean velocity of each command with the command."""
    errors, falls = [], 0
    for command in track(commands, label):
        errors.append(floor.velocity(command) - command)
        falls += floor.fallen
    absolute = np.abs(errors)
    return {
        "commands": len(commands),
        "mean_abs_error": _rounded(absolute.mean(0)),
        "max_abs_error": _rounded(absolute.max(0)),
        "falls": falls,
    }


def fresh_commands(rng: np.random.Generator) -> dict[str, Array]:
    """Commands that were not used for the table: all axes, one axis, walking along an arc."""
    combined, single = rng.uniform(LOW, HIGH, (2, 24, 3))
    single *= np.eye(3)[np.arange(24) % 3]
    arc = rng.uniform((0.1, 0, LOW[2]), (HIGH[0], 0, HIGH[2]), (24, 3))
    return {"all_axes": combined, "one_axis": single, "arc": arc}


def switching(floor: Floor, rng: np.random.Generator, switches: int = 80) -> dict[str, Any]:
    """Walk on without a restart while the command jumps every 3 s, every fourth time to standing."""
    floor.restart()
    for count in track(range(switches), "switching"):
        floor.walk(rng.uniform(LOW, HIGH) * (count % 4 != 3), 3.0)
        if floor.fallen:
            break
    return {"seconds": 3 * switches, "fell": floor.fallen}


def robustness(floor: Floor, rng: np.random.Generator, friction: float, push: float) -> dict[str, Any]:
    """Walk 16 random commands for 10 s each, pushed in a random direction every 3 s; count the falls."""
    feet = floor.model.geom_priority == 1
    floor.model.geom_friction[feet, 0] = friction
    falls = 0
    for command in track(rng.uniform(LOW, HIGH, (16, 3)), f"friction {friction}, push {push} m/s"):
        floor.restart()
        floor.walk(command, 1.0)
        for heading in rng.uniform(-np.pi, np.pi, 3):
            floor.data.qvel[:2] += push * np.array((np.cos(heading), np.sin(heading)))
            floor.walk(command, 3.0)
        falls += floor.fallen
    floor.model.geom_friction[feet, 0] = FOOT_FRICTION
    return {"friction": friction, "push_m_s": push, "walks": 16, "falls": falls}


def stopping(floor: Floor, speed: float) -> dict[str, Any]:
    """Command zero at ten phases of the stride: way to the stop, then drift in the ten seconds after it."""
    ways, drifts, turns = [], [], []
    for phase in track(range(10), f"stopping from {speed} m/s"):
        floor.restart()
        begin = floor.walk((speed, 0, 0), 3 + phase / 10)[-1]
        stop = floor.walk((0, 0, 0), 3.0)[-1]
        end = floor.walk((0, 0, 0), 10.0)[-1]
        ways.append(np.hypot(*(stop - begin)[3:5]))
        drifts.append(np.hypot(*(end - stop)[3:5]))
        turns.append(abs(end - stop)[6])
    worst = _rounded(np.array([max(ways), max(drifts), max(turns)]))
    return dict(zip(("way_m", "drift_in_10s_m", "turn_in_10s_rad"), worst, strict=True))


def sway(floor: Floor, command: tuple[float, float, float]) -> dict[str, Any]:
    """RMS of the twist about its mean: as measured at 50 Hz, low-passed, and averaged over a stride."""
    floor.restart()
    floor.walk(command, 3.0)
    twist = floor.walk(command, 20.0)[:, :3]
    deviation = twist - twist.mean(0)
    smooth = {f"low_pass_{tau}s": _rms(_low_pass(deviation, tau)[4 * STRIDE :]) for tau in SMOOTHING_S}
    stride_mean = np.lib.stride_tricks.sliding_window_view(deviation, STRIDE, axis=0).mean(-1)
    return {"command": command, "raw": _rms(deviation), **smooth, "stride_mean": _rms(stride_mean)}


def speed(floor: Floor) -> dict[str, float]:
    """Time of a scene's compilation, of one control step, and of walking, relative to real time."""
    command = np.array((0.4, 0.0, 0.2))
    floor.restart()
    floor.walk(command, 2.0)
    walk = _seconds(lambda: floor.walk(command, 2.0), 5)
    return {
        "compile_ms": 1e3 * _seconds(lambda: floor.scene().compile(), 20),
        "control_us": 1e6 * _seconds(lambda: floor.body.control(floor.model, floor.data, command), 200),
        "times_real_time": 2.0 / walk,
    }


def _low_pass(values: Array, tau: float) -> Array:
    weight, state, rows = 1 - np.exp(-1 / (CONTROL_HZ * tau)), np.zeros(3), []
    for value in values:
        state = state + weight * (value - state)
        rows.append(state)
    return np.array(rows)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def _rms(values: Array) -> list[float]:
    return _rounded(np.sqrt((values**2).mean(0)))


def _rounded(values: Array) -> list[float]:
    return np.round(np.asarray(values, np.float64), 3).tolist()


def measure(seed: int) -> dict[str, Any]:
    """Run every part of the benchmark."""
    raw, calibrated = Floor(calibrated=False), Floor(calibrated=True)
    commands = fresh_commands(np.random.default_rng(seed))
    return {
        "response": response(raw),
        "tracking": {
            name: {
                "raw": tracking(raw, group, f"raw, {name}"),
                "calibrated": tracking(calibrated, group, f"calibrated, {name}"),
            }
            for name, group in commands.items()
        },
        "switching": switching(calibrated, np.random.default_rng(seed)),
        "robustness": [
            robustness(calibrated, np.random.default_rng(seed), friction, push)
            for friction, push in ((0.6, 0.0), (0.6, 0.5), (0.6, 1.0), (1.0, 0.0), (0.4, 0.0), (0.3, 0.0))
        ],
        "stopping": {str(speed): stopping(calibrated, speed) for speed in (0.3, 0.6)},
        "sway": [sway(calibrated, c) for c in ((0, 0, 0), (0.3, 0, 0), (0.6, 0, 0), (0, 0.2, 0), (0, 0, 0.5))],
        "speed": speed(calibrated),
    }


def main(json: Path | None = None, seed: int = 0) -> None:
    """Measure the walking G1 and print the results.

    Args:
        json: Also write them to this file.
        seed: Seed of the fresh commands.
    """
    check(json, seed)
    text = dumps(measure(seed), indent=2)
    print(text)
    if json:
        json.write_text(text + "\n")


if __name__ == "__main__":
    run(main)
