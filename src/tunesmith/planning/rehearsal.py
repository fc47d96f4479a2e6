"""A training step of tensors that have shapes and no memory: what it would hold, and what it would compute.

    step = rehearse(Scene(run, config, compute=torch.bfloat16, on_cpu=True, longest=512), size)
    sum(step.peak.values()), step.peak["activations"], step.work

The step is our own: the model that transformers builds from the config, our adapters, quantised layers, fused blocks, attention and
loss, forward and backward, on torch's fake tensors; an Account notes what lives when. So whatever can be trained can be planned, and
the plan changes when the code does. Integers are real: ids, positions, masks and the layout of packed rows are computed, so that code
which looks at them goes the way that it would go; what a router would choose is chosen evenly.

Most bytes and operations repeat with every layer, so two short models are rehearsed and the whole one lies on the straight line
through them: each of the moments at which the most can be alive (PHASES) by itself, for their maximum lies on none.
"""

import copy
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tunesmith.config import Run
from tunesmith.errors import BadInput, TunesmithError
from tunesmith.kernels.linear_nll import CACHED_ROWS, CHUNK_TOKENS, GRADIENT_TOKENS
from tunesmith.kernels.rows import is_compiled
from tunesmith.loss import Scored
from tunesmith.model.adapters import adapter_parameters, attach, layer_sizes, linear_layers, switch_of
from tunesmith.model.attention import switch_over
from tunesmith.model.blocks import fuse
from tunesmith.model.experts import ExpertStack, expert_parameters, put_stack
from tunesmith.model.frozen import QuantizedLinear, QuantizedWeight, buffers
from tunesmith.model.layers import fuse_layers, fused_forms
from tunesmith.model.load import cannot_be, first_line
from tunesmith.model.streaming import put_quantized, tie, token_tables
from tunesmith.planning.account import Account, peaks, tensors_in
from tunesmith.planning.shapes import Size, example_of
from tunesmith.quant.scheme import Scheme, find_scheme
from tunesmith.quant.tensor import QTensor, from_tensors, stored_shapes
from tunesmith.training.adamw8bit import LEAST_VALUES
from tunesmith.training.method import named_part, recompute_activations
from tunesmith.training.ready import attention_way

KINDS = ("weights", "adapters", "gradients", "optimizer", "activations", "head", "de-quantise buffer", "in passing")
# Within the backward pass the bytes alive rise or fall steadily from the top layer to the bottom one: the most are alive at an end.
PHASES = ("forward", "head", "loss", "top", "bottom")
aten = torch.ops.aten

Part = str  # of a step's work: grows with "tokens", with "pairs" of tokens that see each other, with "scored" positions, or is "fixed"
Work = Mapping[tuple[Part, str], float]  # (part, measure) → amount; see `measures` of speed.py


@dataclass(frozen=True)
class Scene:
    """What a step is rehearsed for.

    config    of the model, from transformers
    compute   dtype of the products
    longest   tokens of the longest example that the run will meet
    """

    run: Run
    config: Any
    compute: torch.dtype
    on_cpu: bool
    longest: int

    @property
    def n_layers(self) -> int:
        n: int = self.config.get_text_config().num_hidden_layers
        return n


@dataclass(frozen=True)
class Step:
    """Of one micro-batch: bytes by kind at the fullest moment of each phase, and the work.

    products        kinds of matrix products that a library would compile for as many tokens (bfloat16 on a CPU); products_of_pairs: of one
                    document with itself, which depend on the length of each
    n_trained       values that are trained; n_trained_small: those in tensors that adamw8bit keeps float32 moments of
    n_quantised     weights kept in few bits
    apart           whether documents are kept apart by an attention of ours, which is tried on layers of the family's own
    largest_layer   bytes of the weights of the largest layer; outside: of those in no layer
    """

    phases: Mapping[str, Mapping[str, float]]
    work: Work
    products: int
    products_of_pairs: int
    n_trained: float
    n_trained_small: float
    n_quantised: float
    largest_layer: float
    outside: float
    why_full_logits: str | None
    apart: bool

    @property
    def peak(self) -> Mapping[str, float]:
        return max(self.phases.values(), key=lambda kinds: sum(kinds.values()))


