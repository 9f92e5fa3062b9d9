"""Renditions: files derived from finished images for one channel, with its size, format, bytes and name."""
