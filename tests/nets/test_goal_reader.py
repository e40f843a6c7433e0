"""Which frame of a video a sentence speaks of."""

import pytest
import torch

from policies.nets.goal_reader import GoalReader, Reading, sight_loss, stop_loss
from policies.nets.text import text_bytes
from policies.nets.vision import TinyEncoder


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


def test_what_is_in_sight_is_in_one_column() -> None:
    """Five frames: far left, a little left, a little right, beyond the picture, out of sight."""
    bearing = torch.tensor([[0.68, 0.05, -0.05, 0.8, 9.0]])
    sure = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2, 4, 4]]), 5) * 30.0
    side = torch.where(bearing.abs() < 0.7, bearing, 0.0).tan()
    assert sight_loss(Reading(bearing, sure, side, side), bearing, fov=1.396) < 1e-6
    assert sight_loss(Reading(bearing, sure.flip(1), side, side), bearing, fov=1.396) > 10
    assert sight_loss(Reading(bearing, sure, side + 0.5, side), bearing, fov=1.396) > 0.1


def test_it_learns_to_find_what_a_sentence_names() -> None:
    """Videos in which one frame is red and another is blue; the sentence names one of the two."""
    net, generator = reader(), torch.Generator().manual_seed(0)
    words = {"red": 0, "blue": 2}
    texts = torch.stack([torch.from_numpy(text_bytes(word, 16)) for word in words])
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
        loss = stop_loss(found.stop, frames) + sight_loss(found, bearing, fov=1.4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    videos, sentences, frames = batch()
    chosen = net(videos, sentences, torch.zeros(8, 4, 3)).stop.argmax(-1)
    assert float((chosen == frames).float().mean()) == pytest.approx(1.0, abs=0.13)
