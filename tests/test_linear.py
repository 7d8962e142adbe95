"""The product that oneDNN makes: PyTorch's own, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scaling.linear import Linear, linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(0,), (1,), (17,), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_are_those_of_pytorch(rows: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Linear(8, 6, bias=bias).to(dtype)
    x = torch.randn(*rows, 8, dtype=dtype, requires_grad=True)
    wanted = torch.randn(*rows, 6, dtype=dtype)
    inputs = [x, *layer.parameters()]
    ours, theirs = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, wanted), torch.autograd.grad(theirs, inputs, wanted), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_nothing_is_followed_that_has_no_gradient() -> None:
    weight, x = torch.randn(6, 8), torch.randn(2, 8)
    assert linear(x, weight).grad_fn is None
    assert linear(x, weight.requires_grad_()).grad_fn is not None
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None


def test_a_view_of_a_larger_weight_will_do() -> None:
    whole, x = torch.randn(12, 8), torch.randn(4, 8)
    part = whole[6:].requires_grad_()
    torch.testing.assert_close(linear(x, part), x @ part.t())
