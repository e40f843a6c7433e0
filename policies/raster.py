"""The raster from above that an environment draws and heads measure in: which pixel is where, and what it says."""

from __future__ import annotations

from policies.spec import Feature

PIXELS, PIXEL, BACK = 64, 1.0, 16.0  # pixels a side, m each, m of it behind the robot
PER_METRE, EDGE = 32.0, 128.0  # of the first channel: values per m of distance to the edge, and the value there
RASTER = Feature("raster", (3, PIXELS, PIXELS), "1", "base_link", "uint8")
"""Ahead is up: signed distance to the edge of the road, others now, others in 1.5 s."""
