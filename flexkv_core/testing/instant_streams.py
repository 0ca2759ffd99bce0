"""CUDA streams that run at once, so that `CudaDevice` names its bytes on a CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

__all__ = ["InstantEvent", "InstantStream", "use_instant_streams"]


@dataclass
class InstantStream:
    """Whatever is queued on it has run; it notes whom it was told to wait for."""

    device: object = None
    waits: "list[InstantStream]" = field(default_factory=list)

    def record_event(self) -> "InstantEvent":
        """Return a point that has passed."""
        return InstantEvent(self)

    def wait_event(self, event: "InstantEvent") -> None:
        """Note the stream of `event`."""
        self.waits.append(event.stream)


@dataclass(frozen=True)
class InstantEvent:
    """A point in an `InstantStream`."""

    stream: InstantStream

    def query(self) -> bool:
        """Return that it has passed."""
        return True


def use_instant_streams(
    monkeypatch: Any,  # noqa: ANN401 pytest's MonkeyPatch
    copy_pages: Callable[..., None],
) -> InstantStream:
    """Let torch have no other streams.

    Args:
        monkeypatch: Undoes it.
        copy_pages: What to use in the kernel's place: its reference.

    Returns:
        The stream that the engine computes on.
    """
    import torch  # noqa: PLC0415 not there where only the control plane is tested

    from flexkv_core.data.transfer import cuda_device  # noqa: PLC0415 the same

    compute = InstantStream()
    monkeypatch.setattr(cuda_device, "copy_pages", copy_pages)
    monkeypatch.setattr(torch.cuda, "Stream", InstantStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: compute)
    return compute
