"""What the rules of the settings do: subscribers of the outbox that need no code of the user's."""
