"""New images: a stored head and the backbone its features came from, put together again."""
