"""The composition root: settings become components, components become a running server."""
