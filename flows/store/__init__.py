"""PostgreSQL: the truth about workflows, clients and executions."""
