"""How Alembic runs pgsched's revisions: in one transaction, one migration at a time, with a version table of its own."""

from alembic import context

from pgsched.migrate import prologue

schema = context.config.attributes["schema"]
connection = context.config.attributes.get("connection")
ours = {"version_table": "alembic_version", "version_table_schema": schema, "transaction_per_migration": False}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", as_sql=True, output_buffer=context.config.output_buffer, **ours)
    with context.begin_transaction():
        for statement in prologue(schema):
            context.execute(statement)
        context.run_migrations()
else:
    for statement in prologue(schema):
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    context.configure(connection=connection, **ours)
    with context.begin_transaction():
        context.run_migrations()