def rehearse(scene: Scene, size: Size, trains: bool = True) -> Step:
    """One micro-batch of the whole model; trains: False: as in validation, no gradients.

    Raises BadInput where the model cannot be rehearsed, or trained.
    """
    # a thread of its own: the buffer that layers are de-quantised into is kept by thread, and real work must not find this one;
    # a daemon, as whoever is interrupted waits no longer and may end the process
    answer: Future[Step] = Future()

    def work() -> None:
        try:
            answer.set_result(_on_lines(scene, size, trains))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, name="rehearsal", daemon=True).start()
    return answer.result()


def _on_lines(scene: Scene, size: Size, trains: bool) -> Step:
    """From short models and few scored positions: each layer adds the same, and so does each chunk of the head beyond the first."""
    cut, chunk = _cut(scene), GRADIENT_TOKENS if scene.run.method == "full" else CHUNK_TOKENS
    few = replace(size, scored=min(size.scored, chunk))
    step = base = _rehearse(scene, few, trains, cut.short, cut.period, _full_logits)

    def known(_model: Any) -> str | None:
        return base.why_full_logits

    if cut.long > cut.short:
        long = _rehearse(scene, few, trains, cut.long, cut.period, known)
        step = line(base, long, (scene.n_layers - cut.short) / (cut.long - cut.short), step)
    if size.scored > 2 * chunk:
        more = _rehearse(scene, replace(size, scored=2 * chunk), trains, cut.short, cut.period, known)
        step = line(base, more, (size.scored - chunk) / chunk, step)
    elif size.scored > chunk:
        step = line(base, _rehearse(scene, size, trains, cut.short, cut.period, known), 1.0, step)
    return step


def line(first: Step, second: Step, factor: float, start: Step) -> Step:
    """`start` and `factor` times what `second` has more than `first`."""

    def further(a: float, b: float, c: float) -> float:
        return c + factor * (b - a)

    names = [phase for phase in start.phases if phase in second.phases and phase in first.phases]
    phases = {n: {k: further(first.phases[n][k], second.phases[n][k], start.phases[n][k]) for k in KINDS} for n in names}
    work = {key: further(first.work.get(key, 0), amount, start.work.get(key, 0)) for key, amount in second.work.items()}
    trained = further(first.n_trained, second.n_trained, start.n_trained)
    small = further(first.n_trained_small, second.n_trained_small, start.n_trained_small)
    quantised = further(first.n_quantised, second.n_quantised, start.n_quantised)
    return replace(start, phases=phases, work=work, n_trained=trained, n_trained_small=small, n_quantised=quantised)


# --- how many layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Layers of the short model and of the longer one, which has one `period` of unlike layers more; equal: both are the whole model."""

    short: int
    long: int
    period: int


def _cut(scene: Scene) -> _Cut:
    run, n = scene.run, scene.n_layers
    targets = [] if isinstance(run.lora.targets, str) else run.lora.targets
    if run.method == "full":
        by_name = run.full.train not in ("all", "biases")
    else:
        by_name = any(part.isdigit() for target in targets for part in target.split("."))
    return _Cut(n, n, n) if by_name else _repeats(json.dumps(scene.config.to_dict(), default=str, sort_keys=True), scene.config)


MOST_LOOKED_AT = 256  # layers: twice those of the deepest models, and a second's work
_found: dict[str, _Cut] = {}


def _repeats(key: str, config: Any) -> _Cut:
    """Where layers repeat in a model: after some that are like no others (dense ones before a mixture's), every `period` of them."""
    if key not in _found:
        whole, lists = config.get_text_config().num_hidden_layers, _lists(config.get_text_config())
        with FakeTensorMode():  # of a copy: what is built notes its dtype in the config
            layers = _layers(_from_config(_shortened(config, min(whole, MOST_LOOKED_AT)), torch.float32))
        n = whole if whole > MOST_LOOKED_AT else len(layers)
        kinds = [
            (type(layer), *((name, p.shape) for name, p in layer.named_parameters()), *(str(value[i]) for value in lists.values()))
            for i, layer in enumerate(layers)
        ]
        _found[key] = _Cut(n, n, n)
        for total in range(1, len(kinds)):  # as few layers as possible: `lead` once, then twice or three times `period`
            fits = [p for p in range(1, total + 1) if all(a == b for a, b in zip(kinds[total - p :], kinds[total:], strict=False))]
            if fits:
                period, lead = fits[0], total - fits[0]
                short = lead + 2 * period + (n - lead) % period
                if short + period < n:
                    _found[key] = _Cut(short, short + period, period)
                break
    return _found[key]


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len, default=[]))


