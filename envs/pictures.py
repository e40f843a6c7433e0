"""Pictures of MuJoCo scenes; they need an OpenGL library."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import mujoco
import numpy as np

from policies.spec import Array

MAX_GEOMS = 2000
SLOW = (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION)  # most of the time of a software rasteriser


@cache
def unavailable() -> str:
    """Why no picture can be rendered, empty if all is well; asked once, for a second failure aborts the process."""
    try:
        context = mujoco.GLContext(1, 1)
        context.make_current()
        mujoco.MjrContext(mujoco.MjSpec().compile(), mujoco.mjtFontScale.mjFONTSCALE_50).free()
    except Exception as error:  # MuJoCo raises whatever its OpenGL loader raises
        return str(error) or type(error).__name__
    context.free()
    return ""


class SceneRenderer:
    """Pictures of one scene after the other, from any camera and in any size the offscreen buffer of the scene has.

    Unlike `mujoco.Renderer` it keeps its OpenGL context from scene to scene: a software rasteriser compiles its
    shaders once per context, which takes as long as a hundred small pictures. Shadows and reflections are left out.

    Raises:
        RuntimeError: There is no OpenGL library.
    """

    def __init__(self) -> None:
        self._model: mujoco.MjModel | None = None
        self._scene: Any = None
        self._option = mujoco.MjvOption()
        reason = unavailable()
        if reason:
            raise RuntimeError(
                f"no picture can be rendered ({reason}); on Debian or Ubuntu: apt-get install libegl1 libgl1, "
                "then set MUJOCO_GL=egl before starting Python"
            )
        self._held: dict[str, Any] = {"context": mujoco.GLContext(1, 1)}
        # not __del__: at the end of the process that comes after OpenGL has gone
        self.close = weakref.finalize(self, _free, self._held)
        """Free everything; safe to call twice."""

    def shoot(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: mujoco.MjvCamera,
        groups: tuple[int, ...],
        size: tuple[int, int],
        depth: bool = False,
    ) -> Array:
        """Take one picture.

        Args:
            model: The scene.
            data: Its state.
            camera: Where to look from.
            groups: Geom groups to draw.
            size: Height and width in pixels.
            depth: Measure distances along the optical axis instead of colours.

        Returns:
            ``(H, W, 3)`` uint8, or ``(H, W)`` float32 in m.
        """
        self._held["context"].make_current()
        if model is not self._model:
            self._load(model)
        self._option.geomgroup[:] = 0
        self._option.geomgroup[list(groups)] = 1
        mujoco.mjv_updateScene(model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        rect = mujoco.MjrRect(0, 0, size[1], size[0])
        drawing = self._held["drawing"]
        mujoco.mjr_render(rect, self._scene, drawing)
        pixels = np.empty(size, np.float32) if depth else np.empty((*size, 3), np.uint8)
        mujoco.mjr_readPixels(None if depth else pixels, pixels if depth else None, rect, drawing)
        return _metres(model, pixels[::-1]) if depth else pixels[::-1]

    def _load(self, model: mujoco.MjModel) -> None:
        if self._model is not None:
            self._held.pop("drawing").free()
        self._model, self._scene = model, mujoco.MjvScene(model, MAX_GEOMS)
        self._scene.flags[[int(flag) for flag in SLOW]] = 0
        drawing = self._held["drawing"] = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        drawing.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # precise far away
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, drawing)


def _free(held: dict[str, Any]) -> None:
    held["context"].make_current()  # else it would free what another context draws
    for name in ("drawing", "context"):
        if name in held:
            held.pop(name).free()


def _metres(model: mujoco.MjModel, buffer: Array) -> Array:
    """Undo the projection of a depth buffer that is 1 at the near and 0 at the far clipping plane."""
    near, far = model.vis.map.znear * model.stat.extent, model.vis.map.zfar * model.stat.extent
    return (near * far / (near + buffer.astype(float) * (far - near))).astype(np.float32)
