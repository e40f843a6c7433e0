"""A bundle beside the policies it competes with and beside what the machine allows, on one core and in one run.

Beside the arms of `benchmarks.latency` take turns: LeRobot's default diffusion policy in torch with the samplers of
diffusers, the same network in ONNX Runtime, CleanDiffuser's small transformer in torch, the limits of the core and the
bundle's matrix products alone. Where the real LeRobot is installed in an environment of its own, it takes turns too.
The peers are rebuilt shapes with random weights; what they condition on is given encoded.

The ratio to LeRobot is a product of three: runtime (its network in torch over the same in ONNX Runtime), network (that
over the bundle) and number of steps. The first two compare chunks divided by their steps, so what is done once per
chunk is in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import latency, lerobot_peer, roofline
from benchmarks.latency import PolicyArm, medians, one_core, parameters, race, timed
from policies.foreign.unet import ConditionalUNet1d
from policies.graphs import quiet
from policies.nets.dit import modulated, sinusoidal
from policies.network import open_session
from policies.spec import Array

HORIZON, ACTION_DIM = 16, 2
CONDITION, STEP_WIDTH = 2 * (2 + 16), 128  # two observations of PushT's state; width of the embedded noise level
DDPM, DDIM, ONNX, TRANSFORMER = "lerobot_ddpm", "lerobot_ddim", "lerobot_onnx", "cleandiffuser"
PACKAGE = "lerobot_package"
DDPM_STEPS, DDIM_STEPS, TRANSFORMER_STEPS = 100, 10, 5
DDPM_TURNS, DDIM_TURNS = 2, 5  # of many seconds each
Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the peers.

    Args:
        unet: Channels per level of the U-Net of `benchmarks.latency`.
        lerobot: Channels per level of LeRobot's U-Net, its default.
        transformer: Channels, blocks and attention heads of CleanDiffuser's DiT1d, as in its own pipelines.
        side: Of the square product that measures the core's peak.
    """

    unet: tuple[int, ...] = latency.WIDTHS
    lerobot: tuple[int, ...] = (512, 1024, 2048)
    transformer: tuple[int, int, int] = (320, 2, 10)
    side: int = roofline.SIDE


def measure(
    bundle: Path,
    progress: Callable[[int, int, str], None],
    lerobot: Path | None = None,
    sizes: Sizes = Sizes(),
    rounds: int = latency.ROUNDS,
) -> dict[str, Any]:
    """Measure a bundle, its peers and the core in turns; takes 5 minutes on an idle machine and 6 GB of memory.

    Args:
        bundle: Bundle written by ``kinoflow export``.
        progress: Called with (rounds done, rounds in all, a short text).
        lerobot: Python of an environment with LeRobot, see `benchmarks.lerobot_peer`.
        sizes: Sizes of the peers.
        rounds: Turns of every arm that does not take seconds.

    Returns:
        What `benchmarks.latency.measure` returns, with all peers among the arms; the ``factors`` of the ratios to
        LeRobot, and of those of processor time in ``cpu_factors``; and what `benchmarks.roofline.report` returns.

    Raises:
        BundleError: The bundle is damaged.
        ImportError: diffusers is not installed.
        RuntimeError: The real LeRobot does not answer.
    """
    progress(0, rounds, "building the peers")
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_core())
        found = roofline.bundle_products(bundle)
        policies = latency.make_arms(bundle, sizes.unet) | peers(sizes)
        versions = {"diffusers": _diffusers().__version__}
        if lerobot is not None:
            package = stack.enter_context(Package.started(lerobot))
            policies |= package.arms()
            versions[PACKAGE] = package.versions
        wall, cpu = race({**policies, **roofline.limit_arms(found, sizes.side)}, rounds, progress)
    result = latency.report(bundle, policies, rounds, wall, cpu)
    result["versions"] |= versions
    parts = {"factors": factors(policies, wall), "cpu_factors": factors(policies, cpu)}
    return {**result, **parts, **roofline.report(wall, cpu, found, sizes.side)}


