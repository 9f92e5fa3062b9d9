"""Several calls of a model run as one, where that changes no bit.

A row's bits depend on the batch shape that it is evaluated in, and the shape belongs to the stage
(docs/DETERMINISM.md). So calls are joined only in shapes that have been checked: the first calls of each
shape run both joined and one by one, and a shape whose results differ in one bit is never used again. Kernels
are chosen by shapes and not by values, so what holds for one call of a shape holds for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from render.models.adapter import Adapter
from render.models.exact_rows import ExactRows
from render.models.model_call import ModelCall
from render.models.packed_call import PackedCall, pack


@runtime_checkable
class JoinsCalls(Protocol):
    """An adapter whose calls can be joined."""

    @property
    def network(self) -> nn.Module:
        """What `predict` runs."""
        ...

    def join_key(self, call: ModelCall) -> Hashable | None:
        """Calls with the same key may be joined; None for a call that cannot be."""
        ...

    def predict_joined(self, calls: Sequence[ModelCall]) -> Tensor:
        """The predictions of all rows of all calls, in order: one forward."""
        ...


class CallJoiner:
    """The calls of one loaded model. A model with other weights, LoRA included, needs another joiner."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._joins = adapter if isinstance(adapter, JoinsCalls) else None
        self._exact: ExactRows | None = None
        self._equal: dict[Hashable, bool] = {}
        """By shape: whether joined calls have the bits of single ones."""

    def run(self, adapter: Adapter, calls: Sequence[ModelCall], most_rows: int) -> list[Tensor | Exception]:
        """The predictions of each call, or what it raised; up to `most_rows` rows run as one.

        Calls of another adapter, like a refiner's, run by themselves.
        """
        if adapter is not self._adapter:
            return [_alone(adapter, call) for call in calls]
        results: dict[int, Tensor | Exception] = {}
        alike: dict[Hashable, list[int]] = {}
        for number, call in enumerate(calls):
            key = None if self._joins is None else self._joins.join_key(call)
            if key is None:
                results[number] = _alone(self._adapter, call)
            else:
                alike.setdefault((key, len(call.latents)), []).append(number)
        for key, numbers in alike.items():
            packed = pack([calls[number] for number in numbers])
            most = max(1, most_rows // len(calls[numbers[0]].latents))
            found = list[Tensor | Exception]()
            while packed:
                # Powers of two, so that there are few shapes to check.
                count = 1 << (min(len(packed), most).bit_length() - 1)
                part, packed = packed[:count], packed[count:]
                for each, rows in zip(part, self._together(key, part), strict=True):
                    found += self._unpack(each, rows)
            results.update(zip(numbers, found, strict=True))
        return [results[number] for number in range(len(calls))]

    def _unpack(self, packed: PackedCall, rows: Tensor | Exception) -> list[Tensor | Exception]:
        """What each call gets. Where they failed together, one of them may be the cause."""
        if isinstance(rows, Exception) and len(packed.calls) > 1:
            return [_alone(self._adapter, call) for call in packed.calls]
        return packed.unpack(rows)

    def _together(self, key: Hashable, packed: list[PackedCall]) -> list[Tensor | Exception]:
        shape, half = (key, len(packed)), len(packed) // 2
        if half == 0:
            return [self._one(packed[0])]
        if self._equal.get(shape) is False:
            return self._together(key, packed[:half]) + self._together(key, packed[half:])
        joined = self._joined(packed)
        if shape in self._equal and joined is not None:
            return list(joined)
        alone = [self._one(each) for each in packed]
        # A call that fails, or answers with numbers that equal nothing, says nothing about the shape.
        if all(isinstance(each, Tensor) and bool(torch.isfinite(each).all()) for each in alone):
            self._equal[shape] = joined is not None and all(map(_same, alone, joined))
        return alone

    def _one(self, packed: PackedCall) -> Tensor | Exception:
        """The rows of one call, in the shape of its stage."""
        assert self._joins is not None, "calls without a key are not joined"
        if len(packed.calls) == 1:
            return _alone(self._adapter, packed.calls[0])
        try:
            return self._joins.predict_joined(packed.filled())
        except Exception as exc:
            return exc

    def _joined(self, packed: list[PackedCall]) -> list[Tensor] | None:
        assert self._joins is not None, "calls without a key are not joined"
        rows = packed[0].size
        calls = [call for each in packed for call in each.filled()]
        try:
            if self._exact is None:
                self._exact = ExactRows(self._joins.network)
            if calls[0].latents.device.type != "cpu":
                return list(self._joins.predict_joined(calls).split(rows))
            with self._exact.as_calls_of(rows):
                return list(self._joins.predict_joined(calls).split(rows))
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None


def _alone(adapter: Adapter, call: ModelCall) -> Tensor | Exception:
    try:
        return call.predict(adapter)
    except Exception as exc:
        return exc


def _same(alone: Tensor | Exception, joined: Tensor) -> bool:
    return isinstance(alone, Tensor) and torch.equal(alone, joined)