def _lists(config: Any) -> dict[str, list[Any]]:
    """Settings with one value for each layer, such as layer_types."""
    n = config.num_hidden_layers
    return {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == n}


def _shortened(config: Any, n_layers: int) -> Any:
    whole = copy.deepcopy(config)
    text = whole.get_text_config()
    for name, value in _lists(text).items():
        setattr(text, name, value[:n_layers])
    text.num_hidden_layers = n_layers
    return whole


# --- a model of shapes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shapes:
    model: Any
    parameters: dict[str, nn.Parameter]
    layers: list[nn.Module]
    apart: bool


def _build(scene: Scene, fake: FakeTensorMode, n_layers: int) -> _Shapes:
    """As training/method.py and training/ready.py do with weights."""
    run = scene.run
    with fake:
        model = _from_config(_shortened(scene.config, n_layers), torch.float32 if run.method == "full" else scene.compute)
        model.eval().requires_grad_(False)
        if run.method == "qlora":
            _quantize(model, scheme_of(run))
        if run.method == "full":
            every = dict(model.named_parameters())
            parameters = {name: every[name].requires_grad_(True) for name in named_part(model, every, run.full.train)}
        else:
            attach(model, "plan", run.lora, seed=0)
            switch_of(model).active = "plan"
            parameters = adapter_parameters(model, "plan")
    if scene.on_cpu and (run.method != "full" or scene.compute == torch.bfloat16):
        fuse_layers(model)
    if run.method != "full":
        fuse(model)
    if run.training.gradient_checkpointing:
        recompute_activations(model)
    text = copy.copy(model.config.get_text_config())
    text.num_hidden_layers = scene.n_layers
    way, kept = attention_way(text, run, scene.longest, scene.on_cpu, bool(fused_forms(model)), scene.compute, bool(run.training.packing))
    apart = way in ("apart", "rows")
    if apart:
        switch_over(model, kept)
    elif way == "eager":
        model.set_attn_implementation("eager")
    return _Shapes(model, parameters, _layers(model), apart and not fused_forms(model))


def _from_config(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    soft_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None  # as in model/load.py
    try:
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False, attn_implementation="eager" if soft_capped else None
        )
    except Exception as error:
        raise cannot_be(error, config.to_dict(), config.name_or_path or "model") from None


def scheme_of(run: Run) -> Scheme:
    section = run.quantization
    return find_scheme(section.scheme, section.block_size, section.double, section.clip, section.embeddings)


def _quantize(model: Any, scheme: Scheme) -> None:
    """As streaming.py while it loads."""

    def codes(shape: tuple[int, int]) -> QTensor:
        stored = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in stored_shapes(scheme, shape, "rows").items()}
        return from_tensors(scheme, shape, "rows", stored)

    tables = token_tables(model) if scheme.embeddings else {}
    tied = scheme.embeddings and bool(model.all_tied_weights_keys)
    for name, layer in {**linear_layers(model), **tables}.items():
        quantized = put_quantized(model, name, layer)
        if not (tied and isinstance(quantized, QuantizedLinear) and name in tables):
            sizes = (quantized.n_outputs, quantized.n_inputs) if name in tables else layer_sizes(layer)
            quantized.hold(codes(sizes))
    if tied:
        tie(model)
    for path, (_, _, transposed) in expert_parameters(model).items():
        weight = model.get_parameter(path)
        stack = ExpertStack(tuple(weight.shape), transposed, weight.dtype, switch_of(model))
        stack.hold([codes((stack.n_outputs, stack.n_inputs)) for _ in range(stack.n_experts)], torch.zeros(0))
        put_stack(model, path, stack)


