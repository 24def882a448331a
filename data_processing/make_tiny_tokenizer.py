"""Trains the small tokenizer that ships with the package, on sentences about the sample world and on reasoning text.

    python data_processing/make_tiny_tokenizer.py --output_path jaxvla/data/text/assets/tiny_tokenizer

Writes vocab.json, merges.txt, tokenizer_config.json and chat_template.jinja, laid out and split like Qwen3-VL's, with
its 26 added tokens under the same names. The bytes depend on this file and the version of `tokenizers` only. Every
checkpoint that was trained with it relies on its ids, so the text below is not tied to the wording of the sample world.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
from absl import flags

from jaxvla import cli
from jaxvla.data.text import tokenizer
from jaxvla.errors import DataError

FLAGS = flags.FLAGS
flags.DEFINE_string("output_path", None, "Folder to write.", required=True)

VOCAB_SIZE = 1000
ROUNDS = 60

# Special ones are left out of text that is shown to people.
SPECIAL_TOKENS = (
    *("<|endoftext|>", tokenizer.IM_START, tokenizer.IM_END, "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", tokenizer.VISION_START, tokenizer.VISION_END),
    *("<|vision_pad|>", tokenizer.IMAGE_PAD, "<|video_pad|>"),
)
OTHER_ADDED_TOKENS = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)

# " @" divides an instruction from its reasoning, and new tokens may start as a copy of "<<": both must be one token.
WHOLE_PIECES = (" @", "<<")

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown", "silver", "wooden")
THINGS = (
    *("cube", "brick", "cylinder", "ball", "pyramid", "block", "arch", "cup", "mug", "spoon", "fork", "knife", "can"),
    *("bottle", "lid", "towel", "cloth", "sponge", "brush", "carrot", "corn", "potato", "mushroom", "eggplant"),
    *("banana", "pepper", "bread", "toy", "lever", "handle"),
)
VESSELS = (
    *("plate", "bowl", "box", "pot", "pan", "basket", "sink", "drawer", "table", "tray", "shelf", "counter", "stove"),
    *("drying rack", "microwave", "fridge", "cabinet", "cutting board", "burner"),
)
DIRECTIONS = (
    *("left", "right", "forward", "backward", "up", "down"),
    *("upper", "lower", "front", "back", "bottom", "middle"),
)
SENTENCES = (
    "put the {color} {thing} in the {vessel}",
    "put the {thing} from the {vessel} into the {color} {vessel}",
    "place the {color} {thing} on top of the {vessel}",
    "pick up the {thing} and put it into the {color} {vessel}",
    "pick up the {color} {thing} and set it down to the {direction} of the {vessel}",
    "move the {color} {thing} to the {direction} side, in front of the {vessel}",
    "take the {thing} and place it behind the {vessel}",
    "take the {thing} out of the {vessel} and put it next to the {thing}",
    "stack the {color} {thing} on the {vessel}",
    "flip the {thing} upright, turn the {thing} vertical to {direction}, fold the {thing}, wipe the {vessel}",
    "open the {vessel}, slide the {thing} inside, then push the {vessel} closed",
    "What action should the robot take to move the {thing} {direction}?",
    "TASK: Put the {color} {thing} in the {vessel}.",
    "PLAN: Reach for the {thing}. Grasp the {thing}. Lift it. Move it above the {vessel}. Lower it. Release it.",
    "PLAN: Turn the {thing}. Pull the {thing} {direction}. Pour the water. Return to the start. Stop.",
    "VISIBLE OBJECTS: the {color} {thing} [12, 40, 33, 61], the {vessel} [97, 104, 158, 150]",
    "SUBTASK REASONING: The gripper is open and not yet at the {thing}, so it should approach the {thing} next.",
    "SUBTASK REASONING: The {thing} is held by the gripper and has to go to the {color} {vessel}.",
    "SUBTASK REASONING: The {thing} rests in the {vessel} already, so the robot can let go of it and move away.",
    "SUBTASK: grasp the {color} {thing}",
    "SUBTASK: release the {thing}",
    "MOVE REASONING: The {vessel} is {direction} of the robot arm, so the arm should move {direction}.",
    "MOVE REASONING: The fingers are too high above the {thing}, and must come down before they close around it.",
    "MOVE: move {direction}, open gripper, close gripper, tilt {direction}, stop",
    "MOVE: rotate clockwise, rotate counterclockwise, move slowly",
    "GRIPPER POSITION: [97, 45, 97, 45, 89, 52, 83, 58, 82, 57] ACTION:",
    "Subtask: lift the {thing}. BBox: [0.5000 0.4336 0.6055 0.5664]. Reasoning: the gripper moves {direction}",
    "globally the gripper should progress towards the forward-{direction} direction, locally it is moving {direction}.",
    "The {color} object is near the {vessel}; there is nothing between them, and the task is done.",
    "The {thing} lies close to the {direction} edge of the {vessel}, far from the camera and partly hidden.",
    "There are two or three {color} objects; only one of these can be reached without touching any other.",
    "Instruction: first describe what you see in the image, then answer with the motion of the robot.",
    "Because the {thing} was dropped, I will try again: I need to find it, reach it and hold it more firmly this time.",
    "Which {thing} do they want? It could be either, but the {color} one fits best, since it would not fall over.",
    "While the arm carries the {thing}, its wrist stays level until it has passed over the corner of the {vessel}.",
    "After each step, look at both views, compare where things were with where they are, and go on if all is well.",
    "@ TASK: PLAN: VISIBLE OBJECTS: SUBTASK REASONING: SUBTASK: MOVE REASONING: MOVE: GRIPPER POSITION: ACTION:",
    "{thing} @ TASK: PLAN: VISIBLE OBJECTS: SUBTASK REASONING: SUBTASK: MOVE: GRIPPER POSITION: ACTION: Action:",
    "One, two, three, four, five, six, seven, eight, nine or ten {thing}s? A few seconds later the answer is clear.",
    "Pick, Place, Put, Take, Push, Pull, Open, Close, Turn, Stack, Slide, Sweep, Rotate, Hold, Drop, Approach, Wait.",
)
TURNS = ("system\nYou are a helpful assistant.\n", "user\n", "assistant\n", "\n\n")


def corpus() -> Iterator[str]:
    """Sentences until every list of words has gone round several times, with the other pieces in between."""
    for i in range(ROUNDS):
        words = {"color": COLORS, "thing": THINGS, "vessel": VESSELS, "direction": DIRECTIONS}
        chosen = {name: choices[i % len(choices)] for name, choices in words.items()}
        yield from (sentence.format(**chosen) for sentence in SENTENCES)
        yield from (*TURNS, *WHOLE_PIECES)


def train() -> tokenizers.Tokenizer:
    """The vocabulary without the added tokens: 256 bytes, then merges."""
    backend = tokenizer.byte_level_bpe(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(OTHER_ADDED_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    return backend


def tokenizer_config(first_id: int) -> dict[str, Any]:
    """tokenizer_config.json, with the added tokens on the ids from `first_id` on."""
    added = {
        str(first_id + i): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": content in SPECIAL_TOKENS,
        }
        for i, content in enumerate((*SPECIAL_TOKENS, *OTHER_ADDED_TOKENS))
    }
    return {
        "added_tokens_decoder": added,
        "eos_token": tokenizer.IM_END,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
    }


def main(_: Sequence[str]) -> None:
    output = pathlib.Path(FLAGS.output_path)
    backend = train()
    config = tokenizer_config(backend.get_vocab_size())
    try:
        output.mkdir(parents=True, exist_ok=True)
        backend.model.save(str(output))
        (output / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        (output / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or output}: {error.strerror}") from error
    print(f"wrote {VOCAB_SIZE} tokens to {output}")


if __name__ == "__main__":
    cli.run(main)
