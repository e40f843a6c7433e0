"""kinoflow train."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from envs.collect import CollectConfig, collect, demonstrators
from envs.episodes import EpisodeFile, read_episodes
from envs.evaluate import VALIDATION_SEED, EvaluateConfig, run_all
from envs.world import make, robot
from kinoflow.console import progress_bar, show
from kinoflow.planning import PlannerRecipe, train
from policies.checks import at_least, check_seed
from policies.files import prepare_folder
from policies.head import Head, find_head
from policies.load import LOADER
from policies.policy import Policy
from policies.spec import ContractError
from policies.train import Recipe, Trainer

PLANNER = "xdiffuser"


def for_arguments(arguments: list[str]) -> Callable[..., None]:
    """The command for the head that is named first; its hyper-parameters become options."""
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "flowdit")  # so that --help shows a complete example
    if arguments[0] == PLANNER:
        return train_planner
    kind = find_head(arguments[0])
    config = kind.Config
    usual: Any = Recipe(None, tyro.MISSING, config(), **kind.usual)

    def command(
        head: tyro.conf.Positional[str],
        recipe: Recipe[config] = usual,  # type: ignore[valid-type]
        env: str | None = None,
        embodiment: str | None = None,
        episodes: int = 2000,
        resume: bool = False,
        json: bool = False,
    ) -> None:
        """Train an action head on recorded episodes; for a planner see kinoflow train xdiffuser --help.

        Args:
            head: A file in policies/, for example flowdit, or package.module:Class.
            recipe: What to train.
            env: Record demonstrations here first, into the run's directory, instead of reading --data.
            embodiment: Robot, where the environment has several.
            episodes: Demonstrations to record; those that are there already are kept.
            resume: Continue an interrupted run exactly where it was.
            json: Print JSON.
        """
        check_seed(recipe.seed)
        at_least(1, steps=recipe.steps, batch=recipe.batch, episodes=episodes)
        if recipe.data is not None and env is not None:
            raise ContractError("there are two sources of demonstrations; give --data or --env")
        data = recipe.data or recorded(recipe, kind, env, embodiment, episodes)
        demonstrations = read_episodes(data)
        if recipe.rollouts and not demonstrations.actions.any():
            raise ContractError(f"nobody drives in {data}, so no policy can be tried on it; add --rollouts 0")
        trainer = Trainer(head, recipe, demonstrations, resume)
        with progress_bar("training") as progress:
            result = trainer.run(rollout_on(demonstrations, recipe), progress)
        show({"out": str(recipe.out), **result}, json)

    return command


def recorded(recipe: Recipe[Any], head: type[Head], env: str | None, embodiment: str | None, episodes: int) -> Path:
    """Demonstrations in the directory of a run, recorded if they are not there yet."""
    if env is None:
        raise ContractError("there is nothing to train on; give --data FILE, or --env ID to record demonstrations")
    world = make(env, robot(embodiment))
    head(
        replace(world.contract, history=recipe.history, horizon=recipe.horizon), recipe.config
    )  # refuses what it cannot
    who = head.demonstrator if head.demonstrator in demonstrators(world) else CollectConfig.demonstrator
    world.close()
    file = recipe.out / "episodes.hdf5"
    if file.exists():
        found = read_episodes(file)
        if (found.env_id, found.env_kwargs) != (env, robot(embodiment)):
            raise ContractError(f"{file} has demonstrations of {found.env_id}, not of {env}; choose another --out")
    else:
        prepare_folder(recipe.out)
        with progress_bar("episodes") as progress:
            collect(CollectConfig(file, env, embodiment, episodes, demonstrator=who), progress)
    return file


def train_planner(
    planner: tyro.conf.Positional[str], recipe: PlannerRecipe, resume: bool = False, json: bool = False
) -> None:
    """Train a planner for a maze: record data there, train a trajectory model and build a graph.

    Args:
        planner: xdiffuser.
        recipe: What to train.
        resume: Continue an interrupted run exactly where it was.
        json: Print JSON.
    """
    with progress_bar("training") as progress:
        file = train(recipe, resume, progress)
    show({"out": str(file)}, json)


def rollout_on(episodes: EpisodeFile, recipe: Recipe[Any]) -> Callable[[Policy], float]:
    """Make a function that scores a policy by the objective of its environment, on validation seeds."""
    objective = make(episodes.env_id, episodes.env_kwargs).objective
    config = EvaluateConfig(
        env=episodes.env_id,
        episodes=recipe.rollouts,
        seed=VALIDATION_SEED,
        baselines=False,
        embodiment=episodes.env_kwargs.get("embodiment"),
    )

    def rollout(policy: Policy) -> float:
        candidate = recipe.out / "candidate"
        policy.save(candidate)
        rows, _ = run_all([str(candidate)], 1, LOADER, config, lambda done, total: None)
        return float(np.mean([row.value(objective) for row in rows[str(candidate)]]))

    return rollout
