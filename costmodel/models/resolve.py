"""Resolving the model argument."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from costmodel.errors import ModelArgumentError
from costmodel.models.building import built
from costmodel.models.capacity import with_full_experts
from costmodel.models.images import UNSEEN, has_placeholders, with_images
from costmodel.models.inputs import default_seq_len, diffusers_inputs, transformers_inputs
from costmodel.models.libraries import load_library, load_losses
from costmodel.models.source import BuiltModel, ModelSource, open_dataclasses, samples_in, tensors_in

__all__ = ["resolve", "resolve_config", "shipped_config", "shipped_names"]

_FOLDER = Path(__file__).parents[1] / "data" / "models"
_STORED_AS = ("dtype", "torch_dtype")
_SIZE = re.compile(r"^(n|num)_|_(size|dim|layers|heads)$")
"""Names of sizes among a configuration's; others may be negative, as layers that count from the last one."""
_BUILDING = (
    *(ValueError, TypeError, KeyError, IndexError, RuntimeError),
    *(ZeroDivisionError, AttributeError, AssertionError),
)
"""What libraries raise where sizes do not go together."""
_ELSEWHERE = ("image_size", "rope_theta")
"""Read for example inputs of models without a size of their own; filed under `rope_parameters`."""


def shipped_names() -> list[str]:
    """Names that need no file."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def shipped_config(name: str) -> dict[str, Any]:
    """The configuration that a shipped name stands for."""
    config: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())["config"]
    return config


def resolve(
    argument: str,
    *,
    micro_batch_size: int | None = 1,
    seq_len: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    task: str = "train",
    trust_remote_code: bool = False,
) -> ModelSource:
    """Resolve a shipped name, a config.json (or its folder), or module:callable.

    `micro_batch_size` in samples; None: as many as a callable's example inputs hold, else 1.
    Raises ModelArgumentError that names the argument, what is wrong and what there is.
    """
    if (micro_batch_size is not None and micro_batch_size < 1) or (seq_len is not None and seq_len < 1):
        raise ModelArgumentError(
            f"micro-batch {micro_batch_size} and sequence {seq_len} must be at least 1; give positive sizes"
        )
    source = _resolved(argument, micro_batch_size, seq_len, overrides, task, trust_remote_code)
    return source if seq_len is None else replace(source, builder=_noting_length(source.builder, seq_len))


def _resolved(
    argument: str,
    micro_batch_size: int | None,
    seq_len: int | None,
    overrides: Mapping[str, Any] | None,
    task: str,
    trust_remote_code: bool,
) -> ModelSource:
    if ":" in argument and not Path(argument).exists():
        return _from_callable(argument, micro_batch_size or 0, seq_len, overrides)
    micro_batch_size = micro_batch_size or 1
    shipped = _FOLDER / f"{argument}.json"
    path = Path(argument)
    if shipped.is_file():
        spec = json.loads(shipped.read_text())
        return _from_spec(spec, argument, micro_batch_size, seq_len, overrides, task, None)
    if path.is_dir() or path.suffix == ".json":
        file = path / "config.json" if path.is_dir() else path
        spec = {"config": _read(file)}
        folder = str(file.parent) if trust_remote_code else None
        return _from_spec(spec, argument, micro_batch_size, seq_len, overrides, task, folder)
    raise ModelArgumentError(
        f"unknown model {argument!r}: give a config.json or its folder, module:callable, or one of "
        f"{', '.join(shipped_names())}"
    )


def _noting_length(builder: Callable[[int, int], BuiltModel], asked: int) -> Callable[[int, int], BuiltModel]:
    """The builder, whose models say where the sequence length that was asked for changes none of their
    inputs: tokens are whole numbers, and their row is as long as the sequence."""

    def build(batch: int, seq_len: int) -> BuiltModel:
        made = builder(batch, seq_len)
        inputs = [t for t in tensors_in(made.args, made.kwargs) if t.ndim > 1]
        if seq_len and any(seq_len in t.shape[1:] for t in inputs if not t.is_floating_point()):
            return made
        sizes = ", ".join("x".join(map(str, t.shape[1:])) for t in inputs)
        why = f"no input is a row of tokens (a sample is {sizes})"
        return replace(made, notes=(*made.notes, f"a sequence length of {asked} changes nothing: {why}"))

    return build


def resolve_config(
    config: Mapping[str, Any],
    *,
    name: str,
    micro_batch_size: int = 1,
    seq_len: int | None = None,
    target_len: int = 0,
    task: str = "train",
) -> ModelSource:
    """A transformers or diffusers configuration given as a mapping.

    `target_len`: tokens of an encoder-decoder's targets; 0: as many as its inputs.
    """
    return _from_spec(
        {"config": dict(config), "target_len": target_len}, name, micro_batch_size, seq_len, None, task, None
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ModelArgumentError(f"model configuration {file} does not exist; give its config.json") from None
    except (OSError, ValueError) as error:
        raise ModelArgumentError(f"model configuration {file} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelArgumentError(f"model configuration {file} is no JSON object")
    return config


def _from_spec(
    spec: Mapping[str, Any],
    name: str,
    micro_batch_size: int,
    seq_len: int | None,
    overrides: Mapping[str, Any] | None,
    task: str,
    remote_code: str | None,
) -> ModelSource:
    config = {**spec["config"], **(overrides or {})}
    if "module" in spec:
        return _from_module(spec, config, name, micro_batch_size)
    if "_class_name" in config:
        return _from_diffusers(spec["config"], overrides or {}, name, micro_batch_size)
    return _from_transformers(spec, overrides or {}, name, micro_batch_size, seq_len, task, remote_code)


def _from_module(spec: Mapping[str, Any], config: dict[str, Any], name: str, batch: int) -> ModelSource:
    module_name, _, function = str(spec["module"]).partition(":")
    factory = getattr(importlib.import_module(module_name), function)

    def builder(batch: int, seq_len: int) -> BuiltModel:
        import torch

        try:
            module = factory(**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelArgumentError(f"model {name!r} with {config}: {error}") from None
        return BuiltModel(module=module, args=(torch.randn(batch, int(config["inputs"])),), kwargs={})

    return ModelSource(name=name, micro_batch_size=batch, seq_len=0, builder=builder)


def _from_diffusers(
    own: Mapping[str, Any], overrides: Mapping[str, Any], name: str, batch: int
) -> ModelSource:
    diffusers = load_library("diffusers", name)
    config = {**own, **overrides}
    cls = getattr(diffusers, str(config["_class_name"]), None)
    if cls is None:
        raise ModelArgumentError(f"model {name!r}: diffusers has no class {config['_class_name']!r}")
    _check_overrides(name, overrides, {*own, *signature(cls.__init__).parameters})

    def builder(batch: int, seq_len: int) -> BuiltModel:
        try:
            module = cls.from_config({k: v for k, v in config.items() if not k.startswith("_")})
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelArgumentError(f"model {name!r}: its configuration is refused: {error}") from None
        return BuiltModel(module=module, args=(), kwargs=diffusers_inputs(module, module.config, batch))

    return ModelSource(name=name, micro_batch_size=batch, seq_len=0, builder=builder)


def _check_overrides(
    name: str, overrides: Mapping[str, Any], known: Collection[str], taken: Collection[str] = ()
) -> None:
    """ModelArgumentError for a change of what is neither `known` nor `taken` all the same, and for a whole
    number below zero: libraries pass over the first and make empty models of the second."""
    for key, value in overrides.items():
        if isinstance(value, int) and value < 0 and not key.endswith("_id"):
            raise ModelArgumentError(f"model {name!r}: {key}={value} must not be negative; give a size")
        if key not in known and key not in taken:
            public = sorted(k for k in known if not k.startswith("_"))
            near = ", ".join(get_close_matches(key, public, n=5) or public)
            raise ModelArgumentError(
                f"model {name!r}: its configuration has no {key!r} to set; there are {near}"
            )


def _check_sizes(name: str, config: Mapping[str, Any]) -> None:
    """ModelArgumentError for a size below zero, of which a library makes an empty model."""
    for key, value in config.items():
        if isinstance(value, int) and value < 0 and _SIZE.search(key):
            raise ModelArgumentError(f"model {name!r}: {key}={value} must not be negative; give a size")


def _from_transformers(
    spec: Mapping[str, Any],
    overrides: Mapping[str, Any],
    name: str,
    batch: int,
    seq_len: int | None,
    task: str,
    remote_code: str | None,
) -> ModelSource:
    transformers = load_library("transformers", name)
    from huggingface_hub.errors import StrictDataclassError

    _check_sizes(name, spec["config"])
    # the type that weights are stored in is no statement on training or serving: the framework says theirs
    stored = {k: v for k, v in spec["config"].items() if k not in _STORED_AS}
    config = {**stored, **overrides}
    model_type = config.get("model_type")
    if remote_code is None and "auto_map" in config:
        raise ModelArgumentError(
            f"model {name!r} brings its own Python code; pass --trust-remote-code to let it run"
        )
    try:
        if remote_code is not None:
            made = transformers.AutoConfig.from_pretrained(
                remote_code, trust_remote_code=True, **{"dtype": None, **overrides}
            )
        else:
            plain = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
            made = transformers.AutoConfig.for_model(model_type, **plain)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, StrictDataclassError) as error:
        raise ModelArgumentError(
            f"model {name!r}: model_type {model_type!r} or a value of its configuration is refused: "
            f"{' '.join(str(error).split())}"
        ) from None
    _check_overrides(name, overrides, {*stored, *_defaults(made)}, _taken(made))
    architectures = config.get("architectures") or spec.get("architectures") or []
    length = seq_len or int(spec.get("seq_len", 0)) or default_seq_len(made)
    target_len = int(spec.get("target_len", 0))
    of_text = getattr(made, "text_config", made)
    has_text = bool(getattr(of_text, "vocab_size", 0))

    weightless: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def builder(batch: int, seq_len: int) -> BuiltModel:
        mode = _fake_mode()
        module = weightless.get(mode) if mode is not None else None
        if module is None:
            module = _module(transformers, made, architectures, name, remote_code is not None)
            if mode is not None:  # parameters without values serve every trace of this mode
                with_full_experts(module)
                weightless[mode] = module
        inputs = transformers_inputs(
            module, made, batch, seq_len, training=task == "train", target_len=target_len
        )
        return _seeing(module, made, inputs, training=task == "train")

    content = (
        ""
        if remote_code is not None
        else json.dumps([config, architectures, task, target_len], sort_keys=True)
    )
    return ModelSource(
        name=name,
        micro_batch_size=batch,
        seq_len=length if has_text else 0,
        builder=builder,
        identity=content,
        max_seq_len=int(getattr(of_text, "max_position_embeddings", 0) or 0),
        encodes_first=bool(getattr(made, "is_encoder_decoder", False)),
        config=of_text.to_dict() if hasattr(of_text, "to_dict") else {},
    )


def _seeing(module: Any, config: Any, inputs: dict[str, Any], *, training: bool) -> BuiltModel:
    """A call on text with images where the model takes them and an example follows from its configuration;
    on text alone for inference, whose passes are over tokens of any number."""
    why = "prompts are taken to be text"
    if training or not has_placeholders(module, config):
        try:
            return BuiltModel(module=module, args=(), kwargs=with_images(module, config, inputs))
        except ModelArgumentError as error:
            why = str(error)
    return BuiltModel(module=module, args=(), kwargs=inputs, notes=(f"{UNSEEN}: {why}",))


def _defaults(made: Any) -> set[str]:
    """Names that a transformers configuration of this class has without being told."""
    return {*type(made)().to_dict(), *made.attribute_map}


def _taken(made: Any) -> set[str]:
    """Names that it takes beside them: properties, some of whose names have an underscore in front."""
    return {*(name.lstrip("_") for name in dir(type(made))), *_STORED_AS, *_ELSEWHERE}


def _module(transformers: Any, config: Any, architectures: list[str], name: str, remote: bool) -> Any:
    try:
        with _without_values() if _fake_mode() is not None else nullcontext():
            module = _instance(transformers, config, architectures, remote)
            module.tie_weights()
            return module
    except _BUILDING as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelArgumentError(f"model {name!r}: building it fails: {why}; check its sizes") from None
    except ImportError as error:
        needed = " ".join(str(error).split())
        raise ModelArgumentError(f"model {name!r}: a package that it needs is missing: {needed}") from None


@contextmanager
def _without_values() -> Iterator[None]:
    """Inside, modules are made on the meta device, several times faster than of fake tensors, which
    `costmodel.graph.tracing` makes of those parameters that a trace needs."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from transformers import initialization

    load_losses()
    with initialization.no_init_weights(), unset_fake_temporarily(), torch.device("meta"):
        yield


