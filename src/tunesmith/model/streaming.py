"""Quantise a model weight by weight while transformers loads it, or open one that was saved quantised.

    model, report = load_quantized(path, scheme, …)         # dense files: memory peaks at the quantised size + the largest tensor
    model, report = load_stored(path, stored, …)            # files that hold quantised weights already (quant_files.py)

Both go through transformers' own loader and its documented hook for quantisers, so that its renaming and its checks hold.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.errors import BadInput
from tunesmith.model.adapters import layer_sizes, linear_layers, output_head, sample_of, switch_of
from tunesmith.model.experts import ExpertStack, expert_parameters, put_stack
from tunesmith.model.frozen import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from tunesmith.progress import Bar, progress
from tunesmith.quant.scheme import Scheme
from tunesmith.quant.tensor import Layout, QTensor, quantize

METHOD = "tunesmith"


@register_quantization_config(METHOD)
class StreamingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What transformers hands to the quantiser below: the scheme, or the layers whose weights a file holds quantised."""

    def __init__(self, scheme: Scheme | None = None, layout: Layout = "rows", stored: frozenset[str] = frozenset()) -> None:
        self.quant_method = METHOD
        self.scheme, self.layout, self.stored = scheme, layout, stored


@register_quantizer(METHOD)
class StreamingQuantizer(HfQuantizer):  # type: ignore[misc]
    """Before loading it chooses the layers, while loading it quantises their weights, afterwards it puts QuantizedLinear in their place."""

    requires_calibration = False
    is_trainable = True

    def __init__(self, quantization_config: StreamingConfig, **more: Any) -> None:
        super().__init__(quantization_config, **more)
        self.scheme, self.layout, self.stored = quantization_config.scheme, quantization_config.layout, quantization_config.stored
        self.chosen: set[str] = set()
        self.working = ExitStack()  # closed when all is read
        self.bar: Bar | None = None
        self.done: dict[str, tuple[QTensor | list[QTensor], Tensor]] = {}  # a list: one per expert
        self.ties: dict[str, str] = {}
        self.problems: list[BadInput] = []

    def is_serializable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: nn.Module, **ignored: Any) -> nn.Module:
        theirs: Any = model
        layers, self.ties = linear_layers(model), dict(theirs.all_tied_weights_keys)
        if self.scheme is None:
            stacks, tables = self._stored_experts(model), self._stored_tables(model)
            layers |= tables
            if missing := sorted(self.stored - layers.keys() - stacks):
                raise BadInput(
                    f"the file holds quantised layers that the model has not, {missing[0]} first", fix="give the model's own files"
                )
            for name in self.stored - stacks | tables.keys():  # without a weight of their own, so that the loader asks for none
                put_quantized(model, name, layers[name])
            weights = {f"{name}.weight" for name in tables}
            theirs.all_tied_weights_keys = {a: b for a, b in self.ties.items() if not {a, b} & weights}  # nor ties them
            # a bias that the model has not stays unexpected
            unused = {rf"^{re.escape(name)}\.(?!bias$)" for name in self.stored}
            theirs._keys_to_ignore_on_load_unexpected = unused | set(theirs._keys_to_ignore_on_load_unexpected or ())
            return model
        experts = expert_parameters(model)
        layers |= token_tables(model) if self.scheme.embeddings else {}
        blocks_must_fit(model, self.scheme)
        self.chosen = {f"{name}.weight" for name in layers} | experts.keys()
        self.bar = self.working.enter_context(progress("quantising", len(self.chosen - self.ties.keys()), "weight"))
        return model

    def _stored_tables(self, model: nn.Module) -> dict[str, nn.Module]:
        """Embedding and head, if the file holds the embeddings quantised; the head of a tied model has no codes of its own there."""
        theirs: Any = model
        embedding = next((name for name, module in model.named_modules() if module is theirs.get_input_embeddings()), None)
        if embedding not in self.stored:
            return {}
        tables = token_tables(model)
        if missing := [name for name in tables if name not in self.stored and f"{name}.weight" not in self.ties]:
            raise BadInput(f"the file holds the embeddings quantised, and no such weight of {missing[0]}", fix="copy the model again")
        return tables

    def _stored_experts(self, model: nn.Module) -> set[str]:
        """Room for the experts that the file holds quantised, in place of their dense weights; their layers' paths."""
        paths = set()
        for path, (_, _, transposed) in expert_parameters(model).items():
            weight = model.get_parameter(path)
            mine = {f"{path}.quantized.{expert}" for expert in range(weight.shape[0])}
            if mine <= self.stored:
                e, first, second = weight.shape
                stack = ExpertStack((e, first, second), transposed, weight.dtype, switch_of(model))
                stack.make_room()
                put_stack(model, path, stack)
                paths |= mine
        return paths

    def param_needs_quantization(self, model: nn.Module, param_name: str, **ignored: Any) -> bool:
        return param_name in self.chosen

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeWeight(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **ignored: Any) -> nn.Module:
        self.working.close()
        if self.problems:
            raise self.problems[0]
        theirs: Any = model
        if self.scheme is None:
            theirs.all_tied_weights_keys = self.ties
        tables = token_tables(model) if self.scheme is not None and self.scheme.embeddings else {}
        layers = linear_layers(model) | tables
        experts, dtype = expert_parameters(model), next(model.parameters()).dtype
        for name, (codes, sample) in self.done.items():
            if isinstance(codes, QTensor):
                path = name.removesuffix(".weight")
                put_quantized(model, path, layers[path]).hold(codes, sample)
            else:
                k, n = codes[0].shape[::-1]
                transposed = experts[name][2]
                stack = ExpertStack((len(codes), k, n) if transposed else (len(codes), n, k), transposed, dtype, switch_of(model))
                stack.hold(codes, sample)
                put_stack(model, name, stack)
        weights = {f"{name}.weight": name for name in tables}
        if weights.keys() & self.done.keys() and weights.keys() & self.ties.keys():
            for weight in weights.keys() - self.done.keys():
                put_quantized(model, weights[weight], tables[weights[weight]])
            tie(model)
        self.done.clear()
        self.remove_quantization_config(model)  # for transformers this is an ordinary model again
        return model


