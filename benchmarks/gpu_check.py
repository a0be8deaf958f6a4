"""Figures for the GPU this machine has; says so, and exits 0, where it has none (``make gpu-check``)."""

from __future__ import annotations

import torch
from step import compare, hardware

#: Preset and batch size: the 32-pixel and the 224-pixel network, at batches that keep a GPU busy.
CASES = (("rescon_attention92_32", 128), ("attention56", 32))


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA GPU that torch can use: nothing to check")
        return
    print(hardware("cuda"))
    print(f"bf16 in hardware: {'yes' if torch.cuda.is_bf16_supported(including_emulation=False) else 'no'}")
    for preset, batch_size in CASES:
        compare(preset, batch_size=batch_size, device="cuda", rounds=7, seconds=2.0)
        print(f"  peak memory  {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
