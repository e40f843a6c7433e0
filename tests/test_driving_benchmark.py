"""The benchmark of driving runs and compares with its limits."""

from benchmarks.driving import SCORING_S, STEPS_PER_S, measure


def test_the_benchmark_reports_rates_and_their_limits() -> None:
    report = measure(scenes=2, steps=5, plans=10)
    assert report["scene_steps_per_s"] > 0
    assert abs(report["of_wanted_rate"] - report["scene_steps_per_s"] / STEPS_PER_S) < 0.01
    assert abs(report["of_allowed_time"] - report["scoring_s"] / SCORING_S) < 0.01
