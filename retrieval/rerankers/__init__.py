"""Query and candidates to an order."""
