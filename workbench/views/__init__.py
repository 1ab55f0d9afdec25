"""Views: from a trace to what a reader sees. They know no model and no torch."""
