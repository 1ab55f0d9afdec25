"""The schema number of the manifest, and which version of workbench reads another one."""

from workbench.errors import TraceVersion

SCHEMA = 3
_OLD = "a development version from before 0.1.0 (the last is commit {})"
OLDER_SCHEMAS = {schema: _OLD.format(commit) for schema, commit in ((1, "e287424"), (2, "e944f1b"))}  # what reads each


def version_error(schema: int) -> TraceVersion:
    """The error for a trace with another schema: it names the version that reads it."""
    version = OLDER_SCHEMAS.get(schema, "no released version")
    hint = f"{version} reads it; or record it again" if schema < SCHEMA else "update gpt-oss-workbench"
    return TraceVersion(f"this trace has schema {schema}; this version of workbench reads schema {SCHEMA}: {hint}.")
