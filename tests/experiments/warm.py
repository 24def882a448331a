"""A process that has imported everything, and runs one script after the other, each in a fork of itself.

    with Warm() as warm:
        warm.run([path, *flags], cwd)

A script starts as from a shell, with flags and devices of its own, one where they say nothing else, but not with the
seconds of importing jax. In a rehearsal, training is everything before the first step: data, agent, optimizer, devices,
what is resumed.
"""

import gc
import importlib
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
IMPORTED = (
    *("jaxvla.serving.sources", "jaxvla.training.job", "jaxvla.training.loop"),
    *("ml_collections.config_flags", "matplotlib.backends.backend_agg"),
)


class Warm:
    """The parent's end."""

    def __init__(self) -> None:
        environment = os.environ | {"XLA_FLAGS": XLA_FLAGS, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def run(
        self, argv: Sequence[str], cwd: pathlib.Path, env: Mapping[str, str] | None = None, rehearse: bool = False
    ) -> tuple[int, str]:
        """The exit code of a script, and what it printed, errors last."""
        done = self.start(argv, cwd, env, rehearse)
        return done.returncode, done.stdout + done.stderr

    def start(
        self, argv: Sequence[str], cwd: pathlib.Path, env: Mapping[str, str] | None = None, rehearse: bool = False
    ) -> subprocess.CompletedProcess:
        """What `subprocess.run` of a script would give."""
        request = {"argv": list(map(str, argv)), "cwd": str(cwd), "env": dict(env or {}), "rehearse": rehearse}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess(argv, *json.loads(self._process.stdout.readline()))


def serve() -> None:
    """The other end: a request a line, an answer a line."""
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # or every fork would look through all of it, and copy it

    for line in sys.stdin:
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
        ):
            child = os.fork()
            if not child:
                _run(json.loads(line), out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            for stream in (out, err):
                stream.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), flush=True)


def _run(request: Mapping[str, Any], out: int, err: int) -> None:
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        sys.argv[:], sys.path[0] = request["argv"], request["cwd"]
        if request["rehearse"]:
            import jaxvla.training.loop

            jaxvla.training.loop.train = _rehearse
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _rehearse(
    config: Any, agent: Any, mesh: Any, batches: Any, validation: Any, assets: Any, run: Any, **_: Any
) -> None:
    """In place of `loop.train`: all that it refuses, a batch of both splits, and the shapes of the loss of one."""
    import jax

    from jaxvla.parallel.sharding import check_batch_size
    from jaxvla.training import preparing
    from jaxvla.training.optimizer import check_learning_rates, make_optimizer
    from jaxvla.training.state import abstract_state

    check_batch_size(config.batch_size // config.accumulate_steps, mesh)
    optimizer = make_optimizer(config.optimizer, agent.frozen_modules)
    state = abstract_state(agent, optimizer, mesh, ema=config.ema_decay > 0)
    params, moments = state.params, jax.tree_util.tree_leaves_with_path(state.opt_state)
    check_learning_rates(config.optimizer, params)
    preparing.check_best_metric(config, agent, params)
    if config.resume_path:
        preparing.prepare(config, agent, mesh, batches, assets, (), None)
    trained = {key.key for path, _ in moments for key in path if isinstance(key, jax.tree_util.DictKey)}
    print("trained     ", *sorted(params.keys() & trained))
    batch = next(batches)
    for path, x in jax.tree_util.tree_leaves_with_path(batch):
        print("/".join(key.key for key in path), x.shape)
    jax.eval_shape(agent.loss, params, batch, jax.random.key(0))
    next(validation(1))
    raise SystemExit(0)


if __name__ == "__main__":
    serve()
