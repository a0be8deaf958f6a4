"""What a search leaves behind: the study in its database, and its files."""
