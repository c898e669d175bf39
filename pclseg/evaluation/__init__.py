"""Metrics, inference over volumes and per-case rows."""
