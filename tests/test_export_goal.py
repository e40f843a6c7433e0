"""Heads that digest their goal or say when they have arrived, exported: what is constant is encoded once per goal."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from policies.bundle import GOAL, GRAPH, Bundle
from policies.composition import compose
from policies.export import export
from policies.flow import Estimate, from_velocity
from policies.head import Head
from policies.load import load_policy
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ActionSpec, Array, Feature, Spec

CAMERA = Feature("camera", (4, 4), "1", "head_camera", "uint8")
VIDEO = Feature("video", (2, 4, 4), "1", "head_camera", "uint8", constant=True)
WORDS = Feature("words", (8,), "1", "text", "uint8", constant=True)
PLACE = Feature("place", (3,), "m", "odom", constant=True)
TWIST = Feature("twist", (2,), "m/s", "base_link")
ACTION = ActionSpec(("vx", "wz"), ("m/s", "rad/s"), "base_link", (-1.0, -2.0), (1.0, 2.0))
SPEC = Spec((VIDEO, CAMERA, PLACE, TWIST, WORDS), ACTION, 10.0, history=2, horizon=8)


@dataclass(frozen=True)
class Config:
    """Names of the constant features that the head digests, and whether it says when it has arrived."""

    digests: tuple[str, ...] = ("video", "words", "place")
    arrives: bool = True


class Goalward(Head):
    """Adds up what a linear layer makes of each feature."""

    Config = Config

    def __init__(self, spec: Spec, config: Any) -> None:
        super().__init__(spec, config)
        sizes = {f.name: spec.samples(f) * int(np.prod(f.shape)) for f in spec.observations}
        self.layers = nn.ModuleDict({name: nn.Linear(size, 16) for name, size in sizes.items()})
        self.outlet = nn.Linear(16, spec.horizon * spec.action.dim)

    def digest(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        chosen = {*self.config.digests} & observation.keys()
        return {name: self._seen(name, value) if name in chosen else value for name, value in observation.items()}

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        names = {*self.config.digests}
        return sum((v if n in names else self._seen(n, v) for n, v in observation.items()), start=torch.zeros(1, 16))

    def estimate(self, x: Tensor, t: Tensor, context: Tensor) -> Estimate:
        velocity = self.outlet(torch.tanh(context)).reshape(-1, *self.spec.noise_shape) - t[:, None, None] * x
        return from_velocity(lambda x, t: velocity)(x, t)

    def arrival(self, context: Tensor) -> Tensor | None:
        return context.mean(1).sigmoid() if self.config.arrives else None

    def _seen(self, name: str, values: Tensor) -> Tensor:
        values = values / 255 if values.dtype == torch.uint8 else values
        return self.layers[name](values.flatten(1).float())


def policy(config: Config | None = None, spec: Spec = SPEC) -> Policy:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    samples = {f.name: rng.normal(3, 5, (50, *f.shape)).astype(np.float32) for f in spec.observations}
    return Policy(Goalward(spec, config or Config()), Normaliser.fit(spec, samples), steps=2).eval()


def request(goal: int, moment: int = 0, spec: Spec = SPEC) -> tuple[dict[str, Array], Array, Array, Array]:
    """Arguments of `act`: the goal decides the constant features, the moment all others."""
    seen = {}
    for feature in spec.observations:
        rng, shape = (
            np.random.default_rng(goal if feature.constant else moment),
            (spec.samples(feature), *feature.shape),
        )
        picture = feature.dtype == "uint8"
        seen[feature.name] = rng.integers(0, 256, shape, np.uint8) if picture else rng.normal(3, 5, shape)
    rng = np.random.default_rng(moment)
    seen = {name: value if value.dtype == np.uint8 else value.astype(np.float32) for name, value in seen.items()}
    return seen, rng.standard_normal((8, 2), np.float32), np.zeros((8, 2), np.float32), np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("goal") / "goal.kfb"
    export(policy(), path, provenance={})
    return path


def graphs(path: Path) -> dict[str, onnx.GraphProto]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".onnx")]
        return {name: onnx.load_model_from_string(archive.read(name)).graph for name in names}


def test_the_goal_has_a_graph_of_its_own(path: Path) -> None:
    found = graphs(path)
    assert list(found) == [GOAL, GRAPH] == list(Bundle.load(path).manifest.graphs)
    handed = ["video_digest", "place_digest", "words_digest"]
    assert [value.name for value in found[GOAL].input] == ["video", "place", "words"]
    assert [value.name for value in found[GOAL].output] == handed
    taken = [value.name for value in found[GRAPH].input]
    assert taken == ["camera", "twist", *handed, "noise", "committed", "hold"]
    assert [value.name for value in found[GRAPH].output] == ["actions", "disagreement", "arrival"]


def test_chunks_follow_the_goal_and_come_back_with_it_bit_for_bit(path: Path) -> None:
    made, bundle = policy(), Bundle.load(path)
    first = bundle.act(*request(goal=1))
    second = bundle.act(*request(goal=2))
    again = bundle.act(*request(goal=1))
    for goal, chunk in ((1, first), (2, second)):
        np.testing.assert_allclose(chunk, made.act(*request(goal)), atol=1e-5)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)
    fresh = Bundle.load(path)
    np.testing.assert_array_equal(fresh.act(*request(goal=2)), second)


@pytest.mark.parametrize("name", [feature.name for feature in SPEC.observations])
def test_every_feature_alone_changes_the_chunk(path: Path, name: str) -> None:
    bundle, (seen, *rest), other = Bundle.load(path), request(1), request(2, moment=3)[0]
    first = bundle.act(seen, *rest)
    assert np.abs(bundle.act({**seen, name: other[name]}, *rest) - first).max() > 1e-4
    np.testing.assert_array_equal(bundle.act(seen, *rest), first)


def test_the_goal_is_digested_once(path: Path) -> None:
    bundle = Bundle.load(path)
    goal = bundle._policy._goal  # type: ignore[union-attr]
    digests: list[Array] = []
    for at in (1, 1, 1, 2, 2):
        bundle.act(*request(at, moment=len(digests)))
        digests.append(goal._digest["video_digest"])  # type: ignore[union-attr]
    assert [digest is digests[0] for digest in digests] == [True, True, True, False, False]
    assert digests[3] is digests[4]
    doubles = {name: v.astype(np.float64) if v.dtype != np.uint8 else v for name, v in request(2)[0].items()}
    bundle.act(doubles, *request(2)[1:])
    assert goal._digest["video_digest"] is digests[4]  # type: ignore[union-attr]


def test_an_observation_that_the_caller_reuses_is_a_new_goal(path: Path) -> None:
    bundle, (seen, *rest) = Bundle.load(path), request(1)
    bundle.act(seen, *rest)
    for name, value in request(2)[0].items():
        seen[name][:] = value
    np.testing.assert_array_equal(bundle.act(seen, *rest), Bundle.load(path).act(*request(2)))


def test_a_bundle_with_a_goal_is_a_policy_to_load_and_compose(path: Path) -> None:
    assert isinstance(load_policy(str(path)), Bundle)
    whole = Policy.load(path)
    np.testing.assert_allclose(whole.act(*request(3)), policy().act(*request(3)), atol=1e-6)


@pytest.mark.parametrize("digests", [("video",), ("place",), ("video", "words")])
def test_a_head_may_digest_some_of_what_is_constant(digests: tuple[str, ...], tmp_path: Path) -> None:
    made = policy(Config(digests))
    export(made, tmp_path / "some.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "some.kfb")
    assert bundle.manifest.graphs == (GOAL, GRAPH)
    for goal in (1, 2, 1):
        np.testing.assert_allclose(bundle.act(*request(goal)), made.act(*request(goal)), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "spec"), [(Config(()), SPEC), (Config(), Spec((CAMERA, TWIST), ACTION, 10.0, 2, 8))]
)
def test_without_anything_to_digest_there_is_one_graph(config: Config, spec: Spec, tmp_path: Path) -> None:
    made = policy(config, spec)
    export(made, tmp_path / "plain.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "plain.kfb")
    assert list(graphs(tmp_path / "plain.kfb")) == [GRAPH] == list(bundle.manifest.graphs)
    np.testing.assert_allclose(bundle.act(*request(1, 0, spec)), made.act(*request(1, 0, spec)), atol=1e-5)


def test_the_bundle_says_what_the_policy_says_about_the_arrival(path: Path) -> None:
    made, bundle = policy(), Bundle.load(path)
    said = []
    for goal in range(4):
        made.act(*request(goal))
        bundle.act(*request(goal))
        assert bundle.arrival == pytest.approx(made.arrival, abs=1e-5)
        said.append(made.arrival)
    assert len({*said}) == 4 and all(0 < value < 1 for value in said)
    made.act_batch([request(goal) for goal in range(4)])
    np.testing.assert_allclose(made.arrivals, said, atol=1e-6)
    assert made.arrival == pytest.approx(max(said))


def test_a_head_that_does_not_say_has_not_arrived(tmp_path: Path) -> None:
    made = policy(Config(arrives=False))
    export(made, tmp_path / "silent.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "silent.kfb")
    for one in (made, bundle):
        one.act(*request(1))
        assert one.arrival == 0


def test_a_composition_encodes_its_goal_and_says_nothing_about_the_arrival(tmp_path: Path) -> None:
    both = compose([policy(), policy(Config(("words",)))], [0.5, 0.5])
    export(both, tmp_path / "both.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "both.kfb")
    assert len(bundle.manifest.graphs) == 4
    for goal in (1, 2, 1):
        np.testing.assert_allclose(bundle.act(*request(goal)), both.act(*request(goal)), atol=1e-5)
        assert bundle.arrival == both.arrival == 0
