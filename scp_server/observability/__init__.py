"""Logs (and later metrics, audit and tracing)."""
