"""Renders chats to token ids and parses token ids into messages, in the harmony format of gpt-oss."""
