import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel

from bayeskit.gp.kernels.evaluate import Evaluated, gram, gram_diagonal, gram_pairs, grams

from ..problems import close, generator, test_inputs

KERNELS = {
    "rbf": lambda: RBFKernel(ard_num_dims=2),
    "scaled_rbf": lambda: ScaleKernel(RBFKernel()),
    "matern12": lambda: ScaleKernel(MaternKernel(nu=0.5)),
    "matern32": lambda: ScaleKernel(MaternKernel(nu=1.5, ard_num_dims=2)),
    "matern52": lambda: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=2)),
    "batch": lambda: ScaleKernel(MaternKernel(nu=2.5, batch_shape=torch.Size([3])), batch_shape=torch.Size([3])),
    "batch_of_scales": lambda: ScaleKernel(RBFKernel(), batch_shape=torch.Size([3])),
    "active": lambda: ScaleKernel(RBFKernel(active_dims=[1])),
    "sum": lambda: ScaleKernel(RBFKernel()) + LinearKernel(),
    "product": lambda: ScaleKernel(RBFKernel() * PeriodicKernel()),
    "periodic": PeriodicKernel,
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    kernel, g = KERNELS[request.param]().double(), generator()
    for parameter in kernel.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=g)
    return kernel


@pytest.mark.parametrize("same", [False, True])
def test_values_and_gradients_are_those_of_gpytorch(kernel, same):
    x1 = test_inputs(5).requires_grad_(True)
    x2 = x1 if same else test_inputs(3, seed=2).requires_grad_(True)
    batch = kernel.batch_shape
    ours = gram(kernel, x1, x2)
    theirs = kernel(x1.expand(*batch, *x1.shape), x2.expand(*batch, *x2.shape)).to_dense()
    assert ours.shape == (*batch, 5, len(x2))
    close(ours, theirs, 1e-12)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator(3))
    leaves = [*kernel.parameters(), x1, x2]
    pairs = zip(*(torch.autograd.grad((weight * k).sum(), leaves) for k in (ours, theirs)), strict=True)
    for one, two in pairs:
        close(one, two, 1e-7)  # their sqrt of a clamped squared distance costs digits where inputs coincide


def test_three_at_once_and_in_another_type(kernel):
    z, x = test_inputs(5), test_inputs(3, seed=2)
    square, cross, diagonal = grams(kernel, z, x, dtype=torch.float64)
    close(square, gram(kernel, z, z), 1e-12)
    close(cross, gram(kernel, z, x), 1e-12)
    close(diagonal.expand(*cross.shape[:-2], 3), gram_diagonal(kernel, x), 1e-12)
    single = gram(kernel, z + 1e4, x + 1e4, dtype=torch.float32)
    assert single.dtype == torch.float32
    close(single.double(), gram(kernel, z + 1e4, x + 1e4), 1e-6)


@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_gradients_of_three_at_once_are_those_of_each(kernel, spread):
    """Far apart too, where squared distances are formed by differences."""
    z, x = test_inputs(5), test_inputs(4, seed=2)
    z[0] += spread
    z, x = z.requires_grad_(True), x.requires_grad_(True)
    leaves = [z, x, *kernel.parameters()]
    g, found = generator(3), []
    ones = gram(kernel, z, z), gram(kernel, z, x), gram_diagonal(kernel, x)
    weights = [torch.randn(t.shape, dtype=torch.float64, generator=g) for t in ones]
    for matrices in (ones, grams(kernel, z, x, dtype=torch.float64)):
        total = sum((w * t).sum() for w, t in zip(weights, matrices, strict=True))
        found.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for one, two in zip(*found, strict=True):
        close(torch.zeros(()) if one is None else one, torch.zeros(()) if two is None else two, 1e-9)


def test_the_derivative_by_hand_is_that_of_differences():
    kernel = KERNELS["matern52"]().double()
    x1, x2 = test_inputs(4).requires_grad_(True), test_inputs(3, seed=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: gram(kernel, a, b), (x1, x2))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_diagonal_is_that_of_the_matrix(kernel, n):
    x = test_inputs(n)
    close(gram_diagonal(kernel, x), gram(kernel, x, x).diagonal(dim1=-2, dim2=-1), 1e-12)
    close(gram_pairs(kernel, x, x.flip(0)), gram(kernel, x, x.flip(0)).diagonal(dim1=-2, dim2=-1), 1e-12)


def test_a_sum_with_a_low_rank_kernel_has_no_jitter():
    """Coinciding inputs make the first term singular; the sum is still the sum."""
    x = torch.zeros(4, 1, dtype=torch.float64)
    kernel = (RBFKernel() + LinearKernel()).double()
    assert torch.equal(gram(kernel, x, x), torch.ones(4, 4, dtype=torch.float64))
    assert torch.equal(Evaluated(kernel)(x).to_dense(), torch.ones(4, 4, dtype=torch.float64))


