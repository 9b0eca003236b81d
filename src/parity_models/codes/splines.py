"""Natural cubic smoothing splines as matrices."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def smoothing_spline(nodes: Matrix, points: Matrix, smoothness: float) -> Matrix:
    """The matrix (points, nodes) from values at `nodes` to the smoothing spline's at `points`.

    The spline g minimises Σ (values - g(nodes))² + smoothness · ∫ g''²: an interpolant for 0,
    the line of least squares in the limit. Beyond the outer nodes it is a line. `nodes` are two
    or more, all different, in any order. (Green, Silverman, 1994, chapter 2.)
    """
    order = np.argsort(nodes)
    x = nodes[order]
    n, gaps = len(x), np.diff(x)
    # Second differences Q (n, n-2), and R (n-2, n-2), in which second derivatives solve R s = Qᵀg.
    q = np.zeros((n, n - 2))
    inner = np.arange(n - 2)
    q[inner, inner] = 1 / gaps[:-1]
    q[inner + 1, inner] = -1 / gaps[:-1] - 1 / gaps[1:]
    q[inner + 2, inner] = 1 / gaps[1:]
    r = np.diag((gaps[:-1] + gaps[1:]) / 3)
    r += np.diag(gaps[1:-1] / 6, 1) + np.diag(gaps[1:-1] / 6, -1)
    bends = np.zeros((n, n))
    bends[1:-1] = np.linalg.solve(r + smoothness * q.T @ q, q.T)
    values = np.eye(n) - smoothness * q @ bends[1:-1]
    result = np.zeros((len(points), n))
    result[:, order] = _evaluate(x, values, bends, points)
    return result


def _evaluate(x: Matrix, values: Matrix, bends: Matrix, points: Matrix) -> Matrix:
    """The natural cubic spline at `points`, from its values and second derivatives at `x`."""
    inside = np.clip(points, x[0], x[-1])
    i = np.clip(np.searchsorted(x, inside), 1, len(x) - 1)
    gap = (x[i] - x[i - 1])[:, None]
    right = (inside - x[i - 1])[:, None] / gap
    left = 1 - right
    cubic = (left**3 - left) * bends[i - 1] + (right**3 - right) * bends[i]
    at = left * values[i - 1] + right * values[i] + cubic * gap**2 / 6
    steepness = (values[i] - values[i - 1]) / gap + (
        (1 - 3 * left**2) * bends[i - 1] + (3 * right**2 - 1) * bends[i]
    ) * gap / 6
    result: Matrix = at + (points - inside)[:, None] * steepness
    return result
