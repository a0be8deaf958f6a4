"""What happens to trials, decided in one place; nothing here knows Ray."""
