"""The search of settings that sample no clip until its end."""
