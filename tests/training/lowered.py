"""What a program multiplies and holds on a GPU, read off what jax hands to XLA for one, which needs none."""

import contextlib
import dataclasses
import re
from unittest import mock

import jax

_KERNEL = re.compile(r'custom_call @"?(__cudnn\$\w+)')
_ARRAY = re.compile(r"tensor<((?:\d+x)*)([a-z]\w*)>")


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two arrays, each a dtype and a shape."""

    left: tuple
    right: tuple

    @property
    def dtypes(self):
        return {self.left[0], self.right[0]}


class Program:
    """The text of a traced function, lowered for CUDA before XLA optimises it; loops stand in it once.

    Attributes:
        products: a `Product` for each.
        kernels: names of the calls of cuDNN.
        shapes: of all arrays outside these calls.
    """

    def __init__(self, traced):
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        self.products, self.kernels, self.shapes = [], [], set()
        for line in text.splitlines():
            arrays = [(dtype, _shape(dims)) for dims, dtype in _ARRAY.findall(line)]
            self.shapes |= {shape for _, shape in arrays}
            self.kernels += _KERNEL.findall(line)
            if re.search(r"stablehlo\.(dot_general|convolution)\b", line):
                self.products.append(Product(*arrays[-3:-1]))

    def wide(self):
        """The products with a factor that is not bfloat16."""
        return {product for product in self.products if product.dtypes != {"bf16"}}

    def squares(self, lengths):
        """Which two of these lengths are axes of one array, such as those of logits, weights or a mask."""
        found = set()
        for shape in self.shapes:
            axes = sorted(size for size in shape if size in lengths)
            found |= {(a, b) for i, a in enumerate(axes) for b in axes[i + 1 :]}
        return found

    def hold(self, *sizes):
        """The shapes that have all of these sizes among their axes."""
        return {shape for shape in self.shapes if set(sizes) <= set(shape)}


@contextlib.contextmanager
def as_if_on_a_gpu():
    """While something is traced: jax and cuDNN are asked no more than whether they are there."""
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    with mock.patch.object(jax, "default_backend", return_value="gpu"), mock.patch(version, return_value=91400):
        yield


def _shape(dims):
    return tuple(int(size) for size in dims.split("x") if size)
