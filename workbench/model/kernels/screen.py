"""The next token from an int8 copy of the unembedding: equal to the one from all logits, with half the bytes read.

The copy gives bounds of every logit that are certain, rounding included (screen.h has the proof). Only the rows that
can be the largest after temperature and noise are then computed in bf16, by the kernel that would compute all of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.errors import ArgumentError
from workbench.model.kernels import large_pages, native
from workbench.model.kernels.noise import WORD

MAX_ROW = 32_768  # numbers of a row, so that sums of a useful precision fit in int32
PADDING = 64  # numbers of a row of the copy are a multiple of this
CANDIDATE_SHARE = 8  # of 8 rows, at most one may be a candidate: with more, computing all rows is as fast


class Candidates(NamedTuple):
    """The rows that can be the next token, and what is known of all rows."""

    token_ids: Tensor  # int64, ascending
    lower: Tensor  # bf16 [d_vocab]: each logit is at least this
    upper: Tensor  # bf16 [d_vocab]: and at most this
    noise: Tensor  # fp64 [d_vocab], empty at temperature 0


@dataclass(frozen=True, eq=False, repr=False)
class Screen:
    """An int8 copy of an unembedding matrix, with which `next_token` is found.

    >>> import torch
    >>> unembed = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    >>> screen = Screen.of(unembed)
    >>> screen
    Screen(d_vocab=300, d_model=64, nbytes=22800)
    >>> screen.next_token(unembed[7], temperature=0, seed=0, position=0)
    7
    """

    unembed: Tensor  # bf16 [d_vocab, d_model]
    q: Tensor  # int8 [d_vocab, d_model up to a multiple of 64]: row r is about scale[r] q[r]
    scale: Tensor  # fp32 [d_vocab], as the next two; NaN for a row that is not finite
    residual: Tensor  # at least the norm of the difference between a row and its copy
    norm: Tensor  # at least the norm of a row
    finite: bool  # whether all weights are
    version: int  # of the unembedding when it was copied: torch counts changes in place

    @classmethod
    def of(cls, unembed: Tensor) -> "Screen":
        """The screen of a bf16 matrix [d_vocab, d_model] on the CPU, which may be a view of a mapped file.

        Raises ArgumentError for another dtype, device or layout, for rows of more than 32,768 numbers, for an inference
        tensor, and without the native kernels.
        """
        if unembed.dtype != torch.bfloat16 or unembed.ndim != 2 or unembed.device.type != "cpu":
            raise ArgumentError(
                f"unembed must be bf16 [d_vocab, d_model] on the CPU, got {unembed.dtype} {tuple(unembed.shape)} on "
                f"{unembed.device}."
            )
        d_vocab, d_model = unembed.shape
        if not d_vocab:
            raise ArgumentError("unembed has no rows; it needs one for each token.")
        if not 1 <= d_model <= MAX_ROW:
            raise ArgumentError(f"d_model must be between 1 and {MAX_ROW}, got {d_model}.")
        if d_model > 1 and unembed.stride(1) != 1:
            raise ArgumentError(
                f"the rows of unembed must be contiguous, got strides {unembed.stride()}; use `.contiguous()`."
            )
        if unembed.is_inference():
            raise ArgumentError(
                "unembed is an inference tensor, which does not count changes in place. Load or clone it outside "
                "`torch.inference_mode()`."
            )
        version, width = unembed._version, -(-d_model // PADDING) * PADDING
        q = large_pages.empty(d_vocab, width, dtype=torch.int8)
        scale, residual, norm = (torch.empty(d_vocab, dtype=torch.float32, device="cpu") for _ in range(3))
        native.library().wb_screen_copy(
            native.level(), torch.get_num_threads(), unembed.data_ptr(), unembed.stride(0), d_vocab, d_model, width,
            q.data_ptr(), scale.data_ptr(), residual.data_ptr(), norm.data_ptr(),
        )  # fmt: skip
        return cls(unembed, q, scale, residual, norm, bool(scale.isfinite().all()), version)

    def next_token(self, x: Tensor, temperature: float, seed: int, position: int) -> int | None:
        """The token id that `sampling.choose` returns for all logits; None if all of them have to be computed.

        That is the case if x or a weight is not finite, if more than an eighth of the tokens are candidates, if the
        temperature is too small to divide by, if the unembedding was changed, or if torch computes the products.

        Args:
            x: the last residual after the final norm, bf16 [d_model].
            temperature: 0 for the most likely token; finite.
            seed: of the sampling, any whole number.
            position: of the next token in the whole text.

        Returns:
            `choose(native.linear(x[None], unembed)[0], temperature, 1.0, seed, position)`, or None.

        Raises:
            ArgumentError: x has another shape, dtype or device.
        """
        d_vocab, d_model = self.unembed.shape
        if x.dtype != torch.bfloat16 or x.shape != (d_model,) or x.device.type != "cpu":
            raise ArgumentError(f"x must be bf16 [{d_model}] on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}.")
        if not (self.finite and self.is_current) or native.isa() is None:
            return None
        x = x.detach().contiguous()
        candidates = self.candidates(x, temperature, seed, position, d_vocab // CANDIDATE_SHARE)
        if candidates is None:
            return None
        logits = native.linear(x[None], self.unembed.detach()[candidates.token_ids])[0].double()
        if not logits.isfinite().all():
            return None
        values = logits / temperature + candidates.noise[candidates.token_ids] if temperature else logits
        return int(candidates.token_ids[values.argmax()])

    def candidates(self, x: Tensor, temperature: float, seed: int, position: int, limit: int) -> Candidates | None:
        """The tokens whose value (logit / temperature + noise) can be the largest, or equal to the largest.

        None if x is not finite, if there are more than `limit`, or if it is not certain that the largest logit divided
        by the temperature is finite.

        Args:
            x: bf16 [d_model], contiguous.
            temperature: as for `next_token`.
            seed: as for `next_token`.
            position: as for `next_token`.
            limit: the largest number of candidates.

        Returns:
            The candidates, with bounds of each logit.
        """
        d_vocab, d_model = self.unembed.shape
        lower, upper = (torch.empty(d_vocab, dtype=torch.bfloat16, device="cpu") for _ in range(2))
        noise = torch.empty(d_vocab if temperature else 0, dtype=torch.float64, device="cpu")
        token_ids = torch.empty(limit, dtype=torch.int64, device="cpu")
        count = native.library().wb_screen(
            native.level(), torch.get_num_threads(), self.q.data_ptr(), d_vocab, d_model, self.q.shape[1],
            self.scale.data_ptr(), self.residual.data_ptr(), self.norm.data_ptr(), x.data_ptr(), temperature,
            seed % WORD, position, lower.data_ptr(), upper.data_ptr(), noise.data_ptr(), token_ids.data_ptr(), limit,
        )  # fmt: skip
        if count == -1:
            raise MemoryError("no memory for the native kernels")
        return None if count < 0 or count > limit else Candidates(token_ids[:count], lower, upper, noise)

    @property
    def is_current(self) -> bool:
        """False after the unembedding was changed in place; `torch` does not count changes through `.data` or NumPy."""
        return self.unembed._version == self.version

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, without the unembedding."""
        return sum(part.nbytes for part in (self.q, self.scale, self.residual, self.norm))

    def __repr__(self) -> str:
        d_vocab, d_model = self.unembed.shape
        return f"Screen(d_vocab={d_vocab}, d_model={d_model}, nbytes={self.nbytes})"
