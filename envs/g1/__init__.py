"""The Unitree G1, walked by a learned policy in MuJoCo. Model and policy are fetched, see `envs.g1.assets`."""
