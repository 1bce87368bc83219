"""asyncio around the protocol core: sockets, back-pressure, operations as tasks."""