def factors(arms: Mapping[str, PolicyArm], seconds: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """What the ratio of each arm of LeRobot in torch to the bundle is made of; ``total`` is the product of the rest."""
    chunk = medians(seconds)
    step = {name: chunk[name] / arm.steps for name, arm in arms.items()}
    return {
        name: {
            "total": chunk[name] / chunk["bundle"],
            "runtime": step[name] / step[ONNX],
            "network": step[ONNX] / step["bundle"],
            "steps": arm.steps / arms["bundle"].steps,
        }
        for name, arm in arms.items()
        if name.startswith("lerobot") and name != ONNX
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Render the result of `measure` as tables."""
    lines = [latency.as_text(result)]
    for kind, title in (("factors", "ratio"), ("cpu_factors", "in processor time")):
        lines.append(f"{title:<34}{'':>9}   {'runtime':>8}   {'network':>8}   {'steps':>6}")
        for name, part in result[kind].items():
            parts = f"{part['runtime']:8.2f} x {part['network']:8.2f} x {part['steps']:6.1f}"
            lines.append(f"  {name + '_over_bundle':<32}{part['total']:9.1f} = {parts}")
    return "\n".join([*lines, roofline.as_text(result)])


def peers(sizes: Sizes) -> dict[str, PolicyArm]:
    """The rebuilt peers.

    Raises:
        ImportError: diffusers is not installed.
    """
    table: dict[str, Any] = {"num_train_timesteps": DDPM_STEPS, "beta_schedule": "squaredcos_cap_v2"}
    ddpm, ddim = _diffusers().DDPMScheduler(**table), _diffusers().DDIMScheduler(**table)
    unet = ConditionalUNet1d(ACTION_DIM, CONDITION, sizes.lerobot, STEP_WIDTH).eval()
    condition = torch.randn(1, CONDITION)
    dit = DiT1d(*sizes.transformer).eval()

    def eager(x: Tensor, level: Tensor) -> Tensor:
        return unet(x, level, condition)

    name, size = f"LeRobot's UNet {'-'.join(map(str, sizes.lerobot))}", parameters(unet)
    in_onnx = _in_onnx(unet, condition)

    def arm(what: str, network: Network, sampler: Any, steps: int, turns: int | None = None) -> PolicyArm:
        chunk = diffusing(network, sampler, steps)
        return PolicyArm(f"{name}, {what}", timed(chunk), calls=1, turns=turns, parameters=size, steps=steps)

    return {
        DDPM: arm("torch, DDPM", eager, ddpm, DDPM_STEPS, DDPM_TURNS),
        DDIM: arm("torch, DDIM", eager, ddim, DDIM_STEPS, DDIM_TURNS),
        ONNX: arm("ONNX Runtime", in_onnx, ddim, DDIM_STEPS),
        TRANSFORMER: PolicyArm(
            "CleanDiffuser's DiT1d, torch, Euler",
            timed(flowing(dit, TRANSFORMER_STEPS)),
            calls=20,  # as the bundle: the first ones of a turn are slower
            parameters=parameters(dit),
            steps=TRANSFORMER_STEPS,
        ),
    }


def diffusing(network: Network, scheduler: Any, steps: int) -> Callable[[], Tensor]:
    """A function that makes one chunk with a sampler of diffusers, as LeRobot does."""

    @torch.inference_mode()
    def chunk() -> Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(1, HORIZON, ACTION_DIM)
        for level in scheduler.timesteps:
            x = scheduler.step(network(x, level[None].float()), level, x).prev_sample
        return x

    return chunk


def flowing(network: Network, steps: int) -> Callable[[], Tensor]:
    """A function that makes one chunk with Euler's steps, the cheapest sampler there is."""

    @torch.inference_mode()
    def chunk() -> Tensor:
        x = torch.randn(1, HORIZON, ACTION_DIM)
        for index in range(steps):
            x = x + network(x, torch.tensor([index / steps])) / steps
        return x

    return chunk


class DiT1d(nn.Module):
    """The shape of CleanDiffuser's transformer over actions: adaLN-Zero blocks, a condition vector of the same width.

    Args:
        width: Token width.
        depth: Blocks.
        heads: Attention heads.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.condition = nn.Parameter(torch.randn(1, width))  # given encoded
        self.position = nn.Parameter(torch.randn(1, HORIZON, width))
        self.inlet, self.outlet = nn.Linear(ACTION_DIM, width), nn.Linear(width, ACTION_DIM)
        self.time = nn.Sequential(nn.Linear(STEP_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads) for _ in range(depth))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        condition = self.time(sinusoidal(t, STEP_WIDTH)) + self.condition
        tokens = self.inlet(x) + self.position
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.outlet(modulated(tokens, *self.modulation(condition)[:, None].chunk(2, -1)))


class AdaptiveBlock(nn.Module):
    """Self-attention and MLP, both modulated and gated by the condition ``(B, width)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        m = self.modulation(condition)[:, None].chunk(6, -1)
        normal = modulated(tokens, m[0], m[1])
        tokens = tokens + m[2] * self.attention(normal, normal, normal)[0]
        return tokens + m[5] * self.mlp(modulated(tokens, m[3], m[4]))


class Package:
    """The real LeRobot in a process of its own, see `benchmarks.lerobot_peer`.

    Args:
        process: It, with both ends of the conversation.

    Raises:
        RuntimeError: It does not answer.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        said = json.loads(self._ask(None))
        self.parameters: int = said["parameters"]
        self.versions: dict[str, str] = said["versions"]

    @classmethod
    @contextmanager
    def started(cls, python: Path) -> Iterator[Package]:
        """Start it with an interpreter; it ends with the context."""
        command = [str(python), "-I", lerobot_peer.__file__]  # -I: not the packages of this environment
        pipe, environment = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
            try:
                yield cls(process)
            finally:
                process.terminate()

    def arms(self) -> dict[str, PolicyArm]:
        """One per sampler."""
        turns = {"DDPM": DDPM_TURNS, "DDIM": DDIM_TURNS}
        return {
            f"{PACKAGE}_{sampler.lower()}": PolicyArm(
                f"LeRobot {self.versions['lerobot']} itself, {sampler}",
                partial(self.seconds, steps),
                calls=1,
                turns=turns[sampler],
                parameters=self.parameters,
                steps=steps,
            )
            for steps, sampler in lerobot_peer.SAMPLERS.items()
        }

    def seconds(self, steps: int) -> tuple[float, float]:
        """Let it make a chunk; returns its wall and processor seconds."""
        wall, cpu = map(float, self._ask(steps).split())
        return wall, cpu

    def _ask(self, steps: int | None) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            if steps is not None:
                print(steps, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                "LeRobot does not answer, see above; --lerobot takes the Python of an environment with LeRobot, "
                "such as tests/parity/lerobot.sh makes"
            )
        return answer


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("--peers samples with LeRobot's own samplers: pip install 'diffusers>=0.30'") from error
    return diffusers


def _in_onnx(unet: nn.Module, condition: Tensor) -> Network:
    """The same network in ONNX Runtime."""
    names, example = ["x", "level", "condition"], (torch.randn(1, HORIZON, ACTION_DIM), torch.zeros(1), condition)
    with quiet():
        program = torch.onnx.export(unet, example, dynamo=True, verbose=False, input_names=names)
    assert program is not None  # with dynamo=True there always is one
    session = open_session(program.model_proto.SerializeToString(), threads=1)

    def network(x: Tensor, level: Tensor) -> Tensor:
        inputs = dict(zip(names, (x.numpy(), level.numpy(), condition.numpy()), strict=True))
        return torch.from_numpy(session.run(None, inputs)[0])

    return network
