"""Seeds from coordinates, not from a stream: what is drawn at (iteration, prompt, sample) depends on nothing else.

So a resumed run, another batch size and another number of processes draw the same numbers, and a checkpoint needs no
generator state.
"""

import hashlib


def seed_for(seed: int, *coordinates: int | str) -> int:
    """A 63-bit seed for a place in the run, such as seed_for(run_seed, "rollout", iteration, prompt, sample)."""
    digest = hashlib.sha256(repr((seed, *coordinates)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
