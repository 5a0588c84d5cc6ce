"""The search for settings: it samples no clip before its end."""
