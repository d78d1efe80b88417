"""Reports: runs gathered, compared and shown as a page, figures, tables or text."""
