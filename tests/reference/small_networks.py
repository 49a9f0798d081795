"""Naive float64 versions of the small methods and problems, in numpy, written from the textbooks."""

from __future__ import annotations

import numpy as np


def rosenbrock_residuals(w, noise=1.0):
    return np.array([1 - w[0], 10 * np.sqrt(noise) * (w[1] - w[0] ** 2)])


def rosenbrock(w, noise=1.0):
    return (1 - w[0]) ** 2 + 100 * noise * (w[1] - w[0] ** 2) ** 2


def rosenbrock_gradient(w, noise=1.0):
    height = w[1] - w[0] ** 2
    return np.array([-2 * (1 - w[0]) - 400 * noise * w[0] * height, 200 * noise * height])


def rosenbrock_hessian(w, noise=1.0):
    return np.array(
        [
            [2 - 400 * noise * (w[1] - 3 * w[0] ** 2), -400 * noise * w[0]],
            [-400 * noise * w[0], 200 * noise],
        ]
    )


def rosenbrock_gauss_newton(w, noise=1.0):
    jacobian = np.array([[-1.0, 0.0], [-20 * np.sqrt(noise) * w[0], 10 * np.sqrt(noise)]])
    return 2 * jacobian.T @ jacobian


def newton(w, damping):
    """One step with absolute eigenvalues, halved until the objective falls enough."""
    gradient = rosenbrock_gradient(w)
    eigenvalues, vectors = np.linalg.eigh(rosenbrock_hessian(w))
    step = sum(-(v @ gradient) / (abs(h) + damping) * v for h, v in zip(eigenvalues, vectors.T, strict=True))
    length = 1.0
    while rosenbrock(w + length * step) > rosenbrock(w) + 1e-4 * length * (gradient @ step):
        length /= 2
    return w + length * step


def levenberg_marquardt(w, damping, factor=10.0):
    """One step and the damping after it."""
    gradient, matrix = rosenbrock_gradient(w), rosenbrock_gauss_newton(w)
    while True:
        step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), -gradient)
        if rosenbrock(w + step) < rosenbrock(w):
            return w + step, damping / factor
        damping *= factor


def inverse_by_entries(inverse, s, y):
    """The BFGS update of an inverse Hessian, from the formula for the Hessian itself and an inversion."""
    hessian = np.linalg.inv(inverse)
    product = hessian @ s
    updated = hessian - np.outer(product, product) / (s @ product) + np.outer(y, y) / (y @ s)
    return np.linalg.inv(updated)


def difference_jacobian(function, w, step=1e-5):
    """Central differences of a vector-valued function, (outputs, inputs)."""
    columns = []
    for index in range(len(w)):
        moved = np.zeros_like(w)
        moved[index] = step
        columns.append((function(w + moved) - function(w - moved)) / (2 * step))
    return np.stack(columns, axis=1)