def _full_logits(model: Any) -> str | None:
    """loss.py's question, asked of storages: does the head get what the trunk gave, and the caller what the head gave?"""
    head, seen = model.get_output_embeddings(), {}
    if not isinstance(head, nn.Linear | QuantizedLinear):
        return "the head is not one linear layer"

    def of_trunk(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen["trunk"] = getattr(output, "last_hidden_state", None)

    def of_head(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["before"], seen["after"] = inputs[0], output

    hooks = [model.base_model.register_forward_hook(of_trunk), head.register_forward_hook(of_head)]
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.zeros(1, 8, dtype=torch.int64), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    same = [a is not None and b is not None and a.untyped_storage()._cdata == b.untyped_storage()._cdata
            for a, b in ((seen.get("trunk"), seen.get("before")), (seen.get("after"), logits))]  # fmt: skip
    return None if all(same) else "the model's forward does more than its trunk and its head"


# --- the step -------------------------------------------------------------------------------------------------------------


def _rehearse(scene: Scene, size: Size, trains: bool, n_layers: int, period: int, why: Callable[[Any], str | None]) -> Step:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        shapes = _build(scene, fake, n_layers)
        return _run(scene, shapes, fake, size, trains, period, why)
    except TunesmithError:
        raise
    except Exception as error:  # whatever a family's own code does with values that are not there
        kind = scene.config.model_type
        raise BadInput(
            f"a model of type {kind} cannot be planned: {first_line(error)}", where="model",
            fix="train on a few rows (data.limit) and read peak_memory_bytes in metrics.jsonl",
        ) from error  # fmt: skip


def _run(
    scene: Scene, shapes: _Shapes, fake: FakeTensorMode, size: Size, trains: bool, period: int, why: Callable[[Any], str | None]
) -> Step:  # fmt: skip
    model, parameters = shapes.model, shapes.parameters
    tally = _Tally(fake)
    account = Account(tally.run)
    tally.account = account
    kept = list(model.parameters()) + list(model.buffers())
    trained = list(parameters.values())
    batch = example_of(size)
    if trains and size.later:
        with fake:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
        account.hold(p.grad for p in trained if p.grad is not None)
    adapters = account.hold(trained) if scene.run.method != "full" else set()
    weights = account.hold(kept) - adapters
    tally.weights = weights | adapters
    with account:
        scored = Scored(model, scene.compute, ask=why)
    tally.work.clear()
    tally.products.clear()
    tally.products_of_pairs.clear()
    hooks = [model.base_model.register_forward_hook(lambda *_: setattr(account, "phase", "head"))]
    hooks += [layer.register_forward_hook(_marks(account, i, len(shapes.layers), period)) for i, layer in enumerate(shapes.layers)]
    with account, torch.set_grad_enabled(trains):
        scored.train(trains)
        account.phase = "forward"
        nll = scored(batch)
        if trains:
            account.phase = "loss"
            (nll.sum / 2).backward()
    for hook in hooks:
        hook.remove()
    gradients = {account.number_of(p.grad) for p in trained if p.grad is not None}
    buffer = {account.number_of(tensor) for tensor in buffers() if isinstance(tensor, FakeTensor)}

    def kind_of(storage: int, phase: str) -> str:
        for kind, members in (("adapters", adapters), ("weights", weights), ("gradients", gradients), ("de-quantise buffer", buffer)):
            if storage in members:
                return kind
        return {"forward": "activations", "head": "head"}.get(phase, "in passing")

    found = peaks(account.events, kind_of)
    phases = {phase: dict.fromkeys(KINDS, 0.0) | kinds for phase, kinds in found.items() if phase}
    work = dict(tally.work)
    head = model.get_output_embeddings()
    one_pass = getattr(head, "bias", None) is None and is_compiled(torch.empty(0, dtype=scene.compute))
    # linear_nll works on a few rows at a time there, and on shapes on all at once
    if scene.on_cpu and scored.why_full_logits is None and not one_pass:
        n_words, n_rows = head.weight.shape[0], min(CHUNK_TOKENS, size.scored)
        n_cached = min(CACHED_ROWS, n_rows)
        phases["head"]["head"] -= 4 * n_words * (n_rows - n_cached)
        work["scored", "calls"] *= n_rows / max(1, n_cached)
    inside = {id(tensor) for layer in shapes.layers for tensor in layer.parameters()}
    layers = {m._parameters["stored_codes"]: m for m in model.modules() if isinstance(m, QuantizedWeight)}  # a shared weight once
    n_quantised = sum(layer.n_outputs * layer.n_inputs for layer in layers.values())
    n_small = sum(p.numel() for p in trained if p.numel() < LEAST_VALUES)
    return Step(
        phases, work, len(tally.products), len(tally.products_of_pairs), float(sum(p.numel() for p in trained)), float(n_small), float(n_quantised),
        float(max((sum(t.nbytes for t in layer.parameters()) for layer in shapes.layers), default=0)),
        float(sum(t.nbytes for t in model.parameters() if id(t) not in inside)), scored.why_full_logits, shapes.apart,
    )  # fmt: skip


def _marks(account: Account, index: int, n_layers: int, period: int) -> Callable[..., None]:
    """A hook on layer `index`: when the gradient of its output is there, its backward begins."""

    def mark(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(began)  # type: ignore[no-untyped-call]

    def began(_gradient: Tensor) -> None:
        account.phase = "top" if index >= n_layers - period else "bottom" if index < period else "middle"

    return mark


# --- operations without values --------------------------------------------------------------------------------------------

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "addmm_"}
WEIGHT_GRADIENTS = ("tunesmith::weight_gradient", "tunesmith::add_weight_gradient_")
ATTENTION = ("tunesmith::causal_attention", "_scaled_dot_product", "_flash_attention", "_efficient_attention")
THIN, THIN_FLOAT32 = {"bfloat16": 64}, 16  # operations a byte below which a product waits for memory, as those of low rank do
NO_WORK = {"detach", "_unsafe_view", "view", "alias", "empty", "new_empty", "empty_like", "lift_fresh"}
SLOW_PASSES = {
    "exp",
    "silu",
    "silu_backward",
    "gelu",
    "gelu_backward",
    "tanh",
    "_softmax",
    "_softmax_backward_data",
    "log",
    "sigmoid",
    "pow",
}


class _Tally:
    """How an operation on shapes is done, and counted. What would depend on values goes as it usually goes."""

    def __init__(self, fake: FakeTensorMode) -> None:
        self.fake = fake
        self.work: dict[tuple[str, str], float] = defaultdict(float)
        self.account: Account
        self.weights: set[int] = set()
        self.products: set[tuple[object, ...]] = set()
        self.products_of_pairs: set[tuple[object, ...]] = set()

    def run(self, operation: Any, args: Any, kwargs: Any) -> Any:
        tensors = list(tensors_in(args, *kwargs.values()))
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if tensors:
                return operation(*args, **kwargs)
            with self.fake:
                made = operation(*args, **kwargs)
            # integers are real, however they are made
            return made if isinstance(made, Tensor) and made.is_floating_point() else operation(*args, **kwargs)
        name = operation._schema.name.removeprefix("aten::")
        if operation is aten._local_scalar_dense.default:
            return True if tensors[0].dtype == torch.bool else 1
        if operation is aten.equal.default:
            return True
        if operation is aten.topk.default:
            values, _ = operation(*args, **kwargs)
            n, k = values[..., 0].numel(), values.shape[-1]
            return values, (torch.arange(n * k) % args[0].shape[-1]).view(values.shape)
        if operation is aten._grouped_mm.default and tensors[0].dtype == torch.float32:  # its shapes are known for bfloat16 only
            return operation(*(a.bfloat16() if a is not None and a.is_floating_point() else a for a in args), **kwargs).float()
        result = _done_in_place(operation, name, args, kwargs)
        if result is _NOTHING:
            result = operation(*args, **kwargs)
        self._count(operation, name, tensors, result)
        return result

    def _count(self, operation: Any, name: str, tensors: list[Tensor], result: Any) -> None:
        if operation.namespace == "prim":  # a question, such as where a tensor is
            return
        results, head = list(tensors_in(result)), self.account.phase == "head"
        if operation.is_view or name in NO_WORK:
            self.work["scored" if head else "fixed", "calls"] += 1
            return
        numbers = {self.account.number_of(tensor) for tensor in tensors}
        n_bytes = sum(_touched(t) for t in {id(t): t for t in (*tensors, *results)}.values())
        flops = _flops(name, tensors, results)
        part = "scored" if head else "pairs" if any(_is_square(t) for t in (*tensors, *results)) else "tokens"
        if numbers <= self.weights:
            part = "fixed"
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        in_attention, of_pairs = name.startswith(ATTENTION), name in ("bmm", "baddbmm")
        if flops:
            part = "pairs" if in_attention or of_pairs else part
            if in_attention:
                self.work[part, f"attention {dtype}"] += flops
            elif flops < THIN.get(dtype, THIN_FLOAT32) * n_bytes:
                self.work[part, "thin products"] += n_bytes
                self.work[part, "thin operations"] += flops  # told, and of no time of their own
            else:
                of_weight = (
                    name in WEIGHT_GRADIENTS or not tensors[-2].is_contiguous()
                )  # a gradient of a weight sums over the tokens of both
                self.work[part, f"{'weight products' if of_weight else 'products'} {dtype}"] += flops
            if dtype == "bfloat16" and not in_attention and name not in WEIGHT_GRADIENTS:
                (self.products_of_pairs if of_pairs else self.products).add(tuple((tuple(t.shape), t.stride()) for t in tensors))
            held = {tensor.untyped_storage()._cdata for tensor in buffers() if isinstance(tensor, FakeTensor)}
            self.work["fixed", "de-quantised"] += sum(t.numel() for t in tensors if t.untyped_storage()._cdata in held)
        else:
            if name == "bernoulli_":
                self.work[part, "random numbers"] += tensors[0].numel()
            kind = "our passes" if name.startswith("tunesmith::") else "slow passes" if name.rstrip("_") in SLOW_PASSES else "passes"
            self.work[part, kind] += n_bytes
        kind = "our calls" if name.startswith("tunesmith::") else "product calls" if flops and not in_attention else "calls"
        self.work["scored" if head else "fixed", kind] += 1


_NOTHING = object()


def _done_in_place(operation: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Nothing has to be done where only values change."""
    schema = operation._schema
    if not schema.is_mutable or torch.Tag.inplace_view in operation.tags:
        return _NOTHING
    if not schema.returns:
        return None
    if operation.namespace == "aten" and name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    out = [kwargs[argument.name] for argument in schema.arguments if argument.is_out and argument.name in kwargs]
    return _NOTHING if not out else out[0] if len(out) == 1 else tuple(out)


def _touched(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _is_square(tensor: Tensor) -> bool:
    """Attention scores, one for each pair of tokens."""
    return tensor.ndim >= 4 and tensor.shape[-1] == tensor.shape[-2] > 1


def _flops(name: str, tensors: list[Tensor], results: list[Tensor]) -> float:
    """Two for each multiplication with an addition; 0 for what is no product. Of attention, which sees to the left, the half."""
    if name.rstrip("_") in PRODUCTS:
        left, right = tensors[-2:] if name.rstrip("_") in ("addmm", "baddbmm") else tensors[:2]
        return 2.0 * left.numel() * right.shape[-1]
    if name in WEIGHT_GRADIENTS:
        dy, x = tensors[-2:]
        return 2.0 * dy.numel() * x.shape[-1]
    if name.startswith("tunesmith::causal_attention"):
        starts, *parents = (tensor for tensor in tensors if tensor.dtype == torch.int32)
        query, lengths = tensors[1] if name.endswith("backward") else tensors[0], starts.diff().double()
        of_heads = float(lengths.square().sum()) / 2
        for parent in parents:  # a document that continues another sees all of that too
            of_heads += float((lengths * lengths[parent.clamp(min=0)] * (parent >= 0)).sum())
        pairs = query.shape[1] * of_heads
        return (10.0 if name.endswith("backward") else 4.0) * pairs * query.shape[2]
    if name.startswith(ATTENTION):
        query, key = (tensors[1], tensors[2]) if name.endswith("backward") else (tensors[0], tensors[1])
        pairs = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] / 2
        return (10.0 if name.endswith("backward") else 4.0) * pairs * query.shape[3]
    return 0.0
