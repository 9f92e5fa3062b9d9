"""The version of the engine's numerics, which unfinished work and manifests carry beside torch's version.

Raise `NUMERICS` with every change after which the same spec gives other bits anywhere between the first
noise and the last tile: in the noise, the layout of windows, the order or the type of a sum, a sampler, the
decoder, an encoder of tiles. Do not raise it for a release, a rename or a speed-up that keeps all bits.
tests/render/test_numerics.py lists what checks the bits.
"""

from __future__ import annotations

NUMERICS = 1
_BEFORE_NUMBERS = "chorale-0.1.0"
"""What version 0.1.0 of the package wrote in place of `numerics-1`; its bits are the same."""


def same_numerics(found: object, identity: str) -> bool:
    """Whether unfinished work of identity `found` may be continued by a render of `identity`.

    An identity ends in `numerics-N`; see `render.denoise.checkpoint.identity_of`.
    """
    stem, _, numerics = identity.rpartition(" ")
    return found == identity or (numerics == "numerics-1" and found == f"{stem} {_BEFORE_NUMBERS}")
