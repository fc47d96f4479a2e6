"""Moments in 8 bits: the codes, one step against a readable twin, and whole runs against 32-bit AdamW."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import byte_level_tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.config import TrainingConfig, validate
from tunesmith.errors import BadInput
from tunesmith.files import write_tensors
from tunesmith.kernels.adamw8bit import BLOCK, dequantize, quantize
from tunesmith.quant.codebook import dynamic_map
from tunesmith.runs import RunFolder
from tunesmith.training.adamw8bit import AdamW8bit, moment_map
from tunesmith.training.checkpoint import steps_of
from tunesmith.training.loop import resume, train
from tunesmith.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from tunesmith.training.shards import Stored

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def wide(n: int, signed: bool = True, seed: int = 0) -> torch.Tensor:
    """Numbers over nine decades, as moments are, with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator) * 10.0 ** (9 * torch.rand(n, generator=generator) - 12)
    x[:: max(1, n // 7)] = 0.0
    return x if signed else x.abs()


# --- codes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 255, 256, 1000, 65537])
@pytest.mark.parametrize("signed", [True, False])
def test_the_code_is_that_of_the_nearest_level(n: int, signed: bool):
    x, levels = wide(n, signed), dynamic_map(signed)
    codes, scale_G = quantize(x, moment_map(signed, CPU))
    assert codes.dtype == torch.uint8 and len(scale_G) == math.ceil(n / BLOCK)
    for block, scale in enumerate(scale_G.tolist()):
        part = x[block * BLOCK : (block + 1) * BLOCK]
        assert scale == part.abs().max()
        distance = (part[:, None] / max(scale, 1e-38) - levels).abs()
        if not signed:
            distance[part > 0, 0] = torch.inf  # above zero is never zero
        chosen = distance.gather(1, codes[block * BLOCK : (block + 1) * BLOCK, None].long())[:, 0]
        torch.testing.assert_close(chosen, distance.amin(dim=1), rtol=1e-5, atol=1e-7)


def test_what_comes_back_is_within_half_a_gap():
    #  the widest gap of the signed map is 0.9 / 64 of the block's largest value, of the unsigned one half of that
    for signed, parts in ((True, 64), (False, 128)):
        x = torch.rand(BLOCK * 40, generator=torch.Generator().manual_seed(1)) * 3
        back = dequantize(*quantize(x, moment_map(signed, CPU)), moment_map(signed, CPU))
        error = (back - x).abs().view(-1, BLOCK) / x.view(-1, BLOCK).amax(dim=1, keepdim=True)
        assert 0.4 * 0.9 / parts < error.max() <= 0.501 * 0.9 / parts
    zeros = torch.zeros(300)
    assert torch.equal(dequantize(*quantize(zeros, moment_map(True, CPU)), moment_map(True, CPU)), zeros)


def test_quantising_what_was_quantised_changes_nothing():
    """A moment whose gradient is always zero must not drift by being read and written."""
    for signed in (True, False):
        levels = moment_map(signed, CPU)
        x = wide(5000, signed)
        x[::BLOCK] = 1.0  # the largest of each block; 1 is a level, and -1 is none
        once = dequantize(*quantize(x, levels), levels)
        assert torch.equal(dequantize(*quantize(once, levels), levels), once)


def test_the_levels_are_those_of_bitsandbytes():
    theirs = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed").create_dynamic_map
    assert torch.equal(dynamic_map(True), theirs(signed=True))
    assert torch.equal(dynamic_map(False), theirs(signed=False))


# --- one step -------------------------------------------------------------------------------------------------------------


def readable_step(p, g, state, step, lr, beta1, beta2, eps, decay):
    """Whole tensors, float32, searched: what the optimizer does by pieces and by table."""

    def read(codes, scales, signed):
        return dynamic_map(signed)[codes.long()] * scales.repeat_interleave(BLOCK)[: len(codes)]

    def write(x, signed):
        scales = torch.stack([part.abs().max() for part in x.split(BLOCK)])
        relative = (x * (1 / scales.clamp(min=1e-38)).repeat_interleave(BLOCK)[: len(x)]).clamp(-1, 1)
        levels = dynamic_map(signed)
        bounds = (levels[:-1] + levels[1:]) / 2
        if not signed:
            bounds[0] = 0
        return torch.bucketize(relative, bounds), scales

    m = torch.lerp(read(*state[0], True), g, 1 - beta1)
    v = beta2 * read(*state[1], False)
    v = v.addcmul(g, g, value=1 - beta2)
    p = p * (1 - lr * decay)
    p = p.addcdiv(m, v.sqrt() / math.sqrt(1 - beta2**step) + eps, value=-lr / (1 - beta1**step))
    return p, (write(m, True), write(v, False))


def test_a_step_is_adamw_on_moments_that_were_rounded_after_the_step_before(monkeypatch):
    monkeypatch.setenv("TUNESMITH_KERNELS", "reference")  # bit for bit; tests/kernels bounds what the compiled step may differ by
    n = (1 << 18) + 3 * BLOCK + 77  # two pieces, and a last block that is not full
    p = wide(n, seed=3)
    parameter = nn.Parameter(p.clone())
    settings = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    optimizer = AdamW8bit([{"params": [parameter]}], **settings)
    zero = (torch.full((n,), int(torch.nonzero(dynamic_map(True) == 0))), torch.zeros(math.ceil(n / BLOCK)))
    state = (zero, (torch.zeros(n), torch.zeros(math.ceil(n / BLOCK))))
    for step in (1, 2, 3):
        gradient = wide(n, seed=10 + step)
        parameter.grad = gradient.clone()
        optimizer.step()
        p, state = readable_step(p, gradient, state, step, 1e-2, 0.8, 0.99, 1e-7, 0.1)
        assert torch.equal(parameter.detach(), p)
        held = optimizer.state[parameter]
        assert torch.equal(held["exp_avg"].long(), state[0][0]) and torch.equal(held["exp_avg_sq"].long(), state[1][0])
        assert torch.equal(held["exp_avg_scales"], state[0][1]) and torch.equal(held["exp_avg_sq_scales"], state[1][1])


def test_small_tensors_take_the_steps_of_torch_bit_for_bit():
    one, other = (nn.Parameter(wide(4095, seed=5)) for _ in range(2))
    ours = AdamW8bit([{"params": [one]}], lr=1e-2, weight_decay=0.01)
    theirs = torch.optim.AdamW([other], lr=1e-2, weight_decay=0.01, foreach=False)
    for step in range(4):
        one.grad, other.grad = wide(4095, seed=step), wide(4095, seed=step)
        ours.step()
        theirs.step()
    assert torch.equal(one, other)
    assert ours.state[one]["exp_avg"].dtype == torch.float32


def test_an_entry_with_a_tiny_gradient_beside_a_huge_one_takes_no_huge_step():
    """Were its second moment rounded to zero, the next step would divide its first moment by epsilon: 300 learning rates and more."""
    parameter = nn.Parameter(torch.zeros(4096))
    optimizer = AdamW8bit([{"params": [parameter]}], lr=1e-3)
    gradient = torch.full((4096,), 1e-4)
    gradient[::BLOCK] = 1.0
    for g in (gradient, torch.zeros(4096)):  # as the rows of an embedding whose token is not in the second batch
        parameter.grad = g.clone()
        before = parameter.detach().clone()
        optimizer.step()
        assert (parameter.detach() - before).abs().max() < 1.1e-3
    assert optimizer.state[parameter]["exp_avg_sq"].min() == 1


def test_a_tensor_whose_values_do_not_lie_in_a_row_is_updated_too():
    one = nn.Parameter(wide(8192, seed=2).view(64, 128))
    other = nn.Parameter(one.detach().clone().T)
    gradient = wide(8192, seed=4).view(64, 128)
    one.grad, other.grad = gradient, gradient.clone().T
    for parameter in (one, other):
        AdamW8bit([{"params": [parameter]}], lr=1e-2).step()
    assert not other.is_contiguous()
    assert torch.equal(other.T, one)  # a first step is made before anything is rounded


def test_moments_saved_and_loaded_take_the_same_step(tmp_path: Path):
    def made(seed: int):
        torch.manual_seed(seed)
        layer = nn.Linear(80, 70)
        return layer, build_optimizer(dict(layer.named_parameters()), TrainingConfig(optimizer="adamw8bit", weight_decay=0.1), 1e-2)

    def step(layer, optimizer):
        layer(torch.linspace(-1, 1, 160).view(2, 80)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, its_optimizer = made(0)
    for _ in range(3):
        step(one, its_optimizer)
    saved = optimizer_tensors(its_optimizer, dict(one.named_parameters()))
    write_tensors(tmp_path / "optimizer.safetensors", saved)
    assert {name for name in saved if name.startswith("weight.")} == {
        f"weight.{kind}" for kind in ("step", "exp_avg", "exp_avg_scales", "exp_avg_sq", "exp_avg_sq_scales")
    }
    other, fresh = made(1)
    other.load_state_dict(one.state_dict())
    load_optimizer_tensors(fresh, dict(other.named_parameters()), Stored(tmp_path, "optimizer"))
    step(one, its_optimizer)
    step(other, fresh)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


# --- whole runs -----------------------------------------------------------------------------------------------------------


def test_a_real_run_ends_where_32_bit_adamw_ends_with_a_quarter_of_its_state(tmp_path: Path):
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def run(optimizer: str) -> tuple[list[float], int]:
        raw = {
            "model": str(tmp_path / "model"), "method": "full", "output": str(tmp_path / optimizer),
            "data": {"train": str(EXAMPLES / "spam.jsonl"), "prompt": "Is this message spam or ham?\n\n{text}", "completion": "{label}", "limit": 64},
            "training": {"optimizer": optimizer, "steps": 40, "batch_size": 8, "learning_rate": 2e-3, "max_length": 256, "dtype": "float32"},
        }  # fmt: skip
        folder = train(validate(raw, "test")[0])
        state = load_file(steps_of(folder.checkpoints)[-1][1] / "optimizer.safetensors")
        return [row["loss"] for row in folder.metrics()], sum(tensor.nbytes for tensor in state.values())

    exact, exact_bytes = run("adamw")
    ours, our_bytes = run("adamw8bit")
    assert ours[0] == exact[0]
    last, exact_last = (sum(losses[-8:]) / 8 for losses in (ours, exact))  # the last time through the rows
    assert exact_last < 0.5 * exact[0], "something was learned"
    assert last == pytest.approx(exact_last, rel=0.02)
    assert our_bytes < 0.3 * exact_bytes  # 0.254 but for the norms and other small tensors


def test_a_run_is_not_resumed_with_another_optimizer(tiny_model: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "spam or ham? win", "completion": "spam"}\n' * 8)
    raw = {"model": str(tiny_model), "method": "full", "output": str(tmp_path / "run"), "data": {"train": str(rows)}}
    folder: RunFolder = train(validate({**raw, "training": {"steps": 2, "batch_size": 4, "optimizer": "adamw8bit"}}, "test")[0])
    folder.set_status(state="interrupted")
    config = folder.path / "config.yaml"
    config.write_text(config.read_text().replace("adamw8bit", "adamw"))
    with pytest.raises(BadInput, match="the config changed since this run began") as caught:
        resume(folder)
    assert "training.optimizer: adamw8bit → adamw" in caught.value.where


def test_it_goes_the_way_of_bitsandbytes():
    """Not bit for bit (theirs lets second moments become zero, and adds epsilon elsewhere): the same road to the same minimum."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    x_BK, truth_NK = torch.randn(256, 64), torch.randn(64, 64)
    roads = []
    for make in (AdamW8bit, bitsandbytes.optim.AdamW8bit, torch.optim.AdamW):
        weight_NK = nn.Parameter(torch.zeros(64, 64))
        optimizer = make([{"params": [weight_NK]}], lr=0.02, weight_decay=0.0)
        losses = []
        for _ in range(120):
            loss = (x_BK @ (weight_NK - truth_NK).T).square().mean()
            loss.backward()
            try:
                optimizer.step()
            except (NotImplementedError, RuntimeError) as error:
                pytest.skip(f"bitsandbytes' optimizer does not run here: {error}")
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        roads.append(losses)
    ours, theirs, exact = (torch.tensor(losses) for losses in roads)
    assert exact[-1] < 0.05 * exact[0]
    torch.testing.assert_close(ours, exact, rtol=0.02, atol=0.02 * float(exact[0]))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(exact[0]))
