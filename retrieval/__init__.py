"""Encode, search, rerank and train."""
