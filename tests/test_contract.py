"""What checkpoints say of how they are to be played."""

import dataclasses
import json

import pytest
from serving.policies import Echo, save
from training.positional_batches import SPEC, make_assets

from jaxvla import agents
from jaxvla.assets import Assets
from jaxvla.checkpoint import read_assets
from jaxvla.contract import CameraContract, Deviation, Execution, RealTime
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import CheckpointError, ConfigError
from jaxvla.manifest import MANIFEST
from jaxvla.serving.policy import load_policy

GRIPPER = ActionConvention(gripper=(1,), open=0.08, binarize=True, names=("x (m)", "gripper"))
SAID = dataclasses.replace(
    make_assets(),
    spec=dataclasses.replace(SPEC, action_horizon=8, cameras=("images0", "wrist")),
    execution=Execution(4),
    control_frequency=5.0,
    stored_sizes={"images0": (16, 16)},
    actions=GRIPPER,
)


def test_it_comes_back_from_a_checkpoint():
    contract = Assets.from_json(json.loads(json.dumps(SAID.to_json()))).contract()
    assert contract.to_json() == SAID.contract().to_json()
    assert (contract.control_frequency, contract.execute_steps, contract.action_horizon) == (5.0, 4, 8)
    assert (contract.ensemble, contract.actions) == (None, GRIPPER)
    assert contract.cameras == {"images0": CameraContract((16, 16), (8, 8)), "wrist": CameraContract(None, (8, 8))}
    assert json.loads(json.dumps(contract.to_json()))["actions"]["gripper"] == [1]


@pytest.mark.parametrize(
    ("execution", "frequency", "line"),
    [
        (Execution(4), 5.0, "4 of 8 actions a decision at 5 Hz, cameras images0 wrist 8 x 8"),
        (Execution(), 0.0, "8 of 8 actions a decision, cameras images0 wrist 8 x 8"),
        (
            Execution(0, 0.01),
            12.5,
            "1 of 8 actions a decision (ensemble 0.01) at 12.5 Hz, cameras images0 wrist 8 x 8",
        ),
    ],
)
def test_it_is_one_line(execution, frequency, line):
    assert str(dataclasses.replace(SAID, execution=execution, control_frequency=frequency).contract()) == line


def test_checkpoints_that_do_not_say_it_play_all_of_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.agents, "echo", lambda kwargs, spec: Echo(spec))
    save(tmp_path, "echo", {}, SPEC)
    folder = tmp_path / "checkpoints" / "3"
    path = folder / "assets" / "assets.json"
    values = json.loads(path.read_text())
    del values["execution"], values["control_frequency"], values["stored_sizes"]
    path.write_text(json.dumps(values))
    (folder / MANIFEST).unlink()
    contract = load_policy(tmp_path).contract
    assert (contract.execute_steps, contract.ensemble, contract.control_frequency) == (2, None, 0)
    assert contract.cameras == {"images0": CameraContract(None, (8, 8))}
    path.write_text(json.dumps(values | {"execution": {"execute_steps": "all"}}))
    with pytest.raises(CheckpointError, match=r"assets.execution.execute_steps must be int, not str 'all'"):
        read_assets(folder)


@pytest.mark.parametrize(
    ("steps", "ensemble", "message"),
    [
        (-1, None, r"execution.execute_steps must be 0 \(all\) or more, not -1$"),
        (0, -0.01, "execution.ensemble must be 0 or positive, or None, not -0.01$"),
        (1, float("nan"), "execution.ensemble must be 0 or positive, or None, not nan$"),
        (1, float("inf"), "execution.ensemble must be 0 or positive, or None, not inf$"),
        (4, 0.01, "ensemble=0.01 decides at every step, so execution.execute_steps cannot be 4: set it to 1, or"),
    ],
)
def test_values_that_make_no_sense(steps, ensemble, message):
    with pytest.raises(ConfigError, match=message):
        Execution(steps, ensemble)


