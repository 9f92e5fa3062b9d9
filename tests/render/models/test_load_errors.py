"""A file is not damaged because there was no memory for it."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors import SafetensorError

from render.errors import BadInput, ModelNotUsable
from render.memory import lacks_memory
from render.models.load_errors import load_errors

LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    SafetensorError("Error while opening file: Cannot allocate memory (os error 12)"),
]
OTHERS = [
    RuntimeError("size mismatch for conv_in.weight"),
    OSError(errno.ENOENT, "No such file or directory"),
    SafetensorError("Error while deserializing header: invalid JSON"),
    KeyError("down_blocks.0"),
    AssertionError(),
]


def _refuse(reason: str) -> BadInput:
    return BadInput("lora", "a.safetensors", f"does not fit the model ({reason}); use one made for it")


@pytest.mark.parametrize("error", LACKS, ids=lambda error: str(error)[:40])
def test_a_lack_of_memory_is_told_as_one(error: Exception) -> None:
    with pytest.raises(torch.OutOfMemoryError), load_errors(_refuse):
        raise error


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_what_else_a_library_raises_is_the_files_fault(error: Exception) -> None:
    sentence = r"^lora: 'a.safetensors' does not fit the model \(.+\)"
    with pytest.raises(BadInput, match=sentence), load_errors(_refuse):
        raise error


def test_a_library_may_have_raised_something_else_for_it() -> None:
    error = OSError("Unable to load weights from the file")
    error.__cause__ = LACKS[5]
    with pytest.raises(torch.OutOfMemoryError, match="Unable to load weights"), load_errors(_refuse):
        raise error


def test_errors_of_ours_pass_unchanged() -> None:
    with pytest.raises(ModelNotUsable, match="lacks 2 weights"), load_errors(_refuse):
        raise ModelNotUsable("model", "folder", "lacks 2 weights of unet; download it again")


def test_an_error_that_follows_from_itself_is_no_endless_loop() -> None:
    one, other = RuntimeError("a"), RuntimeError("b")
    one.__cause__, other.__cause__ = other, one
    assert not lacks_memory(one)
