"""Collections, runs, measures, significance and reports."""
