"""Scores of driven trajectories: NAVSIM's PDM score and the rater feedback score of the Waymo end-to-end challenge."""

from envs.metrics.pdm import PdmScore, pdm_score, score_states
from envs.metrics.rater_feedback import rater_feedback_score
from envs.metrics.reference_planner import reference_progress
from envs.metrics.scene import EgoState, Lane, RoadUsers, ScoredScene
from envs.metrics.tracker import PACIFICA, Vehicle
from envs.metrics.two_stage import two_stage_score

__all__ = [
    "PACIFICA",
    "EgoState",
    "Lane",
    "PdmScore",
    "RoadUsers",
    "ScoredScene",
    "Vehicle",
    "pdm_score",
    "rater_feedback_score",
    "reference_progress",
    "score_states",
    "two_stage_score",
]
