"""What a rank's process is started with, and how it says why it ended."""

from __future__ import annotations

RANK_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # More than a decoder's strips take: the few larger tensors are mapped, since they would leave holes.
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
"""What a rank's process is started with. One thread, since ranks share the cores between them. And glibc
keeps what is freed, where it would map a large tensor anew each time: a decoder spent a sixth of its time on
page faults. (With huge pages for large tensors two ranks are slower now, one is as fast.)"""
PEERS_LOST = 75
"""Exit code of a rank, and then of torchrun, that ends because ranks of other nodes are gone."""
