"""Read back what runs leave: records, rows, groups, outcomes. Nothing here imports torch."""
