"""Fingerprints: short names for the content of models, callables, data and files.

All are blake2b digests of 128 bits, as 32 hex digits. Equal content gives equal fingerprints in any
process, on any device, on any platform of the same byte order. What each one cannot see stands in
its docstring.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_DIGEST_BYTES = 16


def new_hash() -> hashlib.blake2b:
    """Start the hash that every fingerprint and checksum uses."""
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)


def hash_bytes(*parts: bytes | bytearray | memoryview | str) -> str:
    """Hash byte strings and texts, each with its kind and length: ("ab", "c") is not ("a", "bc")."""
    digest = new_hash()
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        digest.update(f"{'text' if isinstance(part, str) else 'bytes'} {data.nbytes}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def hash_tensor(tensor: Tensor) -> str:
    """Hash one tensor's dtype, shape and values; its device, strides and gradient do not count.

    Raises:
        TypeError: it is quantised, or sparse in another layout than COO.
    """
    tensor = tensor.detach()
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return hash_bytes(
            "sparse", str(tuple(tensor.shape)), hash_tensor(tensor.indices()), hash_tensor(tensor.values())
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout)
        raise TypeError(f"expected a dense or COO-sparse tensor to fingerprint, got a {kind} one; convert it first")
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous()
    # One row of bytes: numpy has no bfloat16, and a tensor without axes, or of one number with another stride, cannot
    # be viewed as bytes.
    raw = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
    return hash_bytes(str(plain.dtype), str(tuple(plain.shape)), raw.data)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors (name, dtype, shape, values), in the order of their names."""
    return hash_bytes(*(part for name in sorted(tensors) for part in (name, hash_tensor(tensors[name]))))


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def model_fingerprint(model: nn.Module) -> str:
    """Fingerprint a model: its class, its modules, all its parameters and buffers.

    Counted are the qualified class name of the model and of every module in it by name, the public
    scalar settings of PyTorch's own modules (stride, eps, ...), all parameters, all buffers whether
    they are saved with the model or not, and extra state. Tied tensors count under each of their
    names, so that tying alone changes nothing. Mode (train or eval), device, hooks and `requires_grad`
    do not count.

    Not seen: the code of `forward`, and what the user's own classes keep in plain attributes (a step
    counter there must not make another model). The model's outputs on probe samples tell those.

    Raises:
        ValueError: a module's extra state has no stable bytes.
    """
    return _module_hash(model, has_settings=lambda module: type(module).__module__.startswith("torch."))


