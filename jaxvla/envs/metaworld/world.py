"""A Meta-World task as a world: one camera, the hand's state, and four numbers a step.

State [4]: x, y, z of the hand (m) and how far the gripper is open (1 open, 0 closed). Action [4], each -1 to 1: the way
of the hand in x, y, z, of which 1 is a centimetre, and the effort that closes (positive) or opens the gripper.
Everything is deterministic by seed, in states and in pixels. A world belongs to the process and the thread in which it
was reset first, since its OpenGL context does; `remote.RemoteWorld` plays one in a process of its own.
"""

import atexit
import collections
import contextlib
import dataclasses
import importlib.util
import weakref
from typing import Any

import numpy as np

from jaxvla.envs.metaworld.graphics import choose_graphics
from jaxvla.envs.metaworld.protocols import CAMERA, Protocol, check_tasks
from jaxvla.envs.metaworld.tasks import TASKS
from jaxvla.envs.rollout import Observation, WorldSpec
from jaxvla.errors import ConfigError

# Actions a second, Hz: each is five steps of the simulator, of 2.5 ms.
CONTROL_FREQUENCY = 80.0
STATE_DIM = ACTION_DIM = 4

# Pictures are drawn without multisampling, and at least this large, pixels a side; smaller ones are means of whole
# numbers of pixels, so that the edges of small pictures are smooth.
DRAWN_SIDE = 128

# Tasks whose models and OpenGL contexts are kept; a new one takes 0.3 s.
KEPT = 4


def check_installed() -> None:
    """Raises ConfigError where the simulator is not there."""
    if importlib.util.find_spec("metaworld") is None:
        raise ConfigError("the world metaworld needs a simulator that is not installed: pip install -e '.[metaworld]'")


def spec_of(protocol: Protocol) -> WorldSpec:
    """What worlds of a protocol show and take."""
    return WorldSpec((protocol.view,), STATE_DIM, ACTION_DIM, CONTROL_FREQUENCY, binary_gripper=False)


