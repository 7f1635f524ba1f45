"""The baseline for comparison: a linear head trained by gradient descent."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SoftmaxRegression:
    """A linear softmax head on standardised features, trained by gradient descent with momentum.

    Trained on one class after another, it is plain fine-tuning; trained on everything at once, the usual upper bound.
    """

    def __init__(self, mean: NDArray[np.float32], scale: NDArray[np.float32], decay: float = 1e-3) -> None:
        self.mean, self.scale, self.decay = mean, np.maximum(scale, 1e-6), decay
        self.weight = np.zeros((0, len(mean)), np.float32)
        self.bias = np.zeros(0, np.float32)

    def fit(self, features: NDArray[np.float32], truth: NDArray[np.int64], classes: int, steps: int = 150,
            rate: float = 0.5) -> None:
        """Continue training on features [n, d], truth [n] in 0..classes - 1; new classes start with zero weights."""
        fresh = classes - len(self.bias)
        self.weight = np.vstack([self.weight, np.zeros((fresh, len(self.mean)), np.float32)])
        self.bias = np.append(self.bias, np.zeros(fresh, np.float32))
        x, target = self._standard(features), np.eye(classes, dtype=np.float32)[truth]
        speed_w, speed_b = np.zeros_like(self.weight), np.zeros_like(self.bias)
        pace = rate / max(float((x ** 2).sum(1).mean()), 1.0) * 4  # the curvature of softmax is at most |x|^2 / 2
        for _ in range(steps):
            error = (self._probabilities(x) - target) / np.float32(len(x))
            speed_w = 0.9 * speed_w - pace * (error.T @ x + self.decay * self.weight)
            speed_b = 0.9 * speed_b - pace * error.sum(0)
            self.weight += speed_w
            self.bias += speed_b

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """The most likely class for each of features [n, d], int64 [n]."""
        return np.asarray(self._probabilities(self._standard(features)).argmax(1), np.int64)

    def _standard(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray((features - self.mean) / self.scale, np.float32)

    def _probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = x @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)
