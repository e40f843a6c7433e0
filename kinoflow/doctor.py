"""What this machine can and cannot do, and the remedy for each. A check that breaks is a finding like any other."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import operator
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

INSTALL = "pip install -c constraints.txt -e ."
FREE_GB = 2.0  # of memory and of disk; a training run holds about 1 GB
TIMEOUT_S = 8.0


class Answer(NamedTuple):
    """What a check says: whether all is well, what it found, and the remedy in case it is not."""

    ok: bool
    found: str
    remedy: str


Check = Callable[[], Answer]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: What was looked at.
        ok: Whether it is as kinoflow needs it.
        found: What there is.
        remedy: What to do about it; empty when all is well.
        optional: Whether kinoflow's main job works without it.
    """

    topic: str
    ok: bool
    found: str
    remedy: str
    optional: bool = False


def python() -> Answer:
    """The interpreter against the range of the distribution."""
    needed, version = importlib.metadata.metadata("kinoflow")["Requires-Python"], platform.python_version()
    return Answer(allows(needed, version), f"{version} (needs {needed}) at {sys.executable}", f"use Python {needed}")


def packages() -> Answer:
    """Every package kinoflow depends on, against the range it was tested with."""
    wrong = [
        f"{name} {version or 'is missing'} (needs {needed})"
        for name, needed, version in dependencies()
        if not version or not allows(needed, version)
    ]
    return Answer(not wrong, ", ".join(wrong) or "all within the tested ranges", INSTALL)


def names() -> Answer:
    """Whether the import names of kinoflow lead to kinoflow."""
    from kinoflow import shadowed

    found = [f"'{name}' is taken from {place}" for name, place in shadowed().items()]
    remedy = "start Python from another directory, use 'python -P', or give kinoflow an environment of its own"
    return Answer(not found, ", ".join(found) or "no other package shadows kinoflow", remedy)


def torch() -> Answer:
    """Version, device and threads of torch."""
    import torch

    needed, device = needs("torch"), "cuda" if torch.cuda.is_available() else "cpu"
    found = f"{torch.__version__} (needs {needed}) on {device}, {torch.get_num_threads()} threads"
    return Answer(allows(needed, torch.__version__), found, INSTALL)


def mujoco() -> Answer:
    """Version of MuJoCo; importing it finds the broken installations that a change of its major version leaves."""
    import mujoco

    needed, version = needs("mujoco"), mujoco.__version__
    remedy = f"pip uninstall -y mujoco mujoco-core mujoco-studio, then {INSTALL}"
    return Answer(allows(needed, version), f"{version} (needs {needed})", remedy)


def processor() -> Answer:
    """Cores and how busy they are."""
    from policies.bundle import cpu_name

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    remedy = "let the other work end: deadlines and latencies measured now are those of a busy machine"
    return Answer(load <= cores, f"{cores} cores, load {load:.1f}, {cpu_name()}", remedy)


def memory() -> Answer:
    """Memory that is available."""
    entries = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    available, total = int(entries["MemAvailable"]) / 1e6, int(entries["MemTotal"]) / 1e6
    found = f"{available:.1f} of {total:.1f} GB available"
    return Answer(available >= FREE_GB, found, f"close other programs until {FREE_GB:.0f} GB are free")


def disk() -> Answer:
    """Disk space where commands write by default."""
    usage = shutil.disk_usage(Path.cwd())
    found = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free in {Path.cwd()}"
    return Answer(usage.free / 1e9 >= FREE_GB, found, "free some space, or write elsewhere with --out")


def ros_conflict() -> Answer:
    """Whether a sourced ROS 2 and the wheels are mixed: each would load libraries of the other."""
    sourced, wheels = os.environ.get("ROS_DISTRO"), ros_wheels()
    if not (sourced and wheels):
        return Answer(True, "a sourced distribution and wheels are not mixed", "")
    found = f"ROS 2 {sourced} is sourced and wheels of {', '.join(wheels)} are installed"
    remedy = (
        "use one of them: open a shell that sources no setup.bash, or pip freeze | grep ^ros- | xargs pip uninstall -y"
    )
    return Answer(False, found, remedy)


def ros() -> Answer:
    """Whether rclpy works, which distribution it is of and which middleware it talks."""
    code = "import rclpy, rclpy.utilities as u; print(u.get_rmw_implementation_identifier(), 'from', rclpy.__file__)"
    ok, said = in_python(code)
    sourced, wheels = os.environ.get("ROS_DISTRO"), ros_wheels()
    source = f"ROS 2 {sourced}, sourced" if sourced else f"ROS 2 wheels of {', '.join(wheels) or 'no distribution'}"
    remedy = f"{INSTALL[:-1]}'.[ros]' on x86-64 Linux; elsewhere source the robot's own ROS 2"
    return Answer(ok, f"{source}: {said}" if ok else said, remedy)