def test_far_from_the_origin_nothing_cancels():
    kernel, x = RBFKernel().double(), test_inputs(5)
    close(gram(kernel, x + 1e6, x + 1e6), gram(kernel, x, x), 1e-8)


@pytest.mark.parametrize("name", ["scaled_rbf", "matern32", "matern52"])
def test_a_covariance_is_the_same_whatever_rows_are_beside_it(name):
    """Centered at their mean, rows 1e8 from the origin would be rounded to 1e-2 by one row at 1e14."""
    kernel, x = KERNELS[name]().double().requires_grad_(False), test_inputs(5) + 1e8
    beside = torch.cat([x, torch.full((1, 2), 1e14, dtype=torch.float64)])
    close(gram(kernel, beside, beside)[:5, :5], gram(kernel, x, x), 1e-7)  # coordinates are rounded to 1e8 eps
    close(gram(kernel, beside, x)[:5], gram(kernel, x, beside)[:, :5], 1e-7)


@pytest.mark.parametrize(
    "outer",
    [
        lambda: ScaleKernel(RBFKernel(), active_dims=[1]),
        lambda: ScaleKernel(RBFKernel() + LinearKernel(), active_dims=[1]),
        lambda: ScaleKernel(ScaleKernel(RBFKernel(), active_dims=[1])),
        lambda: ScaleKernel(ScaleKernel(RBFKernel()), active_dims=[1]),
    ],
)
def test_columns_of_a_scaled_kernel_are_selected(outer):
    """gpytorch copies `active_dims` from the base to the scaled kernel, so the outer kernel may be alone with them."""
    kernel, x, z = outer().double().requires_grad_(False), test_inputs(5), test_inputs(3, seed=2)
    close(gram(kernel, x, x), kernel(x, x).to_dense(), 1e-12)
    close(gram(kernel, x, z), kernel(x, z).to_dense(), 1e-12)


@pytest.mark.parametrize("name", ["scaled_rbf", "matern32", "matern52"])
def test_clusters_far_apart_do_not_cancel(name):
    """Two clusters 2^25 lengthscales apart are two problems that know nothing of each other; the shift is exact."""
    kernel, g = KERNELS[name]().double(), generator()
    near = torch.randint(-64, 64, (6, 2), generator=g).double() / 32
    far = torch.randint(-64, 64, (5, 2), generator=g).double() / 32
    weight = torch.randn(11, 11, dtype=torch.float64, generator=g)
    apart = torch.cat([near, far + 2.0**25])
    alone = torch.block_diag(gram(kernel, near, near), gram(kernel, far, far))
    leaves = list(kernel.parameters())
    expected = torch.autograd.grad((weight * alone).sum(), leaves)
    for other in (apart, apart.clone()):
        matrix = gram(kernel, apart, other)
        close(matrix, alone, 1e-7)  # coordinates over lengthscales are rounded to 2^26 eps = 1e-8
        for one, two in zip(torch.autograd.grad((weight * matrix).sum(), leaves), expected, strict=True):
            close(one, two, 1e-6)
    assert int(torch.linalg.cholesky_ex(matrix.detach() + 1e-6 * torch.eye(11, dtype=torch.float64))[1]) == 0


def test_gradients_in_inputs_far_apart():
    """Against the kernel written out with differences of coordinates."""
    x1, x2 = test_inputs(4).requires_grad_(True), test_inputs(3, seed=2).requires_grad_(True)
    shift = torch.zeros(4, 2, dtype=torch.float64)
    shift[3] = 3e7
    kernel = KERNELS["rbf"]().double().requires_grad_(False)
    ours = gram(kernel, x1 + shift, x2)
    difference = ((x1 + shift).unsqueeze(1) - x2.unsqueeze(0)) / kernel.lengthscale
    theirs = (-0.5 * difference.square().sum(-1)).exp()
    weight = torch.randn(4, 3, dtype=torch.float64, generator=generator(3))
    for one, two in zip(*(torch.autograd.grad((weight * k).sum(), (x1, x2)) for k in (ours, theirs)), strict=True):
        close(one, two, 1e-7)


@pytest.mark.parametrize("kernel", [RBFKernel(), MaternKernel(nu=1.5), MaternKernel(nu=2.5)])
def test_values_are_the_same_with_and_without_derivatives(kernel):
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far = torch.cat([z, z + 1e4])
    learning, frozen = gram(ScaleKernel(kernel), z, far), gram(ScaleKernel(kernel).requires_grad_(False), z, far)
    assert learning.requires_grad and not frozen.requires_grad
    # two orders of the same few operations
    torch.testing.assert_close(frozen, learning.detach(), rtol=1e-14, atol=0)
