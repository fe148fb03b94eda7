"""Vectors or terms in, hits out: one layer over FAISS, torch, bm25s and Lucene."""
