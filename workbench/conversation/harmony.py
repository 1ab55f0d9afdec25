"""Renders a Chat with openai-harmony, the reference for the format that gpt-oss was trained on.

Independent of chat templates.
"""

from typing import TYPE_CHECKING, Any

from workbench.conversation.history import original_ids
from workbench.conversation.messages import Chat, Message
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError, WorkbenchError
from workbench.text import visible
from workbench.untrusted import parse_json

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding


def render(chat: Chat, tokenizer: Tokenizer, encoding: "HarmonyEncoding") -> list[int]:
    """The ids of the chat, up to `<|start|>assistant`; a message from an earlier trace keeps its original ids.

    Raises PromptError for what openai-harmony cannot render, such as a number of 400 digits in a tool's parameters.
    """
    try:
        return _rendered(chat, tokenizer, encoding)
    except (WorkbenchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust is not even an Exception
        raise PromptError(
            f"openai-harmony cannot render this chat: {visible(str(error))[:200]}. Look at the parameters of its tools."
        ) from None


def _rendered(chat: Chat, tokenizer: Tokenizer, encoding: "HarmonyEncoding") -> list[int]:
    from openai_harmony import Conversation, RenderConversationConfig

    keep = RenderConversationConfig(auto_drop_analysis=False)  # `visible_messages` has already dropped old analysis
    beginning = Conversation.from_messages([_system(chat), *_developer(chat)])
    ids = tokenizer.reencoded(encoding.render_conversation(beginning, keep))
    for number, message in enumerate(chat.messages):
        last = number + 1 == len(chat.messages) or chat.messages[number + 1].ids is None
        ids += original_ids(message, tokenizer, last=last) or tokenizer.reencoded(encoding.render(_message(message)))
    return [*ids, tokenizer.special["<|start|>"], *tokenizer.encode("assistant")]


def _system(chat: Chat):
    from openai_harmony import Message, ReasoningEffort, Role, SystemContent

    content = SystemContent.new().with_reasoning_effort(ReasoningEffort((chat.reasoning or "medium").capitalize()))
    if chat.system is not None:
        content = content.with_model_identity(chat.system)
    if chat.date is not None:
        content = content.with_conversation_start_date(chat.date)
    builtin = [tool.name for tool in chat.tools if tool.builtin]
    if "browser" in builtin:
        content = content.with_browser_tool()
    if "python" in builtin:
        content = content.with_python_tool()
    return Message.from_role_and_content(Role.SYSTEM, content)


def _developer(chat: Chat) -> list:
    from openai_harmony import DeveloperContent, Message, Role, ToolDescription

    functions = [tool for tool in chat.tools if not tool.builtin]
    if chat.developer is None and not functions:
        return []
    content = DeveloperContent.new()
    if chat.developer is not None:
        content = content.with_instructions(chat.developer)
    if functions:
        content = content.with_function_tools(
            [ToolDescription.new(t.name, t.description, _schema(t.parameters)) for t in functions]
        )
    return [Message.from_role_and_content(Role.DEVELOPER, content)]


def _schema(parameters: str | None) -> dict[str, Any] | None:
    return None if parameters is None else parse_json(parameters, "a tool", PromptError)


def _message(message: Message):
    from openai_harmony import Author, Role, TextContent
    from openai_harmony import Message as Harmony

    return Harmony(
        author=Author(role=Role(message.role), name=message.name),
        content=[TextContent(text=message.content)],
        channel=message.channel,
        recipient=message.recipient,
        content_type=message.content_type,
    )