def _fake_mode() -> Any:
    """The FakeTensorMode that is active, or None."""
    import torch

    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)


def _instance(transformers: Any, config: Any, architectures: list[str], remote: bool) -> Any:
    cls = getattr(transformers, architectures[0], None) if architectures else None
    if cls is not None:
        return cls._from_config(_part_for(cls, config))
    own = (getattr(config, "auto_map", None) or {}) if remote else {}
    for auto in ("CausalLM", "Seq2SeqLM", "MaskedLM", "ImageClassification"):
        loader = getattr(transformers, f"AutoModelFor{auto}")
        if type(config) in loader._model_mapping or loader.__name__ in own:
            return loader.from_config(config, trust_remote_code=remote)
    return transformers.AutoModel.from_config(config, trust_remote_code=remote)


def _part_for(cls: Any, config: Any) -> Any:
    """The configuration's part for text where the class is made for that alone, else all of it."""
    own = getattr(cls, "config_class", None)
    if own is None or isinstance(config, own):
        return config
    text = config.get_text_config()
    return text if isinstance(text, own) else config


def _from_callable(
    argument: str, batch: int, seq_len: int | None, overrides: Mapping[str, Any] | None
) -> ModelSource:
    module_name, _, function = argument.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ModelArgumentError(
            f"model {argument!r}: {error}; give an importable module and the name of a callable in it"
        ) from None
    finally:
        sys.path.pop(0)

    needs_values = False

    def builder(batch: int, seq_len: int) -> BuiltModel:
        nonlocal needs_values

        def make() -> BuiltModel:
            return _call(factory, argument, dict(overrides or {}), batch, seq_len)

        made, without_values = built(make, argument, without_values=not needs_values)
        needs_values = not without_values
        mode = _fake_mode()
        if needs_values and mode is not None:  # what example inputs hold says nothing of others
            args, kwargs = _without_own_values(mode, (made.args, made.kwargs))
            return replace(made, args=args, kwargs=kwargs)
        return made

    return ModelSource(name=argument, micro_batch_size=batch, seq_len=seq_len or 0, builder=builder)


