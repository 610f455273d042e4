"""Operators against dense matrices, loops over draws and plain arithmetic."""

import pytest
import torch

from flowinv.operators import AveragePool, FunctionOperator, Grey, Identity, Mask, MatrixOperator, as_operator


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def each(operator, x):
    """The oracle for draw axes: one draw at a time."""
    flat = x.reshape(-1, *x.shape[2:]) if x.dim() == 6 else x
    return torch.stack([operator(draw) for draw in flat])


@pytest.mark.parametrize(
    "operator",
    [
        Identity(),
        Mask(torch.tensor([[1.0, 0.0, 1.0, 1.0]])),
        MatrixOperator(draws(5, 48)),
        Grey(),
        AveragePool(2),
        FunctionOperator(lambda x: x.square().mean((2, 3))),
    ],
    ids=lambda o: type(o).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_axes_equal_one_draw_at_a_time(operator, dtype):
    operator = operator.on((3, 4, 4))
    x = draws(6, 2, 3, 4, 4, dtype=dtype)
    y = operator(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, each(operator, x))
    torch.testing.assert_close(operator(x.reshape(2, 3, 2, 3, 4, 4)), y.reshape(2, 3, *y.shape[1:]))


def test_values_against_arithmetic():
    x = draws(2, 3, 4, 4)
    torch.testing.assert_close(Grey()(x), x.mean(1, keepdim=True))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(Grey((0.2, 0.5, 0.3))(x), torch.einsum("c,bchw->bhw", weights, x).unsqueeze(1))
    torch.testing.assert_close(AveragePool(2)(x), x.reshape(2, 3, 2, 2, 2, 2).mean((3, 5)))
    matrix = draws(7, 48, seed=1)
    torch.testing.assert_close(MatrixOperator(matrix)(x), x.flatten(1) @ matrix.T)
    mask = torch.tensor([1, 0, 1, 1])
    torch.testing.assert_close(Mask(mask)(x), x * mask)


def test_matrix_keeps_singleton_channels_apart_from_draws():
    matrix = draws(3, 16)
    x = draws(5, 2, 1, 4, 4)
    assert MatrixOperator(matrix, (1, 4, 4))(x).shape == (5, 2, 3)


def test_mask_zeroes_exactly_and_hides_nan():
    x = torch.full((1, 1, 2, 2), float("nan"))
    x[..., 0, 0] = 3.0
    mask = Mask(torch.tensor([[True, False], [False, False]]))
    assert mask(x).tolist() == [[[[3.0, 0.0], [0.0, 0.0]]]]
    assert mask.on((1, 2, 2)).observed.shape == (1, 1, 2, 2)


def test_one_mask_for_each_observation():
    masks = draws(3, 1, 4, 4) > 0.5
    operator = Mask(masks, (1, 4, 4))
    x = draws(7, 3, 1, 4, 4)
    torch.testing.assert_close(operator(x), x * masks)
    with pytest.raises(ValueError, match=r"does not fit x"):
        operator(x[:, :2])


def test_function_with_state_per_observation_needs_vmap():
    kernels = draws(3, 1, 4, 4)
    fn = FunctionOperator(lambda x: x * kernels, per_observation=True).on((1, 4, 4))
    x = draws(7, 3, 1, 4, 4)
    torch.testing.assert_close(fn(x), x * kernels)
    torch.testing.assert_close(fn(x[0]), x[0] * kernels)
    flattened = FunctionOperator(lambda x: x * kernels).on((1, 4, 4))
    with pytest.raises(RuntimeError):
        flattened(x)


def test_vmapped_function_has_the_right_gradient():
    kernels = draws(3, 1, 2, 2)
    fn = FunctionOperator(lambda x: (x * kernels).sin(), per_observation=True).on((1, 2, 2))
    x = draws(2, 3, 1, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(fn, (x,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.tensor([0.0, 0.5])), "0.5"),
        (lambda: Mask(torch.tensor([1.0, float("nan")])), "nan"),
        (lambda: Mask(torch.zeros(3)), "nothing is observed"),
        (lambda: Mask([0, 1]), "list"),
        (lambda: Mask(torch.ones(3, 4, 4)).on((1, 4, 4)), r"\(3, 4, 4\) does not fit samples of shape \(1, 4, 4\)"),
        (lambda: Mask(torch.ones(3, 4, 4), (1, 4, 4)), "does not fit"),
        (lambda: Mask(torch.ones(2, 3, 1, 4, 4), (1, 4, 4)), "does not fit"),
        (lambda: MatrixOperator(torch.ones(3)), "matrix must be"),
        (lambda: MatrixOperator(torch.ones(3, 3).int()), "int32"),
        (lambda: MatrixOperator(torch.full((2, 2), float("inf"))), "infinite"),
        (lambda: MatrixOperator(torch.ones(2, 5)).on((1, 2, 2)), "4 elements, expected 5"),
        (lambda: Grey().on((1, 4, 4)), "colour"),
        (lambda: Grey((1.0, 1.0, 1.0)), "sum to 1"),
        (lambda: AveragePool(3).on((1, 4, 4)), "divisible"),
        (lambda: AveragePool(1), "at least 2"),
        (lambda: FunctionOperator(3), "callable"),
        (lambda: Identity((1, 2, 2)).on((1, 3, 3)), "for samples of shape"),
        (lambda: Identity((1, 2, 2))(torch.ones(5, 1, 3, 3)), r"expects \(..., B, 1, 2, 2\)"),
        (lambda: Identity()(torch.ones(2, 2).int()), "int32"),
        (lambda: FunctionOperator(lambda x: x.mean())(torch.ones(2, 2)), r"must return a real tensor \(2, ...\)"),
        (lambda: FunctionOperator(lambda x: "y")(torch.ones(2, 2)), "got str"),
        (lambda: Mask(torch.ones(3, 4, 4))(torch.ones(2, 1, 4, 4)), "does not fit x"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_callables_are_wrapped_and_operators_kept():
    assert isinstance(as_operator(torch.nn.Flatten()), FunctionOperator)
    identity = Identity()
    assert as_operator(identity) is identity


def test_caller_keeps_mask_and_matrix():
    mask, matrix = torch.ones(4), torch.ones(2, 4)
    a, b = Mask(mask), MatrixOperator(matrix)
    mask[0], matrix[0] = 0, 0
    assert a.mask.all() and b.matrix.bool().all()


def test_picture_of_a_measurement():
    assert MatrixOperator(torch.ones(2, 4)).to_image(torch.ones(3, 2)) is None
    assert Identity().to_image(torch.ones(3, 1, 2, 2)).shape == (3, 1, 2, 2)
