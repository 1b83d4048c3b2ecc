"""Downloading lists of image URLs into a manifest with embedded bytes.

rows → fetch → decode, re-encode → log of a shard → shard → manifest
"""
