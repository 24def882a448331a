"""How fast frames of videos are read at random, beside LeRobot's way, a frame cache and raw TFRecords; and memory.

    python benchmarks/video.py                                    # decoding and cache; 1 GB of disk, minutes
    python benchmarks/video.py --parts=memory --minutes=10

Decoding: videos of 480 x 640 in AV1 and H.264, with a key frame every second frame as LeRobot writes them, to
--policy_size by --resize, with 1 and 2 threads; of --version v2.1 each episode has its own. LeRobot's own function, by
PyAV as LeRobot does without torchcodec, runs in as many threads, and torch resizes what it gives: bilinear with
antialiasing, as this loader does by default here. A process is bound to as many cores as it has threads, for LeRobot
leaves that to FFmpeg. It needs lerobot and a torchvision with a VideoReader in the environment (0.25 has one).
Expected: at least twice LeRobot's rate, and 1.5 frames decoded for each that is read.

Cache: the same frames from a frame cache, and from TFRecords of BridgeData that hold them at --policy_size. Expected:
at least 0.8 of the latter's rate, after the first pass, in which checksums are verified.

Memory: what the process holds of its own while it decodes for --minutes, every minute. Expected: the same from the
second minute on.

Rows are measured in processes of their own that take turns, --rounds times; medians are printed. Where other jobs keep
the cores busy, the time of a core that a frame costs says more than the rate.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from jaxvla import cli
from jaxvla.data.conversion import caching, tfrecord_format
from jaxvla.data.conversion.lerobot import films
from jaxvla.data.conversion.lerobot.convert import VERSIONS, Options, write_lerobot
from jaxvla.data.conversion.lerobot.episode import Clip, Episode, Episodes, make_episode
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.formats import lerobot_meta, video
from jaxvla.data.formats.frame_cache import Key
from jaxvla.data.inspection.recordings import open_recordings
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.transforms.images import FILTERS
from jaxvla.errors import DataError

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("parts", ["decoding", "cache"], ["decoding", "cache", "memory"], "What is measured.")
flags.DEFINE_list("stored_size", ["480", "640"], "Height and width of the videos.")
flags.DEFINE_enum("version", "v2.1", [*VERSIONS], "Of the LeRobotDatasets.")
flags.DEFINE_integer("episodes", 60, "Of the dataset.", lower_bound=1)
flags.DEFINE_integer("frames", 60, "Of an episode.", lower_bound=2)
flags.DEFINE_integer("policy_size", 224, "Side to which frames are resized, in pixels.", lower_bound=8)
flags.DEFINE_enum("resize", "bilinear", [*FILTERS], "How this loader does that.")
flags.DEFINE_integer("batch_size", 64, "Transitions per batch.", lower_bound=1)
flags.DEFINE_multi_integer("threads", [1, 2], "Reading threads.", lower_bound=1)
flags.DEFINE_integer("seconds", 10, "How long each round measures.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "The median is printed.", lower_bound=1)
flags.DEFINE_float("minutes", 10.0, "How long memory is watched.", lower_bound=0.01)
flags.DEFINE_string("folder", "", "Where the datasets are written, and removed; empty for the system's.")
flags.DEFINE_enum("measure", "", ["", "loader", "lerobot", "decoded", "memory"], "One process; used internally.")

FPS, CAMERA = 30.0, "observation.images.top"
# As LeRobot encodes: its encoder, and settings.
AV1 = ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"})
CODECS = ("av1", "h264")


def frames_of(episode: int, count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A camera that moves over smooth shapes, with some noise: uint8 [height, width, 3] each."""
    rng = np.random.default_rng(episode)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * width, 2 * height), Image.Resampling.BICUBIC), np.int16)
    for t in range(count):
        y, x = (t * height // count, t * width // count)
        noisy = scene[y : y + height, x : x + width] + rng.integers(-4, 5, (height, width, 1), np.int16)
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def episode_tables(episode: int) -> tuple[np.ndarray, np.ndarray]:
    """Random states and actions [frames, 7]."""
    rng = np.random.default_rng(episode)
    return rng.normal(size=(FLAGS.frames, 7)), rng.normal(size=(FLAGS.frames, 7))


def write_videos(root: pathlib.Path, codec: str) -> None:
    """A LeRobotDataset of videos of this codec."""
    size = tuple(map(int, FLAGS.stored_size))

    def read(number: int) -> Episode:
        def frames() -> Iterator[np.ndarray]:
            return frames_of(number, FLAGS.frames, *size)

        made = make_episode(f"{number}", *episode_tables(number), ["go"] * FLAGS.frames, {"top": (size, frames)})
        if codec == "h264":
            return made
        path = root.with_name(f"{root.name}-{number}.mp4")  # of which the dataset has a copy
        write_av1(path, frames(), size)
        clip = Clip(str(path), 0, FLAGS.frames)
        return Episode(made.where, made.features, made.columns, made.tasks, {CAMERA: clip})

    episodes = Episodes(codec, FPS, None, [("train", FLAGS.episodes)], read)
    write_lerobot(episodes, root, Options(FLAGS.version))


def write_av1(path: pathlib.Path, frames: Iterator[np.ndarray], size: tuple[int, int]) -> None:
    """As LeRobot writes videos."""
    os.environ["SVT_LOG"] = "1"  # errors only
    encoder, options = AV1
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=int(FPS), options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_tfrecords(root: pathlib.Path) -> None:
    """As many frames of --policy_size, raw."""
    side = FLAGS.policy_size
    for number in range(FLAGS.episodes):
        path = root / f"task{number}" / "train" / "out.tfrecord"
        path.parent.mkdir(parents=True)
        pixels = np.stack([*frames_of(number, FLAGS.frames + 1, side, side)])
        states, actions = (table.astype(np.float32) for table in episode_tables(number))
        features = {
            "observations/images0": pixels[:-1],
            "next_observations/images0": pixels[1:],
            "observations/state": states,
            "next_observations/state": states,
            "actions": actions,
            "language": ["go"],
        }
        tfrecord_format.write_trajectories(path, [features])


def write_cache(root: pathlib.Path) -> None:
    size, config = (FLAGS.policy_size, FLAGS.policy_size), SourceConfig("lerobot", str(root))
    recordings = open_recordings(config, False, 0, 0)
    source = recordings.views(CAMERA, recordings.numbers, size, FLAGS.resize)
    caching.make(caching.Job.of(source, CAMERA, Key(CAMERA, size, FLAGS.resize), root, root / "frames"), 2)


def batches_of(root: pathlib.Path) -> Iterator[dict]:
    """Batches of observations alone; the start says whether they come from a cache."""
    is_lerobot = (root / lerobot_meta.INFO).exists()
    kind, groups = ("lerobot", ()) if is_lerobot else ("bridge_tfrecord", (("**",),))
    size = (FLAGS.policy_size, FLAGS.policy_size)
    data = DataConfig(relabel_actions=False, image_size=size, resize=FLAGS.resize, num_threads=FLAGS.threads[0])
    dataset = open_dataset(SourceConfig(kind, str(root), include=groups), data, "train")
    if is_lerobot and bool(dataset.source.caches) != (root / "frames").exists():
        raise DataError(f"{root}: the frame cache is not used: {dataset.report}")
    return training_batches(Mixture.of(dataset), FLAGS.batch_size, 0, ("observations",))


def rate_of(step: Callable[[], int]) -> dict[str, float]:
    """Of a function that reads frames and says how many."""
    for _ in range(4):
        step()
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < FLAGS.seconds:
        count += step()
    rate = count / (time.perf_counter() - start)
    return {"frames/s": rate, "core ms": (time.process_time() - cpu) / count * 1e3}


def measure_loader(root: pathlib.Path) -> dict[str, float]:
    batches = batches_of(root)

    def step() -> int:
        return len(next(batches)["observations"]["images0"])

    return rate_of(step)


def places_of(root: pathlib.Path) -> Iterator[tuple[str, float]]:
    """Videos and seconds of frames drawn at random, without end."""
    episodes, rng = lerobot_meta.read_info(root).episodes, np.random.default_rng(0)
    while True:
        episode = episodes[rng.integers(len(episodes))]
        file, start = episode.videos[CAMERA]
        yield str(root / file), start + int(rng.integers(episode.length)) / FPS


def measure_lerobot(root: pathlib.Path) -> dict[str, float]:
    import torch
    from lerobot.datasets.video_utils import decode_video_frames

    torch.set_num_threads(1)  # of each of the threads below
    places, size = places_of(root), (FLAGS.policy_size, FLAGS.policy_size)

    def read(place: tuple[str, float]) -> int:
        path, second = place
        frames = decode_video_frames(path, [second], 1e-4, "pyav")
        return len(torch.nn.functional.interpolate(frames, size, mode="bilinear", antialias=True))

    with ThreadPoolExecutor(FLAGS.threads[0]) as pool:

        def step() -> int:
            return sum(pool.map(read, [next(places) for _ in range(FLAGS.batch_size)]))

        return rate_of(step)


def measure_decoded(root: pathlib.Path) -> dict[str, float]:
    """How many frames are decoded for each that is read at random, one after the other."""
    places, count, decoded = places_of(root), 1000, 0
    for _ in range(count):
        path, second = next(places)
        decoder = video.decoder(path)
        before = decoder.decoded
        decoder.read(round(second * FPS))
        decoded += decoder.decoded - before
    return {"decoded": decoded / count}


def measure_memory(root: pathlib.Path) -> dict[str, list[float]]:
    """MB of its own that the process holds, at the start and after each minute."""
    batches = batches_of(root)
    start, found = time.monotonic(), []
    while len(found) <= FLAGS.minutes:
        next(batches)
        if time.monotonic() - start >= 60 * len(found):
            status = pathlib.Path("/proc/self/status").read_text().split("RssAnon:")[1]
            found.append(int(status.split()[0]) / 1024)
    return {"anonymous MB": found}


MEASURES: dict[str, Callable[[pathlib.Path], dict]] = {
    "loader": measure_loader,
    "lerobot": measure_lerobot,
    "decoded": measure_decoded,
    "memory": measure_memory,
}


def in_a_process_of_its_own(name: str, root: pathlib.Path, threads: int) -> dict:
    given = [f"--{key}={FLAGS[key].value}" for key in ("policy_size", "resize", "batch_size", "seconds", "minutes")]
    command = [sys.executable, __file__, f"--measure={name}", f"--folder={root}", f"--threads={threads}", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"measuring {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(title: str, rows: dict[str, tuple[str, pathlib.Path]]) -> None:
    """Prints the rates of rows, each with every number of threads, and the ratio of the first to the others'."""
    print(f"\n{title:<52}{'frames/s':>9}    {'min..max':<16}{'core ms a frame':>15}")
    for threads in FLAGS.threads:
        found: dict[str, list[dict[str, float]]] = {label: [] for label in rows}
        for _ in range(FLAGS.rounds):
            for label, (name, root) in rows.items():
                found[label].append(in_a_process_of_its_own(name, root, threads))
        medians = {}
        for label, own in found.items():
            rates = [row["frames/s"] for row in own]
            medians[label] = statistics.median(rates)
            cost, spread = statistics.median(row["core ms"] for row in own), f"{min(rates):.0f}..{max(rates):.0f}"
            name = f"{label}, {threads} thread{'s' * (threads > 1)}"
            print(f"{name:<52}{medians[label]:>9.0f}    {spread:<16}{cost:>15.2f}", flush=True)
        first = next(iter(rows))
        for label in [label for label in rows if label != first]:
            print(f"{'  the first by ' + label:<52}{medians[first] / medians[label]:>9.2f}")


def has_lerobot() -> bool:
    """Whether LeRobot and a reader of videos for it are installed; says so where not."""
    if importlib.util.find_spec("lerobot") is None or importlib.util.find_spec("torchvision") is None:
        print("lerobot is not installed: its way is not measured")
        return False
    import torchvision

    if not hasattr(torchvision.io, "VideoReader"):
        print(f"torchvision {torchvision.__version__} has no VideoReader: LeRobot's way is not measured")
        return False
    return True


def compare_decoding(folder: pathlib.Path) -> None:
    beside = has_lerobot()
    for codec in CODECS:
        rows = {"this loader": ("loader", folder / codec)}
        rows |= {"LeRobot by PyAV": ("lerobot", folder / codec)} if beside else {}
        compare(f"{codec} {' x '.join(FLAGS.stored_size)} to {FLAGS.policy_size} px", rows)
        decoded = in_a_process_of_its_own("decoded", folder / codec, 1)["decoded"]
        print(f"{'frames decoded for each that is read':<52}{decoded:>9.2f}")


def compare_cache(folder: pathlib.Path) -> None:
    shutil.copytree(folder / "av1", folder / "cached")
    write_cache(folder / "cached")
    write_tfrecords(folder / "raw")
    rows = {"frame cache": ("loader", folder / "cached"), "raw TFRecords": ("loader", folder / "raw")}
    compare(f"{FLAGS.policy_size} px without decoding", rows)


def watch_memory(folder: pathlib.Path) -> None:
    found = in_a_process_of_its_own("memory", folder / "av1", max(FLAGS.threads))["anonymous MB"]
    print(f"\nown memory while decoding, MB, every minute: {', '.join(f'{value:.0f}' for value in found)}")


def main(_: list[str]) -> None:
    if FLAGS.measure:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: FLAGS.threads[0]])
        return print(json.dumps(MEASURES[FLAGS.measure](pathlib.Path(FLAGS.folder))))
    with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as name:
        folder = pathlib.Path(name)
        for codec in tqdm(CODECS, "writing videos", leave=False):
            write_videos(folder / codec, codec)
        print(
            f"videos by {', '.join(films.kind_of(str(next(folder.glob(f'{c}/videos/*/*/*')))).codec for c in CODECS)}"
        )
        for part, run in {"decoding": compare_decoding, "cache": compare_cache, "memory": watch_memory}.items():
            if part in FLAGS.parts:
                run(folder)


if __name__ == "__main__":
    cli.run(main)
