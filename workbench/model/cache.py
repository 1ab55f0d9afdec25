"""Keys and values of the positions already computed, by layer, at absolute positions."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from workbench.errors import CacheError
from workbench.model.config import Config


class Held(NamedTuple):
    """Keys and values of one layer from position `base` on, with room for more: batch kv_head capacity d_head."""

    base: int
    k: Tensor
    v: Tensor


class KVCache:
    """Grows as the model reads; can be cut back, copied, and forked into many continuations of one prefix.

    Keys are stored after RoPE, so position p of the cache is position p of the text in every layer, sliding ones too.
    With `whole=False` a sliding layer forgets what its window has passed: half the memory of a long text, and the
    same numbers, but it cannot be cut back and gives no pattern over all keys.
    """

    def __init__(self, config: Config, whole: bool = True):
        self.config = config
        self.whole = whole
        self._held: list[Held | None] = [None] * config.n_layers
        self._length = [0] * config.n_layers

    @classmethod
    def of(cls, config: Config, layers: Iterable[tuple[Tensor, Tensor]], length: int, whole: bool = True) -> "KVCache":
        """The cache that gave these `layers()`, each kv_head key d_head, after `length` positions."""
        cache = cls(config, whole)
        cache._held = [Held(length - k.shape[1], k[None], v[None]) for k, v in layers]
        cache._length = [length] * config.n_layers
        return cache

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values by layer, for a batch of one: kv_head key d_head, of the positions that still count."""
        found = []
        for layer, (held, length) in enumerate(zip(self._held, self._length)):
            assert held is not None, "nothing was read"
            used = length - held.base
            at = slice(used - self._kept(layer, used), used)
            found.append((held.k[0, :, at], held.v[0, :, at]))
        return found

    def length(self, layer: int = -1) -> int:
        """Positions held by a layer; layers differ after a pass that was resumed above the first one."""
        return self._length[layer]

    def even_from(self, first: int) -> int:
        """The positions that every layer from `first` on holds. Raises CacheError if they hold different numbers."""
        lengths = set(self._length[first:])
        if len(lengths) > 1:
            raise CacheError(
                f"the layers of this cache hold different numbers of positions, {self._length}: a pass resumed in the "
                f"middle, or interrupted, left the lower ones behind. Use cache.crop({min(self._length)}) first."
            )
        return lengths.pop()

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds batch kv_head pos d_head and returns all keys and values so far, or the last ones that still count."""
        start, held = self._length[layer], self._held[layer]
        stop, base = start + k.shape[2], held.base if held else 0
        if held is None or held.k.shape[2] < stop - base:
            used = start - base
            keep = self._kept(layer, used)
            old_k, old_v = (held.k, held.v) if held else (None, None)
            held = Held(start - keep, _room(old_k, k, keep, used), _room(old_v, v, keep, used))
            self._held[layer] = held  # at once: an interrupt finds the one or the other
        here, end = slice(start - held.base, stop - held.base), stop - held.base
        held.k[:, :, here], held.v[:, :, here] = k, v
        self._length[layer] = stop
        return held.k[:, :, :end], held.v[:, :, :end]

    def _kept(self, layer: int, used: int) -> int:
        """How many of the last `used` positions a layer needs for those to come."""
        sliding = not self.whole and self.config.is_sliding(layer)
        return min(used, self.config.window - 1) if sliding else used

    def crop(self, length: int) -> "KVCache":
        """Forgets every position from `length` on; returns itself. CacheError if a window has passed it."""
        if any(held and held.base > max(0, length - self.config.window + 1) for held in self._held):
            raise CacheError(
                f"this cache keeps what the window of its sliding layers still needs, and cannot go back to {length} "
                f"positions. Make it with KVCache(config), which keeps all."
            )
        self._length = [min(n, length) for n in self._length]
        return self

    def fork(self, n: int = 1, length: int | None = None) -> "KVCache":
        """A new cache with `n` rows for every row of this one, up to `length`; this one stays as it is."""
        other = KVCache(self.config, self.whole)
        other._held = [
            held and Held(held.base, *(x[:, :, : m - held.base].repeat_interleave(n, 0) for x in held[1:]))
            for held, m in zip(self._held, self._length)
        ]
        other._length = list(self._length)
        return other if length is None else other.crop(length)

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache with the given batch rows, for continuations that end at different times."""
        other = self.fork()
        other._held = [held and Held(held.base, held.k[rows], held.v[rows]) for held in other._held]
        return other


def _room(held: Tensor | None, new: Tensor, keep: int, used: int) -> Tensor:
    """A tensor that begins with the last `keep` positions of `held`, and has room for the new ones and some to come."""
    n = new.shape[2]
    room = new.new_empty(new.shape[0], new.shape[1], n if keep == 0 else 2 * keep + n, new.shape[3])
    if held is not None and keep:
        room[:, :, :keep] = held[:, :, used - keep : used]
    return room
