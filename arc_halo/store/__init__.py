"""SQL, one module a table family; the only place with SQL."""