def test_how_many_actions_are_played():
    assert [Execution(steps).steps(8) for steps in (0, 1, 8)] == [8, 1, 8]
    assert [Execution(steps, 0.0).steps(8) for steps in (0, 1)] == [1, 1]
    with pytest.raises(ConfigError, match=r"execute_steps must be 0 \(all\) to 8, the action_horizon, not 9$"):
        Execution(9).steps(8)


@pytest.mark.parametrize(
    ("execution", "sizes", "frequency", "lines"),
    [
        (Execution(4), {"images0": (16, 16), "wrist": (9, 9), "other": (1, 1)}, 5.0, []),
        (Execution(4), {}, 0.0, []),
        (Execution(), {}, 5.0, ["execute_steps 8, the checkpoint says 4"]),
        (
            Execution(1, 0.01),
            {"images0": (32, 16)},
            10.0,
            [
                "execute_steps 1, the checkpoint says 4",
                "ensemble 0.01, the checkpoint says none",
                "image_size of images0 32 x 16, the checkpoint says 16 x 16",
                "control_frequency 10 Hz, the checkpoint says 5 Hz",
            ],
        ),
    ],
)
def test_deviations(execution, sizes, frequency, lines):
    found = SAID.contract().deviations(execution, sizes, frequency)
    assert [str(deviation) for deviation in found] == lines


def test_what_is_not_said_cannot_be_deviated_from():
    silent = dataclasses.replace(SAID, execution=Execution(), control_frequency=0.0, stored_sizes={}).contract()
    assert silent.deviations(Execution(8), {"images0": (1, 1)}, 30.0) == ()
    assert silent.deviations(Execution(2), {}, 0.0) == (Deviation("execute_steps", "2", "8"),)


def test_every_way_of_averaging_has_its_words():
    assert Execution().averaging() == "none"
    assert Execution(1, 0.1).averaging() == "0.1"
    assert Execution(1, 0.1, "agreement", 7).averaging() == "0.1 by agreement of the last 7"


def test_real_time_is_said_and_deviates():
    own = Execution(4, realtime=RealTime(True, "linear", 10.0))
    contract = dataclasses.replace(SAID, execution=own).contract()
    assert contract.execution == own
    assert str(contract).startswith("4 of 8 actions a decision (real time, linear up to 10) at 5 Hz")
    assert json.loads(json.dumps(contract.to_json()))["realtime"]["schedule"] == "linear"
    assert contract.deviations(Execution(4), {}, 0.0) == (Deviation("realtime", "none", "linear up to 10"),)
    given = Execution(4, realtime=RealTime(True, by="prefix", least_delay=1))
    assert contract.deviations(given, {}, 0.0)[0].used == "prefix of 1 or more"
    assert str(dataclasses.replace(given.realtime, by="both")) == "prefix, then exp up to 5 of 1 or more"
    unsaid = dataclasses.replace(own, realtime=RealTime(False, "ones"))
    assert dataclasses.replace(SAID, execution=unsaid).contract().deviations(Execution(4), {}, 0.0) == ()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: RealTime(True, "cubic"), "realtime.schedule must be one of exp, linear, ones, zeros, not 'cubic'$"),
        (lambda: RealTime(True, by="habit"), "realtime.by must be one of guidance, prefix, both, not 'habit'$"),
        (lambda: RealTime(True, least_delay=-1), "realtime.least_delay must be 0 or more, not -1$"),
        (lambda: RealTime(True, "exp", -1.0), "max_guidance_weight must be 0 or positive, not -1.0$"),
        (lambda: Execution(1, 0.1, "mood"), "ensemble_by must be one of age, agreement, not 'mood'$"),
        (lambda: Execution(1, 0.1, "age", -1), r"ensemble_last must be 0 \(all\) or more, not -1$"),
        (
            lambda: Execution(1, 0.1, realtime=RealTime(True)),
            "averages chunks, and execution.realtime makes them go on",
        ),
    ],
)
def test_ways_of_playing_that_make_no_sense(made, message):
    with pytest.raises(ConfigError, match=message):
        made()
