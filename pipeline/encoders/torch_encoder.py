"""Run a network over patches on a device: copies, normalisation, batches that fit, and work that overlaps."""

import logging
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import remembered
from pipeline.encoders import check_precision
from pipeline.encoders.allocator import keep_freed_memory
from pipeline.encoders.batch_size import find_batch_size
from pipeline.encoders.registry import EncoderSpec
from pipeline.encoders.stain import stain_normaliser
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

CPU_BATCH = 32
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEncoder:
    """Run a network over patches.

    Parameters
    ----------
    model
        From normalised float [B, 3, p, p] to features [B, dim].
    spec
        What the encoder declares; its `mean` and `std` are applied on the device.
    device, threads, precision, batch_size, compiled, stain, patch_px
        As for `pipeline.encoders.load`.

    Raises
    ------
    ConfigError
        If there is no such device, precision or stain normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: EncoderSpec,
        *,
        device: str = "cpu",
        threads: int = 1,
        precision: str = "auto",
        batch_size: int | None = None,
        compiled: bool = False,
        stain: str = "none",
        patch_px: int | None = None,
    ) -> None:
        self.spec = spec
        self.mpp = spec.mpp
        self.patch_px = patch_px or spec.patch_px
        self._device = _usable_device(device)
        self._dtype = _dtype(precision, self._device)
        self._stain = stain_normaliser(stain, self._device)
        self.use_threads(threads)
        if self._device.type == "cpu":
            keep_freed_memory()
        elif self._dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # by default a convolution rounds its inputs to 10 bits
        self._model = model.eval().requires_grad_(False).to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled: Callable[[Tensor], Tensor] | None = (
            torch.compile(self._model, dynamic=False) if compiled else None
        )
        self._mean = 255 * torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1)
        plain = self._device.type == "cpu" and self._stain is None and self.patch_px == spec.patch_px
        self._table = self._levels() if plain else None
        self.batch_size = batch_size or CPU_BATCH
        if batch_size is None and self._device.type == "cuda":
            self.batch_size = find_batch_size(self._forward_blank, key=self._setting(), device=self._device)
        self.dim = spec.dim or int(self._forward(self.buffer(self.patch_px)[:1]).shape[1])

    def _levels(self) -> NDArray[np.float32]:
        """Give the normalised value of each of the 256 levels, shape (1, 256, 3)."""
        levels = torch.arange(256.0).expand(1, 3, 256)
        normalised = (levels - self._mean[..., 0]) / self._std[..., 0]
        return normalised.permute(0, 2, 1).contiguous().numpy()

    def _setting(self) -> tuple[str, ...]:
        """Give what the best batch size depends on."""
        device = torch.cuda.get_device_name(self._device)
        return self.spec.name, device, str(self._dtype), str(self.patch_px), str(self._compiled is not None)

    def _forward_blank(self, size: int) -> None:
        edge = self.patch_px
        self._forward(np.zeros((size, edge, edge, 3), np.uint8))

    def use_threads(self, threads: int) -> None:
        """Use this many CPU threads from now on."""
        torch.set_num_threads(threads)

    def buffer(self, patch_px: int) -> NDArray[np.uint8]:
        """Give memory for one batch, uint8 [batch_size, patch_px, patch_px, 3]; page-locked where a GPU reads it."""
        pinned = self._device.type == "cuda"
        memory: NDArray[np.uint8] = torch.zeros(
            (self.batch_size, patch_px, patch_px, 3), dtype=torch.uint8, pin_memory=pinned
        ).numpy()
        return memory

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches, uint8 RGB [B, p, p, 3] with p = `patch_px`, into features, float32 [B, dim].

        A batch that does not fit the device's memory is tried again in halves, and later batches start at that size.

        Raises
        ------
        ValueError
            If the patches have another shape or dtype.
        """
        return self.submit(patches)()

    def submit(self, patches: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Start to encode patches; the function that is returned waits for their features. Raises as a call does."""
        expected = (self.patch_px, self.patch_px, 3)
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[1:] != expected:
            raise ValueError(f"patches are {patches.dtype} {patches.shape}; give uint8, B patches of {expected}")
        parts: list[Callable[[], NDArray[np.float32]]] = []
        start = 0
        while start < len(patches):
            part = patches[start : start + self.batch_size]
            try:
                parts.append(_fetching(self._forward(part)))
            except torch.OutOfMemoryError:
                self._halve(len(part))
                continue
            start += len(part)
        empty = np.empty((0, self.dim), np.float32)
        return lambda: parts[0]() if len(parts) == 1 else np.concatenate([empty, *(part() for part in parts)])

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise ConfigError(
                f"{self.spec.name}: one patch does not fit the memory of {self._device}; use a smaller encoder"
            )
        self.batch_size = (tried + 1) // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            remembered.remember(self.batch_size, "batch size", *self._setting())
        logger.info("%s: out of memory at %d patches; going on with %d", self.spec.name, tried, self.batch_size)

    @torch.inference_mode()
    def _forward(self, patches: NDArray[np.uint8]) -> Tensor:
        """Give the features on the device, float32 [B, dim]; on a GPU they may still be in the making."""
        if self._table is not None:
            image = self._looked_up(patches, self._table)
        else:
            image = self._normalised(
                torch.from_numpy(np.ascontiguousarray(patches)).to(self._device, non_blocking=True)
            )
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self._run(image)
        return features.float()

    def _looked_up(self, patches: NDArray[np.uint8], table: NDArray[np.float32]) -> Tensor:
        """Normalise by a table of the 256 levels: the same numbers in a third of the CPU's time."""
        rows = np.ascontiguousarray(patches).reshape(-1, self.patch_px, 3)
        values = np.asarray(cv2.LUT(rows, table), np.float32)
        return torch.from_numpy(values.reshape(patches.shape)).permute(0, 3, 1, 2)

    def _normalised(self, raw: Tensor) -> Tensor:
        """Resize, stain and normalise on the device: bytes [B, p, p, 3] to (B, 3, p, p), channels last in memory."""
        image = raw.permute(0, 3, 1, 2).float()
        if self.patch_px != self.spec.patch_px:
            size = (self.spec.patch_px, self.spec.patch_px)
            image = nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        if self._stain is not None:
            image = self._stain(image)
        return image.sub_(self._mean).div_(self._std)

    def _run(self, image: Tensor) -> Tensor:
        if self._compiled is None:
            eager: Tensor = self._model(image)
            return eager
        # a compiled network is compiled again for every size: the last batch of a slide is filled up
        missing = max(0, self.batch_size - len(image))
        filled = torch.cat([image, image[:1].expand(missing, -1, -1, -1)]) if missing else image
        features: Tensor = self._compiled(filled.contiguous(memory_format=torch.channels_last))
        return features[: len(image)]


def _fetching(features: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Start to copy features to the CPU; the function that is returned waits for them."""
    if features.device.type == "cpu":
        return features.numpy
    fetched = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
    fetched.copy_(features, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(features.device))

    def wait() -> NDArray[np.float32]:
        done.synchronize()
        arrived: NDArray[np.float32] = fetched.numpy()
        return arrived

    return wait


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not one that torch knows; give cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs; run with `--resources gpu=0`")
    return device


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    check_precision(precision, device.type)
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[precision]
