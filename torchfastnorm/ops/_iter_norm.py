"""IterNorm: whitening by Newton's iteration, with the arguments and the state_dict of its authors' module."""

from __future__ import annotations

from typing import Any

from .batch_whitening import Method, _Whitening


class IterNorm(_Whitening):
    """Iterative normalization (Huang, Zhou, Zhu, Liu, Shao 2019, https://arxiv.org/abs/1904.03441): the method
    "iternorm" of :func:`batch_whitening`, as a module that takes its authors' checkpoints.

    Args:
        num_features: C of an input ``(N, C, *)`` of two dimensions or more.
        num_groups: used where ``num_channels`` is None: groups of C / num_groups channels, rounded up. Default: 1.
        num_channels: of a group; halved until it divides C. Default: None.
        T: steps of Newton's iteration. Default: 5.
        dim: dimensions of the input, for the shape of ``weight`` and ``bias``: ``(1, C, 1, 1)`` for 4. Default: 4.
        eps: added to the covariance's diagonal. Default: 1e-5.
        momentum: weight of a batch in the running statistics. Default: 0.1.
        affine: learn ``weight`` (ones at first) and ``bias`` (zeros). Default: True.
        device, dtype: of the parameters and the running statistics.

    Buffers: ``running_mean`` of shape ``(groups, num_channels, 1)``, ``running_wm`` of shape ``(groups, num_channels,
    num_channels)``. Training stops short of exact whitening on purpose: after five steps, small eigenvalues of the
    covariance are scaled up less than large ones.

    Raises:
        ValueError: a number of groups or channels below one, ``dim`` below two; in forward, an input of other channels.
    """

    method: Method = "iternorm"

    def __init__(
        self,
        num_features: int,
        num_groups: int = 1,
        num_channels: int | None = None,
        T: int = 5,  # noqa: N803
        dim: int = 4,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        width = (num_features - 1) // num_groups + 1 if num_channels is None and num_groups > 0 else num_channels
        if width is None or width < 1 or num_features < 1 or dim < 2:
            raise ValueError(
                f"IterNorm: num_features={num_features}, num_groups={num_groups}, num_channels={num_channels} and "
                f"dim={dim} must be positive, dim at least 2"
            )
        while num_features % width:
            width //= 2
        self.num_features, self.num_channels, self.T, self.dim = num_features, width, T, dim
        self.eps, self.momentum = eps, momentum
        self._register((1, num_features, *[1] * (dim - 2)), affine, device, dtype)

    @property
    def iterations(self) -> int:  # type: ignore[override]
        """Another name of ``T``."""
        return self.T

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_channels={self.num_channels}, T={self.T}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}"
        )
