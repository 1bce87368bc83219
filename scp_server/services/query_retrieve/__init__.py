"""Query/Retrieve (PS3.4 Annex C): what workstations ask for, and get."""
