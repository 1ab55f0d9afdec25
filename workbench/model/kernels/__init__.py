"""The arithmetic that takes the time. Plain torch here says what is meant; nothing in this room imports ours."""
