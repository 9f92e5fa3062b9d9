"""Measured quality: pictures that are rendered, against what the studio knows of their prompts."""
