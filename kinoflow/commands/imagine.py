"""kinoflow imagine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import tyro

from envs.imagination import MujocoImagination
from envs.video_nav import CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH
from envs.world import make, robot
from kinoflow.console import show
from planners.generators import HttpVideoGenerator
from planners.imagination import FRAMES, ImaginationError, Orchestrator, PromptPolicy, Trace
from planners.memory import Memory
from planners.prompt import ChatPolicy, RulePolicy
from planners.validate import FlowValidator
from policies.egomotion import Camera
from ros_nodes.pictures import SENTENCE, read_photo, write_video

TRANSCRIPT = "chat.jsonl"  # in the folder of the attempts
KEY = "OPENAI_API_KEY"  # environment variable


def command(
    prompt: tyro.conf.Positional[str],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    env: str = "kinoflow/VideoNav-v0",
    embodiment: str = "wheeled",
    seed: int = 0,
    generator: str = "mujoco",
    photo: Path | None = None,
    chat: str = "",
    model: str = "",
    frames: int = FRAMES,
    attempts: int = 5,
    memory: Path | None = None,
    json: bool = False,
) -> None:
    """Make a first-person goal video from an instruction, check it, and try again with other words if it fails.

    Args:
        prompt: The instruction, for example "walk past the red box and stop at the blue door".
        out: Video to write (.mp4), and beside it the instruction (.txt), which the policy node takes from there. The
            attempts go into a folder beside it (.trace), and an interrupted run continues there.
        env: Environment whose room is filmed.
        embodiment: Robot that carries the camera.
        seed: Seed of the room and of the attempts.
        generator: "mujoco" renders a planned path; the URL of a video model asks that.
        photo: Picture of the goal that the video has to end with; its middle square counts.
        chat: URL of an OpenAI-compatible endpoint, without /chat/completions, whose language model words what is asked
            of the generator, instead of rules; its key is taken from the environment variable OPENAI_API_KEY.
        model: Name of that language model.
        frames: Pictures of the video, about nine per metre.
        attempts: Most attempts.
        memory: File of rules that helped before; it is updated.
        json: Print JSON.
    """
    folder = out.with_suffix(".trace")
    policy = _policy(chat, model, folder)
    world = make(env, robot(embodiment))
    if not hasattr(world, "film"):
        world.close()
        raise ValueError(f"the robot of {env} has no camera; choose --env kinoflow/VideoNav-v0")
    try:
        world.reset(seed=seed)
        side = world.picture_size
        end = None if photo is None else read_photo(photo, side)
        origin = {"env": env, "embodiment": embodiment, "generator": _public(generator)}
        if end is not None:
            origin["photo"] = hashlib.sha256(end.tobytes()).hexdigest()[:16]
        source: Any = MujocoImagination(world) if generator == "mujoco" else HttpVideoGenerator(generator)
        validator = FlowValidator(Camera(side, CAMERA_FOVY, CAMERA_HEIGHT, CAMERA_PITCH), end_picture=end)
        loop = Orchestrator(
            source, validator, policy, Memory(memory), attempts, frames=frames, size=(side, side), origin=origin
        )
        trace = loop.run(prompt, seed, folder)
    finally:
        world.close()
    write_video(out, trace.video.frames, trace.video.rate_hz)
    out.with_suffix(SENTENCE).write_text(f"{prompt}\n", encoding="utf-8")
    _report(trace, out, json)


def _policy(chat: str, model: str, folder: Path) -> PromptPolicy:
    if bool(chat) != bool(model):
        raise ValueError("--chat URL and --model NAME belong together; give both, or neither to word by rules")
    return ChatPolicy(chat, model, folder / TRANSCRIPT, os.environ.get(KEY, "")) if chat else RulePolicy()


def _public(generator: str) -> str:
    """The generator without user, password and query, which may be secret."""
    parts = urlsplit(generator)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _report(trace: Trace, out: Path, json: bool) -> None:
    """Show what was made; raises `ImaginationError` where it is no good."""
    tries = [
        {"prompt": a.request.prompt, "score": round(a.verdict.score, 3), "reasons": [*a.verdict.reasons]}
        for a in trace.attempts
    ]
    show({"video": str(out), "provenance": trace.video.provenance, "accepted": trace.accepted, "attempts": tries}, json)
    if not trace.accepted:
        reasons = "; ".join(trace.attempts[trace.best].verdict.reasons)
        raise ImaginationError(
            f"no goal video: none of {len(tries)} attempts passed the check ({reasons}). "
            f"{out} is the best of them, for looking at only; allow more --attempts or word the instruction otherwise"
        )
