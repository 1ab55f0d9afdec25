"""Analyses: functions that turn recorded Traces into labeled arrays. They do not run a model."""
