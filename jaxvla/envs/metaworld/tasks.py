"""The 50 tasks as data: what policies are told, what is seen in them, and what their experts do in turn."""

import dataclasses
from collections.abc import Mapping

DIFFICULTIES = ("easy", "medium", "hard", "very_hard")

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

# A phase of an expert: what it does, and why. "{target}" is the thing it is about, "{place}" where that has to go.
PHASES = {
    "above": ("Move above {target}.", "The gripper is not yet above {target}."),
    "down": ("Lower the gripper to {target}.", "The gripper is above {target} but not yet down at it."),
    "reach": ("Reach for {target}.", "The gripper is not yet at {target}."),
    "level": ("Bring the gripper level with {target}.", "The gripper is beside {target} but not level with it."),
    "under": ("Move under {target}.", "The gripper is not yet under {target}."),
    "behind": ("Move to the far side of {target}.", "The gripper is on the wrong side of {target}."),
    "front": ("Move in front of {target}.", "The gripper is not yet in front of {target}."),
    "rise": ("Rise above {target}.", "The gripper is too low to pass over {target}."),
    "sink": ("Sink in front of {target}.", "The gripper is too high to reach {target}."),
    "line_up": ("Line the gripper up with {target}.", "The gripper is not yet in line with {target}."),
    "clear": ("Rise above the wall.", "The wall is in the way."),
    "pass": ("Pass over the wall.", "The gripper is above the wall but not yet past it."),
    "around": ("Push {target} around the wall.", "The wall is between {target} and {place}."),
    "grasp": ("Grasp {target}.", "{target} is between the fingers but not yet held."),
    "lift": ("Lift {target}.", "{target} is held but still low."),
    "raise": ("Raise {target} to the height of {place}.", "{target} is held but not at the height of {place}."),
    "align": ("Line {target} up with {place}.", "{target} is held but not in line with {place}."),
    "over": ("Move {target} above {place}.", "{target} is held but not yet above {place}."),
    "carry": ("Move {target} to {place}.", "{target} is held but not yet at {place}."),
    "lower": ("Lower {target} into {place}.", "{target} is held above {place}."),
    "thread": ("Push {target} down over {place}.", "{target} is right above {place}."),
    "insert": ("Insert {target} into {place}.", "{target} is in line with {place}."),
    "press": ("Press {target}.", "The gripper is at {target}, which is not yet pressed."),
    "push": ("Push {target} to {place}.", "The gripper is at {target}, which is not yet at {place}."),
    "shut": ("Push {target} shut.", "The gripper is at {target}, which is still open."),
    "pull": ("Pull {target}.", "The gripper is at {target}, which is not yet pulled."),
    "pull_up": ("Pull {target} up.", "The gripper is at {target}, which is still down."),
    "turn": ("Turn {target}.", "The gripper is at {target}, which is not yet turned."),
    "slide": ("Slide {target} to {place}.", "The gripper is at {target}, which is not yet at {place}."),
    "hit": ("Hit {place} with {target}.", "{target} is in line with {place}."),
    "touch": ("Push {place} with {target}.", "{target} is at {place}, which is not yet at the goal."),
    "go": ("Move to {place}.", "The gripper is not yet at {place}."),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        difficulty: one of `DIFFICULTIES`.
        instruction: the one sentence that policies are told, the published one.
        target, place: what the expert handles, and where that goes.
        phases: keys of `PHASES`, one for each way in which the expert decides, in the order of its code.
        things: what can be seen, by name: a body of the model with all that hangs on it, or "site:" and a site.
    """

    difficulty: str
    instruction: str
    target: str
    place: str
    phases: tuple[str, ...]
    things: Mapping[str, str]


def _task(difficulty: str, instruction: str, target: str, place: str, phases: str, **things: str) -> Task:
    named = {name.replace("_", " "): body for name, body in things.items()}
    return Task(difficulty, instruction, target, place, tuple(phases.split()), named)


_GOAL = "site:goal"
_E, _M, _H, _V = DIFFICULTIES

# fmt: off
TASKS = {
    "assembly-v3": _task(
        _H, "Pick up a nut and place it onto a peg", "nut", "peg", "above thread down raise carry", nut="RoundNut",
        peg="peg",
    ),
    "basketball-v3": _task(
        _M, "Dunk the basketball into the basket", "basketball", "basket", "above down lift carry",
        basketball="bsktball", basket="basket_goal",
    ),
    "bin-picking-v3": _task(
        _M, "Grasp the puck from one bin and place it into another bin", "puck", "other bin",
        "above down lift over lower", puck="obj", bin="bin_start", other_bin="bin_goal",
    ),
    "box-close-v3": _task(
        _M, "Grasp the cover and close the box with it", "cover", "box", "above down lift carry",
        cover="boxbodytop", box="boxbody",
    ),
    "button-press-topdown-v3": _task(
        _E, "Press a button from the top", "button", "box", "above press", button="button", box="box"
    ),
    "button-press-topdown-wall-v3": _task(
        _E, "Bypass a wall and press a button from the top", "button", "box", "above press",
        button="button", box="box", wall="wall",
    ),
    "button-press-v3": _task(_E, "Press a button", "button", "box", "line_up press", button="button", box="box"),
    "button-press-wall-v3": _task(
        _E, "Bypass a wall and press a button", "button", "box", "line_up pass down press",
        button="button", box="box", wall="wall",
    ),
    "coffee-button-v3": _task(
        _E, "Push a button on the coffee machine", "button", "coffee machine", "line_up press",
        button="cmbutton", coffee_machine="coffee_machine", mug="obj",
    ),
    "coffee-pull-v3": _task(
        _M, "Pull a mug from a coffee machine", "mug", "goal", "above down slide",
        mug="obj", coffee_machine="coffee_machine", goal="site:mug_goal",
    ),
    "coffee-push-v3": _task(
        _M, "Push a mug under a coffee machine", "mug", "coffee machine", "above down push",
        mug="obj", coffee_machine="coffee_machine",
    ),
    "dial-turn-v3": _task(_E, "Rotate a dial 180 degrees", "dial", "goal", "above down turn", dial="dial"),
    "disassemble-v3": _task(
        _V, "Pick a nut out of a peg", "nut", "peg", "above down pull_up", nut="RoundNut", peg="peg"
    ),
    "door-close-v3": _task(
        _E, "Close a door with a revolving joint", "door", "frame", "rise behind level shut", door="door_link"
    ),
    "door-lock-v3": _task(
        _E, "Lock the door by rotating the lock clockwise", "lock", "door", "rise above down turn",
        lock="lock_link", door="door",
    ),
    "door-open-v3": _task(
        _E, "Open a door with a revolving joint", "door", "frame", "above down pull", door="door_link"
    ),
    "door-unlock-v3": _task(
        _E, "Unlock the door by rotating the lock counter-clockwise", "lock", "door", "sink reach turn",
        lock="lock_link", door="door",
    ),
    "hand-insert-v3": _task(
        _H, "Insert the gripper into a hole", "block", "hole", "above down over lower", block="obj", hole=_GOAL
    ),
    "drawer-close-v3": _task(
        _E, "Push and close a drawer", "drawer", "cabinet", "rise front level shut", drawer="drawer_link",
        cabinet="drawer",
    ),
    "drawer-open-v3": _task(
        _E, "Open a drawer", "drawer", "cabinet", "above down pull", drawer="drawer_link", cabinet="drawer"
    ),
    "faucet-open-v3": _task(
        _E, "Rotate the faucet counter-clockwise", "faucet", "goal", "above down turn", faucet="faucetBase"
    ),
    "faucet-close-v3": _task(
        _E, "Rotate the faucet clockwise", "faucet", "goal", "above down turn",
        faucet="faucetBase",
    ),
    "hammer-v3": _task(
        _M, "Hammer a screw on the wall", "hammer", "screw", "above down align hit", hammer="hammerbody",
        screw="nail_link",
    ),
    "handle-press-side-v3": _task(
        _E, "Press a handle down sideways", "handle", "box", "above press", handle="handle_link", box="box"
    ),
    "handle-press-v3": _task(
        _E, "Press a handle down", "handle", "box", "above press", handle="handle_link",
        box="box",
    ),
    "handle-pull-side-v3": _task(
        _E, "Pull a handle up sideways", "handle", "box", "above down pull_up", handle="handle_link", box="box"
    ),
    "handle-pull-v3": _task(
        _E, "Pull a handle up", "handle", "box", "reach level pull_up", handle="handle_link", box="box"
    ),
    "lever-pull-v3": _task(_E, "Pull a lever down 90 degrees", "lever", "goal", "under level pull_up", lever="lever"),
    "peg-insert-side-v3": _task(
        _M, "Insert a peg sideways", "peg", "hole", "above down align insert", peg="peg", box="box", hole="site:hole"
    ),
    "pick-place-wall-v3": _task(
        _V, "Pick a puck, bypass a wall and place the puck", "puck", "goal", "above down clear pass raise carry",
        puck="obj", wall="wall", goal=_GOAL,
    ),
    "pick-out-of-hole-v3": _task(
        _H, "Pick up a puck from a hole", "puck", "goal", "above down lift carry", puck="obj", goal=_GOAL
    ),
    "reach-v3": _task(_E, "Reach a goal position", "goal", "goal", "go", puck="obj", goal=_GOAL),
    "push-back-v3": _task(_H, "Push the puck to a goal", "puck", "goal", "above down push", puck="obj", goal=_GOAL),
    "push-v3": _task(_H, "Push the puck to a goal", "puck", "goal", "above down push", puck="obj", goal=_GOAL),
    "pick-place-v3": _task(
        _H, "Pick and place a puck to a goal", "puck", "goal", "above down grasp carry", puck="obj", goal=_GOAL
    ),
    "plate-slide-v3": _task(
        _E, "Slide a plate into a cabinet", "plate", "cabinet", "above down slide", plate="puck_channel",
        cabinet="puck_goal",
    ),
    "plate-slide-side-v3": _task(
        _E, "Slide a plate into a cabinet sideways", "plate", "cabinet", "above down slide slide",
        plate="puck_channel", cabinet="puck_goal",
    ),
    "plate-slide-back-v3": _task(
        _E, "Get a plate from the cabinet", "plate", "goal", "above down slide slide slide",
        plate="puck_channel", cabinet="puck_goal", goal=_GOAL,
    ),
    "plate-slide-back-side-v3": _task(
        _E, "Get a plate from the cabinet sideways", "plate", "goal", "above down slide",
        plate="puck_channel", cabinet="puck_goal", goal=_GOAL,
    ),
    "peg-unplug-side-v3": _task(
        _E, "Unplug a peg sideways", "peg", "hole", "above down pull", peg="plug1", box="box", hole="site:hole"
    ),
    "soccer-v3": _task(
        _M, "Kick a soccer into the goal", "ball", "goal", "behind push", ball="soccer_ball", goal="goal_whole"
    ),
    "stick-push-v3": _task(
        _V, "Grasp a stick and push a box using the stick", "stick", "box", "above down align align insert touch",
        stick="stick", box="object", goal=_GOAL,
    ),
    "stick-pull-v3": _task(
        _V, "Grasp a stick and pull a box with the stick", "stick", "box", "above down align align insert touch",
        stick="stick", box="object", goal=_GOAL,
    ),
    "push-wall-v3": _task(
        _M, "Bypass a wall and push a puck to a goal", "puck", "goal", "above down around around push",
        puck="obj", wall="wall", goal=_GOAL,
    ),
    "reach-wall-v3": _task(
        _E, "Bypass a wall and reach a goal", "goal", "goal", "clear go", puck="obj", wall="wall", goal=_GOAL
    ),
    "shelf-place-v3": _task(
        _V, "Pick and place a puck onto a shelf", "puck", "shelf", "above down align lift carry", puck="obj",
        shelf="shelf",
    ),
    "sweep-into-v3": _task(_M, "Sweep a puck into a hole", "puck", "hole", "above down push", puck="obj", hole=_GOAL),
    "sweep-v3": _task(
        _M, "Sweep a puck off the table", "puck", "edge of the table", "above down push", puck="obj", goal=_GOAL
    ),
    "window-open-v3": _task(
        _E, "Push and open a window", "window", "side", "above down push", window="window"
    ),
    "window-close-v3": _task(
        _E, "Push and close a window", "window", "side", "above down push", window="window"
    ),
}
# fmt: on
