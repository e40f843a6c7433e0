"""Films of episodes: complete or not there, and with as many pictures as time has passed."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from envs.drive import StandingStill, run_episode
from envs.nav import NavEnv
from kinoflow.film import Film, at_rate
from policies.spec import Array


def shades(count: int) -> list[Array]:
    return [np.full((32, 48, 3), (level, 0, 0), np.uint8) for level in np.linspace(100, 200, count)]


def test_a_film_has_the_pictures_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with Film(path, 4.0) as film:
        for picture in shades(6):
            film.add(picture)
        assert not path.exists(), "it is not complete"
    assert [*tmp_path.iterdir()] == [path]
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == 4.0
    found = [video.read()[1] for _ in range(6)]
    assert not video.read()[0]
    for picture, seen in zip(shades(6), found, strict=True):
        assert np.abs(picture - seen[..., ::-1].astype(int)).mean() < 5  # red stays red


def test_a_film_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cut"), Film(tmp_path / "film.mp4") as film:
        film.add(shades(1)[0])
        raise RuntimeError("cut")
    assert not [*tmp_path.iterdir()]


def test_a_film_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="48 x 32"), Film(tmp_path / "none" / "film.mp4") as film:
        film.add(shades(1)[0])


def test_an_episode_is_looked_at_in_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.nav.TIME_LIMIT", 1.2)
    env, times = NavEnv("wheeled", step_hz=50), []
    env.reset(seed=0)
    run_episode(env, StandingStill(), 0, at_rate(env, 10.0, lambda: times.append(env.time)))
    np.testing.assert_allclose(times, np.arange(1, 13) / 10, atol=1e-6)
