"""Feature records drawn for people, three ways: a file that can be mailed, a notebook, a live app. No torch here."""
