"""How far two ways to the same numbers may differ: by the rounding of their arithmetic, on whatever processor."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SHARE = 1e-3
FLOOR = 2**-17
"""What float32 may lose, as shares of a tensor's own largest number and of the largest of all tensors.

A sum of n terms is off by at most n * 2 ** -24 of the sum of their sizes. The tests' models add up some hundreds of
terms, which partly cancel out, through a handful of layers. What cancels out altogether (the gradient of an attention
key's bias) is rounding of the others alone: hence the floor. A caption, position or image that takes part where it
must not changes the first or second digit.
"""


def assert_equal_to_rounding(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """The same names, and no number differs by more than rounding."""
    assert ours.keys() == theirs.keys()
    sizes = {name: float(tensor.abs().max()) for name, tensor in theirs.items() if tensor.numel()}
    largest = max(sizes.values())
    assert largest > 0, "nothing to compare"
    wrong = {}
    for name, size in sizes.items():
        difference = float((ours[name] - theirs[name]).abs().max())
        if difference > SHARE * size + FLOOR * largest:
            wrong[name] = f"{difference:.3g} of {size:.3g}"
    assert wrong == {}, f"more than rounding; the largest number of all is {largest:.3g}"
