"""The compiled loops against the same loops uncompiled, and what a solve leaves as it found it."""

import random
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from dualview.solvers import crammer_singer
from dualview.solvers.crammer_singer import _loop
from dualview.solvers.crammer_singer.problem import pose
from dualview.solvers.crammer_singer.rows import Rows
from dualview.solvers.crammer_singer.sequential import Patience, SequentialAscent

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def tiny(num_classes, seed=0):
    values = np.random.default_rng(seed)
    labels = np.arange(23) % num_classes
    return values.normal(size=(23, 5)).astype(np.float32) + labels[:, None], labels


@pytest.mark.parametrize("num_classes", [2, 5, 7])
@pytest.mark.parametrize(("rows", "dtype"), [(FLOAT32, FLOAT32), (FLOAT32, FLOAT64), (FLOAT64, FLOAT64)])
def test_compiled_and_plain_loops_agree(num_classes, rows, dtype):
    """Both visit the same rows in the same order; they differ in how they order the sum of a product.

    Each of some 500 steps contracts what an earlier one rounded differently, so that the coefficients,
    at most 1, stay within a few hundred rounding errors of each other.
    """
    problem = pose(*tiny(num_classes), C=0.3)
    ends = []
    for compiled in (True, False):
        ascent = SequentialAscent(Rows(problem, dtype=rows, seed=1), dtype=dtype, compiled=compiled)
        ascent.run(1e-30, 25.0, Patience(9, dual=0.0, gap=1.0))
        ends.append((ascent.best, ascent.gap, ascent.passes))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=500 * np.finfo(dtype).eps)
    assert ends[0][2] == ends[1][2]
    assert ends[0][1] == pytest.approx(ends[1][1], rel=0.01, abs=500 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("compiled", [True, False])
def test_one_step_is_the_exact_projection(compiled):
    """A row's new p/C is the point of the simplex nearest to e_y - u + G/(C A), found here by bisection."""
    values = np.random.default_rng(2)
    for num_classes in (2, 3, 6, 11):
        for C in (1e-3, 1.0, 1e3):
            weights = values.normal(size=(num_classes, 8))
            features = values.normal(size=(1, 8))
            u = np.zeros((1, num_classes))
            y = int(values.integers(num_classes))
            sq_norm = (features**2).sum(1)
            scores = weights @ features[0] + (np.arange(num_classes) != y)
            target = (np.arange(num_classes) == y) + scores / (C * sq_norm)
            low, high = target.min() - 1, target.max()
            for _ in range(200):
                tau = (low + high) / 2
                low, high = (tau, high) if np.maximum(target - tau, 0).sum() > 1 else (low, tau)
            expected = (np.arange(num_classes) == y) - np.maximum(target - tau, 0)

            before = weights.copy()
            state = np.array([12345], np.uint64)
            row, label, none = np.zeros(1, np.int64), np.array([y]), np.zeros(0, np.int64)
            (_loop.ascend if compiled else _loop.ascend.py_func)(
                features, none, none, label, np.array([C]), sq_norm, u, weights, row, 1, 1, np.inf, state
            )
            np.testing.assert_allclose(u[0], expected, atol=1e-12 * max(1, np.abs(target).max()))
            np.testing.assert_allclose(weights - before, C * u.T * features, atol=1e-12 * max(1, C))


def test_every_row_is_visited_in_each_pass_and_orders_differ():
    """With weights that leave all rows at a corner no row moves, so that only the order shows."""
    orders = []
    for window in (4, 50):
        rows, state = np.arange(50), np.array([99], np.uint64)
        features = np.ones((50, 1))
        none, ones = np.zeros(0, np.int64), np.ones(50)
        weights = np.array([[9.0], [0.0]])
        arguments = features, none, none, np.zeros(50, np.int64), ones, ones, np.zeros((50, 2)), weights
        for _ in range(2):
            visits = _loop.ascend.py_func(*arguments, rows, 1, window, np.inf, state)
            assert visits == 50 and sorted(rows) == list(range(50))
            orders.append(rows.copy())
    assert len({tuple(order) for order in orders}) == 4
    assert np.abs(orders[0] - np.arange(50)).mean() < np.abs(orders[2] - np.arange(50)).mean() / 2


def test_same_seed_same_bits():
    features, labels = tiny(3)
    first, again = (crammer_singer(features, labels, C=0.5, seed=4) for _ in range(2))
    other = crammer_singer(features, labels, C=0.5, seed=5)
    assert torch.equal(first.coefficients.indices(), again.coefficients.indices())
    assert torch.equal(first.coefficients.values(), again.coefficients.values())
    assert torch.equal(first.weights, again.weights) and first.epochs == again.epochs
    assert not torch.equal(first.weights, other.weights)


def test_random_states_threads_and_inputs_are_left_alone():
    features, labels = tiny(3)
    kept = features.copy(), labels.copy()
    torch.set_num_threads(1)
    legacy = np.random.get_state
    states = random.getstate(), legacy()[1].copy(), torch.get_rng_state()
    pools = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    crammer_singer(features, labels, C=0.5)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(legacy()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.get_num_threads() == 1
    assert [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()] == pools
    np.testing.assert_array_equal(features, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


def test_numba_is_imported_by_the_first_solve_only():
    code = (
        "import sys, numpy as np\n"
        "import dualview.solvers\n"
        "print('numba' in sys.modules)\n"
        "dualview.solvers.crammer_singer(np.eye(2), np.arange(2), C=1.0)\n"
        "print('numba' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout.split(), run.stderr) == (["False", "True"], "")


def test_public_name_is_the_function_whatever_else_is_imported():
    import dualview.solvers
    import dualview.solvers.crammer_singer.certificate

    assert dualview.solvers.crammer_singer is crammer_singer and callable(crammer_singer)
    assert dualview.solvers.__all__ == sorted(dualview.solvers.__all__)


def test_loops_compile_where_nothing_can_be_cached():
    """numba finds no place for the machine code of a source that is not a file, and says so by an error."""
    namespace = {"__name__": "loops_without_a_file"}
    exec(compile(Path(_loop.__file__).read_text(encoding="utf-8"), "<no file>", "exec"), namespace)
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(namespace["assess"].py_func, cache=True)
    scores = np.array([[0.0, 2.0]])
    found = namespace["assess"](scores, np.array([0]), np.array([0.5]), np.array([[0.25, -0.25]]), np.zeros(1))
    assert found == (0.5 * 3.0, 0.5 * 0.75 * 3, 0.5 * 0.25)
