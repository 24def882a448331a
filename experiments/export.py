"""Writes a checkpoint for other programs, or for safe keeping in one file.

    python experiments/export.py --checkpoint runs/<run> --output_path exported
    python experiments/export.py --checkpoint runs/<run> --output_path adapters --adapters
    python experiments/export.py --checkpoint runs/<run> --output_path policy --format lerobot
    python experiments/export.py --checkpoint runs/<run> --output_path policy --format safetensors
    python experiments/export.py --checkpoint runs/<run> --output_path policy --format openvla --dtype bfloat16

--format huggingface, the default, writes the backbone: a model in Hugging Face's layout, or its adapters in PEFT's. The
model is whole, with the tokenizer; adapters are merged into it. With --adapters only they are written, and the rows of
the thinking tokens, which the base model does not have: PeftModel.from_pretrained(base, "adapters") loads them.

--format lerobot writes a policy that LeRobot loads and plays; it has act and smolvla. --format safetensors writes any
agent: its parameters in one file, assets.json, and a model card. All write the averaged parameters where training kept
an average, as checkpoints hold these.

--format openvla writes an openvla as its authors publish it, adapters merged: the weights, the tokenizer, and
dataset_statistics.json. Training goes on from it by --config.agent_kwargs.path.
"""

from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.errors import ConfigError

FLAGS = flags.FLAGS
FORMATS = ("huggingface", "lerobot", "safetensors", "openvla")
# The flags that say something of some formats only.
OF_FORMATS = {
    "adapters": FORMATS[:1],
    "dtype": (FORMATS[0], FORMATS[3]),
    "dataset": FORMATS[1:2],
    "data_licence": FORMATS[1:3],
}
flags.DEFINE_string("checkpoint", None, "A run folder, or the folder of one checkpoint.", required=True)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_string("output_path", None, "The folder to write; it must be empty or not exist.", required=True)
flags.DEFINE_enum(
    "format", FORMATS[0], FORMATS, "What to write: a backbone, a policy of LeRobot, any agent, or OpenVLA."
)
flags.DEFINE_bool("adapters", False, "Write the adapters of LoRA alone.")
flags.DEFINE_enum("dtype", "", ["", "float32", "bfloat16"], "Of the model; that of the checkpoint where it is empty.")
flags.DEFINE_string("dataset", None, "In whose units a policy of LeRobot acts, of several that it was trained on.")
flags.DEFINE_string("data_licence", "", "Licence of the data, for the model card; unknown where it is empty.")


def main(_: list[str]) -> None:
    for flag, formats in OF_FORMATS.items():
        if FLAGS[flag].value != FLAGS[flag].default and FLAGS.format not in formats:
            raise ConfigError(f"--{flag} is of --format {' and '.join(formats)}, not of {FLAGS.format}: leave it out")
    # jax, flax and orbax take seconds to import: --help and mistakes answer at once.
    from jaxvla.serving.export import export_backbone, export_lerobot, export_native, export_openvla

    folder = local_path(FLAGS.output_path, "--output_path")
    given = FLAGS.checkpoint, folder, FLAGS.step
    if FLAGS.format == "lerobot":
        export_lerobot(*given, dataset=FLAGS.dataset, data_licence=FLAGS.data_licence)
    elif FLAGS.format == "safetensors":
        export_native(*given, data_licence=FLAGS.data_licence)
    elif FLAGS.format == "openvla":
        export_openvla(*given, dtype=FLAGS.dtype)
    else:
        export_backbone(*given, adapters=FLAGS.adapters, dtype=FLAGS.dtype)
    print(f"wrote {', '.join(sorted(path.name for path in folder.iterdir()))} to {folder}")


if __name__ == "__main__":
    cli.run(main)
