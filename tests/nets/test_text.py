"""The text encoder reads bytes, tells sentences apart and survives export."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from policies.nets.text import TextEncoder
from policies.sentence import sentence_bytes

LENGTH, WIDTH = 32, 32


def fresh() -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextEncoder(LENGTH, WIDTH, depth=1)


def batch(*sentences: str) -> Tensor:
    return torch.from_numpy(np.stack([sentence_bytes(sentence, LENGTH) for sentence in sentences]))


def test_bytes_are_utf8_and_padded() -> None:
    found = sentence_bytes("Geh zur T\u00fcr.", 16)
    assert found.dtype == np.uint8 and found.shape == (16,) and (found[14:] == 0).all()
    assert found.tobytes().rstrip(b"\0").decode() == "Geh zur T\u00fcr."
    assert (sentence_bytes("", 4) == 0).all()


@pytest.mark.parametrize("said", ["stop at the door", " Stop  at the\tdoor", "Stop at the door."])
def test_sentences_are_written_alike(said: str) -> None:
    assert sentence_bytes(said, 32).tobytes().rstrip(b"\0") == b"Stop at the door."


def test_long_text_is_refused_by_its_bytes() -> None:
    with pytest.raises(ValueError, match="has 6 bytes; at most 4 fit"):
        sentence_bytes("T\u00fcr!!", 4)
    with pytest.raises(ValueError, match="none of them 0"):
        sentence_bytes("a\0b", 4)


def test_shapes() -> None:
    encoder = fresh()
    tokens = encoder(batch("stop", "walk on"))
    assert tokens.shape == (2, encoder.tokens, encoder.width) == (2, LENGTH // 4, WIDTH)
    torch.testing.assert_close(encoder(batch("walk on"))[0], tokens[1])
    with pytest.raises(ValueError, match="cannot be cut into tokens"):
        TextEncoder(30, WIDTH)


def test_it_learns_to_tell_opposites_apart() -> None:
    encoder, rng = fresh(), np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = nn.Linear(WIDTH, 1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    words = (("go", "walk", "turn", "move"), ("left", "right"), ("now", "slowly", "at the door", "please"))

    def examples(count: int) -> tuple[Tensor, Tensor]:
        choices = [[str(rng.choice(column)) for column in words] for _ in range(count)]
        return batch(*map(" ".join, choices)), torch.tensor([[float("left" in choice)] for choice in choices])

    for _ in range(60):
        text, left = examples(16)
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(head(encoder(text).mean(1)), left).backward()
        optimiser.step()
    text, left = examples(64)
    with torch.no_grad():
        assert ((head(encoder(text).mean(1)) > 0) == left.bool()).float().mean() > 0.95


def test_onnx_computes_the_same() -> None:
    encoder, text = fresh().eval(), batch("go left", "go right, then stop")
    program = torch.onnx.export(encoder, (text,), dynamo=True, verbose=False, input_names=["text"])
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {"text": text.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, encoder(text).numpy(), rtol=1e-4, atol=1e-5)
