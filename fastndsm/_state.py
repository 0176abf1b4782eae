"""State that a cast must not touch: buffers that follow their module to a device, and to no other dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Self = TypeVar("Self", bound="KeepsDtype")


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

    def get_extra_state(self) -> Any:
        raise NotImplementedError

    def set_extra_state(self, state: Any) -> None:
        raise NotImplementedError

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
