"""Files as torch.save writes them, made opcode by opcode, without torch."""

import struct
import zipfile

import ml_dtypes
import numpy as np

KINDS = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *args):
    return named(module, name) + pack(args) + b"R"


def pack(value):
    """The opcodes of a value; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(pack, value)) + b"t"
        case dict():
            return b"}(" + b"".join(pack(key) + pack(part) for key, part in value.items()) + b"u"
    raise TypeError(type(value))


class Saved:
    """Collects storages on the way of a value to its file."""

    def __init__(self):
        self.storages = {}

    def tensor(self, array, start=0, strides=None, shape=None, length=None):
        """A tensor of an array's storage, by default all of it."""
        key, shape = str(len(self.storages)), array.shape if shape is None else shape
        self.storages[key] = np.ascontiguousarray(array).tobytes()
        kind = named("torch", KINDS[array.dtype])
        storage = pack(("storage", kind, key, "cpu", array.size if length is None else length)) + b"Q"
        usual = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        hooks = call("collections", "OrderedDict")
        view = (storage, start, tuple(shape), usual if strides is None else strides, False, hooks)
        return call("torch._utils", "_rebuild_tensor_v2", *view)

    def write(self, path, value, **entries):
        compression = entries.pop("compression", zipfile.ZIP_STORED)
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + pack(value) + b".")
            for key, content in self.storages.items():
                archive.writestr(f"archive/data/{key}", content)
            for name, content in ({"version": b"3\n", "byteorder": b"little"} | entries).items():
                archive.writestr(f"archive/{name}", content)


def prismatic(saved, tensors, towers):
    """The groups of an original checkpoint, of the tensors of a folder of OpenVLA by their names there."""
    groups = {"vision_backbone": {}, "projector": {}, "llm_backbone": {}}
    ours = ("dino_featurizer.", "siglip_featurizer.") if towers == 2 else ("featurizer.",)
    theirs = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
    renames = [(prefix, "vision_backbone", own) for prefix, own in zip(theirs, ours)]
    renames += [(f"projector.fc{i + 1}.", "projector", f"projector.{2 * i}.") for i in range(3)]
    renames += [("language_model.", "llm_backbone", "llm.")]
    for name, array in tensors.items():
        prefix, group, own = next(row for row in renames if name.startswith(row[0]))
        key = own + name.removeprefix(prefix).replace("scale_factor", "gamma")
        groups[group][key] = saved.tensor(array) if isinstance(saved, Saved) else saved(array)
    return {"model": groups}
