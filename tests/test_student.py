import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.collect import CollectConfig, collect
from envs.episodes import Episode, EpisodeFile, read_episodes, write_episodes
from kinoflow.cli import call
from kinoflow.commands.distill import as_text
from policies.bundle import Bundle
from policies.coverage import coverage, spread
from policies.distill import METHODS, Distiller, DistillRecipe, Lesson, Method, on_cheapest_grids
from policies.export import export
from policies.flow import Estimate
from policies.flowdit import Config, FlowDiT
from policies.head import find_head
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, ContractError, Feature, Spec
from policies.train import Recipe, Trainer
from policies.unet import UNet

BUNDLE = Path(__file__).parents[1] / "models/nav_flowdit.kfb"
SPEC = Spec(
    (Feature("goal", (2,), "m", "base_link"),),
    ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -1.0), (1.0, 1.0)),
    10.0,
    1,
    2,
)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFile:
    """Episodes in which half of the actions are the opposite of the others, whatever is seen."""
    rng, made = np.random.default_rng(0), []
    for seed in range(40):
        goal = rng.uniform(-1, 1, (30, 2)).astype(np.float32)
        side = np.repeat(rng.choice([-1, 1]), 30).astype(np.float32)
        actions = np.stack([0.8 * side, 0.8 * side], -1)
        rest = np.zeros(30, np.float32)
        made.append(Episode(seed, {"goal": goal}, actions, goal, rest, rest[:, None]))
    path = tmp_path_factory.mktemp("data") / "toy.hdf5"
    write_episodes(path, made, "kinoflow/Nav-v0", {}, SPEC)
    return read_episodes(path)


def recipe(out: Path, **changes: object) -> Recipe[Config]:
    base = Recipe(Path("toy.hdf5"), out, Config(width=32, depth=1, heads=2), steps=8, batch=128, warmup=2)
    base = replace(base, horizon=2, history=1, evaluate_every=1000, rollouts=0, temperature=1.0, bf16=False)
    return replace(base, **changes)  # type: ignore[arg-type]


def lesson_plan(out: Path, **changes: object) -> DistillRecipe:
    return DistillRecipe(**{**vars(recipe(out)), "sample_steps": 1, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, episodes: EpisodeFile) -> Path:
    out = tmp_path_factory.mktemp("teacher")
    made = recipe(out, steps=400, learning_rate=3e-3, sample_steps=10)
    Trainer("flowdit", made, episodes).run(None, lambda done, total, text: None)
    return out


def distilled(method: Method, teacher: Path, out: Path, episodes: EpisodeFile, **changes: object) -> Policy:
    made = lesson_plan(out, initial=teacher, method=method, **changes)
    Distiller(made, episodes).run(None, lambda done, total, text: None)
    return Policy.load(out)


def chunks(policy: Policy, steps: int, grid: tuple[float, ...] | None = None) -> Tensor:
    """Of many noises."""
    policy = Policy(policy.head, policy.normaliser, steps, grid=grid).eval()
    noise = torch.randn(400, *policy.spec.noise_shape, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(400, policy.spec.horizon, 2)
    with torch.inference_mode():
        return policy.plan({"goal": torch.zeros(400, 1, 2)}, noise, none, none[..., 0]).actions


@pytest.mark.parametrize("method", list(METHODS))
def test_a_student_needs_one_step_where_its_teacher_needs_many(
    method: Method, teacher: Path, tmp_path: Path, episodes: EpisodeFile
) -> None:
    student = distilled(method, teacher, tmp_path, episodes, steps=300, learning_rate=2e-3)
    truth, single = chunks(Policy.load(teacher), 10), chunks(Policy.load(teacher), 1)
    mine = chunks(student, 1)
    assert (mine - truth).abs().mean() < 0.5 * (single - truth).abs().mean()
    assert 0.35 < (mine[:, 0, 0] > 0).float().mean() < 0.65  # both ways
    assert student.head.config.ends == (method != "reflow")


def test_what_a_teacher_makes_of_observations_stays(teacher: Path, tmp_path: Path, episodes: EpisodeFile) -> None:
    student = distilled("paths", teacher, tmp_path, episodes).state_dict()
    before = Policy.load(teacher).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, student[name])}
    assert changed and all(name.startswith("head.dit.") for name in changed)
    assert {name.split(".")[2] for name in student.keys() - before.keys()} == {"end_modulation"}


def test_a_student_begins_as_its_teacher_and_runs_as_a_bundle(teacher: Path, tmp_path: Path) -> None:
    old = Policy.load(teacher)
    head = FlowDiT(old.spec, replace(old.head.config, ends=True))
    head.load_state_dict(old.head.state_dict(), strict=False)
    for steps in (1, 3):
        assert torch.equal(chunks(Policy(head, old.normaliser), steps), chunks(old, steps))
    torch.nn.init.normal_(head.dit.end_modulation.weight, std=0.1)
    student = Policy(head, old.normaliser, 2).eval()
    assert export(student, tmp_path / "student.kfb", provenance={}).max_error < 1e-4
    assert Bundle.load(tmp_path / "student.kfb").manifest.sampler.steps == 2


