"""Edits: functions that replace values while a model runs, and the stack of active edits."""
