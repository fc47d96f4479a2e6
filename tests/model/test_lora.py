"""The fused LoRA product against its readable twin and against PEFT's layer."""

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model.frozen import FrozenLinear
from tunesmith.model.lora import Adapter, LoraLinear, Switch, lora_linear, lora_linear_reference

SHAPES = [(13, 19, 7, 3), (1, 5, 31, 5), (37, 67, 41, 8)]  # tokens, inputs, outputs, rank: nothing divides anything
NAMES = ("y", "d x", "d A", "d B")
SCALE = 1.7


def layer(k, n, dtype=torch.float32, transposed=False):
    """A frozen layer with a bias: nn.Linear, or Conv1D, which keeps inputs x outputs."""
    made = Conv1D(n, k) if transposed else nn.Linear(k, n)
    made.weight.data.normal_()
    made.bias.data.normal_()
    return FrozenLinear(made.to(dtype))


def problem(shape, dtype=torch.float32, transposed=False, seed=0):
    """x and dy in `dtype`, the frozen layer, float32 masters A and B."""
    m, k, n, r = shape
    torch.manual_seed(seed)
    return torch.randn(m, k).to(dtype), layer(k, n, dtype, transposed), torch.randn(r, k), torch.randn(n, r), torch.randn(m, n).to(dtype)


def solve(product, x_MK, frozen, a_RK, b_NR, dy_MN):
    """y and the gradients towards x, A and B of the sum of y * dy."""
    x, a, b = (t.detach().clone().requires_grad_(True) for t in (x_MK, a_RK, b_NR))
    y = product(x, frozen, a, b, SCALE)
    y.backward(dy_MN)
    return y.detach(), x.grad, a.grad, b.grad


def truth(x_MK, frozen, a_RK, b_NR, dy_MN):
    """In float64, from the same numbers."""
    double = FrozenLinear(nn.Linear(1, 1))
    double.weight, double.bias = nn.Parameter(frozen.weight.double(), False), nn.Parameter(frozen.bias.double(), False)
    double.transposed = frozen.transposed
    return solve(lora_linear_reference, x_MK.double(), double, a_RK.double(), b_NR.double(), dy_MN.double())


