"""The steps of a sampler as plain numbers: what a model's scheduler gives and what the samplers take."""

from __future__ import annotations

from dataclasses import dataclass

from render.sampling.process import NoiseLevel, NoiseProcess


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The steps of one sampler over x = alpha * x0 + sigma * noise; alpha follows from sigma and `process`.

    `sigmas` has one more entry than `timesteps`. The last entry is where the final step lands: 0, or the
    model's own smallest sigma for a DDIM that does not set alpha to one.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    process: NoiseProcess = NoiseProcess.EXPLODING
    data_deviation: float = 1.0
    """See `NoiseLevel.data_deviation`."""
    initial_scale: float = 1.0
    """Unit noise times this is the latent that a render from pure noise starts with (step 0)."""
    final_scale: float = 1.0
    """The latent after the last step times this is the decoder's input; 1 when the last sigma is 0."""
    landings: tuple[float, ...] | None = None
    """The sigma at which each step lands, where the stock scheduler does not land on the next entry of
    `sigmas` (DDIM at some spacings). None when it does, which is nearly always."""
    trained_steps: int = 1000
    """Number of noise levels that the model was trained on; timesteps count them."""
    restart: int | None = None
    """The step before which multistep samplers drop their history, because another network takes over."""
    timestep_scaling: float | None = 10.0
    """Steepness of a consistency model's boundary condition, which only `lcm` reads; None where the network's
    estimate of x0 is taken as it is."""

    def level(self, index: int) -> NoiseLevel:
        """The noise level of an entry of `sigmas`."""
        return NoiseLevel(self.sigmas[index], self.process, self.data_deviation)
