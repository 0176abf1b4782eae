"""State that a cast or a mode of the moment must not touch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Self = TypeVar("Self", bound="KeepsDtype")


def default_device() -> torch.device:
    """Return PyTorch's default device; 2.9 fails to tell it once one was set and taken back."""
    try:
        return torch.get_default_device()
    except AttributeError:
        return torch.device("cpu")


@contextlib.contextmanager
def ordinary_modes() -> Iterator[None]:
    """Record gradients, and make tensors on the CPU in float32, whatever the program around has set.

    For what trains a network of its own: networks and optimizers follow defaults, and nothing trains in inference_mode.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


class KeepsDtype(nn.Module):
    """A module whose own buffers keep their dtype in `half()`, `bfloat16()`, `float()`, `double()` and `to(dtype)`.

    Its children are cast, or not, as they are by themselves.
    """

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        if recurse:
            for child in self.children():
                child._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(keep, recurse=False)  # type: ignore[no-untyped-call, no-any-return]


class ExtraState(nn.Module):
    """A module that stores what defines its values beside its tensors; files from before it did load as they are."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )  # type: ignore[no-untyped-call]
        key = f"{prefix}_extra_state"
        if key in missing_keys:
            missing_keys.remove(key)
