"""What a program multiplies and holds on a GPU, read off what jax hands to XLA for one, and off what XLA makes of it.

Neither needs a GPU: a description of one is compiled for.
"""

import contextlib
import dataclasses
import functools
import math
import re
from unittest import mock

import jax
import pytest
from jax.experimental import topologies

# What XLA asks of a GPU, of an H100 SXM with 80 GB: NVIDIA's figures.
TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 14 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
OPTIONS = {
    # There is no GPU to time candidates on. Untimed, Triton's tiles do not fit every product, and cuBLAS takes all.
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    # Of the kernels' machine code nothing is read.
    "xla_backend_optimization_level": 0,
}
_IN_LOWERED = re.compile(r"tensor<((?:\d+x)*)([a-z]\w*)>")
_IN_COMPILED = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# Its name, its type, which may be a tuple, what it is, its operands, and its attributes.
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%(\S+) = (.+?) ([a-z][a-z\d-]*)\((.*?)\)(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two arrays, each a dtype and a shape."""

    left: tuple
    right: tuple

    @property
    def dtypes(self):
        return {self.left[0], self.right[0]}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program's text, read; loops stand in it once.

    Attributes:
        products: a `Product` for each.
        kernels: names of the calls of cuDNN.
        shapes: of all arrays that it names, but those inside a kernel.
    """

    products: tuple
    kernels: tuple
    shapes: frozenset

    def wide(self):
        """The products with a factor that is not bfloat16."""
        return {product for product in self.products if product.dtypes != {"bf16"}}

    def squares(self, lengths):
        """Which two of these lengths are axes of one array, such as those of logits, weights or a mask.

        An axis may be several that are merged, so that it has a length if it is a multiple of it.
        """
        found = set()
        for shape in self.shapes:
            has = [[length for length in lengths if size and size % length == 0] for size in shape]
            for i, first in enumerate(has):
                found |= {tuple(sorted((a, b))) for second in has[i + 1 :] for a in first for b in second}
        return found

    def hold(self, *sizes):
        """The shapes that have all of these sizes, or multiples of them, among their axes."""
        return {shape for shape in self.shapes if all(any(x and x % size == 0 for x in shape) for size in sizes)}


def lowered(traced):
    """The `Program` of a traced function that XLA is given for CUDA."""
    products, kernels, shapes = [], [], set()
    for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines():
        arrays = [(dtype, _shape(dims, "x")) for dims, dtype in _IN_LOWERED.findall(line)]
        shapes |= {shape for _, shape in arrays}
        kernels += re.findall(r'custom_call @"?(__cudnn\$\w+)', line)
        if re.search(r"stablehlo\.(dot_general|convolution)\b", line):
            products.append(Product(*arrays[-3:-1]))
    return Program(tuple(products), tuple(kernels), frozenset(shapes))


def compiled(traced):
    """The `Program` that XLA makes of a function that was traced for `target`: what is fused is in no array."""
    with _kept_nowhere():
        text = traced.lower(lowering_platforms=("cuda",)).compile(OPTIONS).as_text()
    fused = set(re.findall(r" fusion\(.*\bcalls=%([\w.-]+)", text))
    products, kernels, shapes = [], [], set()
    for computation in text.split("\n}"):
        head, types = re.search(r"^(?:ENTRY )?%([\w.-]+) \(.*\{$", computation, re.MULTILINE), {}
        for name, kind, opcode, operands, attributes in _INSTRUCTION.findall(computation):
            types[name] = [(dtype, _shape(dims, ",")) for dtype, dims in _IN_COMPILED.findall(kind)]
            if head[1] not in fused:
                shapes |= {shape for _, shape in types[name]}
            called = "".join(re.findall(r'custom_call_target="([^"]*)"', attributes))
            kernels += [called] if called.startswith("__cudnn") else []
            if opcode in ("dot", "convolution") or called.startswith(("__cublas", "__cudnn$conv")):
                factors = re.findall(r"%([\w.-]+)", operands)[:2]
                products.append(Product(*(types[factor][0] for factor in factors)))
    return Program(tuple(products), tuple(kernels), frozenset(shapes))


@functools.cache
def target():
    """The one device that is compiled for; skips where jax's CUDA plugin is not installed."""
    pytest.importorskip("jax_plugins.xla_cuda12", reason="needs jax's plugin for CUDA: run `make gpu-programs`")
    return topologies.get_topology_desc("H100", "cuda", target_config=TARGET, topology="1x1x1").devices


@contextlib.contextmanager
def as_if_on_a_gpu():
    """While something is traced: jax and cuDNN are asked no more than whether they are there."""
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    with mock.patch.object(jax, "default_backend", return_value="gpu"), mock.patch(version, return_value=91400):
        yield


@contextlib.contextmanager
def _kept_nowhere():
    """What is compiled without a GPU cannot be read back from jax's cache without one."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _shape(dims, separator):
    return tuple(int(size) for size in dims.split(separator) if size)
