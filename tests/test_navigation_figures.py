"""Figures of a robot that follows goal videos: all are drawn, and the film has the size it may have."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs import navigation_figures
from envs.drive import Scripted
from envs.experts.video_nav import PathExpert
from envs.pictures import unavailable


@pytest.mark.skipif(unavailable() != "", reason=unavailable())
def test_all_figures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.nav.TIME_LIMIT", 1.0)
    monkeypatch.setattr(navigation_figures, "SEEDS", (0, 1))
    navigation_figures.draw(tmp_path, "wheeled", lambda env, seed: Scripted(PathExpert(env)))
    sizes = {path.name: Image.open(path).size for path in tmp_path.iterdir()}
    assert set(sizes) == {"navigation_paths.png", "navigation_strip.png", "navigation_video.gif"}
    assert all(min(size) > 200 for size in sizes.values())
    film = Image.open(tmp_path / "navigation_video.gif")
    assert film.n_frames == 5 and film.info["duration"] == 200


def test_a_film_keeps_its_colours() -> None:
    pictures = [
        np.tile(np.array([[200, 40, 40], [40, 40, shade]], np.uint8)[:, None], (20, 60, 1)) for shade in (90, 220)
    ]
    film = Image.open(io.BytesIO(navigation_figures.gif(pictures, 30)))
    assert film.n_frames == 2 and film.size == (30, 20)
