"""The test bed: real Postgres servers, thrown away at the end."""
