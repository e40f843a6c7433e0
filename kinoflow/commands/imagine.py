"""kinoflow imagine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from envs.imagination import MujocoImagination
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH
from envs.world import make, robot
from kinoflow.console import show
from planners.generators import HttpVideoGenerator
from planners.imagination import Orchestrator, Trace
from planners.memory import Memory
from planners.prompt import RulePolicy
from planners.validate import FlowValidator
from policies.egomotion import Camera


def command(
    prompt: tyro.conf.Positional[str],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    env: str = "kinoflow/VideoNav-v0",
    embodiment: str = "wheeled",
    seed: int = 0,
    generator: str = "mujoco",
    frames: int = 64,
    attempts: int = 5,
    memory: Path | None = None,
    json: bool = False,
) -> None:
    """Make a first-person goal video from an instruction, check it, and try again with other words if it fails.

    Args:
        prompt: The instruction, for example "walk past the red box and stop at the blue door".
        out: Video to write (.mp4); the attempts go into a folder beside it, and an interrupted run continues there.
        env: Environment whose room is filmed.
        embodiment: Robot that carries the camera.
        seed: Seed of the room and of the attempts.
        generator: "mujoco" renders a planned path; the URL of a video model asks that.
        frames: Pictures of the video, about nine per metre.
        attempts: Most attempts.
        memory: File of rules that helped before; it is updated.
        json: Print JSON.
    """
    world = make(env, robot(embodiment))
    try:
        world.reset(seed=seed)
        source: Any = MujocoImagination(world) if generator == "mujoco" else HttpVideoGenerator(generator)
        camera = Camera(world.picture_size, CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH)
        size = (world.picture_size, world.picture_size)
        loop = Orchestrator(
            source, FlowValidator(camera), RulePolicy(), Memory(memory), attempts, frames=frames, size=size
        )
        trace = loop.run(prompt, seed, out.with_suffix(".trace"))
    finally:
        world.close()
    _write(trace, out)
    tries = [
        {"prompt": a.request.prompt, "score": round(a.verdict.score, 3), "reasons": [*a.verdict.reasons]}
        for a in trace.attempts
    ]
    show({"video": str(out), "provenance": trace.video.provenance, "accepted": trace.accepted, "attempts": tries}, json)


def _write(trace: Trace, path: Path) -> None:
    import cv2

    height, width = trace.video.frames.shape[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), trace.video.rate_hz, (width, height))
    for picture in trace.video.frames:
        video.write(picture.transpose(1, 2, 0)[..., ::-1].copy())
    video.release()
