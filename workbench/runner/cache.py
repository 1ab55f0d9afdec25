"""Keys and values of the positions already computed, by layer, at absolute positions."""

from collections.abc import Iterable

from torch import Tensor

from workbench.errors import CacheError
from workbench.runner.config import Config


class KVCache:
    """Grows as the model reads; can be cut back, copied, and forked into many continuations of one prefix.

    Keys are stored after RoPE, so position p of the cache is position p of the text in every layer, sliding ones too.
    With `whole=False` a sliding layer forgets what its window has passed: half the memory of a long text, and the
    same numbers, but it cannot be cut back and gives no pattern over all keys.
    """

    def __init__(self, config: Config, whole: bool = True):
        self.config = config
        self.whole = whole
        self._base = [0] * config.n_layers  # the first position that is still held
        self._k: list[Tensor | None] = [None] * config.n_layers  # batch kv_head capacity d_head
        self._v: list[Tensor | None] = [None] * config.n_layers
        self._length = [0] * config.n_layers

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
        start, base = self._length[layer], self._base[layer]
        stop, held = start + k.shape[2], self._k[layer]
        if held is None or held.shape[2] < stop - base:
            keep = used = start - base
            if not self.whole and self.config.is_sliding(layer):
                keep = min(keep, self.config.window - 1)
            self._base[layer] = base = start - keep
            self._k[layer] = _room(held, k, keep, used)
            self._v[layer] = _room(self._v[layer], v, keep, used)
        k_all, v_all = self._k[layer], self._v[layer]
        assert k_all is not None and v_all is not None
        here, end = slice(start - base, stop - base), stop - base
        k_all[:, :, here], v_all[:, :, here] = k, v
        self._length[layer] = stop
        return k_all[:, :, :end], v_all[:, :, :end]

    def crop(self, length: int) -> "KVCache":
        """Forgets every position from `length` on; returns itself. CacheError if a window has passed it."""
        if any(base > max(0, length - self.config.window + 1) for base in self._base):
            raise CacheError(
                f"this cache keeps what the window of its sliding layers still needs, and cannot go back to {length} "
                f"positions. Make it with KVCache(config), which keeps all."
            )
        self._length = [min(n, length) for n in self._length]
        return self

    def fork(self, n: int = 1, length: int | None = None) -> "KVCache":
        """A new cache with `n` rows for every row of this one, up to `length`; this one stays as it is."""
        other = KVCache(self.config, self.whole)
        other._base = list(self._base)
        other._k = [
            None if x is None else x[:, :, : m - b].repeat_interleave(n, 0) for x, m, b in self._layers(self._k)
        ]
        other._v = [
            None if x is None else x[:, :, : m - b].repeat_interleave(n, 0) for x, m, b in self._layers(self._v)
        ]
        other._length = list(self._length)
        return other if length is None else other.crop(length)

    def _layers(self, held: list[Tensor | None]) -> Iterable[tuple[Tensor | None, int, int]]:
        return zip(held, self._length, self._base)

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache with the given batch rows, for continuations that end at different times."""
        other = self.fork()
        other._k = [None if x is None else x[rows] for x in other._k]
        other._v = [None if x is None else x[rows] for x in other._v]
        return other


def _room(held: Tensor | None, new: Tensor, keep: int, used: int) -> Tensor:
    """A tensor that begins with the last `keep` positions of `held`, and has room for the new ones and some to come."""
    n = new.shape[2]
    room = new.new_empty(new.shape[0], new.shape[1], n if keep == 0 else 2 * keep + n, new.shape[3])
    if held is not None and keep:
        room[:, :, :keep] = held[:, :, used - keep : used]
    return room
