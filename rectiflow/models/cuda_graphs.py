"""A network whose calls are recorded on a GPU and then repeated as a whole, for drawing.

A small batch keeps a GPU less busy than the processor is with telling it each kernel; a CUDA graph
tells it all of them at once, with the same result. Source: PyTorch's `torch.cuda.CUDAGraph`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rectiflow.base.errors import ConfigError
from rectiflow.models.conditioning import Conditioning
from rectiflow.models.frame import Network

#: Kinds of calls whose graphs are kept; each also holds its inputs and its output.
MAX_RECORDED = 16
#: Before a recording: kernels are compiled and chosen, workspaces and caches made.
WARM_UP_CALLS = 3


class CudaRecorder:
    """Records calls on a GPU; what the graphs need between their kernels they share."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What repeats the call's kernels, and the tensor that these write their result to."""
        with torch.cuda.device(self._device):
            caller, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(caller)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_CALLS):
                    call()
            caller.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Of this thread: others may draw, or load another model, meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = call()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, output


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """One kind of call: where its inputs are put, what repeats it, where its output then is."""

    z_t: Float[Tensor, "b c h w"]
    t: Float[Tensor, " b"]
    conditioning: Conditioning
    replay: Callable[[], None]
    output: Float[Tensor, "b o h w"]

    def __call__(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.z_t.copy_(z_t)
        self.t.copy_(t)
        self.conditioning.context.copy_(conditioning.context)
        self.conditioning.pooled.copy_(conditioning.pooled)
        self.replay()
        # The next call writes over it.
        return self.output.clone()


class RecordedNetwork:
    """A network (z_t, t, conditioning) → output, each kind of call recorded when first met.

    A kind is what the inputs' sizes and types and the autocast around them are. Of those met last,
    `MAX_RECORDED` are kept. Threads take turns. The network's weights must stay where they are.
    """

    def __init__(self, network: Network, recorder: CudaRecorder) -> None:
        self._network = network
        self._recorder = recorder
        self._recorded: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._turn = threading.Lock()

    @torch.inference_mode()
    def __call__(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        kind = (
            *((x.shape, x.dtype) for x in (z_t, t, conditioning.context, conditioning.pooled)),
            conditioning.last_count,
            type(conditioning),
            _autocast_dtype(z_t.device.type),
        )
        with self._turn:
            recording = self._recorded.get(kind)
            if recording is None:
                if len(self._recorded) == MAX_RECORDED:
                    self._recorded.popitem(last=False)
                recording = self._recorded[kind] = self._record(z_t, t, conditioning)
            self._recorded.move_to_end(kind)
            return recording(z_t, t, conditioning)

    def _record(self, z_t: Tensor, t: Tensor, conditioning: Conditioning) -> _Recording:
        z_t, t = _copy(z_t), _copy(t)
        told = replace(
            conditioning, context=_copy(conditioning.context), pooled=_copy(conditioning.pooled)
        )
        device, dtype = z_t.device.type, _autocast_dtype(z_t.device.type)

        def call() -> Tensor:
            # Weights that autocast had cast and kept would be gone before the graph is.
            with torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False):
                return self._network(z_t, t, told)

        replay, output = self._recorder.record(call)
        return _Recording(z_t=z_t, t=t, conditioning=told, replay=replay, output=output)


def _copy(tensor: Tensor) -> Tensor:
    # In one piece: what was expanded cannot be written to.
    return tensor.clone(memory_format=torch.contiguous_format)


def check_records(device: torch.device) -> None:
    """Pass if calls can be recorded on the device.

    Raises:
        ConfigError: it is not an NVIDIA GPU.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"CUDA graphs are recorded on device cuda, not {device.type}; leave them out there"
        )


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    enabled = torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if enabled else None
