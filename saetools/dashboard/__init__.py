"""Feature records drawn for people: no torch here."""
