from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from envs.g1.assets import available
from envs.g1.walker import G1Body
from policies.spec import Array

Walk = Callable[..., Array]


@pytest.fixture(scope="session")
def body() -> G1Body:
    if reason := available():
        pytest.skip(reason)
    return G1Body()


@pytest.fixture
def scene() -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.005
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
    return spec


@pytest.fixture
def walk() -> Walk:
    """Walk a command for some seconds; rows of twist (3) and pose (4) at 50 Hz."""

    def walk(body: G1Body, model: mujoco.MjModel, data: mujoco.MjData, command: Array, seconds: float) -> Array:
        rows = []
        for _ in range(round(seconds * 50)):
            body.control(model, data, np.asarray(command, np.float32))
            mujoco.mj_step(model, data, 4)
            assert not body.fallen(data)
            rows.append(np.concatenate([body.twist(data), body.pose(data)]))
        return np.array(rows)

    return walk
