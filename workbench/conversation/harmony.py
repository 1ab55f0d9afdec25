"""A Chat as gpt-oss saw it in training: token ids by openai-harmony, the source of truth. Knows no templates."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding

    from workbench.conversation.chat import Chat, Message


def render(chat: "Chat", encoding: "HarmonyEncoding") -> list[int]:
    """The ids of the whole chat, up to `<|start|>assistant`; thoughts before a final answer are left out."""
    from openai_harmony import Conversation, Role

    conversation = Conversation.from_messages([_system(chat), *_developer(chat), *_messages(chat)])
    return encoding.render_conversation_for_completion(conversation, Role.ASSISTANT)


def _system(chat: "Chat"):
    from openai_harmony import Message, ReasoningEffort, Role, SystemContent

    content = SystemContent.new().with_reasoning_effort(ReasoningEffort(chat.reasoning.capitalize()))
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


def _developer(chat: "Chat") -> list:
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
    return None if parameters is None else json.loads(parameters)


def _messages(chat: "Chat") -> list:
    return [rendered for message in chat.messages for rendered in _both(message)]


def _both(message: "Message") -> list:
    """A message, and before it what was thought."""
    from openai_harmony import Author, Role, TextContent
    from openai_harmony import Message as Harmony

    author = Author(role=Role(message.role), name=message.name)
    said = Harmony(
        author=author,
        content=[TextContent(text=message.content)],
        channel=message.channel,
        recipient=message.recipient,
        # JSON is constrained sampling in harmony's eyes; other types are only named
        content_type="<|constrain|> json" if message.content_type == "json" else message.content_type,
    )
    if message.thinking is None:
        return [said]
    return [Harmony.from_role_and_content(Role.ASSISTANT, message.thinking).with_channel("analysis"), said]