def test_a_student_may_have_fewer_blocks(tmp_path: Path, episodes: EpisodeFile) -> None:
    made = recipe(tmp_path / "deep", config=Config(width=32, depth=3, heads=2), steps=400, learning_rate=3e-3)
    Trainer("flowdit", replace(made, sample_steps=10), episodes).run(None, lambda done, total, text: None)
    student = distilled(
        "reflow", tmp_path / "deep", tmp_path / "flat", episodes, depth=1, steps=300, learning_rate=2e-3
    )
    assert len(student.head.dit.blocks) == student.head.config.depth == 1
    sides = chunks(student, 1)[:, 0, 0]
    assert 0.35 < (sides > 0).float().mean() < 0.65 and sides.abs().mean() > 0.6
    for depth in (0, 4):
        with pytest.raises(ContractError, match="take 1 to 3"):
            Distiller(lesson_plan(tmp_path / "none", initial=tmp_path / "deep", depth=depth), episodes)


def test_a_teacher_may_be_at_another_temperature(teacher: Path, tmp_path: Path, episodes: EpisodeFile) -> None:
    student = distilled("paths", Path(f"{teacher}@temperature=0.5"), tmp_path, episodes)
    assert student.temperature == 0.5


def test_a_distillation_continues_where_it_was(teacher: Path, tmp_path: Path, episodes: EpisodeFile) -> None:
    whole = distilled("split", teacher, tmp_path / "whole", episodes, steps=6, evaluate_every=3)
    made = lesson_plan(tmp_path / "parts", initial=teacher, method="split", steps=6, evaluate_every=3)
    first = Distiller(made, episodes)
    for _ in first._losses():
        if first.step == 3:
            first._checkpoint(None)
            break
    with pytest.raises(ContractError, match="method was split, now it is paths"):
        Distiller(replace(made, method="paths"), episodes, resume=True)
    Distiller(made, episodes, resume=True).run(None, lambda done, total, text: None)
    for name, value in Policy.load(tmp_path / "parts").state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_states_of_a_path_lie_between_those_of_its_steps() -> None:
    path = torch.tensor([0.0, 1.0, 4.0]).reshape(3, 1, 1, 1).expand(3, 5, 1, 1)
    lesson = Lesson(lambda x, s, t: x, lambda x, t: Estimate(x, x), path, torch.Generator())
    found = lesson.at(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))[:, 0, 0]
    assert found.tolist() == [0.0, 0.5, 1.0, 2.5, 4.0]


def test_a_field_of_a_student_is_that_of_steps_without_length() -> None:
    head = FlowDiT(SPEC, Config(width=32, depth=1, heads=2, ends=True))
    for layer in (head.dit.end_modulation, head.dit.outlet):
        torch.nn.init.normal_(layer.weight, std=0.2)
    observation, x, t = {"goal": torch.zeros(4, 1, 2)}, torch.randn(4, 2, 2), torch.full((4,), 0.3)
    context = head.encode(observation)
    now = head.estimate(x, t, head.until(context, t)).velocity
    torch.testing.assert_close(head.bind(observation)(x, t).velocity, now)
    assert not torch.allclose(now, head.estimate(x, t, head.until(context, torch.ones(4))).velocity)


def test_other_networks_are_refused(tmp_path: Path, episodes: EpisodeFile) -> None:
    spec = replace(SPEC, horizon=8)
    Policy(UNet(spec, UNet.Config(widths=(8, 16))), Normaliser.identity(spec)).save(tmp_path / "unet")
    with pytest.raises(ContractError, match="UNet has no transformer that could learn where steps end"):
        Distiller(lesson_plan(tmp_path, initial=tmp_path / "unet"), episodes)


def test_steps_on_the_cheapest_grid_go_less_astray(teacher: Path, episodes: EpisodeFile, tmp_path: Path) -> None:
    policy = Policy.load(teacher)
    found = on_cheapest_grids(policy, episodes, (2, 4))
    assert [*found] == [2, 4] and all(len(each.grid) == n + 1 for n, each in found.items())
    exact = chunks(policy, 100)
    for n, each in found.items():
        error, usual = (float((chunks(each, n, grid) - exact).square().mean()) for grid in (each.grid, None))
        assert error <= usual
    path = export(found[2], tmp_path / "grid.kfb", provenance={}).path
    assert Bundle.load(path).manifest.sampler.grid == found[2].grid == Policy.load(path).grid
    assert Policy.load(path).with_steps(2).grid == found[2].grid != Policy.load(path).with_steps(4).grid
    with pytest.raises(ValueError, match="2 steps go between 3 increasing times"):
        Policy(policy.head, policy.normaliser, 2, grid=(0.0, 1.0, 0.5))


