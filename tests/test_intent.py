"""Streaming intent: what it reads, what it remembers, how it obeys."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.bundle import Bundle
from policies.export import export
from policies.head import COMMITTED, HELD
from policies.intent import STEPS, Config, StreamingIntent
from policies.maneuver import INTENTS, Maneuvers, allowed
from policies.norm import Normaliser
from policies.policy import Policy
from policies.spec import ContractError
from tests.test_goalflow import SPEC, observation

SMALL = Config(width=32, depth=2, heads=2, encoder_depth=1)


def head(**changes: object) -> StreamingIntent:
    torch.manual_seed(0)
    made = StreamingIntent(SPEC, replace(SMALL, **changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def chunk(name: str) -> torch.Tensor:
    """Normal commands that are called so, found by trying."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(4000, 2, 3, generator=generator) * 2 - 1
    share = torch.linspace(0, 1, 16)[:, None]
    tried = ends[:, :1] * (1 - share) + ends[:, 1:] * share
    labels = Maneuvers(SPEC.action, SPEC.dt).labels(tried)
    return tried[labels == INTENTS.index(name)][:1]


def decision(made: StreamingIntent, committed: torch.Tensor | None = None) -> int:
    memory = {} if committed is None else {COMMITTED: committed, HELD: torch.ones(1)}
    return int(made.encode(observation() | memory).reading[0, -1])


def test_the_reasoning_answers_four_questions_in_words() -> None:
    made = head()
    (words,) = made.in_words(made.encode(observation()).reading)
    assert list(words) == ["perceive", "predict", "judge", "plan"]
    assert all(words[step] in known for step, known in STEPS.items())


def test_a_later_answer_depends_on_the_ones_before() -> None:
    made = head()
    tokens = made.scene(observation())
    said = torch.zeros(1, 4, dtype=torch.long)
    _, one = made.read(tokens, said)
    said[0, 1] = 2
    _, other = made.read(tokens, said)
    torch.testing.assert_close(one[1], other[1])
    assert (one[2] - other[2]).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["keep hold", "turn-left accelerate", "keep stop"])
def test_a_commitment_is_evidence_and_only_while_it_is_executed(name: str) -> None:
    sticky = head(stay=1e3)
    assert decision(sticky, chunk(name)) == INTENTS.index(name)
    assert decision(head(stay=0.0), chunk(name)) == decision(head())
    nothing = {COMMITTED: chunk(name), HELD: torch.zeros(1)}
    assert int(sticky.encode(observation() | nothing).reading[0, -1]) == decision(head())


def test_a_command_is_obeyed_unless_it_is_out_of_the_question() -> None:
    for intent in ("left", "stop", "turn-right decelerate"):
        obeying = decision(head(intent=intent, refuse=0.0))
        assert allowed(intent)[obeying]
        assert decision(head(intent=intent, refuse=1.1)) == decision(head())
    with pytest.raises(ContractError, match="there is no intent 'up'"):
        decision(head(intent="up"))


def field(
    made: StreamingIntent, weight: float, t: float = 0.0, guide: str = "full", guided: float = 1.0
) -> torch.Tensor:
    made.config = replace(made.config, guidance=weight, guide=guide, guided=guided)  # type: ignore[arg-type]
    memory = {COMMITTED: 0.3 * torch.ones(1, 16, 3), HELD: torch.ones(1)}
    return made.estimate(torch.zeros(1, 16, 3), torch.full((1,), t), made.encode(observation() | memory)).data


