"""Threat detection reports that are made here: from what was found in an image to a TDR."""