class MetaWorld:
    """All tasks, one at a time.

    Args:
        protocol: what the camera sees.
        image_size: pixels a side of its square pictures.
        max_steps: after which an episode has failed; 0 for the protocol's.
        render: whether observations hold pictures; nearly all of the time of a step goes into them.

    Raises:
        ConfigError: the simulator is not installed.

    Attributes (the truth about the episode, for experts and annotations):
        task: its name.
        facts: float64 [39], what the simulator says of hand, objects and goal; Meta-World's own observation.
        done: whether the task is done.
        close: gives back what draws.
    """

    def __init__(self, protocol: Protocol, image_size: int, max_steps: int = 0, render: bool = True) -> None:
        check_installed()
        self._render = render
        self.protocol, self.image_size = protocol, image_size
        self.max_steps = max_steps or protocol.max_steps
        self.task = ""
        self.facts = np.zeros(39)
        self.done = False
        self._steps = 0
        self._kept: collections.OrderedDict[str, _Model] = collections.OrderedDict()
        self.close = weakref.finalize(self, _close, self._kept)

    @property
    def spec(self) -> WorldSpec:
        """What observations hold, and how long an action is."""
        whole = spec_of(self.protocol)
        return whole if self._render else dataclasses.replace(whole, cameras=())

    def reset(self, *, seed: int, task: str | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode that `seed` determines.

        Args:
            seed: of the scene.
            task: one of `TASKS`; None for one that is drawn from the seed.

        Raises:
            ConfigError: there is no such task, or nothing to draw with.
        """
        if task is None:
            task = list(TASKS)[np.random.default_rng(seed).integers(len(TASKS))]
        check_tasks([task])
        self._open(task)
        simulator = self._model.simulator
        simulator.seed(seed)
        self.facts, _ = simulator.reset()
        self.done, self._steps = False, 0
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Acts for 12.5 ms. Returns observation, reward (1 at success), terminated (success), truncated, info.

        Raises:
            ValueError: the action is not four finite numbers.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_DIM} finite numbers, not {action!r} of shape {action.shape}")
        self.facts, _, _, _, said = self._model.simulator.step(np.clip(action, -1, 1).astype(np.float32))
        self.done = bool(said["success"])
        self._steps += 1
        truncated = not self.done and self._steps >= self.max_steps
        return self._observation(), float(self.done), self.done, truncated, self._info()

    def project(self, points: np.ndarray, side: int) -> np.ndarray:
        """World points [n, 3] to pixels [n, 2] (u right, v down) of the policy's picture, if it had `side` pixels."""
        data, protocol = self._model.simulator.data, self.protocol
        camera = self._model.camera
        local = (points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
        scale = 0.5 / np.tan(np.radians(self._model.simulator.model.cam_fovy[camera]) / 2) / protocol.crop
        # The camera looks along its -z, with y up; the picture is turned by 180 degrees.
        right, up = local[:, 0] / -local[:, 2], local[:, 1] / -local[:, 2]
        return np.stack([0.5 - scale * right, 0.5 + scale * up], axis=1) * side

    def points(self, thing: str) -> np.ndarray:
        """World points [n, 3] whose pixels span a thing of the task: the corners of the boxes about its parts.

        Args:
            thing: one of `TASKS[self.task].things`.
        """
        return self._model.points(TASKS[self.task].things[thing])

    def gripper(self) -> np.ndarray:
        """The point [3] between the fingers, m."""
        return self._model.simulator.tcp_center.copy()

    @property
    def _model(self) -> "_Model":
        return self._kept[self.task]

    def _open(self, task: str) -> None:
        """Makes `task` the one that is played."""
        if task in self._kept:
            self._kept.move_to_end(task)
        else:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)[1].close()
            self._kept[task] = _Model.of(task, self.protocol, self.image_size, self._render)
        self.task = task

    def _observation(self) -> Observation:
        pictures = {self.protocol.view: self._model.picture()} if self._render else {}
        return pictures | {"proprio": self.facts[:STATE_DIM].astype(np.float32)}

    def _info(self) -> dict[str, Any]:
        return {"task": self.task, "instruction": TASKS[self.task].instruction, "success": self.done}


@dataclasses.dataclass(eq=False)
class _Model:
    """A task's simulator, and what draws it.

    Attributes:
        simulator: a `metaworld.sawyer_xyz_env.SawyerXYZEnv`.
        renderer: a `mujoco.Renderer`; None where nothing is drawn.
        camera: its number.
        side: pixels a side of the policy's picture.
        fine: by how many drawn pixels a side each of them is the mean.
    """

    simulator: Any
    renderer: Any
    camera: int
    side: int
    fine: int

    @classmethod
    def of(cls, task: str, protocol: Protocol, image_size: int, render: bool) -> "_Model":
        choose_graphics()
        with _drawing():
            import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        simulator = ALL_V3_ENVIRONMENTS[task]()
        # What `set_task` does, but for its 50 fixed scenes: each seed has one of its own. The goal is known, since the
        # experts ask for it; what was observed before it was known would be cut off at its old bounds.
        simulator._set_task_called = True
        simulator._partially_observable = False
        simulator._freeze_rand_vec, simulator.seeded_rand_vec = False, True
        simulator.__dict__.pop("sawyer_observation_space", None)
        simulator.max_path_length = np.inf  # `MetaWorld` counts
        model = simulator.model
        fine = max(1, -(-DRAWN_SIDE // image_size))
        drawn = round(fine * image_size / protocol.crop)
        camera = model.camera(CAMERA).id
        model.cam_pos[camera] = protocol.position
        # Multisampling and shadows take nineteen twentieths of the time in software.
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = drawn
        renderer = None
        if render:
            with _drawing():
                renderer = mujoco.Renderer(model, drawn, drawn)
            # Before the interpreter takes EGL away, which complains of contexts that are still there.
            atexit.register(renderer.close)
        return cls(simulator, renderer, camera, image_size, fine)

    def picture(self) -> np.ndarray:
        """What the camera sees, uint8 [side, side, 3]."""
        import mujoco

        self.renderer.update_scene(self.simulator.data, self.camera)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self.renderer.scene.flags[flag] = 0
        drawn = self.renderer.render()[::-1, ::-1]
        kept = self.side * self.fine
        edge = (len(drawn) - kept) // 2
        drawn = drawn[edge : edge + kept, edge : edge + kept]
        if self.fine == 1:
            return np.ascontiguousarray(drawn)
        cells = drawn.reshape(self.side, self.fine, self.side, self.fine, 3).sum((1, 3), dtype=np.uint16)
        return ((cells + self.fine**2 // 2) // self.fine**2).astype(np.uint8)

    def points(self, place: str) -> np.ndarray:
        """See `MetaWorld.points`; `place` is a body of the model, or "site:" and a site."""
        model, data = self.simulator.model, self.simulator.data
        if place.startswith("site:"):
            site = model.site(place.removeprefix("site:")).id
            return data.site_xpos[site] + _CORNERS * model.site_size[site, 0]
        body, found = model.body(place).id, []
        for part in range(model.ngeom):
            above = model.geom_bodyid[part]
            while above not in (0, body):
                above = model.body_parentid[above]
            if above == body:
                center, half = np.split(model.geom_aabb[part], 2)
                found.append(data.geom_xpos[part] + (center + _CORNERS * half) @ data.geom_xmat[part].reshape(3, 3).T)
        return np.concatenate(found)

    def close(self) -> None:
        if self.renderer is not None:
            atexit.unregister(self.renderer.close)
            self.renderer.close()
        self.simulator.close()


def _close(kept: collections.OrderedDict[str, _Model]) -> None:
    while kept:
        kept.popitem()[1].close()


_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


@contextlib.contextmanager
def _drawing() -> Any:
    """Says what to install where the libraries of OpenGL cannot be loaded or give no context."""
    try:
        yield
    except Exception as error:  # ImportError, AttributeError, mujoco.FatalError, of EGL its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"Meta-World cannot draw with MUJOCO_GL={choose_graphics()}: {reason}; on Debian: apt-get install libegl1 "
            "libgl1-mesa-dri, or apt-get install libosmesa6 and set MUJOCO_GL=osmesa"
        ) from error
