"""The bundled PostgreSQL as programs and files; `arc_halo.embedded` gives it a life."""