def test_guidance_is_linear_in_its_weight_and_ends_where_it_should() -> None:
    made = head()
    free, chosen, strong = (field(made, weight) for weight in (0.0, 1.0, 2.0))
    assert (strong - chosen).abs().max() > 1e-5
    torch.testing.assert_close(strong, 2 * chosen - free, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(field(made, 2.0, t=0.6, guided=0.5), field(made, 1.0, t=0.6), atol=1e-6, rtol=1e-5)
    assert (field(made, 2.0, t=0.4, guided=0.5) - field(made, 1.0, t=0.4)).abs().max() > 1e-6


def test_residual_guidance_moves_away_from_the_chunk_being_executed() -> None:
    made = head()
    moved, plain = field(made, 1.5, guide="residual"), field(made, 1.0)
    torch.testing.assert_close(moved, plain + 0.5 * (plain - 0.3), atol=1e-5, rtol=1e-4)


def test_candidates_are_guided_by_equal_shares_of_the_weight() -> None:
    made = head(candidates=4, guidance=2.0)
    context = made.propose(made.encode(observation(2)))
    assert context.weight.tolist() == [0.5, 1.0, 1.5, 2.0] * 2
    x, t = torch.zeros(8, 16, 3), torch.zeros(8)
    together = made.estimate(x, t, context).data
    for index, weight in enumerate((0.5, 1.0, 1.5, 2.0)):
        alone = head(candidates=1, guidance=weight)
        expected = alone.estimate(x[:2], t[:2], alone.propose(alone.encode(observation(2)))).data
        torch.testing.assert_close(together[index::4], expected, atol=1e-5, rtol=1e-4)


def test_of_several_chunks_one_that_does_what_is_intended_and_has_room_is_taken() -> None:
    made = head(candidates=3, intent="turn-left hold", refuse=0.0)
    context = made.encode(observation())
    assert INTENTS[int(context.reading[0, -1])] == "turn-left hold"
    left, right, far = (
        torch.tensor(speeds).expand(1, 16, 3) for speeds in ((0.3, 0, 0.4), (0.3, 0, -0.4), (3.0, 0, 0.4))
    )
    said = made.maneuvers.labels(torch.cat([left, right, far])).tolist()
    assert [INTENTS[label] for label in said] == ["turn-left hold", "turn-right hold", "turn-left hold"]
    rating = made.rating(torch.stack([far, right, left], 1), context)[0]
    assert rating[0] < rating[2]  # into what the scan sees
    assert rating[1] < rating[2]
    assert rating.argmax() == 2


def test_a_chunk_that_goes_on_doing_what_is_intended_is_preferred() -> None:
    made = head(candidates=2, intent="keep accelerate", refuse=0.0)
    context = made.encode(observation())
    at_once, steadily = torch.zeros(2, 1, 16, 3)
    at_once[..., 0], steadily[0, :, 0] = 0.3, torch.linspace(0.05, 0.3, 16)
    at_once[0, 0, 0] = 0.05
    assert {INTENTS[label] for label in made.maneuvers.labels(torch.cat([at_once, steadily]))} == {"keep accelerate"}
    rating = made.rating(torch.stack([at_once, steadily], 1), context)[0]
    torch.testing.assert_close(rating[1] - rating[0], torch.tensor(SMALL.faithful / 2), atol=0.05, rtol=0)


def test_the_chosen_chunk_leaves_the_bundle_as_it_leaves_torch(tmp_path: Path) -> None:
    policy = Policy(head(), Normaliser.identity(SPEC), steps=2).eval()
    export(policy, tmp_path / "intent.kfb", provenance={})
    bundle = Bundle.load(tmp_path / "intent.kfb")
    seen = {name: value[0].numpy() for name, value in observation().items()}
    noise = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)).numpy()
    held = np.r_[np.ones(2, np.float32), np.zeros(14, np.float32)]
    inputs = seen, noise, chunk("turn-left hold")[0].numpy(), held
    assert abs(bundle.act(*inputs) - policy.act(*inputs)).max() < 1e-4


def test_a_policy_hands_the_chunk_being_executed_to_the_head() -> None:
    policy = Policy(head(stay=1e3, guidance=2.0), Normaliser.identity(SPEC), steps=2).eval()
    noise, hold = torch.zeros(1, 16, 3), torch.zeros(1, 16)
    hold[:, 0] = 1
    left, right = (
        policy.plan(observation(), noise, chunk(f"turn-{side} hold"), hold).actions for side in ("left", "right")
    )
    assert (left[:, 1:] - right[:, 1:]).abs().max() > 1e-4


def test_facts_are_read_off_the_scan_and_the_chunk() -> None:
    made = head()
    free, blocked = torch.full((1, 1, 72), 6.0), torch.full((1, 1, 72), 6.0)
    blocked[..., 30:43] = 0.5
    actions = torch.zeros(1, 16, 3)
    actions[..., 0] = 0.6

    def facts(scan: torch.Tensor) -> list[str]:
        found = made.facts({"goal": torch.zeros(1, 1, 2), "scan": scan}, actions)
        return list(made.in_words(found)[0].values())

    assert facts(free) == ["nothing", "clear", "left+on+right", "keep hold"]
    perceived, predicted, judged, planned = facts(blocked)
    assert (perceived, predicted, planned) == ("thing", "soon", "keep hold")
    assert "on" not in judged.split("+")


def test_a_head_that_has_learnt_guidance_asks_its_field_once() -> None:
    made = head(guide="learnt", candidates=4)
    context = made.propose(made.encode(observation(2)))
    assert context.free is context.chosen or torch.equal(context.free.keys, context.chosen.keys)
    x, t, asked = torch.zeros(8, 16, 3), torch.zeros(8), []
    handle = made.dit.register_forward_hook(lambda *_: asked.append(1))
    data = made.estimate(x, t, context).data
    handle.remove()
    assert len(asked) == 1
    assert (data[0] - data[3]).abs().max() > 1e-4, "candidates differ by their weights"


def test_a_student_begins_without_guidance() -> None:
    made = head()
    config = made.as_student(ends=True)
    assert (config.guide, config.ends) == ("learnt", True)
    assert head(guide="residual").as_student(ends=False).guide == "residual"
    student = StreamingIntent(SPEC, config).eval()
    student.load_state_dict(made.state_dict(), strict=False)
    x, t, seen = torch.zeros(1, 16, 3), torch.zeros(1), observation()
    made.config = replace(made.config, guidance=1.0)
    torch.testing.assert_close(student.bind(seen)(x, t).data, made.bind(seen)(x, t).data, atol=1e-6, rtol=1e-5)


def test_learnt_guidance_runs_as_a_bundle(tmp_path: Path) -> None:
    policy = Policy(head(guide="learnt", candidates=4), Normaliser.identity(SPEC), 2).eval()
    assert export(policy, tmp_path / "learnt.kfb", provenance={}).max_error < 1e-4
