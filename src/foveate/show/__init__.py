"""What people look at: maps, drawings, charts and the report."""
