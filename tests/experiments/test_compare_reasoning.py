"""The comparison of ways to reason, from a few demonstrations to its table."""

import importlib.util
import json
import re
import shlex

import jax
import pytest
from experiments.sample_world import ROOT, make

SCRIPT = ROOT / "experiments" / "compare_reasoning.py"
# One stage with words, one without: twenty steps, of which --num_steps makes two.
TOY = (
    "--config=train_config.py:ecot_tiny",
    "--bridgedata_config=data_config.py:bdv2_local",
    *("--config.batch_size=4", "--config.num_steps=20", "--config.save_interval=10", "--config.eval_interval", "20"),
    *("--config.eval_batches=1", "--config.log_interval=1", "--config.data.image_size=()", "--config.backbone.preset"),
    *("tiny_random", "--config.data.action_horizon=2", "--config.execution.execute_steps=1"),
    "--config.curriculum.component_order=('SUBTASK','MOVE')",
    "--config.curriculum.schedule=((0,0),(10,2))",
    "--config.curriculum.tag2think_count.MOVE=2",
    *("--config.agent_kwargs.action_head.output_dim=16", "--config.agent_kwargs.action_head.hidden_size=16"),
    *("--num_steps=2", "--level=one", "--seeds=1", "--episodes=2", "--max_steps=2", "--parallel=1"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"), 5)


@pytest.fixture
def compare(data, warm, tmp_path):
    """Runs the main, as from a shell; gives its exit code and what it printed."""
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    paths = (f"--config.data_path={data}", f"--output_path={tmp_path / 'out'}")
    return lambda *more, toy=TOY: warm.run([SCRIPT, *toy, *paths, *more], tmp_path, cache)


def printed_commands(printed):
    """Without the interpreter, as the scripts run in a process that is warm."""
    return [shlex.split(line)[1:] for line in printed.splitlines() if ".py" in line]


def test_every_variant_trains_on_the_same_but_for_its_reasoning(compare, warm, tmp_path):
    code, printed = compare("--dry_run", "--seeds=2")
    assert code == 0, printed
    trainings = [argv for argv in printed_commands(printed) if "train.py" in argv[0]]
    assert not (tmp_path / "out").exists()
    assert len(trainings) == 8
    assert len(printed.splitlines()) == 8 + 5 * 2 + 5
    assert [word for argv in trainings for word in argv if "config.seed" in word] == (
        ["--config.seed=42"] * 4 + ["--config.seed=43"] * 4
    )
    texts = {}
    for argv in trainings[:4]:
        code, printed = warm.run(argv, tmp_path, rehearse=True)
        assert code == 0, printed
        assert "observations/images0 (4, 1, 32, 32, 3)" in printed
        name = argv[-1].removeprefix("--name=")
        texts[name] = {key: eval(shape) for key, shape in re.findall(r"text/(\w+) (\(.*\))", printed)}
        texts[name]["stages"] = re.findall(r"stage (\d) +from step (\d)", printed)
    assert [*texts] == ["none", "words", "latent", "pause"]
    assert len({text["prefix"] for text in texts.values()}) == 1
    assert {name: (text["slots"][1], text["stages"]) for name, text in texts.items()} == {
        "none": (0, [("0", "0")]),
        "words": (0, [("0", "0")]),
        "latent": (0, [("0", "0"), ("2", "1")]),
        "pause": (3, [("2", "0")]),
    }
    widths = {name: text["suffix"][1] for name, text in texts.items()}
    assert widths["none"] == widths["pause"] == 8 < widths["words"] == widths["latent"]


def test_what_was_stopped_goes_on_and_what_is_there_is_not_done_again(compare, warm, tmp_path):
    output = tmp_path / "out"
    code, printed = compare("--dry_run", "--variants=none")
    assert code == 0, printed
    training, *games = printed_commands(printed)
    assert len(games) == 2
    # Killed after its first checkpoint.
    code, printed = warm.run([*training, "--config.num_steps=1"], tmp_path)
    assert code == 0, printed
    (run,) = (output / "none_seed0").iterdir()

    code, printed = compare("--variants=none")
    assert code == 0, printed
    assert [*(output / "none_seed0").glob("none_*/")] == [run]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "training/loss" in row] == [1, 2]
    settings = json.loads((run / "config.json").read_text())["config"]
    assert (settings["curriculum"]["schedule"], settings["optimizer"]["decay_steps"]) == ([[0, 0]], 120)
    row = json.loads((output / "comparison.json").read_text())["none"]
    assert (row["episodes"], row["tokens"], row["slots"]) == (2, 0, 0)
    assert row["ms_per_decision"] > 0
    assert (output / "comparison.md").read_text() in printed
    assert (output / "comparison.png").stat().st_size > 1000
    report = json.loads((output / "none_seed0" / "none.json").read_text())
    assert (report["settings"]["level"], report["settings"]["max_steps"]) == ("one", 2)

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix == ".json"}
    code, printed = compare("--variants=none")
    assert code == 0, printed
    again = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != again[path]} == {"comparison.json"}
    assert "seed 0" not in printed
    # Other episodes are played again, on what was trained.
    code, printed = compare("--variants=none", "--episodes=4", "--dry_run")
    assert [argv[0].rpartition("/")[2] for argv in printed_commands(printed)] == ["eval.py"]
    assert f"--checkpoint={run}" in printed
    code, printed = compare("--variants=none", "--config.batch_size=8")
    assert code == 1
    assert printed == (f"error: {output} compares with config.batch_size=4, not 8: give another --output_path\n")


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="needs pip install -e '.[metaworld]'")
def test_other_worlds_are_played_likewise(compare):
    """By the steps of its protocol where no others are given."""
    world = ("--env=metaworld", "--level=starvla", "--suite=mt10")
    code, printed = compare("--dry_run", "--variants=words", *world, "--max_steps=0")
    assert code == 0, printed
    games = [argv for argv in printed_commands(printed) if "eval.py" in argv[0]]
    assert len(games) == 4
    assert all({*world, "--max_steps=400"} <= {*game} for game in games)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--suite=mt10"], "tabletop has no suites, and so no 'mt10'; worlds with suites are metaworld"),
        (["--variants=latent,slots"], "--variants must be some of none, words, latent, pause, not slots"),
        (["--variants="], "--variants must be some of none, words, latent, pause, not nothing"),
        (["--config.curriculum.schedule=((0,0),)"], "config.curriculum.schedule must end at a stage with slots"),
        (["--level=two"], "no tabletop level named 'two'"),
        (["--output_path=gs://x"], "--output_path: gs://x is no local path"),
    ],
)
def test_mistakes_are_one_line(compare, flags, line):
    code, printed = compare(*flags)
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith(f"error: {line}")


def test_a_method_that_does_not_reason_is_refused(compare):
    configs = ("--config=train_config.py:gc_bc", "--bridgedata_config=data_config.py:sample")
    expected = "error: gc_bc does not reason: give a preset that does, such as ecot_tiny\n"
    assert compare(toy=configs) == (1, expected)
