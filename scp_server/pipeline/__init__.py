"""What happens to an object when it arrives, and after it is safe: callbacks, outbox, built-in rules."""
