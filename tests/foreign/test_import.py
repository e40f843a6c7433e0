"""Import of a checkpoint: what is written, what an environment's contract adds and what does not fit it."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.export import export
from policies.foreign.convert import import_checkpoint
from policies.load import load_policy
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec

REFERENCE = Path(__file__).parent / "reference"
POSE = REFERENCE / "robomimic/state/model.pth"
VECTOR = REFERENCE / "diffusion_policy/state/latest.ckpt"
PARTS = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper_close")
ACTION = ActionSpec(NAMES, ("1",) * 7, "base", (-1.0,) * 7, (1.0,) * 7)
LIFT = Spec(tuple(Feature(name, (size,), "m", "world") for name, size in PARTS.items()), ACTION, 20.0, 1, 1)
TABLE = Spec((Feature("cube", (4,), "m", "world"), Feature("hand", (3,), "m", "world")), ACTION, 20.0, 1, 1)
RENAME = {"object": "cube", "robot0_eef_pos": "hand"}


def act(policy: Policy, observation: dict[str, np.ndarray]) -> np.ndarray:
    spec = policy.spec
    noise = np.random.default_rng(0).standard_normal(spec.noise_shape).astype(np.float32)
    return policy.act(observation, noise, np.zeros((spec.horizon, 7), np.float32), np.zeros(spec.horizon, np.float32))


def test_a_run_directory_holds_the_policy_and_where_it_came_from(tmp_path: Path) -> None:
    run = import_checkpoint(f"robomimic:{POSE}", tmp_path, trust=True)
    assert json.loads((tmp_path / "run.json").read_text()) == run
    assert run["source"] == "robomimic"
    assert run["sha256"] == {"model.pth": hashlib.sha256(POSE.read_bytes()).hexdigest()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors", "run.json"]
    policy = load_policy(str(tmp_path))
    assert policy.spec.observations[0] == Feature("object", (4,), "", "")
    assert Policy.load(tmp_path).steps == 5, "those of the checkpoint"


def test_a_policy_that_is_there_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text("trained for days")
    with pytest.raises(ContractError, match="holds a policy already; give another directory"):
        import_checkpoint(f"robomimic:{POSE}", tmp_path, trust=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["trained for days"]


def test_the_contract_states_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    import_checkpoint(f"robomimic:{POSE}", tmp_path / "foreign", trust=True)
    import_checkpoint(f"robomimic:{POSE}", tmp_path / "ours", TABLE, RENAME, trust=True)
    foreign, ours = Policy.load(tmp_path / "foreign"), Policy.load(tmp_path / "ours")
    ours.spec.require(TABLE)
    assert ours.spec.action == ACTION
    random = np.random.default_rng(1)
    cube, hand = (random.standard_normal((2, size)).astype(np.float32) for size in (4, 3))
    found = act(ours, {"cube": cube, "hand": hand})
    expected = act(foreign, {"object": cube, "robot0_eef_pos": hand})
    np.testing.assert_array_equal(found, np.clip(expected, -1, 1))


def test_a_vector_is_taken_apart(tmp_path: Path) -> None:
    import_checkpoint(f"diffusion_policy:{VECTOR}", tmp_path / "foreign", trust=True)
    import_checkpoint(f"diffusion_policy:{VECTOR}", tmp_path / "ours", LIFT, trust=True)
    foreign, ours = Policy.load(tmp_path / "foreign"), Policy.load(tmp_path / "ours")
    assert [feature.name for feature in ours.spec.observations] == list(PARTS)
    random = np.random.default_rng(1)
    seen = {name: random.standard_normal((2, size)).astype(np.float32) for name, size in PARTS.items()}
    (vector,) = foreign.spec.observations
    expected = act(foreign, {vector.name: np.concatenate(list(seen.values()), -1)})
    np.testing.assert_array_equal(act(ours, seen), np.clip(expected, -1, 1))


def test_an_imported_policy_becomes_a_bundle(tmp_path: Path) -> None:
    run = import_checkpoint(f"diffusion_policy:{VECTOR}", tmp_path, LIFT, trust=True)
    policy = Policy.load(tmp_path)
    policy = Policy(policy.head, policy.normaliser, steps=1)  # the graph grows with the steps
    assert export(policy, tmp_path / "policy.kfb", provenance=run).max_error < 1e-4
    assert load_policy(str(tmp_path / "policy.kfb")).spec == policy.spec


@pytest.mark.parametrize(
    ("contract", "rename", "message"),
    [
        (TABLE, {}, "offers no \\['object'\\], only \\['cube', 'hand'\\]"),
        (TABLE, {"cube": "object"}, "cannot rename \\['cube'\\]: the checkpoint observes"),
        (TABLE, {"object": "hand", "robot0_eef_pos": "cube"}, "'object' has shape \\(4,\\)"),
        (TABLE, {"object": "cube+hand", "robot0_eef_pos": "hand"}, "'object' has shape \\(4,\\)"),
        (None, {"object": "robot0_eef_pos"}, "called the same"),
        (replace(TABLE, rate_hz=10.0), RENAME, "trained at 20.0, the environment runs at 10.0"),
        (replace(TABLE, action=replace(ACTION, names=NAMES[::-1])), RENAME, "the checkpoint commands"),
        (replace(TABLE, action=ActionSpec(("x",), ("1",), "", (0.0,), (1.0,))), RENAME, "commands 7 numbers"),
    ],
)
def test_what_does_not_fit_the_environment_is_refused(
    tmp_path: Path, contract: Spec | None, rename: dict[str, str], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        import_checkpoint(f"robomimic:{POSE}", tmp_path / "run", contract, rename, trust=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "trust", "message"),
    [
        (f"robomimic:{POSE}", False, "is a pickle, a program .* import it with --trust"),
        (f"diffusion_policy:{VECTOR}", False, "import it with --trust"),
        ("robomimic:none.pth", True, "there is no none.pth; give robomimic:FILE.pth"),
        ("lerobot:none", False, "there is no none; give lerobot:DIRECTORY"),
        ("openpi:x", True, "of no known kind; give one of lerobot:DIRECTORY"),
        (str(POSE), True, "of no known kind"),
    ],
)
def test_sources_are_refused_with_the_remedy(tmp_path: Path, source: str, trust: bool, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        import_checkpoint(source, tmp_path, trust=trust)


def test_the_command_imports(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "kinoflow", "import", f"robomimic:{POSE}", "-o", "run", "--trust", "--json"]
    done = subprocess.run([*call, "--rename", "object=cube"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rename"] == {"object": "cube"}
    assert Policy.load(tmp_path / "run").spec.observations[0].name == "cube"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": ("object",)}, "--rename object: give it as CHECKPOINT=ENVIRONMENT"),
        ({"env": "kinoflow/Nav-v0"}, "the environment offers no \\['object'\\]"),
    ],
)
def test_the_command_refuses(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    command = importlib.import_module("kinoflow.commands.import").command  # a name that no statement can import
    with pytest.raises(ContractError, match=message):
        command(f"robomimic:{POSE}", tmp_path / "run", trust=True, **options)
