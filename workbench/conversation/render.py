"""A Chat as token ids: by openai-harmony for gpt-oss's own vocabulary, otherwise by the model's chat template."""

from dataclasses import replace

from workbench.conversation import harmony
from workbench.conversation import template as jinja
from workbench.conversation.history import put_back, shown
from workbench.conversation.messages import Chat, Rendered
from workbench.conversation.o200k import harmony_encoding
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError


def render(chat: Chat, tokenizer: Tokenizer, template: jinja.Template | None = None) -> Rendered:
    """The ids that ask for the assistant's answer; they end with `<|start|>assistant`.

    For gpt-oss's own vocabulary openai-harmony writes them, otherwise `template`, the model's chat template (of
    several by name "tool_use" where there are tools, else "default").
    Both treat what was said as plain text: a user who writes `<|end|>` ends nothing.

    >>> tokenizer = Tokenizer.from_folder("data/pocket")
    >>> from pathlib import Path
    >>> template = Path("data/pocket/chat_template.jinja").read_text()
    >>> rendered = render(wb.chat("What is 7+8?", reasoning="low"), tokenizer, template)
    >>> tokenizer.decode(rendered.ids)
    '<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>What is 7+8?<|end|><|start|>assistant'
    >>> rendered.how, [span.role for span in rendered.spans]
    ('template', ['system', 'user', 'assistant'])

    Raises PromptError if the template has no place for something that was said, or if there is no template.
    """
    chat = replace(chat, messages=tuple(shown(chat.messages, keep_thoughts=chat.keep_thoughts)))
    if encoding := harmony_encoding(tokenizer):
        ids, how = harmony.render(chat, tokenizer, encoding), "openai-harmony"
    elif template is not None:
        ids, how = put_back(jinja.render(chat, tokenizer, template), chat.messages, tokenizer), "template"
    else:
        raise PromptError(
            "this model has no chat template, and its vocabulary is not gpt-oss's, so a chat cannot be rendered. "
            "Put chat_template.jinja into its folder, or give token ids."
        )
    return Rendered(tuple(ids), tuple(parse(ids, tokenizer)), how)
