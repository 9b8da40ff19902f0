"""Stands in for costmodel.models until it is there."""

from __future__ import annotations

import importlib
import types
from typing import Any

import torch

__all__ = ["resolve"]


def resolve(model: str, *, micro_batch_size: int, seq_len: int | None, overrides: dict[str, Any]) -> Any:
    def build(device: str) -> Any:
        if ":" in model:
            mod, fn = model.split(":")
            out = getattr(importlib.import_module(mod), fn)()
            m, args = out[0], out[1]
            kwargs = out[2] if len(out) > 2 else {}
            return types.SimpleNamespace(module=m, args=args, kwargs=kwargs)
        import transformers as t

        b = micro_batch_size
        if model == "gpt2":
            c = t.GPT2Config(use_cache=False, **overrides)
            m = t.GPT2LMHeadModel(c)
            ids = torch.randint(0, c.vocab_size, (b, seq_len))
            kwargs = {"input_ids": ids, "labels": ids.clone()}
        elif model == "bert-large":
            c = t.BertConfig(**overrides)
            m = t.BertForMaskedLM(c)
            ids = torch.randint(0, c.vocab_size, (b, seq_len))
            kwargs = {"input_ids": ids, "labels": ids.clone()}
        elif model == "resnet-50":
            c = t.ResNetConfig(**overrides)
            m = t.ResNetForImageClassification(c)
            s = seq_len or 64
            kwargs = {"pixel_values": torch.randn(b, 3, s, s), "labels": torch.randint(0, c.num_labels, (b,))}
        else:
            w, d = overrides.get("width", 1024), overrides.get("depth", 8)
            layers: list[torch.nn.Module] = []
            for _ in range(d):
                layers += [torch.nn.Linear(w, w), torch.nn.ReLU()]
            m = torch.nn.Sequential(*layers)
            return types.SimpleNamespace(module=m, args=(torch.randn(b, w),), kwargs={})
        return types.SimpleNamespace(module=m, args=(), kwargs=kwargs)

    return types.SimpleNamespace(build=build)
