"""Checks a reasoning policy before it is trained: data, tokens, alignment, labels, losses, gradients, ten steps.

    python experiments/check_ecot.py --config train_config.py:ecot_tiny --bridgedata_config data_config.py:sample

Walks stage 0 and the last stage with latent slots. Exits with code 1 at the first thing that is wrong, naming its
likely cause. The same seed prints the same report, but for the lines that begin with "timing".
"""

import pathlib
import sys

from ml_collections import config_flags

from jaxvla import cli

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"

config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:ecot_tiny.")
config_flags.DEFINE_config_file(
    "bridgedata_config", None, "What to train on: FILE:PRESET, such as data_config.py:sample."
)


def main(_: list[str]) -> None:
    settings, source_settings = cli.read_configs("ecot_tiny", "sample")
    from jaxvla.parallel.mesh import MeshConfig, make_mesh
    from jaxvla.training.doctor import CHECKS, examine
    from jaxvla.training.job import open_job

    mesh = make_mesh(MeshConfig(**settings["mesh"]))
    findings = []
    for finding in examine(lambda: open_job(settings, source_settings), mesh):
        findings.append(finding)
        print(f"\n{_stage(finding.stage)}: {finding.check}")
        for line in finding.saw:
            print(f"  {line}")
        if finding.timing:
            print(f"  timing: {finding.timing}")
        sys.stdout.flush()
    print(f"\n{'':<10}" + "".join(f"{check:>11}" for check in CHECKS))
    for stage in dict.fromkeys(finding.stage for finding in findings):
        marks = {
            finding.check: "FAILED" if finding.cause else "passed" for finding in findings if finding.stage == stage
        }
        print(f"{_stage(stage):<10}" + "".join(f"{marks.get(check, '-'):>11}" for check in CHECKS))
    last = findings[-1]
    if last.cause:
        print(f"\nFAILED at {_stage(last.stage)}, {last.check}: {last.saw[0]}\nlikely cause: {last.cause}")
        sys.exit(1)
    print("\npassed")


def _stage(stage: int) -> str:
    return "start" if stage < 0 else f"stage {stage}"


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