def g1() -> Answer:
    """Model and walking policy of the Unitree G1."""
    from envs.g1.assets import available

    found, _, remedy = (available() or "").partition("; ")
    return Answer(not found, found or "robot model and walking policy are there and verified", remedy)


def rendering() -> Answer:
    """Pictures without a screen, with the OpenGL of the environment and with the two that need no display."""
    current = os.environ.get("MUJOCO_GL", "")
    backends = list(dict.fromkeys((current, "egl", "osmesa")))
    with ThreadPoolExecutor() as pool:
        results = dict(zip(backends, pool.map(render, backends), strict=True))
    working = [name for name, (ok, _) in results.items() if ok]
    if not working:
        libraries = "apt-get install -y --no-install-recommends libegl1 libgl1 libglib2.0-0"
        return Answer(False, f"no picture: {results['egl'][1]}", f"{libraries} and export MUJOCO_GL=egl")
    found = f"a picture of 64x64 with MUJOCO_GL={working[0]}"
    if current not in working:
        found = f"{found}, but none with {f'MUJOCO_GL={current}' if current else 'MUJOCO_GL unset'}, as it is now"
    return Answer(current in working, found, f"export MUJOCO_GL={working[0]}")


def real_time() -> Answer:
    """What scheduling the control loop gets."""
    from policies.runtime.loop import Loop

    loop = Loop(period_s=1.0, tick=lambda now: None)
    loop.start()
    loop.stop()
    remedy = "add '* - rtprio 50' to /etc/security/limits.conf and log in again, or grant CAP_SYS_NICE"
    return Answer(loop.scheduling.startswith("SCHED_FIFO"), f"the control loop gets {loop.scheduling}", remedy)


def bfloat16() -> Answer:
    """Whether the processor computes in bfloat16, which training uses by default."""
    info = Path("/proc/cpuinfo")
    units = sorted({*re.findall(r"\b(?:avx512_bf16|amx_bf16|bf16)\b", info.read_text())}) if info.exists() else []
    return Answer(bool(units), ", ".join(units) or "no units for it in this processor", "train with --no-bf16")


def gpu() -> Answer:
    """The first CUDA device of torch."""
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    return Answer(
        torch.cuda.is_available(), found, "nothing needs one; large heads train faster with a CUDA build of torch"
    )


def robomimic() -> Answer:
    """Whether robomimic is installed; it is not imported."""
    if importlib.util.find_spec("robomimic"):
        return Answer(True, importlib.metadata.version("robomimic"), "")
    remedy = "episode files need none; for robomimic's own tools: pip install --no-deps robomimic==0.3.0 tqdm termcolor"
    return Answer(False, "not installed", remedy)


def openvino() -> Answer:
    """Whether the other back end for bundles is installed; it is not imported."""
    if importlib.util.find_spec("openvino"):
        return Answer(True, importlib.metadata.version("openvino"), "")
    return Answer(False, "not installed", f"{INSTALL[:-1]}'.[openvino]'; on some processors it computes faster")


def pusht() -> Answer:
    """Whether PushT can be simulated."""
    ok, said = in_python("import os; os.environ['SDL_VIDEODRIVER'] = 'dummy'; import gym_pusht, pymunk; print('works')")
    return Answer(ok, said, f"{INSTALL[:-1]}'.[pusht]'")


def mazes() -> Answer:
    """Whether OGBench's mazes can be simulated."""
    ok, said = in_python("import ogbench; print('works')")
    return Answer(ok, said, f"{INSTALL[:-1]}'.[maze]'")


def tours() -> Answer:
    """Whether tours can be planned."""
    ok, said = in_python("import ortools; print(ortools.__version__)")
    return Answer(ok, said, f"{INSTALL[:-1]}'.[planning]'")


def robosuite() -> Answer:
    """Whether the manipulation tasks can be simulated; robosuite takes seconds to import, so it is only looked for."""
    if importlib.util.find_spec("robosuite"):
        return Answer(True, importlib.metadata.version("robosuite"), "")
    return Answer(False, "not installed", f"{INSTALL[:-1]}'.[robosuite]'; it needs a C compiler")


