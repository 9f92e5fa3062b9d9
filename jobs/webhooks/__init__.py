"""Webhooks: messages about jobs that have ended, to the programs and chat channels that asked for them."""
