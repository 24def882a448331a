"""What the tabletop is to look like in the end, for policies that are shown it."""

from jaxvla.envs.expert import demonstrate
from jaxvla.envs.rendering import Renderer
from jaxvla.envs.tabletop import Observation, TabletopEnv


def last_frame(image_size: int, seed: int, task: str | None = None, level: str = "full") -> Observation:
    """The last observation of the expert's demonstration of an episode; the frames before it are not drawn.

    Args:
        image_size: pixels a side.
        seed, task: of the episode, see `TabletopEnv.reset`.
        level: of the world.
    """
    env = TabletopEnv(render=False, level=level)
    *_, (last, _) = demonstrate(env, seed, task)
    renderer = Renderer(image_size)
    renderer.reset(env.containers)
    return last | renderer.render([*env.objects, *env.obstacles], env.containers, env.state)