def _without_own_values(mode: Any, inputs: Any) -> Any:
    import torch
    from torch.utils import _pytree as pytree

    return pytree.tree_map_only(torch.Tensor, mode.from_tensor, inputs)


def _call(factory: Any, argument: str, overrides: dict[str, Any], batch: int, seq_len: int) -> BuiltModel:
    from torch import nn

    try:
        made = factory(**overrides)
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = (
            ""
            if frame is None
            else f" (line {frame.tb_lineno} of {Path(frame.tb_frame.f_code.co_filename).name})"
        )
        raise ModelArgumentError(
            f"model {argument!r} raised {type(error).__name__}: {error}{where}"
        ) from None
    if isinstance(made, nn.Module) and hasattr(made, "config"):
        config = made.config
        inputs = transformers_inputs(
            made, config, batch or 1, seq_len or default_seq_len(config), training=True
        )
        return _seeing(made, config, inputs, training=True)
    if not isinstance(made, (tuple, list)) or not 2 <= len(made) <= 3 or not isinstance(made[0], nn.Module):
        raise ModelArgumentError(
            f"model {argument!r} returned {type(made).__name__}; it must return (nn.Module, args) or "
            "(nn.Module, args, kwargs)"
        )
    kwargs = made[2] if len(made) == 3 else {}
    for given, kinds, right in (
        (made[1], (tuple, list), "args a tuple"),
        (kwargs, Mapping, "kwargs a mapping"),
    ):
        if not isinstance(given, kinds):
            raise ModelArgumentError(
                f"model {argument!r} returned a {type(given).__name__} for arguments of its forward; make "
                f"{right}, as in (module, (x,), {{'mask': mask}})"
            )
    if seq_len:
        raise ModelArgumentError(
            f"model {argument!r} returned example inputs, which have a sequence of their own: {seq_len} "
            "asked for cannot be; make them of that length (--set NAME=VALUE hands the callable an argument)"
        )
    open_dataclasses((made[1], kwargs))
    own = samples_in(made[1], kwargs)
    args, kwargs = _with_batch(tuple(made[1]), dict(kwargs), batch)
    return BuiltModel(module=made[0], args=args, kwargs=kwargs, example_samples=own)


def _with_batch(args: Any, kwargs: Any, batch: int) -> tuple[Any, Any]:
    """Example inputs cut or repeated along dimension 0 to `batch` samples (0: as given).

    A sample is one index of dimension 0 of the first tensor; what has another size there is left as it is.
    """
    import torch
    from torch.utils import _pytree as pytree

    own = samples_in(args, kwargs)
    if batch in (0, own):
        return args, kwargs

    def resized(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.ndim or value.shape[0] != own:
            return value
        return value[torch.arange(batch) % own]

    return pytree.tree_map(resized, (args, kwargs))  # type: ignore[no-any-return]
