"""Ways to run one plan for real, composed on one device mesh: stages, tensor shards, replicas, schedule."""

from __future__ import annotations

__all__: list[str] = []
