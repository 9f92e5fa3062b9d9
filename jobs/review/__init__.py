"""Review of finished images: thumbnails, the quality gate, and re-rolls."""