class _QuantizeWeight(ConversionOps):  # type: ignore[misc]
    """One weight from the file in, codes kept aside, zeros of its shape back that take no memory: the dense weight is free again."""

    def __init__(self, quantizer: StreamingQuantizer) -> None:
        self.quantizer = quantizer

    def convert(self, input_dict: dict[str, Any], model: nn.Module | None = None, **ignored: Any) -> dict[str, Tensor]:
        assert model is not None and self.quantizer.scheme is not None
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            placeholder = model.get_parameter(name)
            result[name] = torch.zeros((), dtype=placeholder.dtype).expand(weight.shape)
            try:
                if weight.shape != placeholder.shape:
                    found, expected = tuple(weight.shape), tuple(placeholder.shape)
                    raise BadInput(f"{name} should be {expected}, and is {found}", fix="copy or download the model again")
                self.quantizer.done[name] = (self._codes(model, name, weight), sample_of(weight))
            except BadInput as error:  # the loader would wrap it in words of its own
                self.quantizer.problems.append(error)
            if self.quantizer.bar is not None:
                self.quantizer.bar.advance(1)
        return result

    def _codes(self, model: nn.Module, name: str, weight: Tensor) -> QTensor | list[QTensor]:
        quantizer = self.quantizer
        assert quantizer.scheme is not None
        if weight.ndim == 3:
            transposed = expert_parameters(model)[name][2]
            parts = [expert.T if transposed else expert for expert in weight]
            return [quantize(part, quantizer.scheme, quantizer.layout, where=f"{name}[{e}]") for e, part in enumerate(parts)]
        transposed = isinstance(model.get_submodule(name.removesuffix(".weight")), Conv1D)
        return quantize(weight.T if transposed else weight, quantizer.scheme, quantizer.layout, where=name)