def _module_hash(model: nn.Module, has_settings: Callable[[nn.Module], bool]) -> str:
    parts: list[str] = []
    hashes: dict[int, str] = {}  # by identity, so that a tied tensor is read once
    for name, module in model.named_modules(remove_duplicate=False):
        parts += ["module", name, qualified_name(type(module))]
        if has_settings(module):
            parts += ["settings", json.dumps(_settings(module))]
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            where = f"the extra state of module {name or 'itself'!r} of {type(model).__name__}"
            parts += ["extra state", _value_hash(module.get_extra_state(), where)]
        for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in hashes:
                    hashes[id(tensor)] = hash_tensor(tensor)
                parts += [kind, key, hashes[id(tensor)]]
    return hash_bytes(*parts)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Public settings of a module: numbers, texts, and tuples of them, in the order of their names."""

    def plain(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return all(plain(item) for item in value)
        return value is None or isinstance(value, (bool, int, float, str))

    found = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: found[name] for name in sorted(found) if plain(found[name])}


def qualified_name(thing: Any) -> str:
    """Name a class or function with its module; `__main__` by its file, as another process imports it."""
    module = getattr(thing, "__module__", None) or type(thing).__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file).stem if file else module
    return f"{module}.{thing.__qualname__}"


# ── callables and other values ───────────────────────────────────────────────────────────────────


def callable_fingerprint(fn: Callable[..., Any]) -> str:
    """Fingerprint a callable by its qualified name, its source, and the values it carries.

    - a function: name, source (its decorators' lines too), defaults and the values it closes over;
    - a bound method: the function, and the object as below;
    - `functools.partial`: the function and the arguments;
    - a dataclass instance: name and source of its class, and its fields;
    - an `nn.Module`: as `model_fingerprint`, with the public scalar attributes (`reduction`, ...) and
      the class's source where the class is not PyTorch's own;
    - a built-in function: its name.

    Not seen: what a function reads from its module's globals, and functions that it calls.

    Raises:
        ValueError: it is a lambda, or has no source to read, or carries a value without stable bytes.
    """
    return _callable_hash(fn, f"{fn!r}", ())


def _callable_hash(fn: Any, where: str, outer: tuple[int, ...]) -> str:
    """Hash a callable; `where` names it in errors, `outer` holds the ids of the callables around it."""
    if id(fn) in outer:  # a function that closes over itself
        return hash_bytes("itself", str(outer.index(id(fn))))
    outer = (*outer, id(fn))
    if isinstance(fn, functools.partial):
        arguments = _value_hash((fn.args, fn.keywords), f"the arguments of {where}", outer)
        return hash_bytes("partial", _callable_hash(fn.func, where, outer), arguments)
    if isinstance(fn, types.MethodType):
        own = _value_hash(fn.__self__, f"the object of {where}", outer)
        return hash_bytes("method", _callable_hash(fn.__func__, where, outer), own)
    if isinstance(fn, nn.Module):
        source = "" if type(fn).__module__.startswith("torch.") else _source(type(fn), where)
        return hash_bytes("module", source, _module_hash(fn, has_settings=lambda module: True))
    if isinstance(fn, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
        return hash_bytes("builtin", qualified_name(fn))
    if isinstance(fn, types.FunctionType):
        return _function_hash(fn, where, outer)
    if isinstance(fn, type):
        return hash_bytes("class", qualified_name(fn), _source(fn, where))
    if dataclasses.is_dataclass(fn):
        return hash_bytes("dataclass", _source(type(fn), where), _fields_hash(fn, where, outer))
    raise ValueError(
        f"expected a named function, a frozen dataclass, a functools.partial or an nn.Module, got {where} of class "
        f"{type(fn).__qualname__}, whose state cannot be fingerprinted; make its class a frozen dataclass"
    )


def _function_hash(fn: types.FunctionType, where: str, outer: tuple[int, ...]) -> str:
    # A decorator stands in the source above the function; what it wraps around it is not looked into.
    fn = inspect.unwrap(fn)
    if fn.__name__ == "<lambda>":
        raise ValueError(f"expected a named function, got {where}; a lambda has no name to be known by, so use def")
    cells = [cell.cell_contents for cell in fn.__closure__ or ()]
    carried = _value_hash((fn.__defaults__, fn.__kwdefaults__, cells), f"a value that {where} carries", outer)
    return hash_bytes("function", qualified_name(fn), _source(fn, where), carried)


def _source(thing: Any, where: str) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError) as error:
        raise ValueError(f"{where} has no source to read; use a named function or class defined in a file") from error


def _fields_hash(value: Any, where: str, outer: tuple[int, ...]) -> str:
    name = qualified_name(type(value))
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return hash_bytes(name, _value_hash(fields, f"a field of {name} in {where}", outer))


def _value_hash(value: Any, where: str, outer: tuple[int, ...] = ()) -> str:
    """Hash a value made of numbers, texts, tensors, containers and callables; its types count."""
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        return hash_bytes("tensor", hash_tensor(value))
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSU":
        return hash_bytes("array", value.dtype.str, str(value.shape), np.ascontiguousarray(value).tobytes())
    if isinstance(value, enum.Enum):
        return hash_bytes("enum", qualified_name(type(value)), value.name)
    if isinstance(value, (bytes, bytearray)):
        return hash_bytes(kind, value)
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device, Path)):
        return hash_bytes(kind, str(value))
    if isinstance(value, Mapping):
        items = [(_value_hash(key, where, outer), _value_hash(item, where, outer)) for key, item in value.items()]
        return hash_bytes(kind, *(part for pair in sorted(items) for part in pair))
    if isinstance(value, (tuple, list)):
        return hash_bytes(kind, *(_value_hash(item, where, outer) for item in value))
    if callable(value):
        return _callable_hash(value, where, outer)
    if dataclasses.is_dataclass(value):
        return hash_bytes("fields", _fields_hash(value, where, outer))
    raise ValueError(
        f"cannot fingerprint {where}: it holds a {kind}, which has no stable bytes; use numbers, texts, tensors, "
        f"arrays, tuples, lists, dicts, dataclasses or named functions there"
    )


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def seeded_positions(start: int, stop: int, count: int | None = 4, seed: int = 0) -> list[int]:
    """Choose which samples of start, ..., stop - 1 are fingerprinted by their bytes.

    The choice depends on the arguments alone. `count=None` takes every sample: the full-content
    fingerprint, at the cost of reading the whole data set.

    Returns:
        At most `count` distinct positions in the data set, ascending.
    """
    length = stop - start
    if count is None or length <= count:
        return list(range(start, stop))
    chosen: set[int] = set()
    draw = 0
    while len(chosen) < count:
        # Hashes, not a generator: libraries may change what their generators draw between versions.
        chosen.add(start + int(hash_bytes(f"{seed} {start} {stop} {draw}"), 16) % length)
        draw += 1
    return sorted(chosen)


def data_fingerprint(targets: Tensor, samples: Sequence[tuple[int, Any]], spec: Any = None) -> str:
    """Fingerprint a run of samples: all targets, and the full content of some samples.

    Not seen: a change in the inputs of samples that were not chosen, where their targets stay.

    Args:
        targets: targets of all samples of the run, one row a sample.
        samples: (position in the data set, sample) of the chosen ones (`seeded_positions`); a sample
            may nest tensors, arrays, numbers and texts in tuples, lists, dicts and dataclasses.
        spec: any further description of the data, e.g. dtypes and shapes, as JSON values.
    """
    content = [_value_hash((position, sample), f"sample {position}") for position, sample in samples]
    return hash_bytes("data", json.dumps(spec, sort_keys=True), hash_tensor(targets), *content)