REQUIRED: dict[str, Check] = {
    "python": python,
    "packages": packages,
    "import names": names,
    "torch": torch,
    "mujoco": mujoco,
    "processor": processor,
    "memory": memory,
    "disk": disk,
    "ROS 2 mixture": ros_conflict,
}
OPTIONAL: dict[str, Check] = {
    "ROS 2": ros,
    "Unitree G1": g1,
    "rendering": rendering,
    "real time": real_time,
    "bfloat16": bfloat16,
    "GPU": gpu,
    "OpenVINO": openvino,
    "robomimic": robomimic,
    "PushT": pusht,
    "mazes": mazes,
    "tours": tours,
    "robosuite": robosuite,
}


def examine(required: Mapping[str, Check] = REQUIRED, optional: Mapping[str, Check] = OPTIONAL) -> list[Finding]:
    """Run all checks side by side, in a few seconds.

    Args:
        required: Check per topic.
        optional: Checks of what the main job works without.

    Returns:
        One finding per topic, in this order.
    """
    jobs = [(topic, check, checks is optional) for checks in (required, optional) for topic, check in checks.items()]
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: _finding(*job), jobs))


def as_text(findings: Sequence[Finding]) -> str:
    """Render findings, one line each, the remedy below what is not well."""
    lines = []
    for finding in findings:
        lines.append(f"{_verdict(finding):<9} {finding.topic:<14} {finding.found}")
        lines += [f"{'':<24} remedy: {finding.remedy}"] * (not finding.ok)
    missing = [finding for finding in findings if not finding.ok]
    problems = sum(not finding.optional for finding in missing)
    return "\n".join([*lines, f"{problems} problems, {len(missing) - problems} optional things missing"])


def allows(needed: str, version: str) -> bool:
    """Whether a version such as ``2.13.0+cpu`` lies within bounds such as ``>=2.6,<3``."""
    holds = {">=": operator.ge, "<": operator.lt, "==": operator.eq}
    return all(
        holds[sign](_numbers(version), _numbers(bound)) for sign, bound in re.findall(r"(>=|<|==)([\d.]+)", needed)
    )


def dependencies() -> list[tuple[str, str, str]]:
    """Name, needed range and installed version (empty if there is none) of every package kinoflow always needs."""
    found = []
    for line in importlib.metadata.requires("kinoflow") or []:
        requirement = re.fullmatch(r"([\w.-]+)(?:\[.*\])?\s*([^;]*)", line)  # those with a condition are optional
        if requirement:
            name, needed = requirement.groups()
            found.append((name, needed, _installed(name)))
    return found


def needs(package: str) -> str:
    """The range of a package that kinoflow needs."""
    return next(needed for name, needed, _ in dependencies() if name == package)


def ros_wheels() -> list[str]:
    """The ROS 2 distributions whose rclpy is installed from a wheel."""
    names = [distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions()]
    return sorted({found[1] for name in names if (found := re.fullmatch(r"ros-(\w+)-rclpy", name))})


def render(backend: str) -> tuple[bool, str]:
    """Render a sphere in a process of its own, because MuJoCo chooses its OpenGL once and may crash in it."""
    code = (
        "import mujoco\n"
        'scene = \'<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>\'\n'
        "model = mujoco.MjModel.from_xml_string(scene)\n"
        "data = mujoco.MjData(model)\n"
        "mujoco.mj_forward(model, data)\n"
        "with mujoco.Renderer(model, 64, 64) as renderer:\n"
        "    renderer.update_scene(data)\n"
        "    assert renderer.render().max() > 0, 'the picture is black'\n"
    )
    return in_python(code, MUJOCO_GL=backend)


def in_python(code: str, **environment: str) -> tuple[bool, str]:
    """Run code in another Python; returns whether it succeeded and the last line it wrote."""
    variables = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TIMEOUT_S:.0f} s"
    written = (done.stdout if done.returncode == 0 else done.stderr).strip()
    return done.returncode == 0, written.splitlines()[-1] if written else f"exit status {done.returncode}"


def _finding(topic: str, check: Check, optional: bool) -> Finding:
    try:
        ok, found, remedy = check()
    except Exception as error:  # whatever a broken installation raises is what is to be reported
        ok, found = False, f"the check failed: {type(error).__name__}: {error}"
        remedy = f"repair what the message names, or {INSTALL}"
    return Finding(topic, ok, found, "" if ok else remedy, optional)


def _verdict(finding: Finding) -> str:
    return "ok" if finding.ok else "optional" if finding.optional else "problem"


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
