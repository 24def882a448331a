"""What a run compiles, it compiles before its first steps are over."""

import jax
from training.linear_run import train_linear
from training.positional_batches import PositionalBatches

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_two_hundred_steps_compile_nothing(tmp_path):
    """Neither do the logs, validations and checkpoints between them."""
    compiled, at = [], {}

    def listen(event, duration, **details):
        if event == COMPILED:
            compiled.append(details.get("fun_name", ""))

    class Batches(PositionalBatches):
        def __next__(self):
            at[self.position] = len(compiled)
            return super().__next__()

    jax.clear_caches()  # others may have compiled the same
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        settings = {"num_steps": 240, "log_interval": 10, "eval_interval": 25, "save_interval": 25}
        train_linear(tmp_path, Batches, mesh={"data": 2, "fsdp": 4}, **settings)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The feed is a few batches ahead of the step; by the 30th everything has happened once.
    assert at[30] > at[0]
    assert compiled[at[30] : at[239]] == []
