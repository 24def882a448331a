"""Checkpoints as transformers writes them, filled with values that follow from names.

PYTHONPATH=tests python tests/parity/qwen3_vl_checkpoint.py      writes tests/models/qwen3_vl/golden/checkpoint
"""

import pathlib

import torch
from models.qwen3_vl import hf_files
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration


def hf_model(values: dict, dtype: torch.dtype = torch.float32) -> Qwen3VLForConditionalGeneration:
    """A model of the parsed config.json whose every tensor is `hf_files.tensor` of its name."""
    values = {**values, "dtype": str(dtype).removeprefix("torch.")}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**values)).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(hf_files.tensor(name, tuple(parameter.shape))))
    return model


def write(folder: pathlib.Path) -> None:
    """Untied, bfloat16, in shards."""
    hf_model(hf_files.config(), torch.bfloat16).save_pretrained(folder, max_shard_size=60_000)


if __name__ == "__main__":
    write(hf_files.GOLDEN)
