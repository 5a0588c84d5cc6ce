"""Reports: tables, pages, plots."""
