"""The noise process of a model: x = alpha * x0 + sigma * noise, at every noise level that it was trained on.

The engine's canvas is x in one of three parametrisations, which differ in alpha only. At a model's
highest level alpha may be 0 (flow matching, zero terminal signal-to-noise ratio) and at the lowest sigma is
0; nothing here divides by either, except for a network that predicts the noise, which says nothing of x0 at
alpha 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from render.errors import BadInput

EPSILON, V_PREDICTION, SAMPLE, FLOW = "epsilon", "v_prediction", "sample", "flow"
PREDICTION_TYPES = (EPSILON, V_PREDICTION, SAMPLE, FLOW)


class NoiseProcess(StrEnum):
    """How much of x0 is left at a noise level."""

    EXPLODING = "exploding"
    """alpha = 1. The models of Ho et al. (arXiv 2006.11239) are stepped in this form too, as in k-diffusion:
    their own tensor is x * `NoiseLevel.input_scale`."""
    PRESERVING = "preserving"
    """alpha^2 + sigma^2 = 1, for what has a level of alpha 0: schedules of zero terminal signal-to-noise
    ratio (arXiv 2305.08891) and TrigFlow (arXiv 2410.11081)."""
    FLOW = "flow"
    """alpha + sigma = 1: flow matching on straight lines (arXiv 2209.03003, 2210.02747)."""

    def alpha(self, sigma: float) -> float:
        """alpha at the level of this sigma."""
        if self is NoiseProcess.EXPLODING:
            return 1.0
        if self is NoiseProcess.PRESERVING:
            return math.sqrt(max(0.0, 1.0 - sigma * sigma))
        return 1.0 - sigma


@dataclass(frozen=True)
class NoiseLevel:
    """One level of a noise process."""

    sigma: float
    process: NoiseProcess = NoiseProcess.EXPLODING
    data_deviation: float = 1.0
    """Deviation of x0 that the network was made for (sigma_data of arXiv 2206.00364)."""

    @property
    def alpha(self) -> float:
        """The factor of x0."""
        return self.process.alpha(self.sigma)

    @property
    def input_scale(self) -> float:
        """The factor on x at the input of the network."""
        return 1.0 / self._deviation if self.process is NoiseProcess.EXPLODING else 1.0

    @property
    def noise_share(self) -> float:
        """The share of the noise in x, by variance: 0 to 1."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)

    def at(self, sigma: float) -> NoiseLevel:
        """Another level of the same process."""
        return NoiseLevel(sigma, self.process, self.data_deviation)

    def denoised_terms(self, prediction_type: str) -> tuple[float, float]:
        """(p, q) of x0 = p * x + q * prediction.

        `epsilon` is the noise (arXiv 2006.11239), `v_prediction` the velocity of the variance-preserving form
        (arXiv 2202.00512, appendix D), `sample` x0 itself and `flow` noise - x0.
        Raises `BadInput` for an unknown prediction type.
        """
        alpha, sigma, data = self.alpha, self.sigma, self.data_deviation
        if prediction_type == EPSILON:
            return 1.0 / alpha, -sigma / alpha
        if prediction_type == V_PREDICTION:
            return alpha * data * data / self._variance, -sigma * data * (1.0 / self._deviation)
        if prediction_type == SAMPLE:
            return 0.0, 1.0
        if prediction_type == FLOW:
            return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
        raise BadInput("prediction_type", prediction_type, f"is unknown; use {', '.join(PREDICTION_TYPES)}")

    @property
    def _variance(self) -> float:
        scaled = self.alpha * self.data_deviation
        return scaled * scaled + self.sigma * self.sigma

    @property
    def _deviation(self) -> float:
        return math.sqrt(self._variance)
