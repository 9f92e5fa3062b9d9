"""Equal latents in the step loop; which of a sheet's latents are, `render.plan.latent_classes` says.

They start equal (`stage_noise`, `cascade.enlarge`). At each step all that was predicted of a class, wherever
on the sheet, makes one mean for it: in the step's one gather ranks say the sums of what they have predicted,
as 64-bit integers, so that the mean does not depend on the ranks. The sampler is elementwise and keeps equal
things equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from render.denoise.fusion import FixedPoint
from render.plan.geometry import Mask, Rect
from render.plan.latent_classes import LatentClasses
from render.plan.stages import Stage
from render.plan.topology import topology_of
from render.sampling.noise import normal, normal_at


def stage_noise(stage: Stage, seed: int, step: int, channels: int, area: Rect) -> Tensor:
    """A stage's noise in an area, [C, area.height, area.width]: equal where latents are."""
    surface = topology_of(stage.grid)
    noise = torch.from_numpy(normal(seed, stage.index, step, channels, area, surface))
    if stage.latent_classes is not None:
        tied = shared_latents_in(stage, area)
        values = normal_at(seed, stage.index, step, channels, stage.latent_classes.firsts, surface)
        noise.flatten(1)[:, tied.places] = torch.from_numpy(values)[:, tied.classes]
    return noise


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedLatents:
    """The tied latents of an area of the canvas."""

    latent_classes: LatentClasses
    places: Tensor
    """Flat in the area, int64."""
    classes: Tensor
    mask: Mask
    """[area.height, area.width]"""

    @cached_property
    def sizes(self) -> Tensor:
        return torch.from_numpy(self.latent_classes.sizes)

    def say(self, sums: Tensor) -> Tensor:
        """What this rank has predicted of each class: [C, box] int32 sums -> [C, 2 * classes] int32."""
        places, classes = self.places.to(sums.device), self.classes.to(sums.device)
        said = torch.zeros((len(sums), len(self.latent_classes.sizes)), dtype=torch.int64, device=sums.device)
        said.index_add_(1, classes, sums.flatten(1)[:, places].long())
        return said.view(torch.int32)

    def settle(self, prediction: Tensor, heard: Tensor, fixed: FixedPoint) -> None:
        """Put each class's mean in its places of [C, box]; `heard` is [world_size, C, 2 * classes]."""
        device = prediction.device
        total = heard.contiguous().view(torch.int64).sum(0)
        mean = fixed.decode(total.double() / self.sizes.to(device))
        prediction.flatten(1)[:, self.places.to(device)] = mean[:, self.classes.to(device)]


@lru_cache(maxsize=4)
def shared_latents_in(stage: Stage, area: Rect) -> SharedLatents:
    """The tied latents of an area; only for a stage that has ties."""
    ties = stage.latent_classes
    assert ties is not None
    near, places = topology_of(stage.grid).inside(ties.places, area)
    mask = np.zeros(area.area, np.bool_)
    mask[places] = True
    return SharedLatents(
        latent_classes=ties,
        places=torch.from_numpy(places),
        classes=torch.from_numpy(ties.classes[near]),
        mask=mask.reshape(area.height, area.width),
    )
