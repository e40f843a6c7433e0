"""Dense optical flow without learning: dense inverse search (Kroeger et al., arXiv 1603.03590) as OpenCV has it."""

from __future__ import annotations

import numpy as np

from policies.spec import Array


def dis_flow(first: Array, second: Array, guess: Array | None = None) -> Array:
    """Flow between two pictures.

    Args:
        first: ``(3, H, W)`` uint8 RGB.
        second: Like ``first``, taken later.
        guess: ``(2, H, W)`` px to begin the search with; without it large displacements are not found.

    Returns:
        ``(2, H, W)`` float32 px: how far right and down each pixel of ``first`` has moved in ``second``.

    Raises:
        ValueError: The pictures differ in shape or are none.
    """
    import cv2  # loads slowly, and only pictures need it

    for picture in (first, second):
        if picture.shape != (3, *first.shape[1:]) or picture.dtype != np.uint8:
            raise ValueError(
                f"flow between {first.dtype} {first.shape} and {second.dtype} {second.shape}; "
                "it needs two uint8 pictures of the same shape (3, H, W)"
            )
    rows = (np.ascontiguousarray(picture.transpose(1, 2, 0)) for picture in (first, second))
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in rows]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(0)  # half the resolution, the preset's, is too coarse for small pictures
    flow = (
        np.zeros((*first.shape[1:], 2), np.float32)
        if guess is None
        else guess.transpose(1, 2, 0).astype(np.float32, order="C")
    )
    return np.ascontiguousarray(search.calc(grey[0], grey[1], flow).transpose(2, 0, 1))
