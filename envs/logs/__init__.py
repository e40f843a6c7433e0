"""Recorded drives of other people's datasets, read in pure Python: no TensorFlow, no devkits, nothing of a file is run.

One file per format: `envs.logs.waymo_e2e`, `envs.logs.navsim` and `envs.logs.scenarionet`.
"""
