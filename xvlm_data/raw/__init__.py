"""Bounded-memory readers of raw containers. They know files, not datasets."""