def test_a_grid_needs_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "nav.hdf5", tmp_path / "new" / "grid"
    collect(CollectConfig(data, episodes=3, workers=1), lambda done, total: None)
    options = ["--method", "grid", "--steps", "2", "--teacher-steps", "2", "--episodes", "1", "--json"]
    assert call("distill", [str(BUNDLE), "--data", str(data), "--out", str(out), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [*result["rows"]] == ["teacher@2", "grid@2"] and result["minutes"] == {}
    assert len(Bundle.load(out / "grid@2.kfb").manifest.sampler.grid) == 3


def test_the_command_compares_student_and_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, bundle = tmp_path / "nav.hdf5", tmp_path / "student", str(BUNDLE)
    collect(CollectConfig(data, episodes=3, workers=1), lambda done, total: None)
    small = ["--updates", "2", "--batch", "4", "--episodes", "2", "--steps", "1", "2", "--teacher-steps", "3", "--json"]
    methods = ["--method", "paths", "grid"]
    assert call("distill", [bundle, "--data", str(data), "--out", str(out), *methods, *small]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [*result["rows"]] == ["teacher@3", "teacher@1", "teacher@2", "paths@1", "paths@2", "grid@2"]
    assert result["rows"]["teacher@3"]["difference"]["mean"] == 0
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in result["rows"].values())
    assert result["rows"]["teacher@3"]["precision"] > 0.8 < result["rows"]["teacher@3"]["recall"]
    assert as_text(result).splitlines()[1].startswith("teacher@3")
    assert json.loads((out / "distilled.json").read_text())["rows"] == result["rows"]
    assert Bundle.load(out / "paths@1.kfb").manifest.sampler.steps == 1
    assert Bundle.load(out / "paths.kfb").manifest.sampler.steps == 2


def test_coverage_tells_a_lost_mode_from_one_between_the_others() -> None:
    noise = torch.randn(3, 200, 2, generator=torch.Generator().manual_seed(0)) / 10
    side = torch.ones(200, 1)
    side[::2] = -1
    both, again = noise[:1] + side, noise[1:2] + side
    assert min(coverage(both, again)) > 0.9
    lost = coverage(both, noise[2:] + 1)
    assert lost.precision > 0.9 and lost.recall == pytest.approx(0.5, abs=0.05)
    assert coverage(both, noise[2:]) == (0, 0)
    assert spread(both)[0] > 3 * spread(noise[2:])[0]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["none.kfb"], "no policy at none.kfb"),
        ([str(BUNDLE)], "give others with --data FILE"),
        ([str(BUNDLE), "--steps", "0"], "steps is 0"),
        ([str(BUNDLE), "--method", "grid", "--steps", "1"], "a choice of times for 2 to 20 steps"),
    ],
)
def test_the_command_names_the_remedy(
    arguments: list[str], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("distill", [*arguments, "--out", str(tmp_path / "student")]) == 1
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("name", ["goalflow", "intent"])
def test_heads_that_choose_among_candidates_are_taught_with_all_of_them(name: str, tmp_path: Path) -> None:
    data = tmp_path / "driving.hdf5"
    collect(CollectConfig(data, "kinoflow/Driving-v0", episodes=3, workers=1), lambda done, total: None)
    config = find_head(name).Config(width=32, depth=1, heads=2, candidates=4, guidance=1.5)
    made = recipe(tmp_path / "teacher", config=config, horizon=8, steps=2)
    episodes = read_episodes(data)
    Trainer(name, made, episodes).run(None, lambda done, total, text: None)
    student = distilled("split", tmp_path / "teacher", tmp_path / "student", episodes, steps=3, batch=8)
    teacher = Policy.load(tmp_path / "teacher")
    window, _ = episodes.windows(np.array([0]), 1, 8)
    seen = {feature.name: torch.from_numpy(window[feature.name]) for feature in teacher.spec.observations}
    with torch.inference_mode():
        mine, theirs = (p.head.encode(p.head.digest(p.normaliser(seen))) for p in (student, teacher))
    for part in {"goals", "score", "reading"} & {*mine._fields}:
        assert torch.equal(getattr(mine, part), getattr(theirs, part))
    assert student.head.config.candidates == 4 and (student.head.dit.end_modulation.weight != 0).any()
    if name == "goalflow":
        assert student.head.config.guidance == 1  # of what is guided already
    else:
        assert student.head.config.guide == "learnt" and (student.head.dit.weight_modulation.weight != 0).any()


def test_a_student_goes_on_from_given_actions_as_its_teacher(tmp_path: Path, episodes: EpisodeFile) -> None:
    made = recipe(tmp_path / "teacher", config=Config(width=32, depth=1, heads=2, given=1), steps=400)
    made = replace(made, learning_rate=3e-3, sample_steps=10)
    Trainer("flowdit", made, episodes).run(None, lambda done, total, text: None)
    student = distilled("paths", tmp_path / "teacher", tmp_path / "student", episodes, steps=200, learning_rate=2e-3)
    side = torch.where(torch.arange(400) < 200, 0.8, -0.8)[:, None, None].expand(-1, 2, 2)
    noise, first = torch.randn(400, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0])
    with torch.inference_mode():
        plan = student.plan({"goal": torch.zeros(400, 1, 2)}, noise, side, first.expand(400, -1))
    assert (plan.actions[:, 1] - side[:, 1]).abs().mean() < 0.25
