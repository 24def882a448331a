"""LeRobotDatasets of given lengths, as lerobot writes them, whose pixels, states and actions name episode and frame."""

import fractions
import io
import json
import pathlib
from collections.abc import Sequence

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
SIZE = (16, 24)
CAMERA = "observation.images.top"
TASKS = ("open it", "close it")


def frame(episode: int, step: int) -> np.ndarray:
    """uint8 [16, 24, 3]."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = 40 * episode % 256, 5 * step % 256
    pixels[:, : SIZE[1] // 2, 2] = 200
    return pixels


def state(episode: int, step: int) -> list[float]:
    return [episode, step / 10, -step / 10]


def action(episode: int, step: int) -> list[float]:
    return [step + episode / 10, -step]


def task_of(episode: int) -> int:
    return episode % len(TASKS)


def write_video(
    path: pathlib.Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264rgb",
    table_first: bool = False,
    delay: int = 0,
    **options: str,
) -> None:
    """A film of FPS frames a second, without loss unless another codec is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"g": "2", "qp": "0"} if codec == "libx264rgb" else options
    with av.open(str(path), "w", options={"movflags": "faststart"} if table_first else {}) as container:
        stream = container.add_stream(codec, rate=FPS, options=settings)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        for number, pixels in enumerate(frames):
            made = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            made.pts, made.time_base = number + delay, fractions.Fraction(1, FPS)
            container.mux(stream.encode(made))
        container.mux(stream.encode())


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(episodes: Sequence[tuple[int, int]], images: bool, first: int = 0) -> pa.Table:
    """The rows of (number, length) episodes."""
    rows = [(e, t) for e, length in episodes for t in range(length)]
    columns = {
        "observation.state": pa.array([state(e, t) for e, t in rows], pa.list_(pa.float32(), 3)),
        "action": pa.array([action(e, t) for e, t in rows], pa.list_(pa.float32())),
        "timestamp": pa.array([t / FPS for _, t in rows], pa.float32()),
        "frame_index": pa.array([t for _, t in rows], pa.int64()),
        "episode_index": pa.array([e for e, _ in rows], pa.int64()),
        "index": pa.array(range(first, first + len(rows)), pa.int64()),
        "task_index": pa.array([task_of(e) for e, _ in rows], pa.int64()),
    }
    if images:
        pictures = [{"bytes": png(frame(e, t)), "path": f"frame_{t:06d}.png"} for e, t in rows]
        columns[CAMERA] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns)


def write_parquet(path: pathlib.Path, rows: pa.Table, group: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=group)


def _features(images: bool) -> dict:
    one = {"shape": [1], "names": None}
    return {
        "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        CAMERA: {
            "dtype": "image" if images else "video",
            "shape": [*SIZE, 3],
            "names": ["height", "width", "channels"],
        },
        "timestamp": {"dtype": "float32", **one},
        **{name: {"dtype": "int64", **one} for name in ("frame_index", "episode_index", "index", "task_index")},
    }


def write(
    root: pathlib.Path, version: str = "v2.1", lengths: Sequence[int] = (5, 4, 6), images: bool = False
) -> pathlib.Path:
    """A dataset; of 3.0 the first two episodes share a data file, and all but the first a video."""
    info = {
        "codebase_version": version,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": _features(images),
    }
    (_write_3 if version == "v3.0" else _write_2)(root, info, lengths, images)
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def _write_2(root: pathlib.Path, info: dict, lengths: Sequence[int], images: bool) -> None:
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    meta = root / "meta"
    meta.mkdir(parents=True)
    lines = []
    for e, length in enumerate(lengths):
        chunk = e // info["chunks_size"]
        rows = table([(e, length)], images, sum(lengths[:e]))
        write_parquet(root / f"data/chunk-{chunk:03d}/episode_{e:06d}.parquet", rows, 3)
        if not images:
            path = root / f"videos/chunk-{chunk:03d}/{CAMERA}/episode_{e:06d}.mp4"
            write_video(path, [frame(e, t) for t in range(length)])
        lines.append({"episode_index": e, "tasks": [TASKS[task_of(e)]], "length": length})
    (meta / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    tasks = [{"task_index": i, "task": text} for i, text in enumerate(TASKS)]
    (meta / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)) + "\n")


def _write_3(root: pathlib.Path, info: dict, lengths: Sequence[int], images: bool) -> None:
    info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    episodes = [*enumerate(lengths)]
    for file, own in enumerate((episodes[:2], episodes[2:])):
        first = sum(length for _, length in episodes[: 2 * file])
        write_parquet(root / f"data/chunk-000/file-{file:03d}.parquet", table(own, images, first), 4)
    for file, own in enumerate((episodes[:1], episodes[1:])):
        if not images:
            path = root / f"videos/{CAMERA}/chunk-000/file-{file:03d}.mp4"
            write_video(path, [frame(e, t) for e, length in own for t in range(length)])
    rows = []
    for e, length in episodes:
        row = {"episode_index": e, "length": length, "data/chunk_index": 0, "data/file_index": int(e > 1)}
        start = sum(lengths[1:e]) / FPS
        place = {
            "chunk_index": 0,
            "file_index": int(e > 0),
            "from_timestamp": start,
            "to_timestamp": start + length / FPS,
        }
        row |= {} if images else {f"videos/{CAMERA}/{name}": value for name, value in place.items()}
        rows.append(row | {"tasks": [TASKS[task_of(e)]]})
    write_parquet(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(rows))
    write_parquet(
        root / "meta/tasks.parquet", pa.table({"task_index": [*range(len(TASKS))], "__index_level_0__": [*TASKS]})
    )
