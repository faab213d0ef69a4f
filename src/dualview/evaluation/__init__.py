"""Judging attributions: plain functions of scores and truth, and protocols that retrain."""
