"""What happens to an object when it arrives, and after it is safe: callbacks, the outbox, and what is built in."""
