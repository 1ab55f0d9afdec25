"""Keys and values of the positions already computed, by layer, at absolute positions."""

from torch import Tensor

from workbench.errors import CacheError
from workbench.runner.config import Config


class KVCache:
    """Grows as the model reads; can be cut back, copied, and forked into many continuations of one prefix.

    Keys are stored after RoPE, so position p of the cache is position p of the text in every layer, sliding ones too.
    """

    def __init__(self, config: Config):
        self.config = config
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
        """Adds batch kv_head pos d_head and returns all keys and values so far."""
        start, stop = self._length[layer], self._length[layer] + k.shape[2]
        self._k[layer] = k_all = _room(self._k[layer], k, start, stop)
        self._v[layer] = v_all = _room(self._v[layer], v, start, stop)
        k_all[:, :, start:stop], v_all[:, :, start:stop] = k, v
        self._length[layer] = stop
        return k_all[:, :, :stop], v_all[:, :, :stop]

    def crop(self, length: int) -> "KVCache":
        """Forgets every position from `length` on; returns itself."""
        self._length = [min(n, length) for n in self._length]
        return self

    def fork(self, n: int = 1, length: int | None = None) -> "KVCache":
        """A new cache with `n` rows for every row of this one, up to `length`; this one stays as it is."""
        other = KVCache(self.config)
        keep = [m if length is None else min(m, length) for m in self._length]
        other._k = [None if x is None else x[:, :, :m].repeat_interleave(n, 0) for x, m in zip(self._k, keep)]
        other._v = [None if x is None else x[:, :, :m].repeat_interleave(n, 0) for x, m in zip(self._v, keep)]
        other._length = keep
        return other

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache with the given batch rows, for continuations that end at different times."""
        other = self.fork()
        other._k = [None if x is None else x[rows] for x in other._k]
        other._v = [None if x is None else x[rows] for x in other._v]
        return other


def _room(held: Tensor | None, new: Tensor, start: int, stop: int) -> Tensor:
    """`held`, or a copy of its first `start` positions with room for `stop` and as many again."""
    if held is not None and held.shape[2] >= stop:
        return held
    room = new.new_empty(new.shape[0], new.shape[1], stop if start == 0 else 2 * stop, new.shape[3])
    if held is not None:
        room[:, :, :start] = held[:, :, :start]
    return room
