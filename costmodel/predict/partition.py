"""The least-bottleneck cut, under the name it had before `costmodel.partition` was a package."""

from __future__ import annotations

from costmodel.partition.balanced import balanced_partition, bottleneck_s

__all__ = ["balanced_partition", "bottleneck_s"]
