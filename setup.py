"""Package metadata. The version windows below are the ones that the test suite runs on."""

from setuptools import find_packages, setup

# jax and flax.nnx share private types, so the two are admitted in pairs only: flax up to 0.12.9 does not import beside
# jax 0.11, and jax 0.11 needs Python 3.12.
JAX = [
    "jax>=0.10.2,<0.11; python_version < '3.12'",
    "flax>=0.12.8,<0.12.12; python_version < '3.12'",
    "jax>=0.11.1,<0.12; python_version >= '3.12'",
    "flax>=0.12.12,<0.13; python_version >= '3.12'",
]

# What the robot service of BridgeData speaks by.
WIDOWX = ["lz4>=4.3", "pyzmq>=26"]

setup(
    name="jaxvla",
    version="0.1.0",
    description="Robot policies that see, read, reason and act, in pure JAX",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["jaxvla", "jaxvla.*", "jaxvla_client"]),
    package_data={"jaxvla.data.text": ["assets/tiny_tokenizer/*"], "jaxvla.models.qwen3_vl": ["assets/tiny/*"]},
    install_requires=[
        *JAX,
        "absl-py>=2.1",
        "array-record>=0.8",  # the other files of TFDS; grain brings it
        "av>=17,<19",  # films of episodes, videos of LeRobotDatasets; its wheels bring FFmpeg with libx264 and dav1d
        "cykooz-resizer>=4,<5",  # resizes four times as fast as Pillow
        "etils>=1.9",
        "google-crc32c>=1.5",  # TFRecord checksums in C
        "jinja2>=3.1.6",  # chat templates; older ones have sandbox escapes
        "grain>=0.2.17,<0.3",  # 0.2.17 fixed the state of iterators behind a prefetch
        "jaxtyping>=0.3.2",  # annotations only; checked under pytest
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",  # bfloat16 in weight files
        "msgpack>=1.0.5,<2",  # frames of the policy server
        "numpy>=2.0,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.12.4,<0.13",  # 0.12 brought preservation policies (keep the last n and the best)
        "pillow>=11",
        "pyarrow>=18",  # the tables of LeRobotDatasets; loaded by who reads them alone
        "tokenizers>=0.22,<0.24",
        "tqdm>=4.66",
        "websockets>=15,<18",  # the policy server and its client; windows as in jaxvla_client/pyproject.toml
    ],
    extras_require={
        "cuda12": [
            "jax[cuda12]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[cuda12]>=0.11.1,<0.12; python_version >= '3.12'",
        ],
        "cuda13": [
            "jax[cuda13]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[cuda13]>=0.11.1,<0.12; python_version >= '3.12'",
        ],
        "tpu": [
            "jax[tpu]>=0.10.2,<0.11; python_version < '3.12'",
            "jax[tpu]>=0.11.1,<0.12; python_version >= '3.12'",
        ],
        # convert_dataset.py --from tfds:..., the format tests and the loader benchmark's comparison
        "tf": ["tensorflow-cpu>=2.20,<2.22", "tensorflow-datasets>=4.9.9"],
        "wandb": ["wandb>=0.18"],
        # Pins mujoco 3.3.0; gymnasium needs packaging and does not say so.
        "metaworld": ["metaworld==3.1.1", "packaging>=24"],
        "widowx": WIDOWX,
        "dev": ["beartype>=0.20", "pytest>=8.3", "pytest-xdist>=3.7", "ruff>=0.12,<0.18", *WIDOWX],
    },
)
