"""The public test kit: object factories, scripted peers, and contract suites for backends."""
