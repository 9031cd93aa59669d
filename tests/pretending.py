"""A CUDA device that is not there: tensors that pretend to be on it, and complain where a real one would.

FakeTensorMode goes no further than the forward: backward asks the driver for a context, and no value can be read. So
here all tensors are real ones on the CPU, and the memory of some is marked as the device's. What Python asks of tensors
(`device`, `to`, `numpy`) is answered as for CUDA; each operation below autograd, those of backward too, is refused when
it mixes devices as CUDA refuses it, and its results are marked. What makes the CPU wait for the device is recorded.

What it cannot show: CUDA's own kernels and their numbers, races, memory. The loader's thread does not pretend.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.is_nonzero}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}  # may be on the CPU
IN_FLOAT32 = {F.layer_norm, F.rms_norm, F.group_norm, F.softmax, Tensor.pow, Tensor.sum}  # by autocast, on CUDA alone
OURS = "/simplewan/"
FEW = 1024  # numbers that are sent along with the order to copy them


class Marks:
    """Memory, named by any tensor in it."""

    def __init__(self) -> None:
        self._marked: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._marked

    def set(self, tensor: Tensor, *, on: bool = True) -> None:
        storage = tensor.untyped_storage()
        if not on:
            self._marked.pop(storage._cdata, None)
        elif storage._cdata not in self._marked:
            self._marked[storage._cdata] = StorageWeakRef(storage)  # its address is not given out again meanwhile
            if len(self._marked) % 4096 == 0:
                self._marked = {key: kept for key, kept in self._marked.items() if not kept.expired()}


class Pretended:
    """Which memory is the device's, and where the CPU waited: `waits` counts "what file:line" of our own code.

    A "read" is of the device, a "write" to it blocks, and a "stage" is a write of much from memory that is not pinned.
    """

    def __init__(self) -> None:
        self._there, self._pinned = Marks(), Marks()
        self.waits: Counter[str] = Counter()
        self.operations = 0  # that ran on the device

    def has(self, tensor: Tensor) -> bool:
        return tensor in self._there

    def mark(self, tensor: Tensor, *, on: bool = True) -> None:
        self._there.set(tensor, on=on)

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.set(tensor)
        return tensor

    def wait(self, what: str) -> None:
        own = [frame for frame in traceback.extract_stack() if OURS in frame.filename]
        place = f"{own[-1].filename.rpartition(OURS)[2]}:{own[-1].name}" if own else "elsewhere"
        self.waits[f"{what} {place}"] += 1

    def group(self, plain: Any) -> Any:
        """An optimiser's groups, whose device is that of the first tensor."""

        def grouped(lists: Any, *how: Any) -> Any:
            groups = plain(lists, *how)
            there = any(self.has(tensor) for each in lists for tensor in each if tensor is not None)
            return {(CUDA, dtype): group for (_device, dtype), group in groups.items()} if there else groups

        return grouped

    def moved(self, tensor: Tensor, *, to_device: bool, non_blocking: bool) -> None:
        if to_device:
            if not non_blocking:
                self.wait("write")
            elif tensor.numel() > FEW and tensor not in self._pinned:
                self.wait("stage")
        else:
            assert not non_blocking, "the CPU could read it before it is there"
            self.wait("read")


class _Asked(TorchFunctionMode):
    """What Python asks of tensors."""

    def __init__(self, pretended: Pretended) -> None:
        super().__init__()
        self._pretended = pretended

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pretended = self._pretended
        here = bool(args) and isinstance(args[0], Tensor) and pretended.has(args[0])
        if here and func in ANSWERS:
            return ANSWERS[func]
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if here and func is Tensor.tolist:
            pretended.wait("read")
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cuda") and here:
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        if kwargs.pop("pin_memory", False):
            return pretended.pin(func(*args, **kwargs))
        device = kwargs.get("device")
        if device is None or torch.device(device).type == "meta":
            return func(*args, **kwargs)
        to_device = torch.device(device).type == "cuda"
        if isinstance(kwargs.get("generator"), torch.Generator):
            assert kwargs["generator"].device.type == torch.device(device).type, f"{func} with another's generator"
        made = func(*args, **{**kwargs, "device": HOST})
        if func is torch.tensor and to_device:
            pretended.moved(made, to_device=True, non_blocking=False)
        pretended.mark(made, on=to_device)
        return made

    def _moved(self, func: Any, tensor: Tensor, *how: Any, **kwargs: Any) -> Tensor:
        pretended = self._pretended
        device = {Tensor.cpu: HOST, Tensor.cuda: CUDA}.get(func, kwargs.pop("device", None))
        dtype = kwargs.pop("dtype", None)
        flags = [kwargs.pop("non_blocking", None), kwargs.pop("copy", None)]
        for each in how:
            if isinstance(each, str | torch.device):
                device = each
            elif isinstance(each, Tensor):
                device, dtype = (CUDA if pretended.has(each) else HOST), each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
            elif isinstance(each, bool):
                flags[flags.index(None)] = each
        kind = None if device is None else torch.device(device).type
        if kind == "meta":
            return tensor.to(device, dtype)
        moves = kind is not None and (kind == "cuda") != pretended.has(tensor)
        result = tensor.to(dtype or tensor.dtype, copy=bool(flags[1]) or moves, **kwargs)
        if moves:
            pretended.moved(tensor, to_device=kind == "cuda", non_blocking=bool(flags[0]))
            pretended.mark(result, on=kind == "cuda")
        return result


