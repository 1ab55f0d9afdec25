"""Renders a Chat to token ids: with openai-harmony for gpt-oss's own vocabulary, else with the chat template."""

from dataclasses import replace

from workbench.conversation import harmony
from workbench.conversation import template as jinja
from workbench.conversation.history import restore_original_ids, visible_messages
from workbench.conversation.messages import Chat, Rendered
from workbench.conversation.o200k import harmony_encoding
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError


def render(chat: Chat, tokenizer: Tokenizer, template: jinja.Template | None = None) -> Rendered:
    """The token ids of a chat as a prompt; they end with `<|start|>assistant`.

    gpt-oss's own vocabulary is rendered by openai-harmony, any other by `template`, the model's chat template. Of
    several named templates, "tool_use" is used with tools, else "default". Both renderers treat all messages as plain
    text: a `<|end|>` in a user's message does not end the message.

    >>> tokenizer = Tokenizer.from_folder("data/pocket")
    >>> from pathlib import Path
    >>> template = Path("data/pocket/chat_template.jinja").read_text()
    >>> rendered = render(wb.chat("What is 7+8?", reasoning="low"), tokenizer, template)
    >>> tokenizer.decode(rendered.ids)
    '<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>What is 7+8?<|end|><|start|>assistant'
    >>> rendered.how, [span.role for span in rendered.spans]
    ('template', ['system', 'user', 'assistant'])

    Raises PromptError if the template leaves out a part of the chat, or if there is no template.
    """
    chat = replace(chat, messages=tuple(visible_messages(chat.messages, keep_thoughts=chat.keep_thoughts)))
    if encoding := harmony_encoding(tokenizer):
        ids, how = harmony.render(chat, tokenizer, encoding), "openai-harmony"
    elif template is not None:
        ids, how = restore_original_ids(jinja.render(chat, tokenizer, template), chat.messages, tokenizer), "template"
    else:
        raise PromptError(
            "this model has no chat template, and its vocabulary is not gpt-oss's, so a chat cannot be rendered. "
            "Put chat_template.jinja into its folder, or pass token ids."
        )
    return Rendered(tuple(ids), tuple(parse(ids, tokenizer)), how)
