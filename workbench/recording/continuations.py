"""The tokens that a model generates after several prompts, together and without traces."""

from collections.abc import Sequence
from copy import copy

from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.recording import budget
from workbench.recording.batching import MAX_ROWS, Batch, Job
from workbench.recording.decoding import Decoding, Settings
from workbench.recording.many import bytes_for_rows
from workbench.recording.next_token import unrecorded_next_token
from workbench.recording.source import ModelSource
from workbench.taps import Tap


def continue_texts(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Settings],
    *,
    tap: Tap | None = None,
    desc: str = "generating",
) -> list[list[int]]:
    """The tokens generated after each prompt, under the active edits: those of `model.generate`.

    Args:
        model: the model.
        prompts: token ids of each prompt.
        settings: of each prompt.
        tap: edits values in each text as in a run alone, after the active edits. Each text has a copy of it.
        desc: the label of the progress bar.

    Raises:
        PromptError: for a prompt, before anything runs.
        NotFinite: the logits of a next token contain NaN, also at temperature 0.
    """
    for prompt, own in zip(prompts, settings, strict=True):
        model.check_prompt(prompt, own.max_tokens)
    source = ModelSource(model)
    jobs = [_job(source, number, *each, tap) for number, each in enumerate(zip(prompts, settings))]
    batch = Batch(jobs, MAX_ROWS, bytes_for_rows(source, [job.nbytes for job in jobs], MAX_ROWS))
    generated: list[list[int]] = [[] for _ in prompts]
    with progress_bar(total=len(jobs), desc=desc, unit=" texts") as bar, model.interruptible() as flag:
        while not batch.is_done:
            batch.advance(flag)
            row = batch.ended.popleft()
            if row.error is not None:
                raise row.error
            generated[row.job.number] = row.started.tokens[row.started.prompt_length :]
            bar.update()
    return generated


def _job(source: ModelSource, number: int, prompt: Sequence[int], settings: Settings, tap: Tap | None) -> Job:
    def start(tokens: Sequence[int]) -> Decoding:
        own = source.for_row()
        return Decoding(own, settings, tokens, unrecorded_next_token(own), [copy(tap)] if tap else [])

    nbytes = budget.row_memory(source.model.config, source.dtype, len(prompt) + settings.max_tokens)
    return Job(number, prompt, start, nbytes, "all" if source.in_chunks and tap is None else None)
