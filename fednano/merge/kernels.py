"""The loops of a merge over elements, compiled when a process first calls them, which takes 0.6 s.

NumPy writes every step's intermediate values to memory, and threads queue for the interpreter between two steps. A
compiled loop reads each element once and runs outside the interpreter. Without ``fastmath`` the compiler neither
reorders sums nor contracts a product and a sum into one rounding: every bit is what NumPy gives, step by step.

Nothing here checks sizes: all arrays of a call have the same number of elements, but for LANES.
Dimensions: I the elements of one block · L the lanes of a sum.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from fednano.adapter_layout import Float32Array

Float64Array = NDArray[np.float64]

# A sum over elements goes into so many lanes, element i into lane i % LANES, and the lanes are summed in the end:
# additions that do not wait for one another, in an order that is the same on every machine.
LANES = 1024


@numba.njit(nogil=True)
def add_by_fisher(
    theta_I: Float32Array,
    fisher_I: Float32Array,
    base_I: Float64Array,
    clip: float,
    factor: float,
    added: float,
    numerator_I: Float64Array,
    denominator_I: Float64Array,
) -> None:
    """Adds a client to the sums of Eq. 1, with ``factor`` * F_i + ``added`` for its weight.

    Where ``clip`` is below 1, the client's theta is pulled towards the base adapter by it.
    """
    for i in range(theta_I.size):
        theta, base, weight = np.float64(theta_I[i]), base_I[i], np.float64(fisher_I[i]) * factor + added
        if clip < 1.0:
            theta = (theta - base) * clip + base
        denominator_I[i] += weight
        numerator_I[i] += theta * weight


@numba.njit(nogil=True)
def add_alike(
    theta_I: Float32Array, base_I: Float64Array, clip: float, weight: float, numerator_I: Float64Array
) -> None:
    """``add_by_fisher`` where F = 1, for which the caller has the denominator."""
    for i in range(theta_I.size):
        theta, base = np.float64(theta_I[i]), base_I[i]
        if clip < 1.0:
            theta = (theta - base) * clip + base
        numerator_I[i] += theta * weight


@numba.njit(nogil=True)
def add_squared_differences(theta_I: Float32Array, base_I: Float64Array, squares_L: Float64Array) -> None:
    """Adds the squares of what a client changed."""
    for start in range(0, theta_I.size, LANES):
        theta_L, base_L = theta_I[start : start + LANES], base_I[start : start + LANES]
        for lane in range(theta_L.size):
            moved = np.float64(theta_L[lane]) - base_L[lane]
            squares_L[lane] += moved * moved


@numba.njit(nogil=True)
def add_sums(fisher_I: Float32Array, sums_L: Float64Array, squares_L: Float64Array) -> None:
    """Adds a client's Fisher information, and its squares."""
    for start in range(0, fisher_I.size, LANES):
        fisher_L = fisher_I[start : start + LANES]
        for lane in range(fisher_L.size):
            value = np.float64(fisher_L[lane])
            sums_L[lane] += value
            squares_L[lane] += value * value
