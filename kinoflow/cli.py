"""The ``kinoflow`` command. Each subcommand is a file in `kinoflow.commands`, loaded when it is called."""

from __future__ import annotations

import sys

COMMANDS = {
    "demo": "the main job in one go: collect, train, evaluate, export, drive a walking robot, report",
    "doctor": "what this machine can and cannot do, and the remedy for each",
    "collect": "record expert episodes in a simulator",
    "data": "check and describe an episode file",
    "train": "train an action head (kinoflow train flowdit --data FILE --out DIRECTORY) or a planner (xdiffuser)",
    "import": "read a LeRobot, robomimic or diffusion_policy checkpoint once, into a run directory",
    "compose": "combine policies at test time, with or without a search for their weights",
    "eval": "evaluate policies, or planners (kinoflow eval xdiffuser), on paired seeds beside the baselines",
    "distill": "train a policy once more so that fewer steps do, and compare",
    "export": "write a trained policy as one verified bundle",
    "bench": "measure a bundle's latency beside its peers",
    "plan": "plan a long way through a maze: picture, timing and where the plan came from",
    "imagine": "make a goal video from an instruction, check it and try again: kinoflow imagine TEXT -o goal.mp4",
    "run": "run a bundle on a simulated robot as real processes, in real time",
}

KEEPING = ("demo", "collect", "train", "distill", "imagine")  # called again, they go on after what they had finished


def main() -> None:
    """Entry point of the console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
    elif arguments[0] in COMMANDS:
        sys.exit(call(arguments[0], arguments[1:]))
    else:
        sys.exit(f"kinoflow: unknown command '{arguments[0]}'\n\n{usage()}")


def usage() -> str:
    """What ``kinoflow --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: kinoflow COMMAND [OPTIONS]", "", *lines, "", "kinoflow COMMAND --help explains a command."]
    )


def call(name: str, arguments: list[str]) -> int:
    """Run one command; returns the exit status. Expected errors become one line that names the remedy."""
    import importlib

    import tyro

    from policies.spec import ContractError

    try:
        module = importlib.import_module(f"kinoflow.commands.{name}")
        command = module.for_arguments(arguments) if hasattr(module, "for_arguments") else module.command
        tyro.cli(command, prog=f"kinoflow {name}", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except (ContractError, ValueError, ArithmeticError, OSError, RuntimeError, ImportError) as error:
        print(f"kinoflow {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "; what was finished is kept" if name in KEEPING else ""
        print(f"\nkinoflow {name}: interrupted{kept}", file=sys.stderr)
        return 130
    return 0
