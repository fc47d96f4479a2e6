"""The 3-D weights of a mixture of experts, dense or quantised, with adapters: one linear layer per expert.

    stack = ExpertStack(weight_ENK, transposed, switch)      # takes the place of the parameter experts.gate_up_proj
    y_MN = nn.functional.linear(x_MK, stack[e])              # as transformers' own forward of the experts calls it

The model's forward stays transformers': it indexes the parameter by expert and multiplies. `stack[e]` answers these two products
(linear and @) and nothing else, so a family that does more with its experts fails loudly at the first call.

Adapters follow PEFT's layout for `target_parameters`: A [E·R, K], B [N, R·E], and expert e has A[e·R:(e+1)·R] and B[:, e::E].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import BadInput
from tunesmith.model.frozen import QuantizedLinear
from tunesmith.model.lora import Adapter, Switch, lora_linear
from tunesmith.quant.tensor import QTensor


class ExpertStack(nn.Module):
    """E weights [N, K] in one tensor, or E quantised layers; `transposed` ones lie in the file as [E, K, N]."""

    def __init__(self, shape: tuple[int, int, int], transposed: bool, dtype: torch.dtype, switch: Switch) -> None:
        super().__init__()
        e, first, second = shape
        self.n_experts, self.transposed, self.dtype, self.switch = e, transposed, dtype, switch
        self.n_outputs, self.n_inputs = (second, first) if transposed else (first, second)
        self.adapters = nn.ModuleDict()
        self.dense: nn.Parameter | None = None
        self.quantized = nn.ModuleList()
        self.sample: Tensor | None = None

    @classmethod
    def of(cls, weight: nn.Parameter, transposed: bool, switch: Switch) -> "ExpertStack":
        """Around a dense 3-D parameter, whose memory it shares."""
        e, first, second = weight.shape
        stack = cls((e, first, second), transposed, weight.dtype, switch)
        weight.requires_grad_(False)
        stack.dense = weight
        return stack

    def hold(self, codes: Sequence[QTensor], sample: Tensor) -> None:
        """Quantised weights, one per expert, instead of the dense ones."""
        self.dense, self.sample = None, sample
        for layer, q in zip(self.make_room(), codes, strict=True):
            layer.hold(q)

    def make_room(self) -> list[QuantizedLinear]:
        """A layer per expert that holds no weight yet."""
        layers = [QuantizedLinear(self.n_outputs, self.n_inputs, None, self.dtype) for _ in range(self.n_experts)]
        self.quantized = nn.ModuleList(layers)
        return layers

    @property
    def file_shape(self) -> tuple[int, int, int]:
        inner = (self.n_inputs, self.n_outputs) if self.transposed else (self.n_outputs, self.n_inputs)
        return (self.n_experts, *inner)

    def frozen(self, expert: int) -> "QuantizedLinear | DenseExpert":
        """The base weight of one expert, behind the two products that adapters need."""
        if self.dense is None:
            layer = self.quantized[expert]
            assert isinstance(layer, QuantizedLinear)
            return layer
        weight = self.dense[expert]
        return DenseExpert(weight.T if self.transposed else weight)

    def __getitem__(self, expert: int | Tensor) -> "ExpertWeight":
        return ExpertWeight(self, int(expert))

    def product(self, expert: int, x_MK: Tensor) -> Tensor:
        """x @ W[expert].T, with the active adapter's share."""
        frozen, name = self.frozen(expert), self.switch.active
        if name is None or name not in self.adapters:
            return frozen.mm(x_MK)
        return lora_linear(x_MK, frozen, *self.share(name, expert))

    def share(self, name: str, expert: int) -> tuple[Tensor, Tensor, float]:
        """A [R, K], B [N, R] and scale of one adapter on one expert."""
        adapter: Any = self.adapters[name]
        rank = adapter.a_RK.shape[0] // self.n_experts
        return adapter.a_RK[expert * rank : (expert + 1) * rank], adapter.b_NR[:, expert :: self.n_experts], adapter.scale

    def add_adapter(self, name: str, rank: int, scale: float, device: torch.device) -> None:
        self.adapters[name] = Adapter(self.n_inputs, self.n_outputs, rank * self.n_experts, scale, 0.0, device)


class DenseExpert:
    """One expert's weight [N, K], a view."""

    def __init__(self, weight_NK: Tensor) -> None:
        self.weight_NK = weight_NK
        self.n_outputs, self.n_inputs = weight_NK.shape

    def mm(self, x_MK: Tensor) -> Tensor:
        return nn.functional.linear(x_MK, self.weight_NK)

    def mm_t(self, dy_MN: Tensor) -> Tensor:
        return torch.mm(dy_MN, self.weight_NK)


class ExpertWeight:
    """What the experts' forward holds for a moment: torch hands its products to us (the __torch_function__ protocol)."""

    def __init__(self, stack: ExpertStack, expert: int) -> None:
        self.stack, self.expert = stack, expert

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        x, weight, *rest = args
        as_linear = function is nn.functional.linear
        as_matmul = function in (torch.matmul, Tensor.matmul, Tensor.__matmul__)
        if isinstance(weight, ExpertWeight) and not kwargs and weight.stack.transposed == as_matmul and (as_linear or as_matmul):
            y = weight.stack.product(weight.expert, x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], weight.stack.n_outputs)
            return y + rest[0] if rest and rest[0] is not None else y
        raise BadInput(
            f"this model does more with its experts than one product each ({getattr(function, '__name__', function)})",
            fix="leave the experts out of lora.targets, or use method: lora",
        )


def expert_parameters(model: nn.Module) -> dict[str, tuple[nn.Module, str, bool]]:
    """3-D expert weights that transformers' experts interface describes, by path: their module, their name in it, whether transposed."""
    found = {}
    for path, module in model.named_modules():
        if not hasattr(module, "has_gate") or not hasattr(module, "is_transposed"):
            continue  # not decorated with use_experts_implementation
        named: dict[str, Any] = {**module._parameters, **{n: m for n, m in module._modules.items() if isinstance(m, ExpertStack)}}
        for name, value in named.items():
            if isinstance(value, ExpertStack) or (value is not None and value.ndim == 3):
                found[f"{path}.{name}"] = (module, name, bool(module.is_transposed))
    return found


def expert_order(module: nn.Module) -> list[str]:
    """Names of a module's 3-D weights as the model's own code declares them: PEFT's names depend on it."""
    order: Any = getattr(module, "_expert_order", None)
    return order or [name for name, value in module._parameters.items() if value is not None and value.ndim == 3]


def put_stack(model: Any, path: str, stack: ExpertStack) -> None:
    """The stack in place of the parameter; from now on the experts are called one by one."""
    module, name, _ = expert_parameters(model)[path]
    module._expert_order = expert_order(module)  # type: ignore[assignment]
    del module._parameters[name]
    module.add_module(name, stack)
    owner: Any = module
    for config in {id(c): c for c in (model.config, model.config.get_text_config(), owner.config)}.values():
        config._experts_implementation = "eager"
