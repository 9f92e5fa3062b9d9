"""A network's calls of many rows on a CPU, with the bits that calls of fewer rows have.

Two kinds of operations round by the number of rows. torch chooses the kernel of a convolution by it: one
image with one thread gets a matrix product per image, more get oneDNN. And a matrix product of a few rows,
like that of a time embedding, rounds differently from one of many. `ExactRows` gives both the kernel that a
call of fewer rows would get. Whether that is enough is for its caller to check
(`render.models.joined_calls`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_ONE_BY_ONE = "Slow2d"
"""The backend of torch that convolves the images of a batch one after another."""


class ExactRows:
    """The convolutions and matrix products of one network. Nothing is changed but inside `as_calls_of`."""

    def __init__(self, network: nn.Module) -> None:
        self._rows = 1
        self._convolves_one_by_one: dict[tuple[Any, ...], bool] = {}
        self._replacements: list[tuple[nn.Module, str, Any]] = []
        for module in network.modules():
            if type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.groups == 1:
                self._replace(module, "_conv_forward", self._convolve)
            elif type(module) is nn.Linear:
                self._replace(module, "forward", self._multiply)

    def _replace(self, module: nn.Module, name: str, replacement: Callable[..., Tensor]) -> None:
        # What is set on the module itself already is somebody else's.
        if name not in module.__dict__:
            bound = partial(replacement, module, getattr(module, name))
            self._replacements.append((module, name, bound))

    @contextmanager
    def as_calls_of(self, rows: int) -> Iterator[None]:
        """Until the end, the network computes as if its rows came in calls of `rows`."""
        self._rows = rows
        try:
            for module, name, replacement in self._replacements:
                module.__dict__[name] = replacement
            yield
        finally:
            for module, name, _ in self._replacements:
                module.__dict__.pop(name, None)

    def _convolve(self, module: nn.Conv2d, original: Any, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        if len(x) <= self._rows or not self._is_one_by_one(module, x, weight, bias):
            result: Tensor = original(x, weight, bias)
            return result
        return torch.ops.aten._slow_conv2d_forward(
            x, weight, module.kernel_size, bias, module.stride, module.padding
        )

    def _is_one_by_one(self, module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Any) -> bool:
        """Whether torch would convolve `_rows` images one by one."""
        key = (id(module), self._rows, x.shape[1:], x.stride(), x.dtype)
        if key not in self._convolves_one_by_one:
            backend = torch._C._select_conv_backend(
                x[: self._rows],
                weight,
                bias,
                list(module.stride),
                list(module.padding),
                list(module.dilation),
                False,
                [0, 0],
                1,
                None if bias is None else [len(weight)],
            )
            self._convolves_one_by_one[key] = str(backend).endswith(f".{_ONE_BY_ONE}")
        return self._convolves_one_by_one[key]

    def _multiply(self, module: nn.Linear, original: Any, x: Tensor) -> Tensor:
        if x.dim() != 2 or len(x) <= self._rows:
            result: Tensor = original(x)
            return result
        return torch.cat([original(part) for part in x.split(self._rows)])
