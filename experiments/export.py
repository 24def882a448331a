"""Writes the backbone of a checkpoint for other programs: a model in Hugging Face's layout, or its adapters in PEFT's.

    python experiments/export.py --checkpoint runs/<run> --output_path exported
    python experiments/export.py --checkpoint runs/<run> --output_path adapters --adapters

The model is whole, with the tokenizer; adapters are merged into it. With --adapters only they are written, and the rows
of the thinking tokens, which the base model does not have: PeftModel.from_pretrained(base, "adapters") loads them.
"""

import pathlib

from absl import flags

from jaxvla import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run folder, or the folder of one checkpoint.", required=True)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_string("output_path", None, "The folder to write; it must be empty or not exist.", required=True)
flags.DEFINE_bool("adapters", False, "Write the adapters of LoRA alone.")
flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "Of the model; that of the checkpoint where it is empty.")


def main(_: list[str]) -> None:
    # jax, flax and orbax take seconds to import: --help and mistakes answer at once.
    from jaxvla.serving.export import export_backbone

    folder = pathlib.Path(FLAGS.output_path).expanduser()
    export_backbone(FLAGS.checkpoint, folder, FLAGS.step, adapters=FLAGS.adapters, dtype=FLAGS.dtype)
    print(f"wrote {', '.join(sorted(path.name for path in folder.iterdir()))} to {folder}")


if __name__ == "__main__":
    cli.run(main)