ANSWERS = {
    Tensor.device.__get__: CUDA,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
}


class _Done(TorchDispatchMode):
    """Each operation, those of backward too."""

    def __init__(self, pretended: Pretended) -> None:
        super().__init__()
        self._pretended = pretended

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pretended, packet = self._pretended, func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if pretended.has(tensor)]
        if packet is aten.copy_:
            to_device, from_device = pretended.has(args[0]), pretended.has(args[1])
            if to_device != from_device:
                non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
                pretended.moved(args[1], to_device=to_device, non_blocking=non_blocking)
            return func(*args, **kwargs)
        if there:
            pretended.operations += 1
            if packet in READS:
                pretended.wait("read")
            self._refuse_mixed(func, packet, args, tensors)
        result = func(*args, **kwargs)
        # Autograd makes its zeros without asking anybody; those of a graph that is on the device are there too.
        if there or (not tensors and torch._C._current_graph_task_id() != -1):
            for made in tree_leaves(result):
                if isinstance(made, Tensor):
                    pretended.mark(made)
        return result

    def _refuse_mixed(self, func: Any, packet: Any, args: Any, tensors: list[Tensor]) -> None:
        away = [tensor for tensor in tensors if not self._pretended.has(tensor)]
        if packet in INDEXING and self._pretended.has(args[0]):
            if away:
                self._pretended.wait("write")
            return
        changed = func._schema.is_mutable and any(tensor is args[0] for tensor in away)
        if changed or any(tensor.dim() for tensor in away):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} was given cuda:0 and cpu")


def _autocast_both(patch: pytest.MonkeyPatch) -> None:
    """Autocast of the device acts on what is computed on the CPU in its place."""
    plain = torch.autocast

    class Both(plain):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(device_type, *args, **kwargs)
            self._other = plain("cpu", dtype=self.fast_dtype, enabled=self._enabled) if device_type == "cuda" else None

        def __enter__(self) -> Any:
            if self._other is not None:
                self._other.__enter__()
            return super().__enter__()

        def __exit__(self, *how: Any) -> Any:
            result = super().__exit__(*how)
            if self._other is not None:
                self._other.__exit__(*how)
            return result

    for owner in (torch, torch.amp, torch.amp.autocast_mode):
        patch.setattr(owner, "autocast", Both)


class _Runtime:
    """The few functions of the CUDA runtime that are called."""

    def cudaHostRegister(self, _address: int, _size: int, _flags: int) -> int:
        return 0

    def cudaHostUnregister(self, _address: int) -> int:
        return 0


@contextmanager
def pretended_cuda() -> Iterator[Pretended]:
    """Have torch pretend that there is one CUDA device, on this thread."""
    pretended, empty = Pretended(), torch.empty
    answers: dict[str, Any] = {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended",
        "mem_get_info": (2**36, 2**36),
        "max_memory_allocated": 0,
        "empty_cache": None,
        "cudart": _Runtime(),
    }

    def empty_pinned(*size: Any, pin_memory: bool = False, **how: Any) -> Tensor:  # for the loader's thread
        made = empty(*size, **how)
        return pretended.pin(made) if pin_memory else made

    with pytest.MonkeyPatch.context() as patch:
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_args, _answer=answer, **_kwargs: _answer)
        patch.setattr(torch, "empty", empty_pinned)
        grouping = "_group_tensors_by_device_and_dtype"
        for owner in (torch.optim.Optimizer, torch.nn.utils.clip_grad):
            patch.setattr(owner, grouping, staticmethod(pretended.group(getattr(owner, grouping))))
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, lambda _self: None, raising=False)  # it would ask the driver
        patch.setenv("ACCELERATE_TORCH_DEVICE", "cuda")
        _autocast_both(patch)
        asked, run_backward = _Asked(pretended), torch.autograd._engine_run_backward

        def run_backward_asked(*args: Any, **kwargs: Any) -> Any:
            with asked:  # what is computed again pretends too: the mode is off while it answers for backward()
                return run_backward(*args, **kwargs)

        # It compares devices too, those that tensors have when autograd saves them, where nobody pretends.
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        patch.setitem(checks, "default", lambda saved: {"shape": saved.shape, "dtype": saved.dtype})
        patch.setattr(torch.autograd, "_engine_run_backward", run_backward_asked)
        with _Done(pretended), asked:
            yield pretended
