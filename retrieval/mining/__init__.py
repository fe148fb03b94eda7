"""Which documents are negatives."""