def error(found, exact):
    """The worst difference, relative to the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_frozen_layer_is_the_layer_it_was_made_from(shape, transposed):
    m, k, n, _ = shape
    torch.manual_seed(0)
    original = Conv1D(n, k) if transposed else nn.Linear(k, n)
    frozen = FrozenLinear(original)
    x_MK, dy_MN = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
    y_MN = original(x_MK)
    y_MN.backward(dy_MN)
    assert torch.equal(frozen.mm(x_MK), y_MN)
    assert torch.allclose(frozen.mm_t(dy_MN), x_MK.grad, rtol=1e-5, atol=1e-6)
    assert (frozen.n_outputs, frozen.n_inputs) == (n, k)
    assert frozen.weight is original.weight, "memory is shared, not copied"
    assert frozen.nbytes == 4 * (n * k + n)
    assert not frozen.weight.requires_grad


def test_what_is_no_linear_layer_cannot_be_frozen():
    with pytest.raises(TypeError, match="not a linear layer: Embedding"):
        FrozenLinear(nn.Embedding(3, 4))


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_float32_value_and_gradients_equal_the_reference(shape, transposed):
    given = problem(shape, transposed=transposed)
    for name, found, plain in zip(NAMES, solve(lora_linear, *given), solve(lora_linear_reference, *given), strict=True):
        assert found.shape == plain.shape
        assert found.dtype == torch.float32
        assert error(found, plain.double()) < 1e-6, name


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_bfloat16_no_error_is_larger_than_that_of_the_reference(shape, transposed):
    ours, reference = [], []
    for seed in range(20):
        given = problem(shape, torch.bfloat16, transposed, seed)
        exact = truth(*given)
        found = solve(lora_linear, *given)
        assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]  # masters get float32 gradients
        ours.append([error(t, true) for t, true in zip(found, exact, strict=True)])
        reference.append([error(t, true) for t, true in zip(solve(lora_linear_reference, *given), exact, strict=True)])
    for name, found, plain in zip(NAMES, torch.tensor(ours).T, torch.tensor(reference).T, strict=True):
        assert found.max() <= plain.max() + 2**-8, name  # a step of bfloat16
        assert found.mean() <= 1.05 * plain.mean(), name


def test_gradients_agree_with_finite_differences_in_float64():
    x_MK, frozen, a_RK, b_NR, _ = problem((4, 5, 3, 2), torch.float64)
    leaves = [t.double().requires_grad_(True) for t in (x_MK, a_RK, b_NR)]
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, frozen, a, b, SCALE), leaves)


def test_an_input_without_a_gradient_gets_none():
    x_MK, frozen, a_RK, b_NR, dy_MN = problem(SHAPES[0])
    a, b = a_RK.requires_grad_(True), b_NR.requires_grad_(True)
    lora_linear(x_MK, frozen, a, b, SCALE).backward(dy_MN)
    assert x_MK.grad is None
    assert a.grad is not None
    assert b.grad is not None


def adapted(k=19, n=7, rank=3, dropout=0.0, dtype=torch.float32, seed=0):
    """A LoraLinear with one trained adapter, "spam", active."""
    torch.manual_seed(seed)
    made = LoraLinear(layer(k, n, dtype), Switch())
    made.adapters["spam"] = Adapter(k, n, rank, SCALE, dropout, torch.device("cpu"))
    made.adapters["spam"].start(torch.Generator().manual_seed(seed))
    made.adapters["spam"].b_NR.data.normal_()
    made.switch.active = "spam"
    return made


def test_a_new_adapter_has_a_uniform_a_and_a_b_of_zeros_in_float32_whatever_the_base_is():
    adapter = Adapter(64, 32, 16, 2.0, 0.0, torch.device("cpu"))
    adapter.start(torch.Generator().manual_seed(0))
    assert adapter.a_RK.dtype == adapter.b_NR.dtype == torch.float32
    assert not adapter.b_NR.any()
    bound = 1 / 8  # 1 / sqrt(64)
    assert adapter.a_RK.abs().max() <= bound
    assert abs(float(adapter.a_RK.detach().std()) / (bound / 3**0.5) - 1) < 0.05  # of a uniform distribution
    again = Adapter(64, 32, 16, 2.0, 0.0, torch.device("cpu"))
    again.start(torch.Generator().manual_seed(0))
    assert torch.equal(adapter.a_RK, again.a_RK)


def test_rows_of_any_shape_go_through_and_the_switch_chooses():
    made = adapted()
    x_BTK = torch.randn(2, 3, 19)
    tuned_BTN = made(x_BTK)
    assert torch.equal(tuned_BTN.reshape(6, 7), made(x_BTK.reshape(6, 19)))
    assert torch.equal(tuned_BTN.transpose(0, 1), made(x_BTK.transpose(0, 1)))  # not contiguous
    made.switch.active = None
    assert torch.equal(made(x_BTK), made.frozen.mm(x_BTK.reshape(6, 19)).view(2, 3, 7))
    made.switch.active = "an adapter of other layers"
    assert torch.equal(made(x_BTK), made.frozen.mm(x_BTK.reshape(6, 19)).view(2, 3, 7))


def in_peft(made, dropout):
    """PEFT's layer with the numbers of ours."""
    base = nn.Sequential(nn.Linear(19, 7))
    theirs = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["0"], lora_dropout=dropout)
    found = peft.inject_adapter_in_model(theirs, base, "spam")[0]
    found.base_layer.weight.data.copy_(made.frozen.weight)
    found.base_layer.bias.data.copy_(made.frozen.bias)
    found.lora_A["spam"].weight.data.copy_(made.adapters["spam"].a_RK)
    found.lora_B["spam"].weight.data.copy_(made.adapters["spam"].b_NR)
    found.scaling["spam"] = SCALE
    return found.train()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_value_and_gradients_with_dropout_equal_those_of_peft_for_the_same_random_numbers(dropout):
    made = adapted(dropout=dropout).train()
    theirs = in_peft(made, dropout)
    ours_x, theirs_x = (torch.randn(5, 19, generator=torch.Generator().manual_seed(1)).requires_grad_(True) for _ in range(2))
    outputs = []
    for module, x in ((made, ours_x), (theirs, theirs_x)):
        torch.manual_seed(2)
        outputs.append(module(x))
        outputs[-1].square().sum().backward()
    assert torch.allclose(*outputs, rtol=1e-5, atol=1e-5)
    adapter = made.adapters["spam"]
    for name, found, expected in (
        ("x", ours_x.grad, theirs_x.grad),
        ("A", adapter.a_RK.grad, theirs.lora_A["spam"].weight.grad),
        ("B", adapter.b_NR.grad, theirs.lora_B["spam"].weight.grad),
    ):
        assert error(found, expected.double()) < 1e-5, name


def test_dropout_drops_the_input_of_the_adapter_alone_and_in_training_alone():
    made = adapted(dropout=0.5)
    x_MK = torch.randn(5, 19)
    made.eval()
    assert torch.equal(made(x_MK), made(x_MK))
    without = adapted(dropout=0.0).train()
    assert torch.equal(made(x_MK), without(x_MK))
    made.train()
    assert not torch.equal(made(x_MK), made(x_MK))
    made.adapters["spam"].b_NR.data.zero_()
    assert torch.equal(made(x_MK), made.frozen.mm(x_MK)), "the base product sees all of x"


def test_dropout_leaves_the_mean_as_it_is():
    made = adapted(dropout=0.5).train()
    x_MK = torch.randn(1, 19)
    torch.manual_seed(0)
    with torch.no_grad():
        mean_N = made(x_MK.expand(20_000, -1)).mean(0)
        expected_N = made.eval()(x_MK)[0]
    assert torch.allclose(mean_N, expected_N, atol=0.05 * float(expected_N.abs().max()))
