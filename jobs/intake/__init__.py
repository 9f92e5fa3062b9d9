"""Intake: files of rows, as people have them, become checked specs, alike for the CLI, REST and the board."""