def put_quantized(model: nn.Module, path: str, layer: nn.Module) -> QuantizedWeight:
    """A quantised layer in place of a dense one; it has the bias, and no weight yet."""
    parent, _, child = path.rpartition(".")
    old: Any = layer
    quantized: QuantizedWeight
    if isinstance(layer, nn.Embedding):
        quantized = QuantizedEmbedding(layer)
    else:
        quantized = QuantizedLinear(*layer_sizes(layer), old.bias, old.weight.dtype, isinstance(layer, Conv1D))
    quantized.train(layer.training)
    setattr(model.get_submodule(parent), child, quantized)
    return quantized


def token_tables(model: Any) -> dict[str, nn.Module]:
    """The token embeddings and the head by path, which `embeddings` quantises; BadInput where they are more than a table and a product."""
    embedding, head = model.get_input_embeddings(), output_head(model)
    paths = {id(module): path for path, module in model.named_modules()}
    if type(head) is not nn.Linear or not isinstance(embedding, nn.Embedding):
        name = type(embedding if type(head) is nn.Linear else head).__name__
        raise BadInput(
            f"the token embeddings or the head of this model ({name}) are not one table, and cannot be stored in few bits",
            where="quantization.embeddings", fix="leave quantization.embeddings out",
        )  # fmt: skip
    QuantizedEmbedding(embedding, paths[id(embedding)])  # refuses what it cannot stand for
    return {paths[id(embedding)]: embedding, paths[id(head)]: head}


def blocks_must_fit(model: nn.Module, scheme: Scheme) -> None:
    """Refuse blocks that are longer than a row of a weight that the scheme quantises; the model's weights need not be there yet."""
    layers = linear_layers(model) | (token_tables(model) if scheme.embeddings else {})
    inputs = {name: layer_sizes(layer)[1] for name, layer in layers.items()}
    experts = expert_parameters(model).items()
    inputs |= {name: model.get_parameter(name).shape[1 if transposed else 2] for name, (_, _, transposed) in experts}
    for name, k in inputs.items():
        if scheme.block_size is not None and scheme.block_size > k:
            raise BadInput(
                f"a block of {scheme.block_size} is longer than a row of {name}, which has {k} weights",
                where="quantization.block_size", fix=f"at most {k}",
            )  # fmt: skip


def tie(model: Any) -> None:
    """Embeddings and head of one weight hold it once. Where a file has both, they are one weight if they are equal, as for transformers."""
    embedding, head = model.get_input_embeddings(), output_head(model)
    if not isinstance(embedding, QuantizedEmbedding) or not isinstance(head, QuantizedLinear):
        return
    paths = {id(module): path for path, module in model.named_modules()}
    tied = {f"{paths[id(module)]}.weight" for module in (embedding, head)} & model.all_tied_weights_keys.keys()
    if embedding.holds and head.holds:
        if not tied:
            return
        theirs = head.q.tensors()
        if any(not torch.equal(tensor, theirs[name]) for name, tensor in embedding.q.tensors().items()):
            for name in tied:
                del model.all_tied_weights_keys[name]
            return
    if embedding.holds:
        head.share(embedding)
    elif head.holds:
        embedding.share(head)


def load_quantized(path: Path, scheme: Scheme, layout: Layout = "rows", **settings: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model with its linear layers (the head and the embeddings if `scheme` says so) quantised, and transformers' report of keys.

    settings   from_pretrained's
    """
    return _load(path, StreamingConfig(scheme, layout), settings)


def load_stored(path: Path, stored: frozenset[str], fill: Callable[[nn.Module], None], **settings: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model with `stored` layers (module paths) left for `fill` to complete."""
    model, report = _load(path, StreamingConfig(stored=stored), settings)
    fill(model)
    tie(model)
    return model, report


def _load(path: Path, config: StreamingConfig, settings: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    loaded: tuple[Any, Mapping[str, Any]] = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, **settings)
    return loaded
