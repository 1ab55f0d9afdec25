"""Keys and values of the positions already computed, by layer, at absolute positions."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from workbench.errors import CacheError
from workbench.model.config import Config


class LayerCache(NamedTuple):
    """Keys and values of one layer from position `base` on, with spare capacity: batch kv_head capacity d_head."""

    base: int
    k: Tensor
    v: Tensor


class KVCache:
    """Grows with each pass; can be cropped, copied, and forked into many continuations of one prefix.

    Keys are stored after RoPE, so position p of the cache is position p of the text in every layer, sliding ones too.
    With `whole=False` a sliding layer drops the positions that its window has passed. That halves the memory of a long
    text and gives the same numbers, but the cache cannot be cropped further back and has no pattern over all keys.
    """

    def __init__(self, config: Config, whole: bool = True):
        self.config = config
        self.whole = whole
        self._layers: list[LayerCache | None] = [None] * config.n_layers
        self._length = [0] * config.n_layers

    @classmethod
    def of(cls, config: Config, layers: Iterable[tuple[Tensor, Tensor]], length: int, whole: bool = True) -> "KVCache":
        """The cache that returned these `layers()`, each kv_head key d_head, after `length` positions."""
        cache = cls(config, whole)
        cache._layers = [LayerCache(length - k.shape[1], k[None], v[None]) for k, v in layers]
        cache._length = [length] * config.n_layers
        return cache

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values by layer, for a batch of one: kv_head key d_head, of the positions that are still needed."""
        tensors = []
        for layer, (cached, length) in enumerate(zip(self._layers, self._length)):
            assert cached is not None, "the cache is empty"
            used = length - cached.base
            span = slice(used - self._n_needed(layer, used), used)
            tensors.append((cached.k[0, :, span], cached.v[0, :, span]))
        return tensors

    def length(self, layer: int = -1) -> int:
        """The number of positions in a layer. Layers differ after a pass that started above the first layer."""
        return self._length[layer]

    def common_length(self, first: int) -> int:
        """The number of positions in every layer from `first` on. Raises CacheError if the layers differ."""
        lengths = set(self._length[first:])
        if len(lengths) > 1:
            raise CacheError(
                f"the layers of this cache have different numbers of positions, {self._length}, because a pass started "
                f"above the first layer or was interrupted. Call cache.crop({min(self._length)}) first."
            )
        return lengths.pop()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append batch kv_head pos d_head and return all keys and values, or the last ones that are still needed."""
        start, cached = self._length[layer], self._layers[layer]
        stop, base = start + k.shape[2], cached.base if cached else 0
        if cached is None or cached.k.shape[2] < stop - base:
            used = start - base
            keep = self._n_needed(layer, used)
            old_k, old_v = (cached.k, cached.v) if cached else (None, None)
            cached = LayerCache(start - keep, _reserve(old_k, k, keep, used), _reserve(old_v, v, keep, used))
            self._layers[layer] = cached  # one assignment: an interrupt leaves either the old tensors or the new ones
        new, end = slice(start - cached.base, stop - cached.base), stop - cached.base
        cached.k[:, :, new], cached.v[:, :, new] = k, v
        self._length[layer] = stop
        return cached.k[:, :, :end], cached.v[:, :, :end]

    def _n_needed(self, layer: int, used: int) -> int:
        """How many of the last `used` positions of a layer later positions can attend to."""
        sliding = not self.whole and self.config.is_sliding(layer)
        return min(used, self.config.window - 1) if sliding else used

    def crop(self, length: int) -> "KVCache":
        """Drop every position from `length` on and return the cache. CacheError if a window has already passed it."""
        if any(cached and cached.base > max(0, length - self.config.window + 1) for cached in self._layers):
            raise CacheError(
                f"this cache keeps only the current window of its sliding layers and cannot be cropped to {length} "
                f"positions. Use KVCache(config), which keeps all positions."
            )
        self._length = [min(n, length) for n in self._length]
        return self

    def fork(self, n: int = 1, length: int | None = None) -> "KVCache":
        """A new cache with `n` rows for every row of this one, up to `length`; this one is unchanged."""
        other = KVCache(self.config, self.whole)
        other._layers = [
            cached
            and LayerCache(cached.base, *(x[:, :, : m - cached.base].repeat_interleave(n, 0) for x in cached[1:]))
            for cached, m in zip(self._layers, self._length)
        ]
        other._length = list(self._length)
        return other if length is None else other.crop(length)

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache with the given batch rows, for continuations that end at different times."""
        other = self.fork()
        other._layers = [cached and LayerCache(cached.base, cached.k[rows], cached.v[rows]) for cached in other._layers]
        return other


def _reserve(old: Tensor | None, new: Tensor, keep: int, used: int) -> Tensor:
    """A tensor that begins with the last `keep` of `used` positions of `old`, with capacity for `new` and more."""
    n = new.shape[2]
    capacity = new.new_empty(new.shape[0], new.shape[1], n if keep == 0 else 2 * keep + n, new.shape[3])
    if old is not None and keep:
        capacity[:, :, :keep] = old[:, :, used - keep : used]
    return capacity
