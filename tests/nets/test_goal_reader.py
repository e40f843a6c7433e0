"""Which frame of a video a sentence speaks of."""

import pytest
import torch

from policies.nets.goal_reader import GoalReader, Sight, located, sight_loss, stop_loss
from policies.nets.vision import TinyEncoder
from policies.sentence import sentence_bytes


def reader() -> GoalReader:
    torch.manual_seed(0)
    return GoalReader(TinyEncoder(32), frames=4, length=16, width=32, depth=1)


def test_several_sentences_may_share_a_video() -> None:
    net, generator = reader().eval(), torch.Generator().manual_seed(0)
    videos = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    texts = torch.randint(1, 256, (6, 16), generator=generator, dtype=torch.uint8)
    paths = torch.randn(2, 4, 3, generator=generator)
    separate = net(videos.repeat_interleave(3, 0), texts, paths.repeat_interleave(3, 0))
    torch.testing.assert_close(net(videos, texts, paths), separate)


def test_a_stop_between_two_frames_belongs_to_both() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    chances = logits.log_softmax(-1)[0]
    expected = -(0.75 * chances[1] + 0.25 * chances[2])
    torch.testing.assert_close(stop_loss(logits, torch.tensor([1.25])), expected)
    torch.testing.assert_close(stop_loss(logits, torch.tensor([3.0])), -chances[3])


def test_what_is_in_sight_is_in_one_column_and_so_far_away() -> None:
    """Five frames: far left, a little left, a little right, beyond the picture, out of sight."""
    bearing, distance = torch.tensor([[0.68, 0.05, -0.05, 0.8, 9.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    sure = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 4, 4]]), 5) * 30.0
    side = torch.where(bearing.abs() < 0.7, bearing, 0.0).tan()
    right, true = Sight(sure, side, distance.log(), side), torch.stack([bearing, distance], -1)
    assert sight_loss(right, true, fov=1.396) < 1e-6
    assert sight_loss(right._replace(columns=sure.flip(1)), true, fov=1.396) > 10
    assert sight_loss(right._replace(side=side + 0.5), true, fov=1.396) > 0.1
    assert sight_loss(right._replace(distance=distance.log() + 0.5), true, fov=1.396) > 0.1


def drive(thing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places along a bend, directions to a thing, and its distances."""
    angle = torch.linspace(0, 1.2, 8)
    place = 3 * torch.stack([angle.sin(), 1 - angle.cos()], -1)[None]
    to = thing - place
    return place, to / to.norm(dim=-1, keepdim=True), to.norm(dim=-1)


def test_lines_of_sight_meet_where_the_thing_is() -> None:
    thing = torch.tensor([[2.5, -1.0]])
    place, ahead, distance = drive(thing)
    seen = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    torch.testing.assert_close(located(place, ahead, distance, seen), thing, atol=0.02, rtol=0)
    wrong = ahead.clone()
    wrong[0, 2] = -ahead[0, 2].flip(0)  # one line of sight to something else
    torch.testing.assert_close(located(place, wrong, distance, seen), thing, atol=0.1, rtol=0)
    torch.testing.assert_close(located(place, ahead, distance, 0 * seen), place.mean(1), atol=1e-6, rtol=0)


def test_a_single_sight_says_where_by_its_distance() -> None:
    thing = torch.tensor([[2.5, -1.0]])
    place, ahead, distance = drive(thing)
    torch.testing.assert_close(located(place, ahead, distance, torch.eye(8)[:1]), thing, atol=0.02, rtol=0)


def test_it_learns_to_find_what_a_sentence_names() -> None:
    """Videos in which one frame is red and another is blue; the sentence names one of the two."""
    net, generator = reader(), torch.Generator().manual_seed(0)
    words = {"red": 0, "blue": 2}
    texts = torch.stack([torch.from_numpy(sentence_bytes(word, 16)) for word in words])
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        videos = torch.randint(60, 90, (8, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
        places = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in videos])
        for video, place in zip(videos, places, strict=True):
            for channel, frame in zip(words.values(), place, strict=True):
                video[frame, channel] = 230
        return videos, texts.repeat(8, 1), places.flatten().float()

    for _ in range(150):
        videos, sentences, frames = batch()
        found = net(videos, sentences, torch.zeros(8, 4, 3))
        bearing = torch.full((16, 4), 9.0).scatter(1, frames.long()[:, None], 0.1)
        true = torch.stack([bearing, torch.ones(16, 4)], -1)
        loss = stop_loss(found.stop, frames) + sight_loss(found.sight, true, fov=1.4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    videos, sentences, frames = batch()
    chosen = net(videos, sentences, torch.zeros(8, 4, 3)).stop.argmax(-1)
    assert float((chosen == frames).float().mean()) == pytest.approx(1.0, abs=0.13)
