"""Pieces of methods: what several share, and terms and views that one is made of."""
